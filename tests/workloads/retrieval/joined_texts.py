"""Computes the loss of fine-tuning as one of several ranks, and saves it with its gradients."""

from pathlib import Path

import torch

from farreach.learn.order import share
from farreach.learn.place import Place
from farreach.testing.ranks import as_rank, several
from farreach_workloads.retrieval.contrast import Pair
from farreach_workloads.retrieval.encoder import Bert, EncoderConfig
from farreach_workloads.retrieval.finetune_task import labelled_loss

SIZES = {"width": 16, "depth": 1, "heads": 2, "hidden": 32, "positions": 20, "dropout": 0.0}
QUESTIONS = 7
# Of every question; in "none here" a whole worker has none.
NEGATIVES = {
    "none": [0] * 7,
    "one": [1] * 7,
    "three": [3] * 7,
    "ragged": [0, 1, 3, 0, 2, 0, 1],
    "none here": [0, 0, 0, 0, 2, 1, 1],
}


def text(number):
    """Of the same number always the same; 3 to 12 tokens."""
    generator = torch.Generator().manual_seed(number)
    length = int(torch.randint(3, 13, (), generator=generator))
    return torch.randint(5, 50, (length,), generator=generator)


def stacked(numbers):
    texts = [text(number) for number in numbers]
    lengths = torch.tensor([len(one) for one in texts])
    return torch.nn.utils.rnn.pad_sequence(texts, batch_first=True), lengths


def part(case, chosen):
    """Some questions with their texts: questions 0 and 5 have the same answer, 2 and 6 know it."""
    golds = [100 + i if i != 5 else 100 for i in range(QUESTIONS)]
    keys = [golds[i] for i in chosen]
    keys += [1000 + 10 * i + j for i in chosen for j in range(NEGATIVES[case][i])]
    answers = [[golds[i], 100 if i in (2, 6) else golds[i]] for i in chosen]
    return stacked(list(chosen)), stacked(keys), torch.tensor(keys), torch.tensor(answers)


def results(place, dtype, chunk=None):
    """Loss and gradients of each case, of all workers."""
    found = {}
    for case in NEGATIVES:
        torch.manual_seed(0)
        pair = Pair(Bert(50, EncoderConfig(**SIZES)).to(dtype))
        model = place.parallel(pair)
        chosen = range(QUESTIONS)[share(QUESTIONS, place.rank, place.world)]
        queries, keys, texts, answers = part(case, chosen)
        loss, metrics = labelled_loss(*model([queries, keys], chunk), texts, answers, 0.5)
        weight = len(chosen) * place.world / QUESTIONS  # as the loop does
        (loss * weight).backward()
        found[case] = {
            "loss": float(place.sum(loss.detach() * weight)) / place.world,
            "left_out": float(place.sum(metrics["data/left_out"] * weight)) / place.world,
            "gradients": torch.cat([p.grad.flatten() for p in pair.parameters()]),
        }
    return found


def as_joined(world, folder):
    """What each of several processes finds in double precision."""
    return several(Path(__file__), world, folder)


if __name__ == "__main__":
    as_rank(lambda rank, world, words: results(Place(rank, world), torch.float64))
