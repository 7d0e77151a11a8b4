"""The command line's part about seeing what happens: `farreach doctor | status`."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from farreach.cli.arguments import positive
from farreach.console import say

# Imports of torch and of everything that needs it wait until a command does.


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `doctor`."""
    parser.add_argument(
        "--root", type=Path, default=Path("runs"), help="where runs live (default: runs)"
    )
    parser.add_argument("--json", action="store_true", help="print findings as one JSON list")


def doctor(options: argparse.Namespace) -> None:
    """Look at this machine, and say what is wrong; raises SystemExit(1) for a fault."""
    from farreach.doctor import checkup

    found = checkup.look(checkup.checks(options.root))
    if options.json:
        say(json.dumps(checkup.as_json(found), indent=2))
    else:
        for line in checkup.lines(found):
            say(line)
    if any(one.finding.level == "fault" for one in found):
        raise SystemExit(1)


def status_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `status`."""
    parser.add_argument(
        "what",
        nargs="?",
        default="latest",
        metavar="RUN|ADDRESS",
        help="a run directory or 'latest' (default), or a cluster: host:6379, http://host:8265",
    )
    parser.add_argument("--once", action="store_true", help="say it once instead of following")
    parser.add_argument("--json", action="store_true", help="print one JSON object, once")
    parser.add_argument(
        "--every", type=positive, default=2, metavar="S", help="seconds between looks (default: 2)"
    )


def status(options: argparse.Namespace) -> None:
    """Say what a run or a cluster is doing, until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    from farreach.disk import plain
    from farreach.status import show
    from farreach.status.source import source_of

    look = source_of(options.what)
    if options.json:
        say(json.dumps(plain(asdict(look())), indent=2, allow_nan=False))
        return
    console = Console()
    if options.once or not console.is_terminal:
        console.print(show.view(look()))
        return
    with Live(show.view(look()), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(options.every)
            live.update(show.view(look()), refresh=True)
