import math

import numpy as np
import torch

from farreach_workloads.vision.evaluation.neighbours import knn_labels


def test_near_neighbours_count_more_than_far_ones():
    """One reference at 0 degrees of class 1; two at 60 of class 0, whose cosine is a half."""
    references = torch.tensor([[3.0, 0.0], [0.5, math.sqrt(0.75)], [1.0, math.sqrt(3)]])
    labels = torch.tensor([1, 0, 0])
    query = torch.tensor([[2.0, 0.0]])
    # exp(1 / T) against 2 exp(1 / 2 T): equal at T = 1 / (2 ln 2).
    turn = 1 / (2 * math.log(2))
    assert knn_labels(references, labels, query, 2, 3, turn * 0.99).tolist() == [1]
    assert knn_labels(references, labels, query, 2, 3, turn * 1.01).tolist() == [0]
    assert knn_labels(references, labels, query, 2, 1, 100.0).tolist() == [1]
    assert knn_labels(references, labels, query, 2, 99, 100.0).tolist() == [0]


def test_many_queries_are_as_one_by_one():
    rng = np.random.default_rng(0)
    references, queries = (torch.from_numpy(rng.normal(size=(n, 5))) for n in (40, 2500))
    labels = torch.from_numpy(rng.integers(0, 4, 40))
    found = knn_labels(references, labels, queries, 4, 7, 0.07)
    for row in (0, 1023, 1024, 2499):
        own = references.numpy() / np.linalg.norm(references, axis=1, keepdims=True)
        q = queries[row].numpy() / np.linalg.norm(queries[row])
        order = np.argsort(-(own @ q))[:7]
        votes = np.bincount(labels[order], weights=np.exp(own[order] @ q / 0.07), minlength=4)
        assert int(found[row]) == votes.argmax()


def test_weights_do_not_overflow_at_low_temperatures():
    """exp(1 / 0.01) is infinite in float32: of infinite votes the lowest class would have most."""
    references = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.96, 0.28]])
    labels = torch.tensor([2, 2, 0])
    query = torch.tensor([[1.0, 0.0]])
    for temperature in (0.01, 1e-4):
        assert knn_labels(references, labels, query, 3, 3, temperature).tolist() == [2]
