"""The command line's part about runs: `farreach train | resume | evaluate | check | plot | …`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

from farreach.cli import lists
from farreach.cli.arguments import UsageError, add_config, add_overrides, add_run, place, positive
from farreach.console import say
from farreach.imports import imported
from farreach.registry import near_match
from farreach.stopping import ended_by_sigterm

# Imports of torch and of everything that needs it wait until a command does.

FORMATS = ("rllib", "timm", "safetensors", "onnx", "hub")
ENCODERS_MODULE = "farreach_workloads.retrieval.evaluation.encoders"
DEFAULT_CURVE = "evaluation/success_final"


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `train`."""
    add_config(parser)
    parser.add_argument(
        "--run-dir", type=place, metavar="DIR", help="exactly this directory or URI, new or empty"
    )
    parser.add_argument(
        "--continue",
        dest="go_on",
        action="store_true",
        help="resume the run that is in --run-dir, if there is one; leave it alone if it is done",
    )
    parser.add_argument(
        "--root", type=place, default=Path("runs"), help="where runs live (default: runs)"
    )


def resume_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `resume`."""
    add_run(parser)
    add_overrides(parser)


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `evaluate`."""
    add_run(parser)
    parser.add_argument(
        "what", nargs="?", metavar="WHAT", help="another evaluation: see list evaluations CONFIG"
    )
    add_overrides(parser)
    parser.add_argument("--checkpoint", choices=("best", "newest"), default="best")
    parser.add_argument(
        "--episodes", type=positive, metavar="N", help="how many (default: what the config says)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, like result.json, and no more"
    )


def plot_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `plot`."""
    add_run(parser)
    parser.add_argument("figure", nargs="?", metavar="FIGURE", help="this one alone")
    parser.add_argument(
        "--images", type=Path, metavar="PATH", help="an image or a folder of them to look at"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for what is seen in them")


def list_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `list`."""
    parser.add_argument(
        "what",
        nargs="?",
        metavar="WHAT",
        default="configs",
        help=", ".join([*lists.LISTS, *lists.OF_CONFIGS]),
    )
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG", help="whose settings or evaluations to list"
    )


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `export`."""
    add_run(parser)
    parser.add_argument("--format", choices=FORMATS, required=True, help="for what software")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")


def curves_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `curves`."""
    parser.add_argument("runs", nargs="+", type=place, metavar="RUN", help="run directories")
    parser.add_argument("--metric", default=DEFAULT_CURVE, help=f"default: {DEFAULT_CURVE}")
    parser.add_argument("--x", choices=("step", "minutes"), default="step")
    parser.add_argument(
        "--out", type=Path, default=Path("curves.png"), help="file to draw (default: curves.png)"
    )
    parser.add_argument(
        "--smooth",
        type=positive,
        default=1,
        metavar="N",
        help="average each point with the N - 1 before it",
    )
    parser.add_argument(
        "--bars",
        type=positive,
        metavar="N",
        help="bars in place of curves: the mean of the last N points, of the metric and of each "
        "METRIC_CATEGORY, such as the rooms of a maze",
    )


def train(options: argparse.Namespace) -> None:
    """Train from the beginning, or with --continue from where a run was left."""
    from farreach import launch

    if options.go_on and options.run_dir is None:
        raise UsageError("--continue needs --run-dir: which run is it?")
    launch.train(
        options.config, options.overrides, options.run_dir, options.root, go_on=options.go_on
    )


def resume(options: argparse.Namespace) -> None:
    """Go on from the newest checkpoint."""
    from farreach import launch

    launch.resume(options.run, options.overrides)


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate a checkpoint, and say the metrics."""
    from farreach import afterwards

    if options.what is not None and "=" in options.what:
        raise UsageError(f"{options.what!r}: name an evaluation before its settings.")
    if options.what is not None and options.episodes is not None:
        raise UsageError(
            f"--episodes is for the evaluation that training makes; {options.what!r} has settings "
            "of its own, which `farreach list evaluations CONFIG` shows."
        )

    # Whatever is printed on the way goes to stderr: with --json, stdout is for programs.
    with contextlib.redirect_stdout(sys.stderr):
        if _is_encoder(options.run):
            module = imported(ENCODERS_MODULE)
            result = module.evaluate_encoder(Path(options.run), options.what, options.overrides)
        else:
            result = afterwards.evaluate(
                options.run, options.checkpoint, options.episodes, options.what, options.overrides
            )
    if options.json:
        say(json.dumps(result, indent=2, allow_nan=False))
        return
    metrics = {name: value for name, value in result.items() if "/" in name}
    lists.say_table(
        (name, "nan" if value is None else f"{value:.6g}") for name, value in metrics.items()
    )


def _is_encoder(path: str | Path) -> bool:
    """Whether it is a folder in the layout of Hugging Face, and no run."""
    from farreach.rundir import RunDirectory

    return (Path(path) / "config.json").is_file() and not RunDirectory.is_there(path)


def check(options: argparse.Namespace) -> None:
    """Check a configuration, and say the notes."""
    from farreach import launch

    for note in launch.check(options.config, options.overrides):
        say(f"note: {note}")
    say(f"{options.config} is fine")


def check_resume_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `check resume`."""
    add_config(parser)
    parser.add_argument("--kills", type=positive, default=1, metavar="N", help="default: 1")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="keep the runs in this new folder (default: a temporary one)",
    )


def check_resume(options: argparse.Namespace) -> None:
    """Kill, resume and compare."""
    from farreach import resume_check

    with contextlib.ExitStack() as stack:
        stack.enter_context(ended_by_sigterm())
        out = options.out
        if out is None:
            out = (
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farreach-"))) / "runs"
            )
        settings = {"kills": options.kills, "seed": options.seed}
        outcome = resume_check.check_resume(options.config, options.overrides, out, **settings)
        resume_check.tell(outcome)


def plot(options: argparse.Namespace) -> None:
    """Draw figures, and say their files."""
    from farreach import afterwards

    if (options.images is None) != (options.out is None):
        raise UsageError("--images and --out belong together.")
    if options.images is not None:
        files = afterwards.plot_images(options.run, options.images, options.out)
    else:
        files = afterwards.plot(options.run, options.figure)
    for path in files:
        say(str(path))


def curves(options: argparse.Namespace) -> None:
    """Draw learning curves, or bars of their ends, and say where they end."""
    from farreach.curves import draw, draw_ends

    if options.bars is not None:
        for one in draw_ends(options.runs, options.metric, options.bars, options.out):
            parts = (f"{key} {v:.3f} ± {one.spreads[key]:.3f}" for key, v in one.means.items())
            say(f"{one.name}: {', '.join(parts)}, {one.seeds} runs")
        say(str(options.out))
        return
    bands = draw(options.runs, options.metric, options.x, options.out, options.smooth)
    for band in bands:
        end = f"{band.mean[-1]:.3f} ± {band.high[-1] - band.mean[-1]:.3f}"
        say(f"{band.name}: {end} at the end, {band.seeds} runs")
    say(str(options.out))


def export(options: argparse.Namespace) -> None:
    """Write the model, and say its folder."""
    from farreach import afterwards

    # Importing other software prints what it likes: stdout gets the folder alone.
    with contextlib.redirect_stdout(sys.stderr):
        folder = afterwards.export(options.run, options.out, options.format)
    say(str(folder))


def list_(options: argparse.Namespace) -> None:
    """Say what there is to choose from."""
    known = [*lists.LISTS, *lists.OF_CONFIGS]
    if options.what not in known:
        raise UsageError(f"cannot list {options.what!r}. {near_match(options.what, known)}")
    if options.what not in lists.OF_CONFIGS:
        if options.config is not None:
            raise UsageError(f"`farreach list {options.what}` takes no CONFIG.")
        lists.say_table(lists.LISTS[options.what]())
    elif options.config is None:
        example = f"`farreach list {options.what} vision/msn_clipart`"
        raise UsageError(f"name a CONFIG, such as {example}.")
    else:
        lists.OF_CONFIGS[options.what](options.config)
