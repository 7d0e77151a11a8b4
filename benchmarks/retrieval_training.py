"""What Ray adds to the training of a text encoder, and what actors take off its learner.

Trainings of `retrieval/debian_mini` (MoCo, a transformer of 4 layers of 256) on the extract that is
shipped, one after the other and by turns, one thread for each process. Rates are medians over what
the runs report, without the first seconds.

- `ray_train`: pairs per second with one worker of Ray Train; the peer is the same without Ray.
- `keys_ahead`: pairs per second with one worker and an actor that encodes the keys of later updates
  (contrast.ahead=16); the peer is one worker that encodes them itself. It wants two cores.

`python benchmarks/retrieval_training.py [ROW …]` prints one JSON line per row.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import measure

from farreach.metrics import read_metrics

RATE = "throughput/samples_per_s"
SETTINGS = (
    *("training.batch=64", "training.epochs=1000", "training.epoch_updates=1000"),
    *("training.lr=1.0e-4", "probe.documents=100", "probe.queries=10", "contrast.queue=4096"),
)
# Reports that are left out, of one every two seconds.
WARM = 5
# Row → settings of ours and of the peer.
ROWS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "ray_train": (["runtime.workers=1"], ["runtime.workers=0"]),
    "keys_ahead": (
        ["runtime.workers=1", "runtime.key_encoders=1", "contrast.ahead=16"],
        ["runtime.workers=1"],
    ),
}


def main() -> None:
    """Print the rows that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0.6, help="of each training")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.rows or ROWS:
            _row(name, Path(folder), options.rounds, options.minutes)


def _row(name: str, folder: Path, rounds: int, minutes: float) -> None:
    rates: tuple[list[float], list[float]] = [], []
    for number in range(rounds):
        for side, (settings, found) in enumerate(zip(ROWS[name], rates, strict=True)):
            run = folder / f"{name}-{number}-{side}"
            found.append(
                _rate(run, folder / "cache", [*settings, f"training.max_minutes={minutes}"])
            )
    ours, peer = (statistics.median(found) for found in rates)
    spread = [[round(rate, 1) for rate in found] for found in rates]
    measure.row(name, ours, peer, "pairs/s", ours / peer, all_ours=spread[0], all_peer=spread[1])


def _rate(run: Path, cache: Path, settings: Sequence[str]) -> float:
    """Pairs per second of a training."""
    command = [sys.executable, "-m", "farreach", "train", "retrieval/debian_mini"]
    words = [*SETTINGS, *settings, f"data.cache={cache}"]
    subprocess.run(
        [*command, *words, "--run-dir", str(run)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    lines = [line[RATE] for line in read_metrics(run / "metrics.jsonl") if RATE in line]
    return statistics.median(lines[WARM:])


if __name__ == "__main__":
    main()
