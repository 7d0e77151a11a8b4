"""The online goals run on several machines with slow networks: what becomes the limit first?

`python benchmarks/long/network.py` starts network namespaces with addresses, cables and Ray nodes
of their own, trains the maze on them, lets the cables of the rollouts' machines become slow in turn
and measures each time what goes on. Standard output gets one JSON line per network (its peer is the
network without limits) and standard error the same as a table, then what 10, 100 and 1,000 rollouts
would come to by the costs that were measured (`farreach.cluster.sizing`), which is arithmetic.

So that the network and not the learner is in question, the learner takes a tenth of the updates, as
one would that is ten times as fast; `--updates 0.07` is the real ratio. It takes root.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import measure
import numpy as np
from networked import NetworkedRun, Series, Sizes, networked_run

from farreach.cluster.sizing import Costs, Site, Size, size
from farreach.testing import networks
from farreach_workloads.goals.config import GoalsRunConfig

SETTLE_S = 6.0
# ms there and back, Mbit/s each way (None: as fast as the CPUs are); the first and the last are the
# same, because a training does not stay the same.
GRID: tuple[tuple[float, float | None], ...] = (
    (0, None), (5, None), (50, None), (0, 1000), (0, 100), (0, 10), (50, 100), (50, 10), (0, None),
)  # fmt: skip
# Calls of the coordinator for each fragment: collect, and add of learner, reachability and memory.
FRAGMENT_CALLS = 4
COUNTS = (10, 100, 1000)
# On paper: machines with 16 cores, 10 Gbit/s, half a millisecond apart.
SITE = Site(rollouts_per_machine=16, bytes_per_s=1.25e9, round_trip_s=5e-4)
# A GPU, and a simulator that takes its time (HalfCheetah of MuJoCo with its policy).
FAST, SIMULATOR_S = 50.0, 250e-6
# By how much fragments are made longer and refreshes rarer, as a remedy.
MENDED = 10


@dataclass(frozen=True)
class Seen:
    """What went on over one network.

    Attributes:
        round_trip_ms: there and back.
        mbit_per_s: each way, None if nothing limits it.
        series: the metrics.
    """

    round_trip_ms: float
    mbit_per_s: float | None
    series: Series

    @property
    def name(self) -> str:
        """Of its row."""
        limit = "free" if self.mbit_per_s is None else f"{self.mbit_per_s:g}mbit"
        return f"network_{self.round_trip_ms:g}ms_{limit}"

    @property
    def steps_per_s(self) -> float:
        """Environment steps per second."""
        return self.series.per("step", "seconds")

    def link_share(self, way: str, machines: int) -> float | None:
        """Share of one way of a cable that is used."""
        if self.mbit_per_s is None:
            return None
        return 8e-6 * self.series.per(way, "seconds") / machines / self.mbit_per_s


def flows(seen: Seen, sizes: Sizes, machines: int) -> dict[str, float]:
    """Mbit/s over the cable of one machine with rollouts, by what it is."""
    fragments_per_s = seen.steps_per_s / sizes.fragment_steps / machines
    refreshes_per_s = seen.series.per("refreshes", "seconds")
    return {
        "fragments": 8e-6 * fragments_per_s * sizes.fragment,
        "weights": 8e-6 * fragments_per_s * sizes.policy,
        "guide": 8e-6 * refreshes_per_s * sizes.guide_of(seen.series.mean("memory/nodes")),
    }


def networks_in_turn(run: NetworkedRun, seconds: float) -> Iterator[Seen]:
    """Train on over each network for so long."""
    for round_trip_ms, mbit_per_s in GRID:
        for host in run.cluster.hosts[1:]:
            host.shape(delay_ms=round_trip_ms / 2, mbit_per_s=mbit_per_s)
        time.sleep(SETTLE_S)
        seen = Seen(round_trip_ms, mbit_per_s, run.watch(seconds))
        print(f"{seen.name}: {seen.steps_per_s:,.0f} env steps/s", file=sys.stderr)
        yield seen


def costs_of(all_seen: Sequence[Seen], sizes: Sizes, machines: int) -> Costs:
    """What the run needs, with the ratio of updates and the refreshes that a run has by default."""
    config, free = GoalsRunConfig(), all_seen[0].series
    policy_share = config.phases.policy_steps / (
        config.phases.policy_steps + config.phases.random_steps
    )
    refresh_s = sum(free.per(f"cpu/{role}", "refreshes") for role in ("reachability", "memory"))
    return Costs(
        step_s=free.per("cpu/rollout", "step"),
        step_bytes=free.per("sent", "step"),
        fragment_steps=sizes.fragment_steps,
        fragment_calls=FRAGMENT_CALLS,
        call_s=call_s(all_seen, sizes),
        call_round_trips=round_trips(all_seen, sizes, machines),
        update_s=free.per("cpu/learner", "updates"),
        updates_per_step=config.agent.updates_per_policy_step * policy_share,
        publish_updates=config.runtime.learner_chunk,
        weights_bytes=sizes.policy,
        refresh_s=refresh_s,
        refresh_steps=config.reachability.refresh_every_steps / (1 - policy_share),
        guide_bytes=sizes.guide,
    )


def call_s(all_seen: Sequence[Seen], sizes: Sizes) -> float:
    """CPU seconds of the driver per call, apart from what it takes by the second."""
    chunk = GoalsRunConfig().runtime.learner_chunk
    series = [seen.series for seen in all_seen]
    seconds, steps, updates, taken = (
        np.concatenate([each.rises(name) for each in series])
        for name in ("seconds", "step", "updates", "cpu/driver")
    )
    calls = FRAGMENT_CALLS * steps / sizes.fragment_steps + updates / chunk
    fitted = np.linalg.lstsq(np.stack([seconds, calls], 1), taken, rcond=None)[0]
    return max(1e-6, float(fitted[1]))


def round_trips(all_seen: Sequence[Seen], sizes: Sizes, machines: int) -> float:
    """By how many round trips a fragment takes longer over the farthest network without limits."""
    free = [seen for seen in all_seen if seen.mbit_per_s is None]
    near, far = free[0], max(free, key=lambda seen: seen.round_trip_ms)
    took_s = [machines * sizes.fragment_steps / seen.steps_per_s for seen in (near, far)]
    return max(0.0, took_s[1] - took_s[0]) / (1e-3 * far.round_trip_ms)


def print_rows(all_seen: Sequence[Seen], sizes: Sizes, machines: int) -> None:
    """One JSON line for each network, and a table."""
    free = (all_seen[0].steps_per_s + all_seen[-1].steps_per_s) / 2
    heads = ("ms", "Mbit/s", "steps/s", "updates/s", "age", "age s", "up", "down", "link")
    table = [heads]
    for seen in all_seen:
        series = seen.series
        up, down = (8e-6 * series.per(way, "seconds") / machines for way in ("sent", "received"))
        shares = [seen.link_share(way, machines) for way in ("sent", "received")]
        used = max((round(share, 3) for share in shares if share is not None), default=None)
        values = {
            "updates_per_s": series.per("updates", "seconds"),
            "weights_age_versions": series.mean("weights/age_versions"),
            "weights_age_s": series.mean("weights/age_s"),
            "up_mbit_per_s": up,
            "down_mbit_per_s": down,
        }
        extra = {name: float(f"{value:.4g}") for name, value in values.items()}
        by_what = {name: round(rate, 3) for name, rate in flows(seen, sizes, machines).items()}
        measure.row(
            seen.name, seen.steps_per_s, free, "env steps per s", seen.steps_per_s / free,
            **extra, link_used=used, mbit_per_s_by_what=by_what, machines=machines,
        )  # fmt: skip
        limit = "free" if seen.mbit_per_s is None else f"{seen.mbit_per_s:g}"
        cells = (f"{seen.round_trip_ms:g}", limit, f"{seen.steps_per_s:,.0f}")
        cells += tuple(f"{value:.3g}" for value in values.values())
        table.append((*cells, "" if used is None else f"{used:.0%}"))
    print_table(table)
    rates = flows(all_seen[-1], sizes, machines)  # when the memory is largest
    first = max(rates, key=lambda name: rates[name])
    told = ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items())
    print(
        f"Without limits one machine's cable carries at last, in Mbit/s: {told}; as it gets "
        f"slower, the first to fill it: {first} ({sizes.nodes} nodes, {sizes.guide:,} bytes).\n",
        file=sys.stderr,
    )


def print_sizes(costs: Costs) -> None:
    """On paper, what more rollouts come to, as measured and with what is first in short supply."""
    slow = replace(costs, step_s=SIMULATOR_S)
    fast = replace(SITE, learner_speed=FAST, memory_speed=FAST)
    mended = replace(
        slow,
        fragment_steps=MENDED * slow.fragment_steps,
        refresh_steps=MENDED * slow.refresh_steps,
    )
    print(f"Computed from {costs}", file=sys.stderr)
    for title, these, site in (
        ("the maze, learner as measured", costs, SITE),
        (f"the maze, learner and memory {FAST:g} times as fast", costs, fast),
        ("250 µs a step, learner as measured", slow, SITE),
        (f"250 µs a step, learner and memory {FAST:g} times as fast", slow, fast),
        (f"the same, fragments {MENDED} times as long, refreshes as much rarer", mended, fast),
    ):
        print(f"\n{title}", file=sys.stderr)
        print_table([SIZE_HEADS, *(size_cells(size(these, site, count)) for count in COUNTS)])


SIZE_HEADS = (
    "rollouts", "machines", "steps/s", "in MB/s", "out MB/s", "store MB", "calls/s", "limit",
    "remedy",
)  # fmt: skip


def size_cells(found: Size) -> tuple[str, ...]:
    """A line of the table."""
    numbers = (found.received_bytes_per_s, found.sent_bytes_per_s, found.store_bytes)
    return (
        f"{found.rollouts:,}", f"{found.machines:,}", f"{found.steps_per_s:,.0f}",
        *(f"{number / 1e6:,.3g}" for number in numbers),
        f"{found.calls_per_s:,.1f}", found.limit, "; ".join(found.remedies),
    )  # fmt: skip


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns of equal width, on standard error."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells), file=sys.stderr)


def main() -> None:
    """Train, slow down, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--machines", type=int, default=2, help="with rollouts (default: 2)")
    parser.add_argument("--warm-up", type=float, default=3.0, help="minutes before (default: 3)")
    parser.add_argument("--seconds", type=float, default=40.0, help="per network (default: 40)")
    parser.add_argument(
        "--updates", type=float, default=0.007, help="per step of the policy (default: 0.007)"
    )
    options = parser.parse_args()
    if reason := networks.obstacle():
        sys.exit(reason)
    settings = [f"agent.updates_per_policy_step={options.updates}"]
    with (
        tempfile.TemporaryDirectory(prefix="fr") as folder,
        networked_run(Path(folder, "run"), options.machines, settings, whole_frames=True) as run,
    ):
        run.wait_until_it_trains()
        time.sleep(60 * options.warm_up)
        all_seen = list(networks_in_turn(run, options.seconds))
        for host in run.cluster.hosts[1:]:
            host.shape()
        run.stop()
        sizes = Sizes.of(run)
    print_rows(all_seen, sizes, options.machines)
    print_sizes(costs_of(all_seen, sizes, options.machines))


if __name__ == "__main__":
    main()
