"""Self-supervised pretraining as a task: images and views in, features and pictures out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from farreach.data.images import ImageSet
from farreach.figures import rendered
from farreach.learn.health import effective_rank
from farreach.learn.larc import Larc
from farreach.learn.place import Place
from farreach.learn.schedules import cosine
from farreach.learn.task import Batch, Pixels
from farreach_workloads.vision.augment import evaluation_transform
from farreach_workloads.vision.evaluation.neighbours import knn_labels
from farreach_workloads.vision.image_sets import images_of
from farreach_workloads.vision.selfsup import device_views, figures
from farreach_workloads.vision.selfsup.config import PretrainConfig, ViewsConfig, total_length
from farreach_workloads.vision.selfsup.dino import Dino
from farreach_workloads.vision.selfsup.encoder import Encoder
from farreach_workloads.vision.selfsup.mae import Mae
from farreach_workloads.vision.selfsup.method import Method, Span
from farreach_workloads.vision.selfsup.msn import Msn
from farreach_workloads.vision.selfsup.multicrop import MultiCrop
from farreach_workloads.vision.selfsup.sampling import sampled
from farreach_workloads.vision.selfsup.simclr import Simclr
from farreach_workloads.vision.selfsup.swav import Swav
from farreach_workloads.vision.selfsup.vicreg import Vicreg
from farreach_workloads.vision.unreadable import REPLACED, Unreadable
from farreach_workloads.vision.view_pixels import normalised
from farreach_workloads.vision.view_plans import Recipe

METHODS: Mapping[str, Callable[[PretrainConfig, Span], Method]] = {
    "msn": Msn,
    "swav": Swav,
    "dino": Dino,
    "simclr": Simclr,
    "vicreg": Vicreg,
    "mae": Mae,
}
EMBEDDED_TOGETHER = 128
# Features whose effective rank is measured.
RANKED = 2048
# Of collapse: directions that the features use, and share of the prototypes that are used.
FEW_DIRECTIONS, FEW_PROTOTYPES = 1.5, 0.02


class PretrainTask:
    """Pretrains an encoder; see `farreach.learn.task.Task`."""

    score = "evaluation/knn_top1"

    def __init__(self, config: PretrainConfig) -> None:
        """Open the images and make the networks.

        Raises:
            ConfigError: the method cannot have the backbone, or the images the sampler.
            DataError: there are no such images.
        """
        self.config = config
        self._train, self.held_out = images_of(config.data, labelled=False)
        self.classes = len(self._train.classes)
        on_device = config.views.on_device
        self._on_device = config.runtime.gpus > 0 if on_device is None else on_device
        views = MultiCrop(
            self._train, recipes(config.views), config.seed, on_device=self._on_device
        )
        self._sizes = views.sizes
        batch = config.training.batch
        self.data = sampled(views, self._train.labels, config.sampler, batch, config.seed)
        per_epoch = len(self._train) / batch
        self._span = Span(per_epoch, total_length(config.training, per_epoch))
        self.method = METHODS[config.method.kind](config, self._span)
        self.model: nn.Module = self.method.model
        self.companions = self.method.companions
        self._optimizer: torch.optim.Optimizer | None = None
        self._metrics: dict[str, Tensor] = {}
        self._unreadable = Unreadable(self._train.path, batch)
        self._rank = float("inf")
        self._seen: tuple[ImageSet, Tensor, Tensor] | None = None

    @property
    def encoder(self) -> Encoder:
        """Whose features count."""
        return self.method.encoder

    def optimizer(self) -> torch.optim.Optimizer:
        """As configured; with AdamW and LARS neither norms nor biases are decayed."""
        settings = self.config.optimizer
        free = list(self.method.free)
        apart = {id(parameter) for parameter in free}
        decayed: list[Tensor] = []
        plain: list[Tensor] = []
        for parameter in self.model.parameters():
            if id(parameter) not in apart:
                is_plain = parameter.ndim == 1 and settings.kind != "larc"
                (plain if is_plain else decayed).append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
            {"params": free, "weight_decay": 0.0, "clipped": False},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer: torch.optim.Optimizer
        if settings.kind == "adamw":
            # One pass over all weights in place of one per operation.
            optimizer = torch.optim.AdamW(groups, lr=1.0, betas=settings.betas, fused=True)
        else:
            for group in groups[1:]:
                group["adapts"] = settings.kind == "larc"
            optimizer = Larc(groups, 1.0, settings.momentum, trust=settings.trust)
        self._optimizer = optimizer
        return optimizer

    def loss(
        self, model: nn.Module, batch: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The method's, of normalised views; how many images could not be read."""
        counted = self._unreadable.count(batch[REPLACED])
        if self._on_device:
            views = device_views.made(batch, self._sizes)
        else:
            views = {kind: normalised(batch[kind]) for kind in self._sizes}
        loss, metrics = self.method.loss(model, views, step, rank)
        self._metrics = metrics
        return loss, metrics | counted

    def weight_decay(self, step: int) -> float:
        """Of the update after `step` others."""
        settings = self.config.optimizer
        if settings.last_weight_decay is None:
            return settings.weight_decay
        done = self._span.done(step + self.config.training.ahead)
        return cosine(done, settings.weight_decay, settings.last_weight_decay)

    def before_update(self, step: int) -> None:
        """The weight decay of this update; the method may leave gradients out."""
        assert self._optimizer is not None
        self._optimizer.param_groups[0]["weight_decay"] = self.weight_decay(step)
        self.method.before_update(step)

    def after_update(self, step: int) -> None:
        """As the method says."""
        self.method.after_update(step)

    def evaluate(self, place: Place) -> dict[str, float]:
        """The labels of the nearest neighbours of the held-out images, by the target network."""
        probe = self.config.probe
        references = self._train.subset(figures.spread(len(self._train), probe.references))
        known = self.features(references, place)
        asked = self.features(self.held_out, place)
        self._seen = (references, known, asked)
        self._rank = effective_rank(asked[:RANKED])
        measured = {
            "evaluation/effective_rank": self._rank,
            "evaluation/images": float(len(asked)),
        }
        if self.classes == 1:
            return measured
        found = knn_labels(
            known,
            torch.from_numpy(references.labels),
            asked,
            self.classes,
            probe.neighbours,
            probe.temperature,
        )
        labels = torch.from_numpy(self.held_out.labels)
        right = (found == labels).float()
        per_class = torch.stack([right[labels == c].mean() for c in labels.unique()])
        return {
            "evaluation/knn_top1": float(right.mean()),
            "evaluation/knn_balanced": float(per_class.mean()),
            **measured,
        }

    def remarks(self) -> Sequence[str]:
        """Signs of collapse, and what helps against it."""
        found = []
        if self._rank < FEW_DIRECTIONS:
            found.append(
                f"collapse: features use {self._rank:.1f} directions of {self.encoder.width} "
                "(evaluation/effective_rank). Lower training.lr, lengthen training.warmup_epochs, "
                "or raise method.weight, where there is one."
            )
        used = self._metrics.get("learner/prototypes_used")
        count = getattr(self.config.method, "prototypes", 0)
        few = max(2.0, FEW_PROTOTYPES * min(count, self.config.training.batch))
        if used is not None and float(used) <= few:
            found.append(
                f"collapse: {float(used):.0f} of {count} prototypes are used. Raise method.weight, "
                "balance the targets (method.sinkhorn), or make the prior less steep."
            )
        return found

    def features(self, images: ImageSet, place: Place) -> Tensor:
        """Of the encoder that counts, each worker computing a share: (n, width) float32."""
        config = self.config.data
        transform = evaluation_transform(config.size, config.crop_ratio)
        encoder = self.encoder.eval()
        result = torch.zeros(len(images), encoder.width)
        rows = np.arange(len(images))[place.rank :: place.world]
        network = self.companions[0] if self.companions else self.model
        with place.in_one_piece(network):
            for begin in range(0, len(rows), EMBEDDED_TOGETHER):
                some = rows[begin : begin + EMBEDDED_TOGETHER]
                batch = torch.stack([transform(images.load_or_next(int(row))[0]) for row in some])
                result[some] = encoder.features(batch.to(place.device)).float().cpu()
        return place.sum(result).cpu()

    def only(self, count: int) -> None:
        """Evaluate on `count` of the held-out images alone, spread evenly."""
        self.held_out = self.held_out.subset(figures.spread(len(self.held_out), count))

    def pictures(self) -> dict[str, Pixels]:
        """Held-out images with their nearest neighbours, of the last evaluation."""
        return {"evaluation/neighbours": rendered(figures.neighbours(self))}

    @property
    def seen(self) -> tuple[ImageSet, Tensor, Tensor]:
        """Of the last evaluation: references, their features, and those of the held-out images."""
        assert self._seen is not None
        return self._seen

    def state(self) -> dict[str, Any]:
        """The method's."""
        return self.method.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the method's state over."""
        self.method.restore(state)


def recipes(config: ViewsConfig) -> dict[str, list[Recipe]]:
    """How each view is made: `large` ones, and `small` ones if there are any."""
    jitter = tuple(config.jitter * part for part in config.jitter_parts)
    common: dict[str, Any] = {
        "flip": config.flip,
        "jitter": jitter,
        "jitter_probability": config.jitter_probability,
        "grey_probability": config.grey_probability,
        "blur_radii": config.blur or (0.1, 0.1),
    }

    def of(probabilities: Sequence[float], view: int) -> float:
        return probabilities[min(view, len(probabilities) - 1)]

    blurs = 0.0 if config.blur is None else 1.0
    large = [
        Recipe(
            config.size,
            config.scale,
            blur_probability=blurs * of(config.blur_probability, view),
            solarise_probability=of(config.solarise_probability, view),
            **common,
        )
        for view in range(config.large)
    ]
    blur = blurs * config.small_blur_probability
    small = Recipe(config.small_size, config.small_scale, blur_probability=blur, **common)
    return {"large": large} | ({"small": [small] * config.small} if config.small else {})
