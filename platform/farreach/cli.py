"""The command line: `farreach train | resume | evaluate | check | list | plot | curves | …`.

Exit codes: 0 done, 1 failed, 2 wrong configuration or usage, 75 stopped by SIGTERM with a
checkpoint, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from farreach import __version__, cli_bench, cli_data, cli_list
from farreach.console import flush, say, warn
from farreach.errors import FarreachError
from farreach.registry import near_match

if TYPE_CHECKING:
    pass

# Imports of torch and of everything that needs it wait until a command does.

CTRL_C_EXIT_CODE = 130
FORMATS = ("rllib", "timm", "safetensors", "onnx")
DATA = "data"
DEFAULT_CURVE = "evaluation/success_final"

EPILOG = """\
examples:
  farreach train goals/walk_maze            train, into runs/walk_maze-<date>-<time>-<id>
  farreach resume latest                    continue the newest run after a stop or a crash
  farreach evaluate latest --json           evaluate its best checkpoint
  farreach list configs                     what can be trained
  farreach data generate data/maze_random    record a data set, into data/maze_random

`farreach COMMAND --help` says more."""

Handler = Callable[[argparse.Namespace], None]


class UsageError(FarreachError):
    """The command line asks for something that does not exist."""

    exit_code = 2


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code.

    Args:
        argv: arguments without the program's name, by default those of the process.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        options = _parsed(arguments or ["--help"])
        handler: Handler = options.handler
        handler(options)
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
    except Exception as error:
        from farreach.stopping import Stopped

        if isinstance(error, Stopped):
            return error.exit_code
        raise
    return 0


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser, commands = _parsers()
    if arguments[0].startswith("-"):
        return parser.parse_args(arguments)
    # The commands about data sets have two words.
    words = 2 if arguments[0] == DATA else 1
    name = " ".join(arguments[:words])
    if name == DATA or name.startswith(f"{DATA} -"):
        return parser.parse_args([DATA, "--help"])
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
    for name, handler, about, examples, arguments in _COMMANDS:
        first, _, second = name.rpartition(" ")
        if first not in groups:
            about_data = "record, import, check and show data sets"
            inner = group.add_parser(first, help=about_data, description=f"{about_data}.")
            groups[first] = inner.add_subparsers(title="commands", metavar="COMMAND", required=True)
        command = groups[first].add_parser(
            second,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(handler=handler)
        arguments(command)
        commands[name] = command
    return parser, commands


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="override a setting, such as seed=3"
    )


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file or a name: see list configs")
    _add_overrides(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or 'latest' under runs/")


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="exactly this directory, new or empty"
    )
    parser.add_argument(
        "--root", type=Path, default=Path("runs"), help="where runs live (default: runs)"
    )


def _resume_arguments(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    _add_overrides(parser)


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "what", nargs="?", metavar="WHAT", help="another evaluation: see list evaluations CONFIG"
    )
    _add_overrides(parser)
    parser.add_argument("--checkpoint", choices=("best", "newest"), default="best")
    parser.add_argument(
        "--episodes", type=_positive, metavar="N", help="how many (default: what the config says)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, like result.json, and no more"
    )


def _plot_arguments(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("figure", nargs="?", metavar="FIGURE", help="this one alone")
    parser.add_argument(
        "--images", type=Path, metavar="PATH", help="an image or a folder of them to look at"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for what is seen in them")


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        metavar="WHAT",
        default="configs",
        help=", ".join([*cli_list.LISTS, *cli_list.OF_CONFIGS]),
    )
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="whose settings or evaluations to list"
    )


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--format", choices=FORMATS, required=True, help="for what software")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")


def _curves_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--metric", default=DEFAULT_CURVE, help=f"default: {DEFAULT_CURVE}")
    parser.add_argument("--x", choices=("step", "minutes"), default="step")
    parser.add_argument(
        "--out", type=Path, default=Path("curves.png"), help="file to draw (default: curves.png)"
    )


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    cli_data.generate_arguments(parser)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"should be a whole number above 0 (got {text!r})")
    return int(text)


def _train(options: argparse.Namespace) -> None:
    from farreach import launch

    launch.train(options.config, options.overrides, options.run_dir, options.root)


def _resume(options: argparse.Namespace) -> None:
    from farreach import launch

    launch.resume(options.run, options.overrides)


def _evaluate(options: argparse.Namespace) -> None:
    from farreach import launch

    if options.what is not None and "=" in options.what:
        raise UsageError(f"{options.what!r}: name an evaluation before its settings.")

    # Whatever is printed on the way goes to stderr: with --json, stdout is for programs.
    with contextlib.redirect_stdout(sys.stderr):
        result = launch.evaluate(
            options.run, options.checkpoint, options.episodes, options.what, options.overrides
        )
    if options.json:
        say(json.dumps(result, indent=2, allow_nan=False))
        return
    metrics = {name: value for name, value in result.items() if "/" in name}
    cli_list.say_table(
        (name, "nan" if value is None else f"{value:.6g}") for name, value in metrics.items()
    )


def _check(options: argparse.Namespace) -> None:
    from farreach import launch

    for note in launch.check(options.config, options.overrides):
        say(f"note: {note}")
    say(f"{options.config} is fine")


def _plot(options: argparse.Namespace) -> None:
    from farreach import launch

    if (options.images is None) != (options.out is None):
        raise UsageError("--images and --out belong together.")
    if options.images is not None:
        files = launch.plot_images(options.run, options.images, options.out)
    else:
        files = launch.plot(options.run, options.figure)
    for path in files:
        say(str(path))


def _curves(options: argparse.Namespace) -> None:
    from farreach import curves

    for band in curves.draw(options.runs, options.metric, options.x, options.out):
        end = f"{band.mean[-1]:.3f} ± {band.high[-1] - band.mean[-1]:.3f}"
        say(f"{band.name}: {end} at the end, {band.seeds} runs")
    say(str(options.out))


def _export(options: argparse.Namespace) -> None:
    from farreach import launch

    # Importing other software prints what it likes: stdout gets the folder alone.
    with contextlib.redirect_stdout(sys.stderr):
        folder = launch.export(options.run, options.out, options.format)
    say(str(folder))


def _list(options: argparse.Namespace) -> None:
    known = [*cli_list.LISTS, *cli_list.OF_CONFIGS]
    if options.what not in known:
        raise UsageError(f"cannot list {options.what!r}. {near_match(options.what, known)}")
    if options.what not in cli_list.OF_CONFIGS:
        if options.config is not None:
            raise UsageError(f"`farreach list {options.what}` takes no CONFIG.")
        cli_list.say_table(cli_list.LISTS[options.what]())
    elif options.config is None:
        example = f"`farreach list {options.what} vision/msn_clipart`"
        raise UsageError(f"name a CONFIG, such as {example}.")
    else:
        cli_list.OF_CONFIGS[options.what](options.config)


_Command = tuple[str, Handler, str, str, Callable[[argparse.ArgumentParser], None]]

_COMMANDS: tuple[_Command, ...] = (
    (
        "train",
        _train,
        "train a configuration in a new run directory",
        "  farreach train goals/walk_maze\n"
        "  farreach train goals/walk_maze seed=3 --run-dir runs/third\n"
        "  farreach train my_config.yaml name=trial",
        _train_arguments,
    ),
    (
        "resume",
        _resume,
        "continue a run from its newest checkpoint",
        "  farreach resume latest\n"
        "  farreach resume runs/walk_maze-20250101-120000-1a2b evaluation.episodes=50",
        _resume_arguments,
    ),
    (
        "evaluate",
        _evaluate,
        "evaluate a checkpoint of a run",
        "  farreach evaluate latest\n"
        "  farreach evaluate latest lowshot per_class=[1,2,5]\n"
        "  farreach evaluate latest --checkpoint newest --episodes 200 --json > metrics.json",
        _evaluate_arguments,
    ),
    (
        "check",
        _check,
        "check a configuration without training it",
        "  farreach check goals/walk_maze\n  farreach check my_config.yaml environment.num_envs=64",
        _add_config,
    ),
    (
        "list",
        _list,
        "list what there is to choose from",
        "  farreach list\n  farreach list environments\n  farreach list settings goals/walk_maze",
        _list_arguments,
    ),
    (
        "plot",
        _plot,
        "draw the figures of a run",
        "  farreach plot latest\n"
        "  farreach plot latest attention\n"
        "  farreach plot latest --images my_photos --out looked_at",
        _plot_arguments,
    ),
    (
        "curves",
        _curves,
        "draw the learning curves of several runs, with bands over seeds",
        "  farreach curves runs/walk_maze-* --out walk.png\n"
        "  farreach curves runs/* --metric evaluation/success_any --x minutes --out all.pdf",
        _curves_arguments,
    ),
    (
        "export",
        _export,
        "write the model of a run for other software",
        "  farreach export latest --format rllib --out policy\n"
        "  farreach export latest --format timm --out encoder\n"
        "  farreach export latest --format onnx --out encoder_onnx",
        _export_arguments,
    ),
    (
        "bench",
        cli_bench.bench,
        "time backbones on this machine, beside timm's of the same weights",
        "  farreach bench backbone=xcit_tiny_12_p8\n"
        "  farreach bench backbone='resmlp_*' size=224 batch=16 train=false\n"
        "  farreach bench backbone=ours gpu=true precision=bfloat16 --out speed_accuracy.png\n"
        "settings: backbone, size, batch, rounds, train, precision, compiled, gpu, threads",
        cli_bench.arguments,
    ),
    (
        "data generate",
        cli_data.generate,
        "record a data set, or the rest of one",
        "  farreach data generate data/maze_random\n"
        "  farreach data generate data/maze_random episodes=200 --out data/small",
        _generate_arguments,
    ),
    (
        "data import",
        cli_data.import_,
        "copy episodes of another layout into a data set",
        "  farreach data import exorl/walker/proto/buffer data/walker_proto --environment walker",
        cli_data.import_arguments,
    ),
    (
        "data images",
        cli_data.images,
        "write a Ray Dataset of labelled images where trainings find it",
        "  farreach data images my_module:my_dataset data/mine\n"
        "  farreach train vision/classify_clipart data.path=data/mine",
        cli_data.images_arguments,
    ),
    (
        "data check",
        cli_data.check,
        "look at every recorded episode, or image, and name what is wrong",
        "  farreach data check data/maze_random\n"
        "  farreach data check pointmaze-medium-navigate-v0.npz\n"
        "  farreach data check my_photos",
        cli_data.check_arguments,
    ),
    (
        "data show",
        cli_data.show,
        "say what a data set holds",
        "  farreach data show data/maze_random",
        cli_data.show_arguments,
    ),
)
