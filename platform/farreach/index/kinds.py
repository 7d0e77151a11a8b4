"""The kinds of index: their settings, how each is trained and filled, and how each is searched.

Scores are inner products. `flat` keeps no file of its own, for vectors are searched as they lie.
The others are FAISS's: those called ivf divide the space into lists and look at the lists nearest
to a query, `ivf_flat` at vectors in half precision, for memory is what it waits for, `ivf_pq` at
codes of a few bytes per vector (Jégou et al., PAMI 2011), and `ivf_fastscan` at codes of 4 bits per
piece, whose scores come out of registers, 32 vectors at once (André et al., VLDB 2015); `hnsw`
walks a graph of neighbours (Malkov and Yashunin, PAMI 2020); `sq8` scans a byte per number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from farreach.config import Config
from farreach.errors import DataError
from farreach.index.files import written_aside
from farreach.index.hits import Hits, best
from farreach.index.library import faiss

Kind = Literal["flat", "ivf_flat", "ivf_pq", "ivf_fastscan", "hnsw", "sq8"]
Floats = NDArray[np.float32]
# The lists nearest to each query, and its products with their centres: (n, probes) each.
Coarse = tuple[NDArray[np.int64], Floats]

# Fewer vectors than this for each list, or each code, train neither (FAISS warns below it).
LEAST_PER_CENTRE = 39
# What a piece of a vector is told apart into, and numbers of a piece unless it is set.
CODES: Mapping[Kind, int] = {"ivf_pq": 256, "ivf_fastscan": 16}
_PIECE: Mapping[Kind, int] = {"ivf_pq": 8, "ivf_fastscan": 2}
# Kinds whose scores are so rough that several candidates are needed for each hit.
_ROUGH = ("ivf_pq", "ivf_fastscan", "sq8")
ROUNDS = 10
# Hits beyond those wanted, some of which half precision may have put in the wrong order.
SPARE = 8


class IndexConfig(Config):
    """How an index is built and searched."""

    kind: Kind = "flat"
    """`flat` is exact; the others are faster, most of all `ivf_fastscan`, and `ivf_pq`,
    `ivf_fastscan` and `sq8` are smaller."""
    lists: int | None = Field(default=None, ge=1)
    """Lists of ivf_*, at most one for 39 vectors; null: four times the square root of those."""
    probes: int = Field(default=32, ge=1)
    """Lists of ivf_* that a search looks at."""
    subquantizers: int | None = Field(default=None, ge=1)
    """Pieces of a vector, a divisor of its width: of a byte each in ivf_pq, of half a byte in
    ivf_fastscan; null: an eighth of the width, and half of it."""
    neighbours: int = Field(default=32, ge=2)
    """Edges of a vector in hnsw."""
    ef_build: int = Field(default=100, ge=1)
    """Candidates that hnsw weighs up for each vector it takes in."""
    ef: int = Field(default=64, ge=1)
    """Candidates that a search in hnsw keeps."""
    rerank: int = Field(default=10, ge=0)
    """ivf_pq, ivf_fastscan and sq8: candidates for each hit wanted, scored again exactly; 0: none
    are."""
    samples_per_list: int = Field(default=64, ge=LEAST_PER_CENTRE)
    """Vectors that train each list of ivf_* and each code, drawn uniformly from all."""
    shards: int = Field(default=1, ge=1)
    """Pieces that are built and searched apart."""
    seed: int = Field(default=0, ge=0)
    """Of the draws in training."""

    @property
    def needs_training(self) -> bool:
        """Whether vectors must be seen before any can be added."""
        return self.has_lists or self.kind == "sq8"

    @property
    def has_lists(self) -> bool:
        """Whether the space is divided into lists."""
        return self.kind.startswith("ivf")

    @property
    def is_rough(self) -> bool:
        """Whether more candidates find more, since scores are rough."""
        return self.kind in _ROUGH

    def candidates(self, k: int) -> int:
        """How many hits to look for where k are wanted, since their scores are approximate."""
        if self.is_rough:
            return k * max(1, self.rerank)
        return k + SPARE if self.kind == "ivf_flat" else k

    @property
    def rescores(self) -> bool:
        """Whether what is found is scored again from the vectors themselves."""
        return self.kind == "ivf_flat" or (self.is_rough and self.rerank > 0)

    def lists_for(self, count: int) -> int:
        """Number of lists for so many vectors."""
        wanted = round(4 * math.sqrt(count)) if self.lists is None else self.lists
        return max(1, min(wanted, count // LEAST_PER_CENTRE))

    def sample_for(self, count: int) -> int:
        """How many of so many vectors to train on."""
        wanted = self.samples_per_list * max(CODES.get(self.kind, 256), self.lists_for(count))
        return min(count, wanted)


def trained(config: IndexConfig, sample: Floats, count: int) -> Any:
    """A FAISS index without vectors, ready to take them in.

    Args:
        config: of a kind other than flat.
        sample: (m, d) vectors to train on, drawn uniformly from all of them.
        count: how many vectors there will be.

    Raises:
        DataError: the settings do not fit the width or the number of vectors.
    """
    width, inner = sample.shape[1], faiss.METRIC_INNER_PRODUCT
    if config.kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, config.neighbours, inner)
        index.hnsw.efConstruction = config.ef_build
        return index
    if config.kind == "sq8":
        index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, inner)
        index.train(sample)
        return index
    lists = config.lists_for(count)
    quantizer = faiss.IndexFlatIP(width)
    if config.kind == "ivf_flat":
        half = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(quantizer, width, lists, half, inner, False)
    else:
        least = LEAST_PER_CENTRE * CODES[config.kind]
        if len(sample) < least:
            raise DataError(
                f"an index of kind {config.kind} needs at least {least} vectors, and there are "
                f"{len(sample)}. Take kind flat, which is fast for so few."
            )
        pieces, bits = _subquantizers(config, width), CODES[config.kind].bit_length() - 1
        made = faiss.IndexIVFPQ if config.kind == "ivf_pq" else faiss.IndexIVFPQFastScan
        index = made(quantizer, width, lists, pieces, bits, inner)
        _set(index.pq.cp, config)
    _set(index.cp, config)
    if faiss.get_num_gpus():
        index.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(width))
    index.train(sample)
    return index


def centres_of(index: Any) -> Tensor | None:
    """(lists, d) centres of an index of lists."""
    if not isinstance(index, faiss.IndexIVF):
        return None
    return torch.from_numpy(index.quantizer.reconstruct_n(0, index.nlist))


def coarse(queries: Floats, centres: Tensor, probes: int) -> Coarse:
    """The lists to look at for (n, d) queries."""
    products = torch.mm(torch.from_numpy(queries.copy()), centres.T)
    values, lists = torch.topk(products, min(probes, len(centres)))
    return lists.numpy(), values.numpy()


def search(
    index: Any,
    queries: Floats,
    k: int,
    config: IndexConfig,
    *,
    allowed: NDArray[np.bool_] | None = None,
    lists: Coarse | None = None,
) -> Hits:
    """The best k ids of a FAISS index for every query, as the kind finds them.

    Args:
        index: of a kind other than flat.
        queries: (n, d).
        k: how many.
        config: its kind, probes and ef.
        allowed: by id: only ids where it is True are found; by default all.
        lists: of an index of lists, where to look.
    """
    arguments: dict[str, Any] = {}
    if allowed is not None:
        bits = np.packbits(allowed, bitorder="little")
        arguments["sel"] = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    if config.kind == "hnsw":
        settings = faiss.SearchParametersHNSW(efSearch=max(config.ef, k), **arguments)
        scores, ids = index.search(queries, k, params=settings)
    elif lists is None:
        scores, ids = index.search(queries, k, params=faiss.SearchParameters(**arguments))
    else:
        scores, ids = _search_lists(index, queries, k, lists, arguments)
    return best(scores, ids, k)


def save(index: Any, path: Path) -> None:
    """Write a FAISS index, whole or not at all."""
    with written_aside(path) as temporary:
        try:
            faiss.write_index(index, str(temporary))
        except RuntimeError as error:
            raise OSError(str(error)) from error


def read(path: Path, flags: int = 0) -> Any:
    """A FAISS index from its file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise DataError(
            f"{path}: cannot be read by FAISS. If another process has replaced it, open the index "
            f"again; else build it again. ({' '.join(str(error).split())[-200:]})"
        ) from error


def load(path: Path, kind: Kind) -> Any:
    """A FAISS index from its file, memory-mapped but for ivf_fastscan; DataError as `read`."""
    if kind in ("ivf_flat", "ivf_pq"):
        index = read(path, faiss.IO_FLAG_MMAP)
        index.parallel_mode = 3  # over queries, inside of what `_search_lists` calls
        return index
    return read(path, faiss.IO_FLAG_MMAP_IFC)


def _search_lists(
    index: Any, queries: Floats, k: int, lists: Coarse, arguments: dict[str, Any]
) -> tuple[Floats, NDArray[np.int64]]:
    """Scores and ids, (n, k) each, from the given lists alone."""
    numbers, products = lists
    settings = faiss.SearchParametersIVF(nprobe=numbers.shape[1], **arguments)
    scores = np.empty((len(queries), k), np.float32)
    ids = np.empty((len(queries), k), np.int64)
    pointers = [faiss.swig_ptr(array) for array in (numbers, products, scores, ids)]
    # The wrapper of this method takes no settings.
    index.search_preassigned_c(len(queries), faiss.swig_ptr(queries), k, *pointers, False, settings)
    return scores, ids


def _set(clustering: Any, config: IndexConfig) -> None:
    clustering.niter, clustering.seed = ROUNDS, config.seed
    clustering.max_points_per_centroid = config.samples_per_list


def _subquantizers(config: IndexConfig, width: int) -> int:
    if config.subquantizers is None:
        most = max(1, width // _PIECE[config.kind])
        return max(m for m in range(1, most + 1) if width % m == 0)
    if width % config.subquantizers:
        raise DataError(
            f"subquantizers: {config.subquantizers} do not divide vectors of {width} numbers. "
            "Choose a divisor, or leave it out."
        )
    return config.subquantizers
