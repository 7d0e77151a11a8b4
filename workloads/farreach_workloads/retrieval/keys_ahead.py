"""MoCo's keys, encoded by actors before the learner needs them.

Keys need no gradient, and which texts come next follows from the number of the update. So actors
encode the keys of later updates while workers train, and workers compute those of queries alone: of
the four passes of an update (keys forward, queries forward, backward twice that) they keep three.

What is given up is the age of the weights. Updates come in blocks of `contrast.ahead`; the keys of
a block are encoded with the moving average as it was when the block before began, at most two
blocks less an update ago, which is little beside the 1 / (1 - momentum) updates that the average
looks back. So the result follows from the configuration: how many actors there are, and when one
dies, makes no difference. MoCo: He et al., arXiv:1911.05722; of Contriever, arXiv:2112.09118 §3.2.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farreach import seeding
from farreach.cluster.demand import Demand
from farreach.learn.collectives import spread
from farreach.learn.order import share
from farreach_workloads.retrieval import stores
from farreach_workloads.retrieval.config import RetrievalConfig
from farreach_workloads.retrieval.hub import make_encoder

if TYPE_CHECKING:
    from farreach.actors.services import ActorService
    from farreach.learn.outlet import Outlet
    from farreach.learn.place import Place
    from farreach_workloads.retrieval.encoder import TextEncoder

ROLE = "key-encoder"
# Texts that are encoded at a time.
PART = 256
# Share of the time that workers wait for keys, from which on it is worth a word.
MUCH_WAITING = 0.2

Weights = Mapping[str, NDArray[Any]]


class KeyEncoder:
    """Encodes the keys of whole batches with weights that it is given; lives in an actor."""

    def __init__(self, config: RetrievalConfig, device: torch.device) -> None:
        """Open the tokens; raises DataError if they are not on this machine."""
        from farreach.actors.weights import Kept

        torch.set_num_threads(config.runtime.threads)
        words = stores.words_of(config)
        self._config, self._device = config, device
        self._data = stores.pairs(config, words)
        self._encoder = make_encoder(config.encoder, words).requires_grad_(False).to(device)
        self._kept, self._loaded = Kept(), None

    def encode(self, boxed: list[Any], step: int) -> NDArray[np.float32]:
        """The keys of an update's pairs, of all workers together.

        Args:
            boxed: a reference to weights, in a list; see `Kept`.
            step: number of the update.

        Returns:
            (batch, width).
        """
        return self.encode_with(self._kept.read(boxed), step)

    @torch.no_grad()
    def encode_with(self, weights: Any, step: int) -> NDArray[np.float32]:
        """As `encode`, with the weights themselves."""
        if weights is not self._loaded:
            # Copies: those in Ray's object store must not be written to.
            tensors = {name: torch.from_numpy(np.array(each)) for name, each in weights.items()}
            self._encoder.load_state_dict(tensors)
            self._loaded = weights
        config = self._config
        assert config.contrast.kind == "moco"
        self._encoder.train(config.contrast.key_dropout)
        positions = np.arange(step * config.training.batch, (step + 1) * config.training.batch)
        batch = self._data.batch(positions, positions)
        ids, lengths = batch["key"], batch["key_length"]
        keys = torch.empty(len(ids), self._encoder.width)
        is_short = config.training.precision == "bfloat16"
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(seeding.child_seed(config.seed, "keys", step))
            for some in lengths.argsort(stable=True).split(PART):
                texts = ids[some, : int(lengths[some].max())].to(self._device)
                with torch.autocast(self._device.type, torch.bfloat16, is_short):
                    found = self._encoder(texts, lengths[some].to(self._device))
                keys[some] = found.float().cpu()
        return keys.numpy()


class _Source(Protocol):
    """Who encodes."""

    def put(self, weights: Weights) -> Any:
        """A handle of weights that will be used."""

    def get(self, handle: Any) -> Weights:
        """The weights of a handle."""

    def ask(self, step: int, handle: Any) -> None:
        """The keys of an update will be needed, encoded with the weights of a handle."""

    def take(self, step: int) -> NDArray[np.float32]:
        """The keys of an update."""

    def stop(self) -> None:
        """No more keys are needed."""


class _Here:
    """This process, when the keys are needed: what a run without Ray does."""

    def __init__(self, config: RetrievalConfig, device: torch.device) -> None:
        self._encoder = KeyEncoder(config, device)
        self._asked: dict[int, Weights] = {}

    def put(self, weights: Weights) -> Any:
        return weights

    def get(self, handle: Any) -> Weights:
        weights: Weights = handle
        return weights

    def ask(self, step: int, handle: Any) -> None:
        self._asked[step] = handle

    def take(self, step: int) -> NDArray[np.float32]:
        return self._encoder.encode_with(self._asked.pop(step), step)

    def stop(self) -> None:
        self._asked.clear()


class _Beside:
    """Actors beside the workers."""

    def __init__(self, config: RetrievalConfig, outlet: Outlet) -> None:
        from farreach.actors.ahead import Ahead

        def start(role: str) -> ActorService:
            from farreach.actors.services import ActorService

            cpus, gpus = reserved(config)
            arguments = (config, torch.device("cuda" if gpus else "cpu"))
            return ActorService(role, KeyEncoder, arguments, num_cpus=cpus, num_gpus=gpus)

        settings = config.runtime
        self._ahead = Ahead(
            ROLE,
            start,
            count=settings.key_encoders,
            max_failures=settings.max_failures,
            watcher=outlet,
        )

    def put(self, weights: Weights) -> Any:
        import ray

        return ray.put(weights)

    def get(self, handle: Any) -> Weights:
        import ray

        weights: Weights = ray.get(handle)
        return weights

    def ask(self, step: int, handle: Any) -> None:
        self._ahead.ask(step, "encode", [handle], step)

    def take(self, step: int) -> NDArray[np.float32]:
        keys: NDArray[np.float32] = self._ahead.take(step)
        return keys

    def stop(self) -> None:
        self._ahead.stop()


class KeysAhead:
    """One worker's side: the first has keys encoded, all take their shares of them.

    Attributes:
        everyones: the keys of the update that was last asked for, (batch, width).
    """

    def __init__(
        self,
        config: RetrievalConfig,
        follower: TextEncoder,
        place: Place,
        outlet: Outlet,
        step: int,
        total: int,
        state: Mapping[str, Weights] | None,
    ) -> None:
        """Ask for the keys of the first two blocks; all workers call it together.

        Args:
            config: of the run.
            follower: the moving average.
            place: of this worker.
            outlet: is told of actors.
            step: updates that are done.
            total: updates of the whole run.
            state: that of a checkpoint, if it is continued.
        """
        assert config.contrast.kind == "moco"
        self._block = config.contrast.ahead
        self._follower, self._place, self._total = follower, place, total
        batch = config.training.batch
        self._own = range(batch)[share(batch, place.rank, place.world)]
        self._shape = batch, follower.width
        self.everyones = torch.empty(0)
        self._step = -1
        self._wait_s = self._waited_s = 0.0
        self._begun_s = time.monotonic()
        weights = self._weights()
        self._source: _Source | None = None
        if not place.is_first:
            return
        is_alone = config.runtime.workers == 0
        self._source = _Here(config, place.device) if is_alone else _Beside(config, outlet)
        # What the keys of this block are encoded with, and those of the next one.
        self._older = self._source.put(weights if state is None else state["older"])
        self._newer = self._older if state is None else self._source.put(state["newer"])
        begin = step // self._block * self._block
        self._ask(step, begin + self._block, self._older)
        self._ask(begin + self._block, begin + 2 * self._block, self._newer)

    def keys(self, step: int, places: Tensor) -> Tensor:
        """The keys of some of this worker's pairs of an update, by their places: (n,) → (n, width).

        All workers call it as often as one another.
        """
        if step != self._step:
            self._receive(step)
        return self.everyones[self._own.start + places]

    def advance(self, step: int) -> None:
        """So many updates are done, and the moving average has followed; all workers call it."""
        if step % self._block:
            return
        weights = self._weights()
        if self._source is not None:
            self._older, self._newer = self._newer, self._source.put(weights)
            self._ask(step + self._block, step + 2 * self._block, self._newer)

    def metrics(self, device: torch.device) -> dict[str, Tensor]:
        """How old the weights are by which the keys of this update were encoded, and the wait."""
        since = max(0, self._step // self._block - 1) * self._block
        return {
            "learner/key_age": torch.tensor(float(self._step - since), device=device),
            "learner/key_wait_s": torch.tensor(self._wait_s, device=device),
        }

    def remark(self) -> str | None:
        """What helps if workers wait for keys."""
        waited = self._waited_s / max(time.monotonic() - self._begun_s, 1e-9)
        if self._source is None or isinstance(self._source, _Here) or waited < MUCH_WAITING:
            return None
        return (
            f"keys: the workers wait for them {waited:.0%} of the time. Raise "
            "runtime.key_encoders, or set contrast.ahead=0 so that workers encode them"
        )

    def state(self) -> dict[str, Weights]:
        """The weights of the keys to come, of the first worker."""
        if self._source is None:
            return {}
        return {"older": self._source.get(self._older), "newer": self._source.get(self._newer)}

    def stop(self) -> None:
        """End the actors."""
        if self._source is not None:
            self._source.stop()

    def _ask(self, begin: int, end: int, handle: Any) -> None:
        assert self._source is not None
        for step in range(begin, min(end, self._total)):
            self._source.ask(step, handle)

    def _receive(self, step: int) -> None:
        begun = time.monotonic()
        device = self._place.device
        if self._source is not None:
            keys = torch.from_numpy(np.array(self._source.take(step))).to(device)
        else:
            keys = torch.empty(self._shape, device=device)
        self.everyones = spread(keys)
        self._step = step
        self._wait_s = time.monotonic() - begun
        self._waited_s += self._wait_s

    def _weights(self) -> Weights:
        """The moving average as it is now: whole on the first worker."""
        whole = self._place.whole_model_state(self._follower)
        if not self._place.is_first:
            return {}
        return {name: np.array(value.cpu()) for name, value in whole.items()}


def reserved(config: RetrievalConfig) -> tuple[float, float]:
    """CPUs and GPUs of an actor: those of a worker; no CPUs where their number may change.

    Ray Train takes all of a machine for free then, and would wait for ever for what others have.
    """
    settings = config.runtime
    return (0.0 if settings.min_workers is not None else settings.cpus), settings.gpus


def demand(config: RetrievalConfig) -> list[Demand]:
    """What the actors ask Ray for."""
    cpus, gpus = reserved(config)
    asked = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    count = config.runtime.key_encoders
    return [Demand(ROLE, count, asked)] if count else []
