import copy
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from farreach_workloads.retrieval import contrast, key_queue
from farreach_workloads.retrieval.contrast import (
    InBatch,
    InBatchConfig,
    Moco,
    MocoConfig,
    batch_loss,
    even_cuts,
)
from farreach_workloads.retrieval.encoder import Bert, EncoderConfig
from farreach_workloads.retrieval.key_queue import KeyQueue, queue_loss, shared_queue_loss

SIZES = {"width": 16, "depth": 1, "heads": 2, "hidden": 32, "positions": 30}


def encoder(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    return Bert(50, EncoderConfig(dropout=dropout, **SIZES)).double()


def batch_of(count, seed):
    generator = torch.Generator().manual_seed(seed)
    batch = {"source": torch.arange(count) + 1000 * seed, "place": torch.arange(count)}
    for side in ("query", "key"):
        lengths = torch.randint(3, 20, (count,), generator=generator)
        ids = torch.randint(5, 50, (count, int(lengths.max())), generator=generator)
        batch[side] = ids * (torch.arange(ids.shape[1]) < lengths[:, None])
        batch[f"{side}_length"] = lengths
    return batch


def part_of(batch, begin, end):
    """From one row to another, or the rows of a tensor."""
    rows = begin if end is None else slice(begin, end)
    return {name: value[rows] for name, value in batch.items()}


def test_the_loss_against_a_queue_by_hand():
    """Scores 2 of the own key and 0, 1 of the others, over 0.5: -log(e⁴ / (e⁴ + 1 + e²))."""
    queries = torch.tensor([[1.0, 1.0]])
    keys = torch.tensor([[2.0, 0.0]])
    queue = torch.tensor([[1.0, -1.0], [0.5, 0.5]])
    loss, accuracy = queue_loss(queries, keys, queue, 0.5)
    e = np.exp(np.array([4.0, 0.0, 2.0]))
    assert loss.item() == pytest.approx(-np.log(e[0] / e.sum()), rel=1e-6)
    assert float(accuracy) == 1.0


@pytest.mark.parametrize("count", [0, 1, 5, 12, 23])
def test_a_queue_of_lower_precision_is_taken_as_it_is_and_never_converted_as_a_whole(
    count, monkeypatch
):
    monkeypatch.setattr(key_queue, "CONVERTED", 5)
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    queue = torch.randn(count, 4, generator=generator).bfloat16()
    found = []
    for negatives in (queue, queue.double()):
        own = queries.clone().requires_grad_()
        loss, accuracy = queue_loss(own, keys, negatives, 0.3)
        (2 * loss).backward()
        found.append((loss, accuracy, own.grad))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [0, 1, 5, 12, 23])
def test_a_queue_in_shares_gives_the_loss_of_a_whole_one(count, monkeypatch):
    """Alone; `test_pretrain_runs` has several workers."""
    monkeypatch.setattr(key_queue, "CONVERTED", 5)
    generator = torch.Generator().manual_seed(1)
    queries, keys = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    queue = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    found = []
    for loss_of in (shared_queue_loss, queue_loss):
        own, theirs = queries.clone().requires_grad_(), keys.clone().requires_grad_()
        loss, accuracy = loss_of(own, theirs, queue, 0.2)
        (3 * loss).backward()
        found.append((loss, accuracy.double(), own.grad, theirs.grad))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


def test_the_loss_within_a_batch_by_hand():
    """Of two queries the first has a twin of its key, which does not count."""
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    excluded = torch.tensor([[False, True, False], [False, False, False]])
    loss, accuracy = batch_loss(queries, keys, torch.tensor([0, 2]), 1.0, excluded=excluded)
    first = -np.log(np.e / (np.e + 1))
    second = -np.log(np.exp(2) / (np.exp(2) + 2))
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)
    assert float(accuracy) == 1.0


def test_scores_in_blocks_are_those_of_all_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 11, 4, generator=generator, dtype=torch.float64)
    excluded = torch.rand(11, 11, generator=generator) < 0.3
    excluded.fill_diagonal_(False)
    found = []
    for most in (10_000, 25, 1):
        monkeypatch.setattr(contrast, "MOST_SCORES", most)
        inputs = queries.clone().requires_grad_(), keys.clone().requires_grad_()
        loss, accuracy = batch_loss(*inputs, torch.arange(11), 0.5, excluded)
        found.append([loss.detach(), accuracy, *torch.autograd.grad(loss, inputs)])
    for blocks in found[1:]:
        torch.testing.assert_close(blocks, found[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("chunk", [1, 3, 4, 11, 40])
def test_chunks_are_as_many_for_any_lengths(chunk):
    lengths = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 500])
    cuts = even_cuts(lengths, chunk)
    assert len(cuts) == len(even_cuts(lengths.flip(0), chunk)) == -(-11 // chunk)
    assert sum(cuts) == 11
    assert min(cuts) >= 1


def test_chunks_have_equally_many_tokens():
    lengths = torch.arange(1, 1001)
    parts = lengths.split(even_cuts(lengths, 50))
    tokens = torch.tensor([int(part.sum()) for part in parts])
    assert len(parts) == 20
    assert (tokens - tokens.float().mean()).abs().max() < 1000


class Oracle:
    """Section 4.1 of the method notes, line by line, in NumPy where it can be."""

    def __init__(self, network, queue, momentum, temperature):
        self.q, self.k = network, copy.deepcopy(network)
        self.queue, self.pointer = queue.copy(), 0  # (width, size)
        self.momentum, self.temperature = momentum, temperature
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)

    def step(self, batch):
        self.optimizer.zero_grad()
        q = self.q(batch["query"], batch["query_length"])
        with torch.no_grad():
            for slow, fast in zip(self.k.parameters(), self.q.parameters(), strict=True):
                slow.copy_(self.momentum * slow + (1 - self.momentum) * fast)
            k = self.k(batch["key"], batch["key_length"])
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ torch.from_numpy(self.queue)], 1)
        logits = logits / self.temperature
        loss = (logits.logsumexp(1) - logits[:, 0]).mean()
        loss.backward()
        self.optimizer.step()
        for key in k.numpy():
            self.queue[:, self.pointer] = key
            self.pointer = (self.pointer + 1) % self.queue.shape[1]
        return float(loss.detach())


def test_twenty_steps_are_those_of_the_equations():
    """Batches of 6 wrap around a queue of 20."""
    config = MocoConfig(queue=20, momentum=0.9, temperature=0.5, masked=False, key_dropout=False)
    ours = Moco(encoder(), config, seed=3)
    ours.queue.keys = ours.queue.keys.double()
    oracle = Oracle(copy.deepcopy(ours.model.encoder), ours.queue.keys.numpy().T, 0.9, 0.5)
    optimizer = torch.optim.AdamW(ours.model.parameters(), lr=1e-2)
    for step in range(20):
        batch = batch_of(6, step)
        optimizer.zero_grad()
        loss, _ = ours.loss(ours.model, batch, step)
        loss.backward()
        optimizer.step()
        ours.after_update(step)
        assert loss.item() == pytest.approx(oracle.step(batch), rel=1e-10)
    np.testing.assert_allclose(ours.queue.keys.numpy(), oracle.queue.T, rtol=0, atol=1e-10)
    for a, b in zip(ours.model.parameters(), oracle.q.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    # Theirs lags by the move that precedes the next keys.
    for slow, fast, mine in zip(
        oracle.k.parameters(), oracle.q.parameters(), ours.follower.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, 0.9 * slow + 0.1 * fast, rtol=1e-9, atol=1e-10)


def test_parts_of_a_batch_have_the_gradient_of_the_whole():
    config = MocoConfig(queue=64, masked=False, temperature=0.5)
    batch, gradients, queues = batch_of(12, 1), [], []
    mixed = part_of(batch, torch.tensor([3, 1, 11, 0, 9, 4, 6, 2, 10, 7, 8, 5]), None)
    for batch_, cuts in ((batch, [0, 12]), (batch, [0, 5, 7, 12]), (mixed, [0, 5, 7, 12])):
        method = Moco(encoder(), config, seed=0)
        method.queue.keys = method.queue.keys.double()
        for begin, end in itertools.pairwise(cuts):
            loss, _ = method.loss(method.model, part_of(batch_, begin, end), 0)
            (loss * (end - begin) / 12).backward()
        method.after_update(0)
        gradients.append([p.grad for p in method.model.parameters()])
        queues.append(method.queue.keys)
    for others, queue in zip(gradients[1:], queues[1:], strict=True):
        for a, b in zip(others, gradients[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(queue, queues[0], rtol=1e-12, atol=1e-12)


def test_the_follower_learns_nothing_by_gradients_and_drops_only_if_told():
    for drops in (True, False):
        method = Moco(encoder(dropout=0.3), MocoConfig(queue=8, key_dropout=drops), seed=0)
        batch = batch_of(4, 1)
        twice = []
        for _ in range(2):
            method.loss(method.model, batch, 0)
            twice.append(method._keys.pop())
        assert torch.equal(*twice) != drops
        assert all(p.grad is None for p in method.follower.parameters())


@pytest.mark.parametrize("kind", ["moco", "in_batch"])
def test_scores_are_in_single_precision_whatever_the_encoder_computes_in(kind):
    """Inner products of unnormalised vectors reach hundreds, where bfloat16 knows whole numbers."""
    plain = encoder().float()
    made = {
        "moco": lambda: Moco(copy.deepcopy(plain), MocoConfig(queue=8, key_dropout=False), 0),
        "in_batch": lambda: InBatch(copy.deepcopy(plain), InBatchConfig()),
    }
    found = []
    for is_short in (True, False):
        method = made[kind]()
        with torch.autocast("cpu", torch.bfloat16, is_short):
            for step in range(2):
                loss, _ = method.loss(method.model, batch_of(6, step), step)
                if step == 0:
                    method.after_update(step)
        assert loss.dtype == torch.float32
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in method.model.parameters()])
        found.append((loss.detach(), gradient))
    (short, one), (exact, other) = found
    torch.testing.assert_close(short, exact, rtol=0.1, atol=0.1)
    assert F.cosine_similarity(one, other, dim=0) > 0.95


def test_the_queue_is_no_part_of_what_workers_copy_to_one_another():
    """DDP sends all buffers of a module before every pass: 403 MB of a paper-sized queue."""
    method = Moco(encoder(), MocoConfig(queue=1000), 0)
    for network in (method.model, *method.companions):
        assert not list(network.buffers())
        assert 1000 not in [len(value) for value in network.state_dict().values()]


def test_places_without_keys_do_not_count():
    """The first update has no negatives; in the second the first one's keys are all of them."""
    method = Moco(encoder(), MocoConfig(queue=50, temperature=1.0), seed=0)
    first, metrics = method.loss(method.model, batch_of(4, 0), 0)
    assert float(first.detach()) == 0
    assert float(metrics["learner/queue_filled"]) == 0
    method.after_update(0)
    keys = method.queue.keys[:4].double()
    batch = batch_of(3, 1)
    loss, metrics = method.loss(method.model, batch, 1)
    q = method.model.encoder(batch["query"], batch["query_length"])
    k = method.follower(batch["key"], batch["key_length"])
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ keys.t()], 1)
    expected = F.cross_entropy(logits, torch.zeros(3, dtype=torch.int64))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert float(metrics["learner/queue_filled"]) == pytest.approx(4 / 50)
    assert float(metrics["learner/queue_age"]) == 1


def test_a_queue_keeps_the_last_keys_whatever_the_batches():
    queue = KeyQueue(5, 1, torch.float32, torch.Generator().manual_seed(0))
    for step, count in enumerate((2, 2, 3, 12)):
        queue.add(torch.arange(count)[:, None] + 10.0 * step, step)
        if step == 1:
            assert queue.keys[:4, 0].tolist() == [0, 1, 10, 11]
            assert queue.filled == 4
        if step == 2:  # three more wrap around by two
            assert queue.keys[:, 0].tolist() == [21, 22, 10, 11, 20]
    assert sorted(queue.keys[:, 0].tolist()) == [37, 38, 39, 40, 41]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_queue_is_restored_bit_for_bit(dtype):
    one = KeyQueue(4, 3, dtype, torch.Generator().manual_seed(0))
    one.add(torch.randn(6, 3), 7)
    other = KeyQueue(4, 3, dtype, torch.Generator().manual_seed(1))
    other.restore(copy.deepcopy(one.state()))
    for queue in (one, other):
        queue.add(torch.full((1, 3), 9.0), 8)
    assert torch.equal(one.keys, other.keys)
    assert torch.equal(one.written, other.written)
    with pytest.raises(ValueError, match=r"contrast\.queue"):
        KeyQueue(5, 3, dtype, torch.Generator()).restore(one.state())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_pairs_in_chunks_have_the_gradient_of_all_at_once(dropout):
    """With dropout both are in chunks, and one keeps what the other computes again."""
    batch, found = batch_of(11, 2), []
    for chunk in (4, None if dropout == 0 else 4):
        method = InBatch(encoder(dropout), InBatchConfig(chunk=chunk, temperature=0.5))
        method.model.train()
        torch.manual_seed(5)
        if dropout and found:
            loss = kept_loss(method, batch, 4)
        else:
            loss, _ = method.loss(method.model, batch, 0)
        loss.backward()
        found.append([p.grad for p in method.model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def kept_loss(method, batch, chunk):
    """The same chunks in the same order, without any that is computed again."""
    sides = []
    for side in ("query", "key"):
        ids, lengths = batch[side], batch[f"{side}_length"]
        order = lengths.argsort(stable=True)
        parts = [
            method.model.encoder(ids[some, : int(lengths[some].max())], lengths[some])
            for some in order.split(even_cuts(lengths[order], chunk))
        ]
        sides.append(torch.cat(parts)[order.argsort()])
    return F.cross_entropy(sides[0] @ sides[1].t() / 0.5, torch.arange(len(sides[0])))


def test_two_parts_of_one_text_are_no_negatives_of_each_other():
    method = InBatch(encoder(), InBatchConfig(temperature=1.0))
    batch = batch_of(4, 0)
    apart, _ = method.loss(method.model, batch, 0)
    batch["source"] = torch.tensor([7, 8, 7, 9])
    twins, _ = method.loss(method.model, batch, 0)
    q = method.model.encoder(batch["query"], batch["query_length"])
    k = method.model.encoder(batch["key"], batch["key_length"])
    logits = q @ k.t()
    logits[0, 2] = logits[2, 0] = float("-inf")
    assert twins.item() == pytest.approx(F.cross_entropy(logits, torch.arange(4)).item(), rel=1e-9)
    assert twins.item() != apart.item()


def test_texts_that_are_the_same_are_no_negatives_of_each_other():
    """Two keys word for word, and two queries, of different documents and padded differently."""
    method = InBatch(encoder(), InBatchConfig(temperature=1.0))
    batch = batch_of(5, 0)
    for side, one, other in (("key", 0, 3), ("query", 1, 4)):
        ids, lengths = batch[side], batch[f"{side}_length"]
        ids[other], lengths[other] = ids[one], lengths[one]
        batch[side] = torch.where(torch.arange(ids.shape[1]) < lengths[:, None], ids, 0)
        batch[side][other, lengths[other] :] = 7  # whatever stands behind a text does not count
    loss, _ = method.loss(method.model, batch, 0)
    q = method.model.encoder(batch["query"], batch["query_length"])
    k = method.model.encoder(batch["key"], batch["key_length"])
    logits = q @ k.t()
    for one, other in ((0, 3), (1, 4)):
        logits[one, other] = logits[other, one] = float("-inf")
    expected = F.cross_entropy(logits, torch.arange(5)).item()
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    marks = contrast._marks(batch_of(200, 3) | {"source": torch.zeros(200, dtype=torch.int64)})
    assert len(set(marks[:, 1].tolist())) == len(set(marks[:, 2].tolist())) == 200


def test_what_a_queue_in_shares_cannot_do_is_refused():
    for other in ({"label_smoothing": 0.1}, {"masked": False}):
        with pytest.raises(ValueError, match="sharded: shares of a queue have no label_smoothing"):
            MocoConfig(sharded=True, **other)


def test_shares_of_a_queue_are_those_of_the_whole_for_any_number_of_workers(monkeypatch):
    drawn = torch.randn(17, 3, generator=torch.Generator().manual_seed(0))
    blocks = drawn[:4], drawn[4:9], drawn[9:]

    def queue(sharded):
        return KeyQueue(10, 3, torch.float32, torch.Generator(), sharded)

    whole = queue(sharded=False)
    for step, keys in enumerate(blocks):
        whole.add(keys, step)
    for workers in (2, 3):
        for rank in range(workers):
            monkeypatch.setattr(key_queue, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(key_queue, "workers", lambda workers=workers: workers)
            share, other = queue(sharded=True), queue(sharded=True)
            for step, keys in enumerate(blocks):
                share.add(keys, step)
                expected = whole.keys[: share.filled][rank::workers] if step == 2 else None
                assert expected is None or torch.equal(share.usable, expected)
            other.restore(whole.state())
            for one in (share, other):
                assert torch.equal(one.keys, whole.keys[rank::workers])
                assert torch.equal(one.written, whole.written)
