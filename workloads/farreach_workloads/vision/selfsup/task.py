"""Self-supervised pretraining as a task: images and views in, features and pictures out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from farreach.data.images import ImageSet
from farreach.errors import UnreadableImageError
from farreach.figures import rendered
from farreach.learn.health import effective_rank
from farreach.learn.larc import Larc
from farreach.learn.place import Place
from farreach.learn.schedules import cosine
from farreach.learn.task import Batch, Pixels
from farreach_workloads.vision.augment import evaluation_transform
from farreach_workloads.vision.evaluation import linear_probe
from farreach_workloads.vision.evaluation.neighbours import knn_labels
from farreach_workloads.vision.image_sets import images_of
from farreach_workloads.vision.selfsup import device_views, figures
from farreach_workloads.vision.selfsup.assignments import constant_output_loss, prior_of
from farreach_workloads.vision.selfsup.config import PretrainConfig, ViewsConfig, total_length
from farreach_workloads.vision.selfsup.dino import Dino
from farreach_workloads.vision.selfsup.encoder import Encoder
from farreach_workloads.vision.selfsup.mae import Mae
from farreach_workloads.vision.selfsup.method import Method, Span
from farreach_workloads.vision.selfsup.method_configs import MsnConfig
from farreach_workloads.vision.selfsup.msn import Msn
from farreach_workloads.vision.selfsup.multicrop import MultiCrop
from farreach_workloads.vision.selfsup.sampling import sampled
from farreach_workloads.vision.selfsup.simclr import Simclr
from farreach_workloads.vision.selfsup.swav import Swav
from farreach_workloads.vision.selfsup.vicreg import Vicreg
from farreach_workloads.vision.unreadable import REPLACED, Unreadable, left_out_note
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
# Of collapse onto the prior: distance of the loss as a share of it, and share of the prototypes of
# before that are used.
NEAR, FEWER = 0.05, 0.9
# There are far fewer steps than where this recipe comes from, and each may be larger.
ONLINE = replace(linear_probe.VISSL, lr=0.1)


class PretrainTask:
    """Pretrains an encoder; see `farreach.learn.task.Task`."""

    score = "evaluation/knn_top1"

    def __init__(
        self, config: PretrainConfig, images: tuple[ImageSet, ImageSet] | None = None
    ) -> None:
        """Open the images, unless they are given, and make the networks.

        Raises:
            ConfigError: the method cannot have the backbone, or the images the sampler.
            DataError: there are no such images.
        """
        self.config = config
        self._train, self.held_out = images or images_of(config.data, labelled=False)
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
        self._left_out = 0
        self._seen: tuple[ImageSet, Tensor, ImageSet, Tensor] | None = None
        self._towards_prior = TowardsPrior(config)

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
        self._towards_prior.count(metrics)
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
        """The labels of held-out images, by their nearest neighbours and by a linear layer.

        Features are those of the target network; images that cannot be read are left out.
        """
        probe = self.config.probe
        some = self._train.subset(figures.spread(len(self._train), probe.references))
        references, known = self.features(some, place)
        held_out, asked = self.features(self.held_out, place)
        self._left_out = len(self.held_out) - len(held_out)
        self._seen = (references, known, held_out, asked)
        self._rank = effective_rank(asked[:RANKED])
        measured = {
            "evaluation/effective_rank": self._rank,
            "evaluation/images": float(len(asked)),
        }
        if self.classes == 1:
            return measured
        known_labels, labels = (torch.from_numpy(x.labels) for x in (references, held_out))
        found = knn_labels(
            known, known_labels, asked, self.classes, probe.neighbours, probe.temperature
        )
        if probe.linear and len(known) > 1:
            x, y, test_x, test_y = (
                rows.to(place.device) for rows in (known, known_labels, asked, labels)
            )
            with torch.enable_grad():
                linear = linear_probe.probe(
                    x, y, test_x, test_y, self.classes, ONLINE, self.config.seed
                )
            measured["evaluation/linear_top1"] = linear["top1"]
        right = (found == labels).float()
        per_class = torch.stack([right[labels == c].mean() for c in labels.unique()])
        return {
            "evaluation/knn_top1": float(right.mean()),
            "evaluation/knn_balanced": float(per_class.mean()),
            **measured,
        }

    def remarks(self) -> Sequence[str]:
        """Signs of collapse, and what helps against it; held-out images that cannot be read."""
        found = left_out_note(self._left_out)
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
        return [*found, *self._towards_prior.remarks()]

    def features(self, images: ImageSet, place: Place) -> tuple[ImageSet, Tensor]:
        """Those images that can be read, and their features by the encoder that counts.

        Each worker computes a share.

        Returns:
            n images, and (n, width) float32.

        Raises:
            UnreadableImageError: none can be read.
        """
        config = self.config.data
        transform = evaluation_transform(config.size, config.crop_ratio)
        encoder = self.encoder.eval()
        result, is_read = torch.zeros(len(images), encoder.width), torch.zeros(len(images))
        rows = np.arange(len(images))[place.rank :: place.world]
        network = self.companions[0] if self.companions else self.model
        with place.in_one_piece(network):
            for begin in range(0, len(rows), EMBEDDED_TOGETHER):
                some: list[int] = []
                batch: list[Tensor] = []
                for row in rows[begin : begin + EMBEDDED_TOGETHER].tolist():
                    try:
                        batch.append(transform(images.load(row)))
                    except UnreadableImageError:
                        continue
                    some.append(row)
                if some:
                    seen = encoder.features(torch.stack(batch).to(place.device))
                    result[some], is_read[some] = seen.float().cpu(), 1.0
        result, is_read = place.sum(result).cpu(), place.sum(is_read).cpu()
        if bool(is_read.all()):
            return images, result
        if not bool(is_read.any()):
            images.load(0)  # which says why
        return images.subset(np.flatnonzero(is_read.numpy())), result[is_read > 0]

    def only(self, count: int) -> None:
        """Evaluate on `count` of the held-out images alone, spread evenly."""
        self.held_out = self.held_out.subset(figures.spread(len(self.held_out), count))

    def pictures(self) -> dict[str, Pixels]:
        """Held-out images with their nearest neighbours, of the last evaluation."""
        return {"evaluation/neighbours": rendered(figures.neighbours(self))}

    def class_counts(self) -> Tensor:
        """Training images of each class, (classes,) int64."""
        return torch.bincount(torch.from_numpy(self._train.labels), minlength=self.classes)

    @property
    def seen(self) -> tuple[ImageSet, Tensor, ImageSet, Tensor]:
        """Of the last evaluation: references and held-out images, each with their features."""
        assert self._seen is not None
        return self._seen

    def state(self) -> dict[str, Any]:
        """The method's."""
        return self.method.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the method's state over."""
        self.method.restore(state)


class TowardsPrior:
    """Notices that all outputs come to be the prior, the cheap collapse of a prior that is skewed.

    Then the cross-entropy is that of `constant_output_loss`, and fewer prototypes are used. With a
    uniform prior that loss is where training begins, and tells nothing.
    """

    def __init__(self, config: PretrainConfig) -> None:
        """Of a run; of a method without such a loss nothing is noticed."""
        msn = config.method
        self._constant: float | None = None
        if isinstance(msn, MsnConfig) and msn.prior.kind != "uniform" and msn.sinkhorn == "none":
            self._constant = constant_output_loss(
                prior_of(msn.prior, msn.prototypes), msn.target_temperature / msn.temperature
            )
        self._sums, self._updates = torch.zeros(2), 0
        self._used = 0.0

    def count(self, metrics: Mapping[str, Tensor]) -> None:
        """Take in what an update tells."""
        if self._constant is not None:
            names = ("learner/cross_entropy", "learner/prototypes_used")
            told = torch.stack([metrics[name] for name in names])
            self._sums, self._updates = self._sums.to(told.device) + told, self._updates + 1

    def remarks(self) -> Sequence[str]:
        """On the updates since the last call, beside those before it; the same words each time."""
        if self._constant is None or self._updates == 0:
            return []
        loss, used = (self._sums / self._updates).tolist()
        before, self._used = self._used, used
        self._sums, self._updates = torch.zeros(2), 0
        if abs(loss - self._constant) > NEAR * self._constant or used > FEWER * before:
            return []
        return [
            f"collapse: the cross-entropy is near {self._constant:.2f}, that of a network that "
            "always answers with the prior, and fewer prototypes are used than before. Make the "
            "prior less steep, raise method.weight, or set method.sinkhorn to prior."
        ]


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
