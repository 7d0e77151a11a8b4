"""Does retrieval take more memory when there is ten times as much text?

`python benchmarks/long/retrieval_memory.py [ROW …]` prints one JSON line per row: the greatest
private memory of the process (what it shares through mapped files is the system's to take back)
with 50 million tokens over that with 5 million: the shipped extract again and again. In
`memory_bag` and `memory_moco` a bag of word pieces and a small transformer with a queue are trained
for 20 updates without Ray; `memory_tokens` turns the text into tokens, `memory_embed` into vectors.
All rows take a quarter of an hour.
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
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import measure
import processes

from farreach.data import text, wordpieces
from farreach.data.wordpieces import WordPieces
from farreach_workloads.retrieval.corpora import extract
from farreach_workloads.retrieval.encoder import Bag, EncoderConfig
from farreach_workloads.retrieval.hub import save_encoder

# Tokenises; arguments: the text, the store, and the vocabulary.
TOKENS = """
import sys
from pathlib import Path
from farreach.data import tokens
from farreach.data.wordpieces import WordPieces
source, out, words = map(Path, sys.argv[1:])
tokens.build(source, out, WordPieces.open(words))
"""
# How often the extract is there, which has a third of a million tokens.
LESS, MORE = 15, 150
SAMPLE_S = 0.02
PROGRAM = (sys.executable, "-m", "farreach")
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


def peak_bytes(command: Sequence[str]) -> int:
    """The greatest private memory of a program."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, processes.private_bytes(process.pid))
        time.sleep(SAMPLE_S)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: ended with {process.returncode}")
    return peak


def trained(row: str, source: Path, folder: Path) -> int:
    """Peak of a training; one before it makes the tokens, which is not measured."""
    config, *settings = TRAINED[row]
    words = vocabulary(folder)
    own = [*settings, *SETTINGS, f"data.path={source}", f"data.cache={folder}/cache"]
    command = [*PROGRAM, "train", config, *own, f"data.words={words}"]
    run = folder / f"{row}-{source.stem}"
    return [peak_bytes([*command, "--run-dir", f"{run}-{turn}"]) for turn in range(2)][1]


def tokenised(row: str, source: Path, folder: Path) -> int:
    """Peak of making the tokens."""
    out = folder / f"{row}-{source.stem}"
    return peak_bytes(
        [sys.executable, "-c", TOKENS, str(source), str(out), str(vocabulary(folder))]
    )


def embedded(row: str, source: Path, folder: Path) -> int:
    """Peak of making the vectors."""
    words, model = vocabulary(folder), folder / "model"
    if not model.exists():
        vocabulary_ = WordPieces.open(words)
        encoder = Bag(vocabulary_.size, EncoderConfig(kind="bag", width=64))
        save_encoder(encoder, vocabulary_, model)
    out = folder / f"{row}-{source.stem}"
    return peak_bytes([*PROGRAM, "embed", str(model), str(source), str(out)])


def vocabulary(folder: Path) -> Path:
    """A folder with word pieces."""
    words = folder / "words"
    if not words.exists():
        texts = (one.whole for one in text.documents(folder / f"{LESS}.jsonl"))
        wordpieces.trained(texts, 8000).save(words)
    return words


ROWS: dict[str, Callable[[str, Path, Path], int]] = {
    "memory_bag": trained,
    "memory_moco": trained,
    "memory_tokens": tokenised,
    "memory_embed": embedded,
}


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="default: all")
    wanted = parser.parse_args().rows or list(ROWS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [write(folder / f"{times}.jsonl", times) for times in (LESS, MORE)]
        for row in wanted:
            less, more = (ROWS[row](row, source, folder) for source in texts)
            measure.row(row, more / 1e6, less / 1e6, "MB, less is better", more / less)


if __name__ == "__main__":
    main()
