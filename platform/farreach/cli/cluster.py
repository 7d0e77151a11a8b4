"""The command line's part about clusters: `farreach cluster check | notice | simulate`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farreach.cli.arguments import add_overrides, amount
from farreach.cli.lists import say_table
from farreach.console import say, warn
from farreach.errors import ConfigError
from farreach.imports import imported
from farreach.stopping import ended_by_sigterm

if TYPE_CHECKING:
    from farreach.cluster.demand import Demand
    from farreach.cluster.plan import Plan
    from farreach.cluster.simulate import Moment, Simulation

# Imports of Ray and of everything that needs it wait until a command does.

CLOUDS = ("aws", "gcp", "azure")


def check_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cluster check`."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="for Ray's launcher or for KubeRay"
    )


def check(options: argparse.Namespace) -> None:
    """Name everything that is wrong with files for clusters, or say what they would launch."""
    from farreach.cluster.check import check_file

    problems: list[str] = []
    for path in options.files:
        try:
            report = check_file(path)
        except ConfigError as error:
            problems.append(str(error))
            continue
        for line in report.notes:
            say(f"note: {line}")
        for line in report.warnings:
            say(f"warning: {line}")
        problems += report.problems
        if report.problems:
            continue
        for plan in report.plans:
            say(f"{path}: {plan.title}")
            say_table((f"  {name}", what) for name, what in plan.rows())
        say(f"{path} is fine")
    if problems:
        raise ConfigError("\n".join(problems))


def notice_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cluster notice`."""
    parser.add_argument("cloud", choices=CLOUDS, metavar="CLOUD", help=", ".join(CLOUDS))


def notice(options: argparse.Namespace) -> None:
    """Wait until the cloud says that this machine will be taken away, and tell Ray."""
    from farreach.cluster import notice as module

    def leave(seconds: float) -> None:
        warn(f"this machine will be taken away in {seconds:.0f} s; telling Ray")
        module.drain_this_node(seconds)

    module.wait(options.cloud, leave)
    say("Ray places nothing new here")


def simulate_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `cluster simulate`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="for Ray's launcher or for KubeRay")
    parser.add_argument(
        "--config", required=True, metavar="CONFIG", help="a YAML file or a name: see list configs"
    )
    add_overrides(parser)
    parser.add_argument(
        "--autoscaler",
        type=int,
        choices=(1, 2),
        default=2,
        help="version of Ray's autoscaler (default: 2)",
    )
    parser.add_argument(
        "--core-hour", type=amount, metavar="PRICE", help="of a CPU: say what the machines cost"
    )
    parser.add_argument("--gpu-hour", type=amount, metavar="PRICE", help="likewise, of a GPU")
    parser.add_argument(
        "--run", action="store_true", help="really train there, instead of asking for machines only"
    )
    parser.add_argument(
        "--run-dir", metavar="DIR", help="exactly this directory or URI for the run of --run"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object about it, and no more"
    )


def simulate(options: argparse.Namespace) -> None:
    """Show which machines of a file a run would be given, by pretending that they are there."""
    from farreach import config as configs

    loaded = configs.load(configs.find(options.config), options.overrides)
    workload: Any = imported(loaded.workload)
    demands: list[Demand] = workload.demand(loaded.config)
    if not demands:
        raise ConfigError(
            f"{options.config}: trains in one process and asks a cluster for nothing. Give "
            "key=value that lets it use Ray, such as runtime.placement=actor or runtime.workers=2."
        )
    plan = _plan(options.file)
    with ended_by_sigterm():  # the pretended machines end too
        if options.run:
            _rehearse(plan, demands, options)
        else:
            _simulate(plan, demands, options)


def _plan(path: Path) -> Plan:
    """The one cluster that a file without problems describes."""
    from farreach.cluster.check import check_file

    report = check_file(path)
    if report.problems:
        raise ConfigError("\n".join(report.problems))
    if len(report.plans) != 1:
        raise ConfigError(
            f"{path}: describes {len(report.plans) or 'no'} clusters. Give a file of one cluster."
        )
    return report.plans[0]


def _simulate(plan: Plan, demands: list[Demand], options: argparse.Namespace) -> None:
    from farreach.cluster.simulate import simulate as tried

    if not options.json:
        say(f"file      {options.file}: {plan.title}")
        _say_demands(demands)
    found = tried(plan, demands, version=options.autoscaler, tell=_tell)
    if options.json:
        say(json.dumps(_as_json(found, plan, options), indent=2))
        return
    _say_forecast(found)
    if prices := _prices(options):
        say(f"cost      {_cost(plan, found, prices)}")
    spot = {group.name for group in plan.groups if group.spot}
    for role, where in found.placed.items():
        places = ", ".join(
            f"{count} on {name}{' (spot)' if name in spot else ''}" for name, count in where.items()
        )
        say(f"placed    {role}: {places or 'none'}")
    for role, why in found.reasons.items():
        left = found.forecast.unplaced.get(role) or found.unplaced[role]
        say(f"left      {left:,} × {role} have no place: {why}")
    if found.up_s is not None:
        say(f"up        all machines were there after {found.up_s:.1f} s; a cloud takes minutes")
    if found.down_s is not None:
        say(f"down      all were removed {found.down_s:.1f} s after the end; {_idle(plan, found)}")


def _tell(moment: Moment) -> None:
    warn(f"{moment.seconds:6.1f} s  {_counted(moment.nodes)}")


def _counted(nodes: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in nodes.items()) or "no machines"


def _say_demands(demands: list[Demand]) -> None:
    from farreach.cluster.demand import in_words

    for demand in demands:
        name = demand.role if demand.count == 1 else f"{demand.count:,} × {demand.role}"
        each = "" if demand.count == 1 else " each"
        how = "" if demand.strategy == "DEFAULT" else f", {demand.strategy}"
        say(f"asks      {name}: {in_words(demand.asked)}{each}{how}")


def _say_forecast(found: Simulation) -> None:
    say(f"machines  {_counted(found.forecast.nodes)}")
    if found.scale > 1:
        say(
            f"scale     tried out with {found.scale} times fewer machines and processes: "
            f"{_counted(found.moments[-1].nodes)}"
        )


def _prices(options: argparse.Namespace) -> dict[str, float]:
    """CPU and GPU → of one, an hour, as far as they are given."""
    given = {"CPU": options.core_hour, "GPU": options.gpu_hour}
    return {name: price for name, price in given.items() if price is not None}


def _cost(plan: Plan, found: Simulation, prices: Mapping[str, float]) -> str:
    """What the machines of a forecast cost, and what is not in it."""
    from farreach.cluster.demand import in_words
    from farreach.cluster.forecast import hourly, together

    nodes = found.forecast.nodes
    amounts = {name: in_words({name: count}) for name, count in together(plan, nodes).items()}
    of = " and ".join(f"{amounts.get(name, f'0 {name}s')} at {p:g}" for name, p in prices.items())
    without = " and ".join([*(amounts[name] for name in amounts if name not in prices), "the head"])
    return f"{hourly(plan, nodes, prices):,.2f} an hour: {of}, without {without}"


def _idle(plan: Plan, found: Simulation) -> str:
    """How long machines must be idle, here and there."""
    times = {group.name: group.idle_s for group in plan.groups if not group.head and group.most}
    there = ", ".join(f"{name} {_seconds(idle_s)}" for name, idle_s in times.items())
    return f"idle for {found.idle_s:g} s here, by the file: {there}"


def _seconds(idle_s: float | None) -> str:
    return "never" if idle_s is None else f"{idle_s:g} s"


def _as_json(found: Simulation, plan: Plan, options: argparse.Namespace) -> dict[str, Any]:
    from farreach.cluster.forecast import hourly

    prices = _prices(options)
    return {
        "file": str(options.file),
        "config": options.config,
        "autoscaler": options.autoscaler,
        **dataclasses.asdict(found),
        "cost_per_hour": hourly(plan, found.forecast.nodes, prices) if prices else None,
        "idle_s_by_file": {group.name: group.idle_s for group in plan.groups if not group.head},
    }


def _rehearse(plan: Plan, demands: list[Demand], options: argparse.Namespace) -> None:
    from farreach import launch
    from farreach.cluster.rehearsal import rehearse

    def train() -> None:
        launch.train(options.config, options.overrides, options.run_dir)

    # Whatever is printed on the way goes to stderr: with --json, stdout is for programs.
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        moments = rehearse(plan, demands, train, version=options.autoscaler, tell=_tell)
    if options.json:
        say(json.dumps({"moments": [dataclasses.asdict(moment) for moment in moments]}, indent=2))
        return
    names = {name for moment in moments for name in moment.nodes}
    most = {name: max(moment.nodes.get(name, 0) for moment in moments) for name in sorted(names)}
    say(f"machines  at most {_counted(most)}")
