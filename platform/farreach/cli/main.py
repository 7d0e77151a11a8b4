"""The command line: `farreach train | resume | evaluate | embed | search | check | list | …`.

Exit codes: 0 done, 1 failed, 2 wrong configuration or usage, 75 stopped by SIGTERM with a
checkpoint, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import sys
from typing import Any

from farreach import __version__
from farreach.cli.arguments import UsageError
from farreach.cli.commands import COMMANDS, GROUPS
from farreach.console import flush, warn
from farreach.errors import FarreachError
from farreach.registry import near_match

# Imports of torch and of everything that needs it wait until a command does.

CTRL_C_EXIT_CODE = 130

EPILOG = """\
examples:
  farreach train goals/walk_maze              train, into runs/walk_maze-<date>-<time>-<id>
  farreach resume latest                      continue the newest run after a stop or a crash
  farreach evaluate latest --json             evaluate its best checkpoint
  farreach list configs                       what can be trained
  farreach data generate data/maze_random     record a data set, into data/maze_random
  farreach embed latest corpus.jsonl vectors  embed documents with what was trained
  farreach search index "mounting a disk"     search documents that were indexed

`farreach COMMAND --help` says more."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code.

    Args:
        argv: arguments without the program's name, by default those of the process.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        options = parsed(arguments or ["--help"])
        options.handler(options)
    except SystemExit as leave:  # argparse, after help or a usage error
        flush()
        return int(leave.code or 0)
    except FarreachError as error:
        warn(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return CTRL_C_EXIT_CODE
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package.startswith("farreach"):
            raise
        warn(
            f"error: the package {package!r} is not installed in {sys.executable}. Install "
            "farreach's dependencies there (`pip install .` in its folder), or use the Python that "
            "has them; a submitted job runs the `python` that the cluster's PATH finds first."
        )
        return 1
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "" if error.filename is None else f"{error.filename}: "
            warn(f"error: {what}{reason}. Free some space, or write to another disk.")
        elif error.filename is None:
            raise
        else:
            mend = "Correct the path, or who may read and write it."
            warn(f"error: {error.filename}: {reason}. {mend}")
        return 1
    except Exception as error:
        from farreach.stopping import Stopped

        if isinstance(error, Stopped):
            return error.exit_code
        raise
    return 0


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command of a command line, as `handler`, and its options.

    Raises UsageError for a command that does not exist, SystemExit as argparse does.
    """
    parser, commands = _parsers()
    if arguments[0].startswith("-"):
        return parser.parse_args(arguments)
    words = 2 if arguments[0] in GROUPS or " ".join(arguments[:2]) in commands else 1
    name = " ".join(arguments[:words])
    if arguments[0] in GROUPS and (len(arguments) == 1 or arguments[1].startswith("-")):
        return parser.parse_args([arguments[0], "--help"])
    if name not in commands:
        raise UsageError(f"unknown command {name!r}. {near_match(name, list(commands))}")
    # Options may stand between positional arguments: `train CONFIG --run-dir DIR key=value`.
    return commands[name].parse_intermixed_args(arguments[words:])


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="farreach",
        description="Train goal-reaching agents and representations on Ray.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"farreach {__version__}")
    group = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands: dict[str, argparse.ArgumentParser] = {}
    groups = {"": group}
    for name, handler, about, examples, arguments in COMMANDS:
        first, _, second = name.rpartition(" ")
        if first in GROUPS and first not in groups:
            inner = group.add_parser(first, help=GROUPS[first], description=f"{GROUPS[first]}.")
            groups[first] = inner.add_subparsers(title="commands", metavar="COMMAND", required=True)
        texts: dict[str, Any] = {
            "description": f"{about[0].upper()}{about[1:]}.",
            "epilog": f"examples:\n{examples}",
            "formatter_class": argparse.RawDescriptionHelpFormatter,
        }
        if first in commands:  # `check resume` stands beside `check`, whose help tells of it
            command = argparse.ArgumentParser(prog=f"farreach {name}", **texts)
        else:
            command = groups[first].add_parser(second, help=about, **texts)
        command.set_defaults(handler=handler)
        arguments(command)
        commands[name] = command
    return parser, commands
