"""The learning results of docs/results.md: trains them, seed by seed, and prints them as tables.

`python benchmarks/long/results.py` runs everything that `--list` names, which takes many hours on
two cores; names pick some. What is done is kept in `runs/results/`, and what was interrupted
continues, so the command may be stopped and given again at any time. `--against NAME` adds what the
others gain over it, seed by seed.
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

from scipy.stats import t as student

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
KNN_COLUMNS = {"5 neighbours": "knn/top1_5", "balanced": "knn/balanced_5"}
LINEAR_COLUMNS = {
    "linear top1": "linear/top1",
    "balanced": "linear/balanced_accuracy",
    "head": "linear/head",
    "medium": "linear/medium",
    "tail": "linear/tail",
}
LOW_SHOT_COLUMNS = {f"{count} of each class": f"lowshot/{count}/mean" for count in (1, 2, 5)}
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
# By a key that only results of their kind have.
KINDS = {
    "training/foundation_minutes": OFFLINE_COLUMNS,
    "evaluation/top1": VISION_COLUMNS,
    "evaluation/knn_top1": PRETRAIN_COLUMNS,
    "evaluation/ndcg@10": RETRIEVAL_COLUMNS,
    "dense/ndcg@10": SEARCH_COLUMNS,
    "knn/top1_5": KNN_COLUMNS,
    "linear/top1": LINEAR_COLUMNS,
    "lowshot/1/mean": LOW_SHOT_COLUMNS,
}
DEBIAN, FAQ, LANGUAGES = "data/debian", "data/faq", "data/debian_languages"
SEARCHED = {f"search of {name}": ("search", f"path={name}", "passage=32") for name in (DEBIAN, FAQ)}


@dataclass(frozen=True)
class Experiment:
    """A configuration and what it is changed by.

    Attributes:
        config: its name.
        overrides: settings.
        evaluations: what is asked when it has trained: name → words after `farreach evaluate RUN`.
    """

    config: str
    overrides: tuple[str, ...] = ()
    evaluations: dict[str, tuple[str, ...]] = field(default_factory=dict)


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
# A quarter of the preset's time.
QUICK = ("training.epochs=5",)
LONG_TAIL = (*FEW, "sampler.kind=power")
PRIORS = (0, 0.25, 0.5, 1)
BALANCED = {"linear": ("linear",)}
LOW_SHOT = {"lowshot": ("lowshot",)}
# Of an encoder of the same shape, however it has been trained.
CONTROLS = {
    f"lowshot of {control}": ("lowshot", f"features={control}")
    for control in ("untrained", "pixels")
}
OF_18 = {"knn": ("knn", "classes=18", "neighbours=[5]")}
# Whose classes are of very different size as they are.
# A target network that follows slowly is still near its start after so few updates.
CLIPART_TAIL = ("training.epochs=10", "method.momentum=0.9")

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
    "msn_fashion": Experiment(FASHION, (), LOW_SHOT | CONTROLS),
    "msn_fashion_quick": Experiment(FASHION, QUICK, LOW_SHOT | CONTROLS),
    "msn_fashion_shuffled": Experiment(FASHION, FEW),
    "msn_fashion_stratified": Experiment(FASHION, (*FEW, *STRATIFIED)),
    "pmsn_fashion_stratified": Experiment(
        FASHION, (*FEW, *STRATIFIED, "method.prior={kind: power, exponent: 0.25}")
    ),
    **{
        f"pmsn_fashion_tail_{exponent:g}": Experiment(
            FASHION, (*LONG_TAIL, f"method.prior={{kind: power, exponent: {exponent}}}"), BALANCED
        )
        for exponent in PRIORS
    },
    **{
        f"pmsn_clipart_{exponent:g}": Experiment(
            "vision/pmsn_clipart",
            (*CLIPART_TAIL, f"method.prior={{kind: power, exponent: {exponent}}}"),
            BALANCED,
        )
        for exponent in PRIORS
    },
    "mae_fashion": Experiment("vision/mae_fashion", (), LOW_SHOT),
    "mae_fashion_quick": Experiment("vision/mae_fashion", QUICK, LOW_SHOT),
    "simclr_clipart": Experiment("vision/simclr_clipart", (), OF_18),
    "simclr_clipart_longer": Experiment("vision/simclr_clipart", ("training.epochs=60",), OF_18),
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


def evaluate(name: str, seed: int, what: str, root: Path) -> dict[str, Any]:
    """Evaluate what one seed has learned, or take what was found before."""
    run = root / f"{name}-seed{seed}"
    file = run / f"{what.replace('/', '-').replace(' ', '_')}.json"
    if not file.exists():
        program = [str(Path(sys.executable).with_name("farreach")), "evaluate", str(run)]
        command = [*program, *EXPERIMENTS[name].evaluations[what], "--json"]
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


def columns_of(results: dict[int, dict[str, Any]]) -> dict[str, str]:
    """Title of a column → key of a result, of the kind that these are; categories come last."""
    prefix = "evaluation/success_final_"
    categories = sorted({key for result in results.values() for key in result if prefix in key})
    first = next(iter(results.values()))
    columns = next((them for key, them in KINDS.items() if key in first), COLUMNS)
    return columns | {key.removeprefix(prefix): key for key in categories}


def table(title: str, results: dict[int, dict[str, Any]]) -> list[str]:
    """Markdown: a line per seed and one of means; per-category success after the columns."""
    columns = columns_of(results)
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


def compared(results: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]]) -> list[str]:
    """Markdown: what is gained over the same seeds of another; needs two seeds or more.

    Intervals are Student's, of 95 %, of the mean over pairs.
    """
    seeds = sorted(results.keys() & base.keys())
    lines = ["| | mean difference | 95 % | of seeds |", "|---|---|---|---|"]
    for title, key in columns_of(results).items():
        pairs = [(results[seed].get(key), base[seed].get(key)) for seed in seeds]
        gains = [one - other for one, other in pairs if one is not None and other is not None]
        if len(gains) < 2:
            continue
        mean, error = statistics.fmean(gains), statistics.stdev(gains) / len(gains) ** 0.5
        half = float(student.ppf(0.975, len(gains) - 1)) * error
        each = ", ".join(f"{gain:+.3f}" for gain in gains)
        lines.append(
            f"| {title} | {mean:+.3f} | {mean - half:+.3f} to {mean + half:+.3f} | {each} |"
        )
    return lines


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"


def main() -> None:
    """Train what is asked for and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME[ key=value ...]", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=ROOT, help=f"default: {ROOT}")
    parser.add_argument("--against", metavar="NAME", help="print what each gains over this one")
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
    if arguments.against in names:  # before those that are compared with it
        names = [arguments.against, *(name for name in names if name != arguments.against)]
    found: dict[str, dict[str, dict[int, dict[str, Any]]]] = {}
    for name in names:
        experiment, root = EXPERIMENTS[name], arguments.root
        found[name] = {}
        seeds = [
            seed
            for seed in arguments.seeds
            if not arguments.done or (root / f"{name}-seed{seed}/result.json").exists()
        ]
        for what in ("", *experiment.evaluations) if seeds else ():
            if what:
                results = {seed: evaluate(name, seed, what, root) for seed in seeds}
                words = ("evaluate", *experiment.evaluations[what])
            else:
                results = {seed: train(name, seed, extra, root) for seed in seeds}
                words = (experiment.config, *experiment.overrides)
            found[name][what] = results
            lines = table(f"{name}: {' '.join(words)}", results)
            base = found.get(arguments.against, {}).get(what)
            if base and name != arguments.against:
                lines += compared(results, base)
            print("\n".join(lines), flush=True)


if __name__ == "__main__":
    main()
