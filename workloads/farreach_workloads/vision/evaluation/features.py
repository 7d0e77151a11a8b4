"""Features of frozen encoders: computed once, by Ray workers if wanted, and kept beside the run.

An encoder is named by a function that workers can import and what it takes: so each makes its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from farreach import runtime
from farreach.actors.tasks import done_in_any_order
from farreach.checkpoint import Checkpoint
from farreach.config import Config
from farreach.data.images import ImageSet
from farreach.disk import atomic_write
from farreach.errors import ConfigError
from farreach.learn.order import Rows
from farreach.progress import Progress
from farreach.rundir import RunDirectory
from farreach.seeding import child_seed
from farreach_workloads.vision.augment import evaluation_transform

# `normal`: what training looks at; `raw`: before the last norm; `layers`: of some depths; `map` and
# `earlier map`: of the last stage of a convolutional network, or block of another, and of the one
# before it, not pooled; `logits`: of a classifier.
Kind = Literal["normal", "raw", "layers", "map", "earlier map", "logits"]

TOGETHER = 64
ROWS_PER_TASK = 1024


class SeesImages(Protocol):
    """An encoder in evaluation mode, as this module wants it."""

    def seen(self, images: Tensor, kinds: Sequence[Kind]) -> dict[str, Tensor]:
        """Name → features (b, d), or a map (b, d, h, w), of images (b, 3, h, w)."""


class Pixels(nn.Module):
    """The images themselves as features, which those of an encoder should be better than."""

    def seen(self, images: Tensor, kinds: Sequence[Kind]) -> dict[str, Tensor]:
        """See `SeesImages`; raises ConfigError where more than one row for each image is asked."""
        if wrong := [kind for kind in kinds if kind not in ("normal", "raw")]:
            raise ConfigError(f"features: pixels have no {wrong[0]}. Leave out features=pixels.")
        return {kind: images.flatten(1) for kind in kinds}


def pixels_of(run: Path, checkpoint: Path | None) -> Pixels:
    """What makes them, of any run."""
    return Pixels()


class FeaturesConfig(Config):
    """How features are computed."""

    features: Literal["trained", "untrained", "pixels"] = "trained"
    """`untrained`: of the network as the run began; `pixels`: the images themselves. Both are
    controls."""

    size: int | None = None
    """Side of the images; None: that of the run's evaluation."""
    crop_ratio: float | None = None
    """Share of the resized image's side that is looked at; None: as in the run."""
    workers: int = 0
    """Ray tasks side by side; 0: in this process, without Ray."""
    gpus: float = 0.0
    """Of each task; above 0 it computes there."""


@dataclass(frozen=True)
class Source:
    """Where features come from.

    Attributes:
        run: the directory that keeps them.
        maker: `module:function`, which makes the encoder of a run from the paths of the run and of
            a checkpoint.
        checkpoint: its path; None: the encoder as the run began.
        step: updates of the checkpoint.
        size: side of the images.
        crop_ratio: see `evaluation_transform`.
        config: how.
    """

    run: RunDirectory
    maker: str
    checkpoint: Path | None
    step: int
    size: int
    crop_ratio: float
    config: FeaturesConfig

    def of(self, images: ImageSet, kinds: Sequence[Kind], mask: float = 0.0) -> dict[str, Tensor]:
        """Name → features of all images, (n, d) float32, from the disk if they are there.

        Args:
            images: n.
            kinds: of features.
            mask: share of the patches that is dropped; see `dropping`.

        Raises:
            ConfigError: the encoder has no such features, or no patches that can be dropped.
            DataError: an image cannot be read.
            ActorError: workers died again and again.
        """
        file = self.run.path / "features" / f"{self._key(images, kinds, mask)}.npz"
        if file.is_file():
            with np.load(file) as kept:
                return {name: torch.from_numpy(kept[name]) for name in kept.files}
        arrays = self._computed(images, kinds, mask)
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        file.parent.mkdir(exist_ok=True)
        atomic_write(file, content.getvalue())
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _key(self, images: ImageSet, kinds: Sequence[Kind], mask: float) -> str:
        content = repr((self.maker, self.step, self.size, self.crop_ratio, tuple(kinds)))
        content += f" {mask}" if mask else ""
        whole = hashlib.sha256(content.encode())
        whole.update(images.fingerprint().encode())
        return f"{self.step}-{whole.hexdigest()[:16]}"

    def _computed(
        self, images: ImageSet, kinds: Sequence[Kind], mask: float
    ) -> dict[str, NDArray[Any]]:
        inline = self.config.workers == 0
        needed = 0.0 if inline else 1.0
        with contextlib.ExitStack() as stack:
            if not inline:
                stack.enter_context(runtime.connection(needed, settings=["workers"]))
            parts: dict[int, dict[str, NDArray[Any]]] = {}
            begins = range(0, len(images), ROWS_PER_TASK)
            arguments = [
                (
                    self.maker,
                    str(self.run.path.resolve()),
                    None if self.checkpoint is None else str(self.checkpoint.resolve()),
                    images.subset(np.arange(begin, min(begin + ROWS_PER_TASK, len(images)))),
                    tuple(kinds),
                    self.size,
                    self.crop_ratio,
                    mask,
                    self.config.gpus > 0,
                )
                for begin in begins
            ]
            progress = Progress("features", len(images), "images")
            stack.callback(progress.close)
            results = done_in_any_order(features_of, arguments, inline=inline)
            for index, part in stack.enter_context(contextlib.closing(results)):
                parts[index] = part
                done = sum(len(next(iter(p.values()))) for p in parts.values())
                progress.update(done, {})
        return {
            name: np.concatenate([parts[i][name] for i in range(len(parts))]) for name in parts[0]
        }


def source_of(module: str, function: str) -> Any:
    """What makes the source of a run, whose encoder a function of a module makes; see `Source`.

    It takes the config of the run, its directory, a checkpoint and settings.
    """
    own = (module, function)

    def make(
        config: Any, run: RunDirectory, checkpoint: Checkpoint, settings: FeaturesConfig
    ) -> Source:
        are_trained = settings.features == "trained"
        maker = (__name__, pixels_of.__name__) if settings.features == "pixels" else own
        return Source(
            run,
            ":".join(maker),
            checkpoint.path if are_trained else None,
            checkpoint.step if are_trained else 0,
            settings.size or config.data.size,
            settings.crop_ratio or config.data.crop_ratio,
            settings,
        )

    return make


_made: dict[tuple[str, str, str | None], SeesImages] = {}


@torch.no_grad()
def features_of(
    maker: str,
    run: str,
    checkpoint: str | None,
    images: ImageSet,
    kinds: Sequence[Kind],
    size: int,
    crop_ratio: float,
    mask: float,
    on_gpu: bool,
) -> dict[str, NDArray[Any]]:
    """Name → features of some images, float32; what a worker does."""
    key = (maker, run, checkpoint)
    if key not in _made:
        module, _, name = maker.partition(":")
        _made.clear()
        path = None if checkpoint is None else Path(checkpoint)
        _made[key] = getattr(importlib.import_module(module), name)(Path(run), path)
    encoder: Any = _made[key]
    device = torch.device("cuda" if on_gpu else "cpu")
    encoder.to(device).eval()
    transform = evaluation_transform(size, crop_ratio)
    found: dict[str, list[NDArray[Any]]] = {}
    for begin in range(0, len(images), TOGETHER):
        rows: Rows = np.arange(begin, min(begin + TOGETHER, len(images)))
        batch = torch.stack([transform(images.load(int(row))) for row in rows])
        with dropping(encoder, mask, begin):
            parts = encoder.seen(batch.to(device), kinds)
        for name, part in parts.items():
            found.setdefault(name, []).append(part.float().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


@contextlib.contextmanager
def dropping(encoder: Any, mask: float, seed: int) -> Iterator[None]:
    """In here a vision transformer sees a part of the patches alone, drawn for each image.

    As in MSN's code, N patches with their positions become ⌊N (1 - mask)⌋ before the first block;
    there all images of a batch of 16 keep the same.

    Args:
        encoder: as its maker has made it.
        mask: share that is dropped; 0: nothing happens.
        seed: of what is drawn.

    Raises:
        ConfigError: the encoder is none, or has no class token.
    """
    if not mask:
        yield
        return
    trunk = getattr(encoder, "trunk", getattr(encoder, "model", None))
    if not isinstance(trunk, VisionTransformer) or not trunk.has_class_token:
        raise ConfigError(
            "mask: only a vision transformer with a class token can leave patches out. Leave out "
            "mask."
        )
    generator = torch.Generator().manual_seed(child_seed(seed, "evaluation/mask"))

    def drop(module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
        prefix = int(trunk.num_prefix_tokens)
        images, count = tokens.shape[0], tokens.shape[1] - prefix
        order = torch.rand(images, count, generator=generator).argsort(1).to(tokens.device)
        kept = order[:, : max(1, int(count * (1.0 - mask))), None]
        patches = tokens[:, prefix:].gather(1, kept.expand(-1, -1, tokens.shape[2]))
        return torch.cat([tokens[:, :prefix], patches], dim=1)

    hook = trunk.norm_pre.register_forward_hook(drop)
    try:
        yield
    finally:
        hook.remove()
