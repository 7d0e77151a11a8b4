"""The command line's part about jobs of clusters: `farreach submit`."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farreach.cli.arguments import UsageError, add_config, amount
from farreach.console import say, warn
from farreach.errors import ClusterError

if TYPE_CHECKING:
    from farreach.cluster.jobs import Job, Order

# Imports of Ray and of everything that needs it wait until a command does.

EXAMPLES = """\
  farreach submit goals/walk_maze seed=1 --address http://127.0.0.1:8265 --root /shared
  farreach submit my_config.yaml --run-dir /shared/runs/mine
  farreach submit my_config.yaml --code image --env FARREACH_LOG=json --no-wait

The configuration is checked here and sent as it is; whatever else it names (data, other runs) is
looked for on the cluster. Ctrl-C stops the job after a last checkpoint; Ctrl-C again leaves at
once, and the job stops by itself. It goes on when this command is killed or loses the network. The
exit code is that of the training: 0 done, 1 failed, 2 wrong configuration, 75 stopped (submit it
with the same --run-dir to continue); 130 left by Ctrl-C.
A cluster with token authentication wants RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH here too."""


def submit_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `submit`."""
    add_config(parser)
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's dashboard (default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)",
    )
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        help="exactly this directory or URI, as the cluster sees it; a run that is there goes on",
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        default="~/farreach",
        help="storage that all machines of the cluster share, for runs/<job>-<date>-<time> "
        "(default: ~/farreach, which is the head's own disk)",
    )
    parser.add_argument(
        "--working-dir",
        type=Path,
        metavar="DIR",
        help="send this folder, whose modules can be imported (default: the clone, if any)",
    )
    parser.add_argument(
        "--code",
        choices=("send", "image"),
        default="send",
        help="farreach itself: send it (default), or use what the cluster's image has installed",
    )
    parser.add_argument(
        "--driver-cpus",
        type=amount,
        default=0,
        metavar="N",
        help="reserve them for the job's own process (default: 0, it runs on the head)",
    )
    parser.add_argument("--driver-gpus", type=amount, default=0, metavar="N", help="likewise")
    parser.add_argument(
        "--env",
        type=_variable,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable for all its processes; no secrets, since the dashboard shows it",
    )
    parser.add_argument("--no-wait", action="store_true", help="do not follow the job")


def submit(options: argparse.Namespace) -> None:
    """Submit a training, follow it, and exit as it does."""
    from farreach.cluster import jobs
    from farreach.cluster.dashboard import Dashboard

    for option, where in (("--run-dir", options.run_dir), ("--root", options.root)):
        if where is not None and not (where.startswith(("/", "~/")) or "://" in where):
            raise UsageError(
                f"{option} {where}: the job runs elsewhere. Give an absolute path that all its "
                "machines share, or a URI."
            )
    dashboard = Dashboard(options.address)
    order = _order(options)
    dashboard.check()
    _announce_size(order)
    job = jobs.submit(dashboard, order)
    command = f"--address {dashboard.address} {job.submission_id}"
    say(f"job       {job.submission_id} at {dashboard.address}")
    say(f"run       {job.run_dir}")
    say(f"follow    ray job logs --follow {command}")
    say(f"stop      {'' if options.no_wait else 'Ctrl-C, or '}ray job stop {command}")
    if options.no_wait:
        return
    try:
        info = jobs.follow(dashboard, job)
    except KeyboardInterrupt:
        asked = False
        with contextlib.suppress(ClusterError):  # the first request may be under way yet
            asked = dashboard.stop(job.submission_id)
        then = (
            "writes its last checkpoint and stops by itself" if asked else "was not asked to stop"
        )
        warn(f"left; {job.submission_id} {then}")
        raise
    code = jobs.exit_code(info)
    warn(_ending(job, info, code))
    sys.exit(code)


def _order(options: argparse.Namespace) -> Order:
    """What to submit, once the configuration has been found right."""
    from farreach import launch
    from farreach.cluster.jobs import Order
    from farreach.cluster.shipping import runtime_env
    from farreach.provenance import GIT_VARIABLE
    from farreach.yaml_source import to_text

    folder = options.working_dir
    if folder is not None:
        folder = folder.resolve()
        sys.path.insert(0, str(folder))  # where the job looks for modules too
    loaded = launch.trainable(options.config, options.overrides)
    config: Any = loaded.config
    raw = with_shared_cache(loaded.raw, config.model_dump(), options.root, options.run_dir)
    is_in_image = options.code == "image"
    git = None if is_in_image else _git_state()
    told = {} if git is None else {GIT_VARIABLE: json.dumps(git)}
    sent = {"installed": is_in_image, "given": told | dict(options.env)}
    return Order(
        name=config.name,
        runtime_env=runtime_env(to_text(raw), folder, **sent),
        run_dir=options.run_dir,
        root=options.root,
        cpus=options.driver_cpus,
        gpus=options.driver_gpus,
        metadata=_facts(options),
    )


def with_shared_cache(
    raw: Mapping[str, Any], whole: Mapping[str, Any], root: str | None, run_dir: str | None
) -> dict[str, Any]:
    """A configuration whose caches lie beside the run, unless it says where they are.

    By default they are below the working directory, which on a cluster is each job's own and on
    each machine another. There they stay beside a run at a URI, since a cache is a folder.

    Args:
        raw: what the user has said.
        whole: the same with all defaults.
        root: where `runs` is, as all machines see it.
        run_dir: that of the run, if it is given instead.
    """
    caches = [
        section
        for section, values in whole.items()
        if isinstance(values, Mapping) and "cache" in values
    ]
    # The same whether a run is made below `root` or, submitted again, named by its directory.
    folder = f"{root.rstrip('/')}/runs" if root else ""
    if run_dir:
        folder = run_dir.rstrip("/").rpartition("/")[0]
    result = dict(raw)
    if not folder.startswith("/"):
        return result
    for section in caches:
        said = result.get(section) or {}
        if "cache" not in said:
            result[section] = {**said, "cache": f"{folder}/cache"}
    return result


def _facts(options: argparse.Namespace) -> dict[str, str]:
    """Where the job comes from: it has no repository to look at."""
    git = _git_state()
    facts = {"config": options.config, "overrides": shlex.join(options.overrides)}
    if git is not None:
        facts["commit"] = git["commit"] + (" and changes" if git["dirty"] else "")
    return facts


def _git_state() -> dict[str, Any] | None:
    from farreach import provenance
    from farreach.cluster.shipping import clone

    root = clone()
    return None if root is None else provenance.git_state(root)


def _announce_size(order: Order) -> None:
    from farreach.cluster.shipping import check_size

    folder = order.runtime_env.get("working_dir")
    if folder is not None:
        size = check_size(Path(folder), order.runtime_env["excludes"])
        say(f"sends     {folder}, {size / 2**20:.1f} MiB before packing")


def _ending(job: Job, info: Mapping[str, Any], code: int) -> str:
    """One line about a job that has ended."""
    if info["status"] == "SUCCEEDED":
        return f"{job.submission_id} is done; its run is {job.run_dir}"
    if info["status"] == "STOPPED":
        return f"{job.submission_id} has stopped; submit it with --run-dir {job.run_dir} to go on"
    if info.get("driver_exit_code") is None:  # its process never began, or its machine is gone
        return f"{job.submission_id} failed: {info.get('message')}"
    return f"{job.submission_id} failed with exit code {code}, see above"


def _variable(text: str) -> tuple[str, str]:
    """Name and value of an environment variable."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"should read NAME=VALUE (got {text!r})")
    return name, value
