"""The stages before the policy, each with a result that is kept: see `farreach.stages`.

```
data ─► reachability ─► memory ─► nearest ─► graph ─► (policy)
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from farreach import datasets, messages
from farreach.actors.tasks import done_in_any_order
from farreach.data.episodes import INDEX_FILE, EpisodeStore
from farreach.data.fetched import here
from farreach.disk import atomic_write
from farreach.progress import Progress
from farreach.stages import StageCache
from farreach_workloads.goals.bundle import Bundle
from farreach_workloads.goals.data.layouts import holds_recording
from farreach_workloads.goals.data.recordings import import_recording
from farreach_workloads.goals.environments.base import Floats, GoalEnvironment, Ints
from farreach_workloads.goals.environments.factory import transition_options
from farreach_workloads.goals.evaluate import shortcuts
from farreach_workloads.goals.features import Features
from farreach_workloads.goals.folded import FoldedReachability
from farreach_workloads.goals.fresh.cover import (
    DataGraph,
    Memory,
    build_graph,
    build_memory,
    graph_arrays,
    graph_from_arrays,
    nearest_of_rows,
    transitions,
)
from farreach_workloads.goals.fresh.dataset import expect_fit
from farreach_workloads.goals.fresh.network import fit_network
from farreach_workloads.goals.reachability_trainer import ReachabilityWeights

if TYPE_CHECKING:
    from farreach_workloads.goals.fresh.config import FreshRunConfig, PlacementConfig

# Raise the one whose code changes what it computes: old results are then built again.
VERSIONS = {"import": 2, "reachability": 1, "memory": 1, "nearest": 1, "graph": 2}
BLOCK_ROWS = 500_000
# Share of the edges that may lead through walls before the user is warned of them.
SHORTCUTS_BEARABLE = 0.02
_RESULT = "result.msgpack"

Log = Callable[[str], None]
# (epoch of the network, metrics)
Report = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Foundation:
    """What the policy stands on.

    Attributes:
        name: of the last stage's result, which depends on all others.
        store: the data set.
        bundle: network, memory and graph as everybody reads them.
        graph: the graph with its transitions.
        outward: (rows,) node that each state gets to.
        inward: (rows,) node that gets to each state.
        metrics: diagnostics of all stages.
    """

    name: str
    store: EpisodeStore
    bundle: Bundle
    graph: DataGraph
    outward: Ints
    inward: Ints
    metrics: dict[str, float]


class Pipeline:
    """Runs the stages, or takes their kept results."""

    def __init__(self, config: FreshRunConfig, env: GoalEnvironment, log: Log) -> None:
        """`env` supplies the spec, and oracle distances to the diagnostics alone."""
        self._config, self._env, self._log = config, env, log
        self._cache = StageCache(Path(config.data.cache), log)

    def run(self, report: Report) -> Foundation:
        """All stages.

        Args:
            report: told (epoch, metrics) while the network trains.
        """
        store = self._data()
        network, weights, metrics = self._reachability(store, report)
        cover, memory = self._memory(store, network, weights)
        embeddings = weights.network.embed(self._features(weights).reachability(memory.nodes))
        nearest, outward, inward = self._nearest(store, cover, weights, embeddings)

        def score(i: Ints, j: Ints) -> Floats:
            return weights.network.all_pairs(embeddings[i], embeddings[j])

        def connect(folder: Path) -> None:
            count = len(memory.nodes)
            graph = build_graph(store, self._config, outward, inward, score, count)
            _write(folder, graph_arrays(graph))

        inputs = {"nearest": nearest, "seed": self._config.seed} | self._settings("graph")
        folder = self._stage("graph", inputs, connect)
        graph = graph_from_arrays(_read(folder))
        passes = np.bincount(outward, minlength=len(memory.nodes)).astype(np.float64)
        bundle = self._bundle(weights, memory, embeddings, graph, passes)
        metrics = metrics | self._diagnostics(store, memory, graph, bundle)
        self._say(memory, metrics)
        return Foundation(folder.name, store, bundle, graph, outward, inward, metrics)

    def _reachability(
        self, store: EpisodeStore, report: Report
    ) -> tuple[str, ReachabilityWeights, dict[str, float]]:
        """The artefact's name, the network, and the metrics of its last epoch."""
        config = self._config

        def train(folder: Path) -> None:
            last: dict[str, float] = {}

            def said(epoch: int, metrics: dict[str, float]) -> None:
                last.update(metrics)
                report(epoch, metrics)

            weights = fit_network(store, config, self._env.spec, said)
            arrays = weights.network.arrays()
            content = {"network": arrays, "scale": weights.scale, "unit": weights.unit}
            _write(folder, content | {"metrics": last})

        inputs = {
            "data": store.info["content"],
            "seed": config.seed,
            "environment": config.environment.model_dump(mode="json"),
            # What the network's own inputs depend on; the rest is the policy's.
            "features": config.features.model_dump(mode="json", include={"angles", "scale"}),
        }
        folder = self._stage("reachability", inputs | self._settings("reachability"), train)
        content = _read(folder)
        network = FoldedReachability.from_arrays(content["network"])
        weights = ReachabilityWeights(1, network, content["scale"], content["unit"])
        return folder.name, weights, content["metrics"]

    def _memory(
        self, store: EpisodeStore, network: str, weights: ReachabilityWeights
    ) -> tuple[str, Memory]:
        """The artefact's name and the memory."""

        def cover(folder: Path) -> None:
            _write(folder, vars(build_memory(store, self._config, self._env.spec, weights)))

        inputs = {"reachability": network, "seed": self._config.seed}
        folder = self._stage("memory", inputs | self._settings("memory"), cover)
        return folder.name, Memory(**_read(folder))

    def _nearest(
        self, store: EpisodeStore, memory: str, weights: ReachabilityWeights, embeddings: Floats
    ) -> tuple[str, Ints, Ints]:
        """The artefact's name, and both nearest nodes of every row, mapped."""

        def look_up(folder: Path) -> None:
            features, placement = self._features(weights), self._config.runtime
            found = nearest_of_all(store, features, weights.network, embeddings, placement)
            for name, nodes in zip(("outward", "inward"), found, strict=True):
                np.save(folder / f"{name}.npy", nodes)

        folder = self._stage("nearest", {"memory": memory}, look_up)
        outward, inward = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("outward", "inward")
        )
        return folder.name, outward, inward

    def _say(self, memory: Memory, metrics: Mapping[str, float]) -> None:
        """What the user should know of memory and graph, and what looks wrong."""
        self._log(
            f"{'':<13} {len(memory.nodes)} nodes, {metrics['graph/edges']:.0f} edges, paths of "
            f"{metrics['graph/mean_hops']:.1f} hops, {metrics['graph/diameter_hops']:.0f} at most"
        )
        if memory.overwritten:
            self._log(
                f"warning: memory.capacity {self._config.memory.capacity} was reached and "
                f"{memory.overwritten} nodes gave way to others. Raise it, or lower "
                "memory.threshold."
            )
        if metrics["graph/connectors"]:
            self._log(
                f"warning: the graph had {metrics['graph/components']:.0f} components; "
                f"{metrics['graph/connectors']:.0f} edges without a transition behind them join "
                "them. Raise graph.edge_frac or record more data if they are many."
            )
        if metrics["graph/shortcut_frac"] > SHORTCUTS_BEARABLE:
            self._log(
                f"warning: {metrics['graph/shortcut_frac']:.1%} of the edges are long shortcuts by "
                "the oracle, such as through walls, and what is planned along them fails. Raise "
                "graph.min_edge_support or graph.min_edge_probability, or train the network for "
                "longer."
            )

    def _settings(self, section: str) -> dict[str, Any]:
        return {section: getattr(self._config, section).model_dump(mode="json")}

    def _stage(self, name: str, inputs: dict[str, Any], build: Callable[[Path], None]) -> Path:
        return self._cache.get(name, {"version": VERSIONS[name], **inputs}, build)

    def _data(self) -> EpisodeStore:
        """Open, record or copy the data set."""
        path, config = here(self._config.data.path), self._config.data.config
        if (path / INDEX_FILE).exists():
            store = EpisodeStore.open(path)
            self._log(f"{'data':<13} {store.info['transitions']:,} transitions, from {path}")
        elif config is None or holds_recording(path):
            store = EpisodeStore.open(imported(self._config, self._log))
        else:
            self._log(f"{'data':<13} to be recorded from {config} into {path}")
            store = datasets.generate(config, _placed(self._config), path)
        expect_fit(store, self._config.environment, self._env)
        return store

    def _features(self, weights: ReachabilityWeights) -> Features:
        config = self._config
        return Features(
            self._env.spec, config.features, config.reachability, weights.scale, weights.unit
        )

    def _bundle(
        self,
        weights: ReachabilityWeights,
        memory: Memory,
        embeddings: Floats,
        graph: DataGraph,
        passes: Floats,
    ) -> Bundle:
        n = len(memory.nodes)
        return Bundle(
            version=1,
            network=weights.network,
            scale=weights.scale,
            unit=weights.unit,
            nodes=memory.nodes,
            embeddings=embeddings,
            born=np.ones(n, np.int64),
            added_at=memory.rows,
            predecessor=np.full(n, -1),
            passes=passes,
            attempts=np.zeros(n),
            successes=np.zeros(n),
            edges=graph.edges,
            hops=graph.paths.hops,
            next_hop=graph.paths.next_hop,
            connectors=graph.paths.connectors,
            components=graph.paths.components,
            directed=self._config.reachability.directed,
        )

    def _diagnostics(
        self, store: EpisodeStore, memory: Memory, graph: DataGraph, bundle: Bundle
    ) -> dict[str, float]:
        """What shows a bad graph before the policy fails (in part by the oracle)."""
        i, j = np.nonzero(graph.edges)
        length = self._env.path_distance(memory.nodes[i], memory.nodes[j])
        *_, is_shortcut = shortcuts(bundle, self._env)
        return {
            "data/transitions": float(len(transitions(store))),
            "memory/nodes": float(len(memory.nodes)),
            "memory/tested": float(memory.tested),
            "memory/overwritten": float(memory.overwritten),
            "graph/edges": float(len(i)),
            "graph/contradicted": float(graph.contradicted),
            "graph/connectors": float(len(graph.paths.connectors)),
            "graph/components": float(graph.paths.components),
            "graph/mean_hops": float(graph.paths.hops.mean()),
            "graph/diameter_hops": float(graph.paths.hops.max()),
            "graph/mean_edge_length": float(length.mean()) if len(i) else 0.0,
            "graph/shortcut_frac": float(is_shortcut.mean()) if len(i) else 0.0,
        }


def imported(config: FreshRunConfig, log: Log) -> Path:
    """The copy of a recording in another layout that the cache keeps; its warnings are logged.

    Raises:
        DataError: the recording is faulty, or none.
    """
    path, environment = here(config.data.path), config.environment
    files = sorted(file for file in [path, *path.rglob("*")] if file.is_file())

    def copy(folder: Path) -> None:
        _write(folder, {"warnings": import_recording(path, folder, environment)})

    inputs = {
        "version": VERSIONS["import"],
        "files": [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files],
        "environment": {"name": environment.name, "options": transition_options(environment)},
    }
    folder = StageCache(Path(config.data.cache), log).get("import", inputs, copy)
    for warning in _read(folder)["warnings"]:
        log(f"warning: {warning}")
    return folder


def nearest_of_all(
    store: EpisodeStore,
    features: Features,
    network: FoldedReachability,
    nodes: Floats,
    settings: PlacementConfig,
) -> tuple[Ints, Ints]:
    """Outward and inward node of every row, int16 both, worked on in blocks; nodes (n, e)."""
    outward = np.empty(store.rows, np.int16)
    inward = np.empty(store.rows, np.int16)
    begins = range(0, store.rows, BLOCK_ROWS)
    items = [
        (store, features, network, nodes, begin, min(begin + BLOCK_ROWS, store.rows))
        for begin in begins
    ]
    inline, cpus = settings.placement == "inline", settings.cpus
    done = 0
    with (
        Progress("nearest nodes", store.rows, "states") as progress,
        closing(done_in_any_order(nearest_of_rows, items, inline=inline, num_cpus=cpus)) as blocks,
    ):
        for index, (out, into) in blocks:
            rows = slice(begins[index], begins[index] + len(out))
            outward[rows], inward[rows] = out, into
            done += len(out)
            progress.update(done)
    return outward, inward


def _placed(config: FreshRunConfig) -> list[str]:
    """Where the data are recorded: where the other stages are worked on."""
    return [f"runtime.placement={config.runtime.placement}", f"runtime.cpus={config.runtime.cpus}"]


def _write(folder: Path, content: dict[str, Any]) -> None:
    atomic_write(folder / _RESULT, messages.pack(content))


def _read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = messages.unpack((folder / _RESULT).read_bytes())
    return content
