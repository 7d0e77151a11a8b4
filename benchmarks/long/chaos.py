"""Faults at random times, over and over: what survives, what is lost, how long it takes to recover.

    python benchmarks/long/chaos.py [--faults N] [--seed S] [--only NAME …]

Small runs (the maze with every part in an actor, pretraining of an encoder of text and of one of
images in two workers of Ray Train with an evaluator beside each, go-fresh with its evaluator beside
it, embedding in two actors) are hit by: SIGKILL of each role,
damaged checkpoints, a machine that is switched off, one that leaves after a notice, a driver and a
head that are killed, a full disk, a process that eats the memory, and a network that is cut (the
last needs root, for a namespace). Prints one JSON line per fault and a table. A run that was hit is
compared with undisturbed ones: where the order of samples is fixed the numbers must agree, else
they must lie within the spread of seeds.

A hundred faults take about an hour and a half on two cores.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from chaos_machines import MachineDrills
from chaos_processes import ProcessDrills

from farreach.testing.drills import table

SHARES = {
    "maze": 0.34, "text": 0.14, "images": 0.08, "offline": 0.06, "embed": 0.1, "driver": 0.06,
    "corrupt": 0.06, "node": 0.04, "drain": 0.04, "head": 0.03, "disk": 0.02, "memory": 0.02,
    "network": 0.01,
}  # fmt: skip
MIB = 2**20


class Suite(ProcessDrills, MachineDrills):
    """All drills."""


def main() -> None:
    """Hit everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=100, help="about how many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=[*SHARES, "noise"], default=[*SHARES, "noise"])
    parser.add_argument("--keep", type=Path, help="folder for the runs, instead of one that goes")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="chaos"))
    folder.mkdir(exist_ok=True)
    suite = Suite(folder, options.seed)
    try:
        for name in options.only:
            if name == "noise":
                suite.noise()
            else:
                getattr(suite, name)(max(1, round(options.faults * SHARES[name])))
    finally:
        print("\n".join(table(suite.found)))
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
