"""Search over embedded documents against FAISS's own: a few queries, batches, and the build.

`python benchmarks/search.py [few_queries] [batch_r95] [build]` prints one JSON line per row, all
rows by default. Vectors are drawn, or those of `--vectors FOLDER`, some of which are queries then.
`OMP_NUM_THREADS` is 2 unless it is set. Times are wall times, since how long one waits is the
point: medians of rounds that take turns.

Drawn vectors lie around 2,000 topics whose sizes fall off as a power; topics and what is within
them vary in directions whose variance falls off as 1 / rank, as in embeddings of text. Of 200,000
the nearest has a mean cosine of 0.77, the hundredth of 0.58, and neighbours have a local dimension
of about 16 (Levina and Bickel, 2004). Queries are drawn as documents are.

FAISS 1.15 scores queries one at a time as long as queries × width are below 128,000, so also 256
queries here; `ratio_with_blas` is to what it reaches if it is told to multiply matrices always.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
from numpy.typing import NDArray

COUNT, WIDTH, TOPICS = 200_000, 384, 2000
HELD_OUT = 2048
BATCH, K, RECALL = 256, 10, 0.95
# Above it when tuning, for one batch may be harder than the queries that were tuned on.
MARGIN = 0.01
ROUNDS_FEW, ROUNDS_BATCH = 21, 5
# Of the build, which must be large beside what Python and torch take.
BUILD_COUNT, BUILD_LISTS, SHARDS = 600_000, 1024, 4
PART = 50_000
Floats = NDArray[np.float32]


def drawn(count: int, seed: int = 0) -> Floats:
    """(count, WIDTH) vectors of norm 1, as above."""
    rng = np.random.default_rng(seed)
    scale = (1.0 + np.arange(WIDTH)) ** -0.5
    turn = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0] * scale[:, None]
    centres = rng.standard_normal((TOPICS, WIDTH))
    sizes = (1.0 + np.arange(TOPICS)) ** -0.7
    topics = rng.choice(TOPICS, count, p=sizes / sizes.sum())
    spread = rng.uniform(0.5, 1.0, TOPICS)
    result = np.empty((count, WIDTH), np.float32)
    for begin in range(0, count, PART):
        here = topics[begin : begin + PART]
        around = rng.standard_normal((len(here), WIDTH)) * spread[here, None]
        vectors = (centres[here] + around) @ turn
        result[begin : begin + PART] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result


def vectors_of(folder: Path | None) -> tuple[Floats, Floats, str]:
    """Documents, queries, and what they are."""
    from farreach.index.vectors import Vectors

    if folder is None:
        every, what = drawn(COUNT + HELD_OUT), f"drawn, {TOPICS} topics"
    else:
        stored = Vectors.open(folder)
        every, what = stored.at(np.arange(stored.points)), f"{folder.name}, documents as queries"
    chosen = np.random.default_rng(1).permutation(len(every))
    return every[np.sort(chosen[HELD_OUT:])], every[chosen[:HELD_OUT]], what


def write(folder: Path, vectors: Floats) -> None:
    """Keep vectors as embedded documents without text."""
    from farreach.data.text import Document
    from farreach.index.vectors import finish, write_part

    parts = range(0, len(vectors), PART)
    for number, begin in enumerate(parts):
        part = vectors[begin : begin + PART]
        documents = [Document(str(begin + i), "", "-") for i in range(len(part))]
        write_part(folder, number, part, documents)
    finish(folder, parts=len(parts), model="drawn", normalised=True)


def wall(works: Sequence[measure.Work], rounds: int) -> list[float]:
    """Median wall time of each work in s; they take turns, and a first round does not count."""
    taken: list[list[float]] = [[] for _ in works]
    for number in range(rounds + 1):
        for work, seconds in zip(works, taken, strict=True):
            begin = time.perf_counter()
            work()
            if number:
                seconds.append(time.perf_counter() - begin)
    return [statistics.median(seconds) for seconds in taken]


def with_blas(peer: Any, queries: Floats) -> None:
    """FAISS's exact search by products of matrices, however few the queries."""
    from farreach.index.library import faiss

    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 1
    peer.search(queries, K)
    faiss.cvar.distance_compute_blas_threshold = before


def few_queries(folder: Path, documents: Floats, queries: Floats, what: str) -> None:
    """How long one query, and four together, take with exact search."""
    from farreach.index.kinds import IndexConfig
    from farreach.index.library import faiss
    from farreach.index.store import Index

    peer = faiss.IndexFlatIP(documents.shape[1])
    peer.add(documents)
    ours = Index.build(folder / "vectors", folder / "flat", IndexConfig(kind="flat"))
    for count in (1, 4):
        few = queries[:count]
        scores, rows = peer.search(few, K)
        hits = ours.search(few, K)
        works = [
            partial(ours.search, few, K),
            partial(peer.search, few, K),
            partial(with_blas, peer, few),
        ]
        times = wall(works, ROUNDS_FEW)
        measure.row(
            "few_queries" if count == 1 else f"few_queries_{count}",
            *(1e3 * seconds for seconds in times[:2]),
            "ms per search, less is better",
            times[1] / times[0],
            ratio_with_blas=float(f"{times[2] / times[0]:.4g}"),
            **facts(documents, what),
            rows_equal=float((hits.rows == rows).mean()),
            gap=float(np.abs(hits.scores - scores).max()),
        )


def batch_r95(
    folder: Path, documents: Floats, queries: Floats, what: str, kinds: Sequence[str]
) -> None:
    """Queries a second in batches of 256, with the effort tuned on other queries."""
    from farreach.index.kinds import IndexConfig
    from farreach.index.library import faiss
    from farreach.index.store import Index
    from farreach.index.tune import recall

    peer = faiss.IndexFlatIP(documents.shape[1])
    peer.add(documents)
    batch, others = queries[:BATCH], queries[BATCH:]
    for kind in kinds:
        config = IndexConfig.model_validate({"kind": kind})
        ours = Index.build(folder / "vectors", folder / kind, config)
        ours.tune(others, k=K, recall=RECALL + MARGIN)
        works = [
            partial(ours.search, batch, K),
            partial(peer.search, batch, K),
            partial(with_blas, peer, batch),
            partial(ours.search_exactly, batch, K),
        ]
        times = wall(works, ROUNDS_BATCH)
        measure.row(
            "batch_r95" if kind == kinds[0] else f"batch_r95_{kind}",
            *(BATCH / seconds for seconds in times[:2]),
            "queries per s",
            times[1] / times[0],
            **facts(documents, what),
            recall=round(recall(ours.search(batch, K), ours.search_exactly(batch, K)), 4),
            ratio_with_blas=float(f"{times[2] / times[0]:.4g}"),
            ratio_to_our_exact_search=float(f"{times[3] / times[0]:.4g}"),
            settings=ours.config.model_dump(include={"probes", "ef", "rerank"}),
        )


def facts(documents: Floats, what: str) -> dict[str, object]:
    """What the rows are about."""
    threads = os.environ["OMP_NUM_THREADS"]
    return {"vectors": list(documents.shape), "data": what, "threads": threads}


def build(folder: Path) -> None:
    """Four shards one after the other against one piece, each in a process of its own."""
    write(folder / "many", drawn(BUILD_COUNT))
    found: dict[str, list[list[float]]] = {"ours": [], "peer": []}
    for who in ("ours", "peer", "peer", "ours"):
        command = [sys.executable, __file__, "--child", who, "--folder", str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[who].append([float(word) for word in done.stdout.split()])
    (ours_s, ours_mb, ours_bare), (peer_s, peer_mb, peer_bare) = (
        np.mean(found[who], axis=0).tolist() for who in ("ours", "peer")
    )
    measure.row(
        "build",
        ours_s,
        peer_s,
        "s, less is better",
        peer_s / ours_s,
        vectors=[BUILD_COUNT, WIDTH],
        lists=BUILD_LISTS,
        threads=os.environ["OMP_NUM_THREADS"],
        peak_mb=[round(ours_mb), round(peer_mb)],
        imports_mb=[round(ours_bare), round(peer_bare)],
        memory=round(ours_mb / peer_mb, 3),
        memory_without_imports=round((ours_mb - ours_bare) / (peer_mb - peer_bare), 3),
    )


def build_ours(folder: Path) -> tuple[float, float]:
    """Seconds, and MB after the imports."""
    from farreach.index.kinds import IndexConfig
    from farreach.index.store import Index

    bare = peak_mb()
    begin = time.perf_counter()
    config = IndexConfig(kind="ivf_flat", lists=BUILD_LISTS, shards=SHARDS)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        Index.build(folder / "many", Path(out), config)
        return time.perf_counter() - begin, bare


def build_peer(folder: Path) -> tuple[float, float]:
    """The same with FAISS as one writes it: all vectors in memory, as many of them to train on."""
    import faiss

    bare = peak_mb()
    begin = time.perf_counter()
    vectors = np.concatenate([np.load(file) for file in sorted((folder / "many").glob("*.npy"))])
    inner = faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(WIDTH), WIDTH, BUILD_LISTS, inner)
    chosen = np.random.default_rng(0).choice(len(vectors), 64 * BUILD_LISTS, replace=False)
    index.train(vectors[chosen])
    index.add(vectors)
    faiss.write_index(index, str(folder / "peer.faiss"))
    return time.perf_counter() - begin, bare


def peak_mb() -> float:
    """The most memory that this process has had so far; what `getrusage` says is its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Print the rows that are asked for."""
    parser = measure.parser(__doc__)
    parser.add_argument("rows", nargs="*", help="few_queries, batch_r95 or build")
    parser.add_argument("--vectors", type=Path, help="a folder of embedded documents")
    parser.add_argument("--kinds", nargs="*", default=["ivf_flat", "ivf_fastscan", "ivf_pq"])
    parser.add_argument("--child", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        work = build_ours if arguments.child == "ours" else build_peer
        seconds, bare = work(arguments.folder)
        print(seconds, peak_mb(), bare)
        return
    rows = arguments.rows or ["few_queries", "batch_r95", "build"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"few_queries", "batch_r95"} & set(rows):
            data = vectors_of(arguments.vectors)
            write(folder / "vectors", data[0])
            if "few_queries" in rows:
                few_queries(folder, *data)
            if "batch_r95" in rows:
                batch_r95(folder, *data, arguments.kinds)
        if "build" in rows:
            build(folder)


if __name__ == "__main__":
    main()
