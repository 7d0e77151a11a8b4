"""Does training an encoder take more memory when there is ten times as much text?

`python benchmarks/long/retrieval_memory.py` trains a bag of word pieces and a small transformer
with a queue, 20 updates each without Ray, on 5 and on 50 million tokens: the shipped extract again
and again. One JSON line each, `memory_bag` and `memory_moco`: the greatest private memory of the
process (what it shares through mapped files is the system's to take back), with more text over that
with less. The larger text takes a minute or two to tokenise.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import measure
import processes

from farreach.data import text
from farreach_workloads.retrieval.corpora import extract

# How often the extract is there, which has a third of a million tokens.
LESS, MORE = 15, 150
SAMPLE_S = 0.02
TRAINED = {
    "memory_bag": ("retrieval/debian", "training.epochs=0.2"),
    "memory_moco": ("retrieval/debian_mini", "training.epochs=0.2", "training.batch=64"),
}
SETTINGS = ("probe.documents=500", "probe.queries=50", "training.evaluate_every_epochs=1000")


def write(file: Path, times: int) -> Path:
    """The extract so many times, each document with an id of its own."""
    source = extract.folder(file.parent / "extract")
    documents = [(one.title, one.text) for one in text.documents(source)]
    with file.open("w") as out:
        for turn in range(times):
            for number, (title, body) in enumerate(documents):
                line = {"_id": f"{turn}-{number}", "title": title, "text": body}
                out.write(json.dumps(line) + "\n")
    return file


def peak_bytes(command: list[str]) -> int:
    """The greatest private memory of a program."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, processes.private_bytes(process.pid))
        time.sleep(SAMPLE_S)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: ended with {process.returncode}")
    return peak


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*TRAINED, []], help="default: all")
    wanted = parser.parse_args().rows or list(TRAINED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [write(folder / f"{times}.jsonl", times) for times in (LESS, MORE)]
        program = [sys.executable, "-m", "farreach", "train"]
        for row in wanted:
            config, *settings = TRAINED[row]
            peaks = []
            for source in texts:
                run = folder / f"{row}-{source.stem}"
                own = [*settings, *SETTINGS, f"data.path={source}", f"data.cache={folder}/cache"]
                if vocabularies := sorted((folder / "cache").glob("words-*")):
                    own.append(f"data.words={vocabularies[0]}")
                command = [*program, config, *own]
                # Once before, so that tokenising is not measured.
                for suffix in ("before", "measured"):
                    peak = peak_bytes([*command, "--run-dir", f"{run}-{suffix}"])
                peaks.append(peak)
            megabytes = [peak / 1e6 for peak in peaks]
            measure.row(row, megabytes[1], megabytes[0], "MB, less is better", peaks[1] / peaks[0])


if __name__ == "__main__":
    main()
