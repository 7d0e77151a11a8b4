"""Folders of embedded documents for the tests of search."""

from itertools import pairwise

import numpy as np
import pytest

from farreach.data.text import Document
from farreach.index.vectors import finish, write_part

MODEL = "0123abcd"


@pytest.fixture
def embedded(tmp_path):
    """Makes a folder of embedded documents.

    `meta(i)` gives what the i-th says of itself, `points` how many of the vectors are whose.
    """

    def make(
        name, vectors, *, parts=3, prefix="d", meta=None, model=MODEL, dtype=np.float32, points=None
    ):
        folder, vectors = tmp_path / name, vectors.astype(dtype)
        points = np.ones(len(vectors), int) if points is None else np.array(points)
        begins = np.concatenate([[0], points.cumsum()])
        documents = [
            Document(f"{prefix}{i}", f"title {i}", f"text {i}", meta(i) if meta else {})
            for i in range(len(points))
        ]
        edges = np.linspace(0, len(points), parts + 1).astype(int)
        for number, (begin, end) in enumerate(pairwise(edges)):
            own = vectors[begins[begin] : begins[end]]
            write_part(folder, number, own, documents[begin:end], points[begin:end].tolist())
        finish(folder, parts=parts, model=model, normalised=True)
        return folder

    return make


@pytest.fixture
def clustered():
    """Draws vectors of norm 1 around 40 centres: (count, width), the same for the same seed."""

    def draw(count, width=32, seed=0):
        rng = np.random.default_rng(seed)
        centres = np.random.default_rng(9).standard_normal((40, width))
        vectors = centres[rng.integers(40, size=count)] + 0.7 * rng.standard_normal((count, width))
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    return draw


@pytest.fixture
def truth():
    """Exact search in double precision: scores and rows of the best k, ties by row."""

    def search(vectors, queries, k, allowed=None):
        scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, rows, 1).astype(np.float32), rows

    return search
