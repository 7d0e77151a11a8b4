"""The learning results of docs/results.md: trains them, seed by seed, and prints them as tables.

`python benchmarks/long/results.py` runs everything that `--list` names, which takes many hours on
two cores; names pick some. What is done is kept in `runs/results/`, and what was interrupted
continues, so the command may be stopped and given again at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farreach.disk import atomic_write

ROOT = Path("runs/results")
ALL_STEPS = ("evaluation.stop_success=null", "training.max_minutes=null")
SHORT = (*ALL_STEPS, "training.env_steps=480000")
COLUMNS = {
    "success_final": "evaluation/success_final",
    "success_any": "evaluation/success_any",
    "planned": "evaluation_planned/success_final",
    "nodes": "memory/nodes",
    "env steps": "training/env_steps",
    "updates": "training/updates",
    "minutes": "training/minutes",
}
# Those of runs on data sets; the minutes of the stages before the policy come to the others.
OFFLINE_COLUMNS = {
    "success_final": "evaluation/success_final",
    "success_any": "evaluation/success_any",
    "planned": "evaluation_planned/success_final",
    "planned_any": "evaluation_planned/success_any",
    "updates": "training/updates",
    "minutes": "training/minutes",
    "minutes before": "training/foundation_minutes",
}

VISION_COLUMNS = {
    "top1": "evaluation/top1",
    "top5": "evaluation/top5",
    "loss": "evaluation/loss",
    "updates": "training/updates",
    "minutes": "training/minutes",
}

PRETRAIN_COLUMNS = {
    "k-NN top1": "evaluation/knn_top1",
    "balanced": "evaluation/knn_balanced",
    "effective rank": "evaluation/effective_rank",
    "updates": "training/updates",
    "minutes": "training/minutes",
}

# On the pool of the probe, a part of what `searches` measure on.
RETRIEVAL_COLUMNS = {
    "nDCG@10": "evaluation/ndcg@10",
    "R@100": "evaluation/recall@100",
    "documents": "evaluation/documents",
    "updates": "training/updates",
    "minutes": "training/minutes",
}
SEARCH_COLUMNS = {
    "BM25 nDCG@10": "lexical/ndcg@10",
    "nDCG@10": "dense/ndcg@10",
    "BM25 R@100": "lexical/recall@100",
    "R@100": "dense/recall@100",
    "hybrid nDCG@10": "hybrid/ndcg@10",
    "hybrid over BM25": "hybrid_against_lexical/difference",
    "low": "hybrid_against_lexical/low",
    "high": "hybrid_against_lexical/high",
}
DEBIAN, FAQ, LANGUAGES = "data/debian", "data/faq", "data/debian_languages"
SEARCHED = {name: (f"path={name}", "passage=32") for name in (DEBIAN, FAQ)}


@dataclass(frozen=True)
class Experiment:
    """A configuration and what it is changed by.

    Attributes:
        config: its name.
        overrides: settings.
        searches: what is searched when it has trained: name → settings of `evaluate RUN search`.
    """

    config: str
    overrides: tuple[str, ...] = ()
    searches: dict[str, tuple[str, ...]] = field(default_factory=dict)


def _ablation(*overrides: str) -> Experiment:
    return Experiment("goals/walk_maze", (*SHORT, *overrides))


# What the paper's preset gets on a CPU in an hour; `training.max_minutes=null` runs all of it.
HOUR = ("training.max_minutes=60",)
PAPER_MAZE = "goals/fresh_maze_paper"

COSUB_BACKBONES: dict[str, tuple[str, ...]] = {
    "vit": (),
    "xcit": ("backbone.name=xcit_nano_12_p8", "backbone.options={}"),
}
# At equal epochs, and at the epochs that take as long as those of two submodels.
PLAIN = ("objective.kind=supervised",)
COSUB_ARMS: dict[str, tuple[str, ...]] = {
    "": (),
    "_plain": PLAIN,
    "_plain_longer": (*PLAIN, "training.epochs=40"),
    "_plain_whole": (*PLAIN, "backbone.drop_path=0"),
}

# Batches of all classes or of two, and classes by a power law with several priors (PMSN).
FASHION, FEW = "vision/msn_fashion", ("training.epochs=1.3", "training.warmup_epochs=0.2")
STRATIFIED = ("sampler.kind=stratified", "sampler.classes=2")
LONG_TAIL = ("training.epochs=4", "sampler.kind=power")
PRIORS = (0, 0.25, 0.5, 1)

EXPERIMENTS = {
    "maze_demo": Experiment("goals/walk_maze"),
    "maze": Experiment("goals/walk_maze", ALL_STEPS),
    "maze_oracle_curriculum": Experiment("goals/oracle_curriculum", ALL_STEPS),
    "maze_oracle_reward": Experiment("goals/oracle_reward", ALL_STEPS),
    "maze_sac_her": Experiment("goals/sac_her", ALL_STEPS),
    "maze_random_walk_only": Experiment("goals/random_walk_only", ("training.env_steps=400000",)),
    "pointmaze": Experiment("goals/walk_pointmaze"),
    "pusher": Experiment("goals/walk_pusher"),
    "pusher_sac_her": Experiment("goals/sac_her_pusher"),
    "walker": Experiment("goals/walk_walker"),
    "antmaze": Experiment("goals/walk_antmaze"),
    "ablation_base": _ablation(),
    "ablation_no_relabelling": _ablation(
        *("relabel.original=1", "relabel.future=0", "relabel.node=0")
    ),
    "ablation_whole_goal": _ablation("features.goal=full"),
    "ablation_no_relative_goal": _ablation("features.relative=false"),
    "ablation_uniform_goals": _ablation("goals.mode=uniform"),
    "ablation_reachability_reward": _ablation("reward.mode=reachability", "reward.scale=1"),
    "ablation_temperature_3": _ablation("reward.temperature=3"),
    "ablation_discount_0.95": _ablation("agent.discount=0.95"),
    "ablation_window_5": _ablation("reachability.window=5"),
    "ablation_reachability_of_goal_dims": _ablation("reachability.dims=goal"),
    "ablation_network_comparator": _ablation("reachability.comparator=network"),
    "ablation_no_planning": _ablation("phases.planned_frac=0"),
    "ablation_every_edge": _ablation("memory.min_edge_share=0", "memory.min_edge_probability=0"),
    "ablation_128_envs": _ablation("environment.num_envs=128"),
    "ablation_raw_inputs": _ablation("features.scale=none", "features.angles=raw"),
    "maze_paper": Experiment("goals/walk_maze_paper"),
    "fresh_maze": Experiment("goals/fresh_maze"),
    "fresh_maze_hops": Experiment("goals/fresh_maze", ("reward.distance=hops",)),
    "fresh_maze_smooth": Experiment("goals/fresh_maze", ("features.frequencies=0",)),
    "fresh_maze_oracle": Experiment("goals/fresh_maze", ("reward.distance=oracle",)),
    "fresh_pusher": Experiment("goals/fresh_pusher"),
    "fresh_pusher_her": Experiment("goals/fresh_pusher_her"),
    "fresh_walker": Experiment("goals/fresh_walker"),
    "fresh_maze_paper": Experiment(PAPER_MAZE, HOUR),
    "fresh_maze_paper_reachability": Experiment(
        PAPER_MAZE, (*HOUR, "reward.distance=reachability", "agent.discount=0.95")
    ),
    "fresh_maze_paper_no_rows": Experiment(
        PAPER_MAZE, (*HOUR, "relabel.subgoal_rows=false", "relabel.edge_rows=false")
    ),
    "fresh_maze_her": Experiment("goals/fresh_maze_her", HOUR),
    "fresh_maze_her_uniform": Experiment("goals/fresh_maze_her_uniform", HOUR),
    "fresh_maze_actionable": Experiment("goals/fresh_maze_actionable", HOUR),
    **{
        f"ogbench_{maze}_{data}": Experiment(f"goals/ogbench_{maze}_{data}")
        for data in ("navigate", "stitch")
        for maze in ("medium", "large", "giant")
    },
    **{
        f"ogbench_medium_navigate_{kind}": Experiment(
            "goals/ogbench_medium_navigate",
            (f"agent.kind={kind}", "agent.actor_goals.spread=null", "training.max_minutes=10"),
        )
        for kind in ("gcbc", "gcivl", "gciql", "crl", "qrl", "hiql")
    },
    **{
        f"cosub_{name}{arm}": Experiment("vision/cosub_clipart", (*backbone, *changes))
        for name, backbone in COSUB_BACKBONES.items()
        for arm, changes in COSUB_ARMS.items()
    },
    "msn_fashion": Experiment(FASHION),
    "msn_fashion_shuffled": Experiment(FASHION, FEW),
    "msn_fashion_stratified": Experiment(FASHION, (*FEW, *STRATIFIED)),
    "pmsn_fashion_stratified": Experiment(
        FASHION, (*FEW, *STRATIFIED, "method.prior={kind: power, exponent: 0.25}")
    ),
    **{
        f"pmsn_fashion_tail_{exponent:g}": Experiment(
            FASHION, (*LONG_TAIL, f"method.prior={{kind: power, exponent: {exponent}}}")
        )
        for exponent in PRIORS
    },
    "mae_fashion": Experiment("vision/mae_fashion"),
    "simclr_clipart_regnety": Experiment(
        "vision/simclr_clipart", ("backbone=regnety_tiny", "training.epochs=40")
    ),
    "swav_clipart": Experiment("vision/swav_clipart"),
    # After `farreach data prepare debian data/debian`, and so for faq and debian_languages.
    "debian": Experiment("retrieval/debian", (f"data.path={DEBIAN}",), SEARCHED),
    "debian_docs": Experiment("retrieval/debian_docs", (), SEARCHED),
    "debian_mini": Experiment("retrieval/debian_mini", (f"data.path={DEBIAN}",)),
    "debian_languages": Experiment(
        "retrieval/debian_languages", (f"probe.path={LANGUAGES}/de/english",)
    ),
    "debian_aligned": Experiment(
        "retrieval/debian_aligned", (f"probe.path={LANGUAGES}/de/english",)
    ),
}


def train(name: str, seed: int, extra: Sequence[str], root: Path) -> dict[str, Any]:
    """Train one seed, or continue it, or take what is there; the content of its result.json."""
    experiment, run = EXPERIMENTS[name], root / f"{name}-seed{seed}"
    result = run / "result.json"
    if not result.exists():
        program = [str(Path(sys.executable).with_name("farreach"))]
        if (run / "config.yaml").exists():
            command = [*program, "resume", str(run)]
        else:
            settings = [*experiment.overrides, *extra, f"seed={seed}"]
            command = [*program, "train", experiment.config, *settings, "--run-dir", str(run)]
        print("+", *command, file=sys.stderr, flush=True)
        _run(command)
    content: dict[str, Any] = json.loads(result.read_text())
    return content


def search(name: str, seed: int, what: str, root: Path) -> dict[str, Any]:
    """Search with what one seed has learned, or take what was found before."""
    run = root / f"{name}-seed{seed}"
    file = run / f"search-{what.replace('/', '-')}.json"
    if not file.exists():
        program = [str(Path(sys.executable).with_name("farreach")), "evaluate", str(run), "search"]
        command = [*program, *EXPERIMENTS[name].searches[what], "--json"]
        print("+", *command, file=sys.stderr, flush=True)
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        atomic_write(file, found.stdout)
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def _run(command: Sequence[str]) -> None:
    """Run to the end; whoever stops this program stops the run too, which then saves itself."""
    process = subprocess.Popen(command, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"})
    before = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal has told the run as well
        code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        raise SystemExit(code)


def table(title: str, results: dict[int, dict[str, Any]]) -> list[str]:
    """Markdown: a line per seed and one of means; per-category success after the columns."""
    prefix = "evaluation/success_final_"
    categories = sorted({key for result in results.values() for key in result if prefix in key})
    first = next(iter(results.values()))
    base = OFFLINE_COLUMNS if "training/foundation_minutes" in first else COLUMNS
    base = VISION_COLUMNS if "evaluation/top1" in first else base
    base = PRETRAIN_COLUMNS if "evaluation/knn_top1" in first else base
    base = RETRIEVAL_COLUMNS if "evaluation/ndcg@10" in first else base
    base = SEARCH_COLUMNS if "dense/ndcg@10" in first else base
    columns = base | {key.removeprefix(prefix): key for key in categories}
    lines = [
        f"### {title}",
        "| seed | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    rows = [[float(r.get(key, float("nan"))) for key in columns.values()] for r in results.values()]
    for seed, row in zip(results, rows, strict=True):
        lines.append(f"| {seed} | " + " | ".join(_number(v) for v in row) + " |")
    means = [statistics.fmean(column) for column in zip(*rows, strict=True)]
    lines.append("| mean | " + " | ".join(_number(v) for v in means) + " |")
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"


def main() -> None:
    """Train what is asked for and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME[ key=value ...]", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=ROOT, help=f"default: {ROOT}")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--done", action="store_true", help="train nothing, show what is done")
    arguments = parser.parse_intermixed_args()
    if arguments.list:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name:36} {experiment.config} {' '.join(experiment.overrides)}")
        return
    extra = [word for word in arguments.names if "=" in word]
    names = [word for word in arguments.names if "=" not in word] or list(EXPERIMENTS)
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        parser.error(f"no {unknown[0]!r}; --list names them")
    for name in names:
        results = {}
        for seed in arguments.seeds:
            if arguments.done and not (arguments.root / f"{name}-seed{seed}/result.json").exists():
                continue
            results[seed] = train(name, seed, extra, arguments.root)
        if not results:
            continue
        experiment = EXPERIMENTS[name]
        title = f"{name}: " + " ".join((experiment.config, *experiment.overrides))
        print("\n".join(table(title, results)), flush=True)
        for what, settings in experiment.searches.items():
            found = {seed: search(name, seed, what, arguments.root) for seed in results}
            print("\n".join(table(f"{name}: search {' '.join(settings)}", found)), flush=True)


if __name__ == "__main__":
    main()
