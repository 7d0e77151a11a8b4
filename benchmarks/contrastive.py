"""Steps of contrastive training of text encoders, ours and others', from the same weights.

    pip install -e '.[bench]'
    OMP_NUM_THREADS=1 python benchmarks/contrastive.py [ROW …]

`moco` is a step of 64 pairs against a queue of 16,384 keys: the peer is the method as Contriever's
code has it, written plainly over the BERT of transformers (padded batches, the queue as a buffer
that is cloned at every step). `inbatch_vs_sentence_transformers` is a step of
MultipleNegativesRankingLoss. `gradcache` is the time per pair of batches of 4,096 encoded in
chunks, beside batches of 64 at once; its ratio is ours over theirs, so lower is better there, and
it adds the memory and the error of the gradient. Encoder: 4 layers of 256, a vocabulary of 30,522,
no dropout, so that losses can be equal.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from measure import medians, missing, row
from torch import Tensor, nn
from torch.nn import functional as F

from farreach_workloads.retrieval.contrast import InBatch, InBatchConfig, Moco, MocoConfig
from farreach_workloads.retrieval.encoder import Bert, EncoderConfig
from farreach_workloads.retrieval.hub import _theirs

WIDTH, DEPTH, HEADS, HIDDEN, VOCABULARY = 256, 4, 4, 1024, 30_522
QUEUE, TEMPERATURE, MOMENTUM = 16_384, 0.05, 0.999
COMPARED_STEPS = 20
BATCH_OF_CACHE, CHUNK = 4096, 64

Texts = tuple[Tensor, Tensor]


def encoder(width: int = WIDTH, depth: int = DEPTH, vocabulary: int = VOCABULARY) -> Bert:
    """Ours, of random weights."""
    torch.manual_seed(0)
    config = EncoderConfig(
        width=width, depth=depth, heads=HEADS, hidden=4 * width, positions=256, dropout=0.0
    )
    return Bert(vocabulary, config)


def bert_of(ours: Bert) -> Any:
    """The same network in transformers."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(ours.words.weight),
        hidden_size=ours.width,
        num_hidden_layers=len(ours.blocks),
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        max_position_embeddings=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False)
    state = {}
    for name, value in ours.state_dict().items():
        names = _theirs(name)
        state |= dict(zip(names, value.chunk(len(names)), strict=True))
    model.load_state_dict(state)
    return model.train()


def pairs(count: int, seed: int) -> dict[str, Tensor]:
    """Pairs of texts as long as spans of 5 to 50 % of 256 tokens of which a tenth is deleted."""
    generator = torch.Generator().manual_seed(seed)
    batch: dict[str, Tensor] = {"source": torch.arange(count), "place": torch.arange(count)}
    for side in ("query", "key"):
        spans = torch.randint(12, 129, (count,), generator=generator)
        lengths = (0.9 * spans).long() + 2
        ids = torch.randint(1000, VOCABULARY, (count, int(lengths.max())), generator=generator)
        batch[side] = ids * (torch.arange(ids.shape[1]) < lengths[:, None])
        batch[f"{side}_length"] = lengths
    return batch


class PlainMoco(nn.Module):
    """A step as Contriever's code takes it; see the method notes, section 4.1."""

    queue: Tensor

    def __init__(self, model: nn.Module) -> None:
        """A copy of the model encodes keys."""
        super().__init__()
        self.encoder_q = model
        self.encoder_k = copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(WIDTH, QUEUE), dim=0))
        self.pointer = 0

    def embed(self, model: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        """Mean of the last layer's tokens."""
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        hidden = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        hidden = hidden.masked_fill(~mask[..., None], 0.0)
        embedded: Tensor = hidden.sum(1) / lengths[:, None]
        return embedded

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss; keys are put into the queue."""
        q = self.embed(self.encoder_q, batch["query"], batch["query_length"])
        with torch.no_grad():
            for slow, fast in zip(
                self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True
            ):
                slow.data = slow.data * MOMENTUM + fast.data * (1 - MOMENTUM)
            k = self.embed(self.encoder_k, batch["key"], batch["key_length"])
        positive = torch.einsum("nc,nc->n", q, k)[:, None]
        negative = torch.einsum("nc,ck->nk", q, self.queue.clone().detach())
        logits = torch.cat([positive, negative], 1) / TEMPERATURE
        loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))
        with torch.no_grad():
            self.queue[:, self.pointer : self.pointer + len(k)] = k.T
            self.pointer = (self.pointer + len(k)) % QUEUE
        return loss


def adamw(model: nn.Module, **options: Any) -> torch.optim.AdamW:
    """As Contriever sets it."""
    return torch.optim.AdamW(
        model.parameters(), lr=5e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, **options
    )


def moco(rounds: int, count: int = 64, part: int | None = None, name: str = "moco") -> None:
    """Pairs per CPU-second of a whole step; losses are compared first."""
    config = MocoConfig(queue=QUEUE, temperature=TEMPERATURE, momentum=MOMENTUM, masked=False)
    ours = Moco(encoder(), config, seed=0)
    plain = PlainMoco(bert_of(ours.model.encoder))
    # Keys as they would be after a while: random ones of length 1 would be too easy to tell apart.
    first = pairs(count, 2000)
    with torch.no_grad():
        keys = ours.follower(first["key"], first["key_length"]).repeat(QUEUE // count, 1)
        keys += keys.std(0) * torch.randn(keys.shape)
    ours.queue.keys.copy_(keys)
    plain.queue.copy_(keys.T)
    ours_steps, plain_steps = adamw(ours.model, fused=True), adamw(plain.encoder_q)
    number = 0

    def our_step(batch: dict[str, Tensor]) -> float:
        nonlocal number
        ours_steps.zero_grad()
        loss = 0.0
        size = part or count
        for begin in range(0, count, size):
            some = {key: value[begin : begin + size] for key, value in batch.items()}
            one, _ = ours.loss(ours.model, some, number)
            (one * size / count).backward()
            loss += one.item() * size / count
        ours_steps.step()
        ours.after_update(number)
        number += 1
        return loss

    def plain_step(batch: dict[str, Tensor]) -> float:
        plain_steps.zero_grad()
        loss = plain(batch)
        loss.backward()
        plain_steps.step()
        return float(loss.item())

    differences = []
    for step in range(COMPARED_STEPS if part is None else 3):
        batch = pairs(count, step)
        a, b = our_step(batch), plain_step(batch)
        differences.append(abs(a - b) / abs(b))
    batch = pairs(count, 1000)
    ours_s, plain_s = medians([lambda: our_step(batch), lambda: plain_step(batch)], rounds)
    row(
        name,
        count / ours_s,
        count / plain_s,
        "pairs per CPU-second",
        plain_s / ours_s,
        largest_difference_of_losses=max(differences),
        batch=count,
        part=part,
    )


def inbatch(rounds: int, count: int = 64) -> None:
    """Pairs per CPU-second of a step, beside sentence-transformers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from sentence_transformers import SentenceTransformer, losses, models
    except ImportError:
        missing("inbatch_vs_sentence_transformers", "sentence-transformers")
        return
    ours = InBatch(encoder(), InBatchConfig(temperature=TEMPERATURE))
    inner = bert_of(ours.model.encoder)

    class Words(nn.Module):
        """Its first module, without its tokenizer."""

        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            hidden = inner(features["input_ids"], features["attention_mask"]).last_hidden_state
            return {**features, "token_embeddings": hidden}

    pooling = models.Pooling(WIDTH, pooling_mode="mean")
    words = Words()
    words.inner = inner
    model = SentenceTransformer(modules=[words, pooling], device="cpu")
    peer = losses.MultipleNegativesRankingLoss(
        model, scale=1 / TEMPERATURE, similarity_fct=lambda a, b: a @ b.T
    )
    batch = pairs(count, 0)
    features = [
        {
            "input_ids": batch[side],
            "attention_mask": (
                torch.arange(batch[side].shape[1]) < batch[f"{side}_length"][:, None]
            ).long(),
        }
        for side in ("query", "key")
    ]
    ours_steps, peer_steps = adamw(ours.model, fused=True), adamw(inner)

    def our_step() -> float:
        ours_steps.zero_grad()
        loss, _ = ours.loss(ours.model, batch, 0)
        loss.backward()
        ours_steps.step()
        return loss.item()

    def peer_step() -> float:
        peer_steps.zero_grad()
        loss = peer([dict(one) for one in features], torch.zeros(0))
        loss.backward()
        peer_steps.step()
        return float(loss.item())

    a, b = our_step(), peer_step()
    ours_s, peer_s = medians([our_step, peer_step], rounds)
    row(
        "inbatch_vs_sentence_transformers",
        count / ours_s,
        count / peer_s,
        "pairs per CPU-second",
        peer_s / ours_s,
        difference_of_losses=abs(a - b) / abs(b),
        batch=count,
    )


def gradcache(rounds: int) -> None:
    """Seconds per pair and memory of 4,096 pairs in chunks, over those of 64 at once."""
    error = _error_of_gradients()
    large = _alone(BATCH_OF_CACHE, CHUNK, 1)
    small = _alone(CHUNK, None, rounds)
    row(
        "gradcache",
        1e3 * large[0] / BATCH_OF_CACHE,
        1e3 * small[0] / CHUNK,
        "CPU milliseconds per pair, lower is better",
        (large[0] / BATCH_OF_CACHE) / (small[0] / CHUNK),
        memory_ratio=round(large[1] / small[1], 3),
        largest_error_of_gradients=error,
    )


def _error_of_gradients() -> float:
    """Largest difference of gradients in double precision, in units of the largest gradient."""
    batch = pairs(24, 3)
    found = []
    for chunk in (None, 5):
        method = InBatch(encoder(32, 2).double(), InBatchConfig(chunk=chunk))
        loss, _ = method.loss(method.model, batch, 0)
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in method.model.parameters()]))
    return float((found[0] - found[1]).abs().max() / found[0].abs().max())


def _alone(count: int, chunk: int | None, rounds: int) -> tuple[float, float]:
    """CPU seconds of a step and peak memory in MB, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(child, count, chunk, rounds))
    process.start()
    found: tuple[float, float] = parent.recv()
    process.join()
    return found


def _measured(pipe: Any, count: int, chunk: int | None, rounds: int) -> None:
    torch.set_num_threads(1)
    method = InBatch(encoder(), InBatchConfig(chunk=chunk))
    optimizer = adamw(method.model, fused=True)
    batch = pairs(count, 0)
    taken = []
    for _ in range(rounds + 1):
        begin = time.process_time()
        optimizer.zero_grad()
        loss, _ = method.loss(method.model, batch, 0)
        loss.backward()
        optimizer.step()
        taken.append(time.process_time() - begin)
    best = sorted(taken[1:] or taken)[len(taken[1:]) // 2]
    pipe.send((best, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


ROWS: dict[str, Callable[[int], None]] = {
    "moco": moco,
    "moco_512": lambda rounds: moco(max(1, rounds // 4), 512, 64, "moco_512"),
    "inbatch_vs_sentence_transformers": inbatch,
    "gradcache": gradcache,
}


def main() -> None:
    """Print the rows that are asked for, or all but `moco_512`, which takes minutes more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.rows or [name for name in ROWS if name != "moco_512"]:
        ROWS[name](options.rounds)


if __name__ == "__main__":
    main()
