"""Supervised training of image encoders, plain or with two submodels that teach each other."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.layers import DropPath
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

import farreach_workloads.vision.backbones  # noqa: F401 (registers our models with timm)
from farreach import seeding
from farreach.checkpoint import Checkpoint
from farreach.data.images import ImageSet, open_images
from farreach.errors import ConfigError, DataError
from farreach.learn.loop import as_tensors
from farreach.learn.order import Rows
from farreach.learn.place import Place
from farreach.learn.task import Batch
from farreach.learn.trainer import fit
from farreach.registry import near_match
from farreach.rundir import RunDirectory
from farreach_workloads.vision import pictures
from farreach_workloads.vision.augment import evaluation_transform, training_transform
from farreach_workloads.vision.backbones.resmlp import Resmlp
from farreach_workloads.vision.config import SHIPPED_SET, SuperviseConfig
from farreach_workloads.vision.cosub import classification_loss, cosub_loss
from farreach_workloads.vision.mixing import Mixing
from farreach_workloads.vision.stochastic_depth import install

Config = SuperviseConfig

SHIPPED_FILE = Path(__file__).parent / "assets" / "openclipart_64.parquet"
EVALUATED_TOGETHER = 128
# Images of the pictures: with their predictions, and with what is looked at.
PICTURED, ATTENDED = 32, 6


class AugmentedImages:
    """Training samples; each view follows from the seed and its position in the run."""

    def __init__(self, images: ImageSet, config: SuperviseConfig) -> None:
        """Of `images`, by the recipe of the run."""
        self._images, self._seed = images, config.seed
        self._transform = training_transform(config.augment, config.data.size)

    def __len__(self) -> int:
        """How many images an epoch has."""
        return len(self._images)

    def batch(self, rows: Rows, positions: Rows) -> Batch:
        """Views (b, 3, size, size) float32 and labels (b,) int64."""
        views = []
        for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
            seed = seeding.child_seed(self._seed, "view", position)
            random.seed(seed)
            torch.manual_seed(seed)
            views.append(self._transform(self._images.load(row)))
        return {"image": torch.stack(views), "label": torch.from_numpy(self._images.labels[rows])}


class SuperviseTask:
    """Trains a backbone on labels; see `farreach.learn.task.Task`."""

    def __init__(self, config: SuperviseConfig) -> None:
        """Open the images and make the model.

        Raises:
            ConfigError: there is no such model, or it does not take these images or weights.
            DataError: the images cannot be read.
        """
        self._config = config
        train, self._held_out = images_of(config)
        self.classes = len(train.classes)
        self.data = AugmentedImages(train, config)
        self.model = make_model(config, self.classes)
        self._mixing = Mixing(**config.mix.model_dump())
        backbone = config.backbone
        self._depth = None
        if backbone.drop_path > 0:
            self._depth = install(
                self.model, backbone.drop_path, backbone.drop_path_schedule, seed=config.seed
            )

    def optimizer(self) -> torch.optim.Optimizer:
        """timm's, which knows what of a model is not decayed."""
        settings = self._config.optimizer
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            self.model,
            opt=settings.kind,
            lr=self._config.training.lr,
            weight_decay=settings.weight_decay,
        )
        return optimizer

    def loss(
        self, model: nn.Module, batch: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the mixed batch."""
        config = self._config.objective
        rng = seeding.generator(self._config.seed, "mix", step)
        images, target = self._mixing(batch["image"], batch["label"], self.classes, rng)
        if config.loss == "bce":
            target = (target > 0).float()
        if self._depth is not None:
            self._depth.reseed(step, rank)
        if config.kind == "cosub":
            assert self._depth is not None
            return cosub_loss(model, self._depth, images, target, config.mutual_weight, config.loss)
        return classification_loss(model(images).float(), target, config.loss), {}

    def after_update(self, step: int) -> None:
        """Nothing follows."""

    def evaluate(self, place: Place) -> dict[str, float]:
        """Accuracy and cross-entropy on the held-out images."""
        config = self._config.data
        transform = evaluation_transform(config.size, config.crop_ratio)
        rows = np.arange(len(self._held_out))[place.rank :: place.world]
        totals = torch.zeros(4, dtype=torch.float64)
        for begin in range(0, len(rows), EVALUATED_TOGETHER):
            some = rows[begin : begin + EVALUATED_TOGETHER]
            images = torch.stack([transform(self._held_out.load(int(row))) for row in some])
            labels = torch.from_numpy(self._held_out.labels[some])
            logits = self.model(images.to(place.device)).float().cpu()
            best = logits.topk(min(5, self.classes)).indices == labels[:, None]
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            totals += torch.tensor(
                [len(some), int(best[:, 0].sum()), int(best.any(1).sum()), float(loss)]
            )
        count, first, five, loss_sum = place.sum(totals).tolist()
        return {
            "evaluation/top1": first / count,
            "evaluation/top5": five / count,
            "evaluation/loss": loss_sum / count,
            "evaluation/images": count,
        }

    def look_at(self, count: int) -> tuple[Tensor, Tensor, list[str]]:
        """Evaluate on `count` held-out images alone, spread evenly: those, labels and classes."""
        config = self._config.data
        rows = np.linspace(0, len(self._held_out) - 1, min(count, len(self._held_out)))
        self._held_out = self._held_out.subset(rows.astype(np.int64))
        transform = evaluation_transform(config.size, config.crop_ratio)
        images = [transform(self._held_out.load(i)) for i in range(len(self._held_out))]
        labels = torch.from_numpy(self._held_out.labels)
        return torch.stack(images), labels, self._held_out.classes

    def state(self) -> dict[str, Any]:
        """Everything random follows from the number of the update."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to take over."""


def images_of(config: SuperviseConfig) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images."""
    path = config.data.path
    return _opened(str(SHIPPED_FILE) if path == SHIPPED_SET else path)


@lru_cache(maxsize=2)
def _opened(path: str) -> tuple[ImageSet, ImageSet]:
    return open_images(Path(path))


def make_model(config: SuperviseConfig, classes: int) -> nn.Module:
    """The backbone with a head for the classes.

    Raises:
        ConfigError: there is no such model, or it does not take the options, the size or the file
            of weights.
    """
    backbone, size = config.backbone, config.data.size
    names = timm.list_models()
    if backbone.name not in names:
        raise ConfigError(
            f"backbone.name: timm knows no {backbone.name!r}. "
            f"{near_match(backbone.name, names)[:300]}"
        )
    arguments = {"num_classes": classes, **backbone.options}
    cfg = timm.get_pretrained_cfg(backbone.name)
    if cfg is not None and cfg.fixed_input_size:
        arguments["img_size"] = size
    try:
        model: nn.Module = timm.create_model(backbone.name, **arguments)
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"backbone: {backbone.name} does not take images of {size} pixels with options "
            f"{backbone.options}: {error}. Change data.size or backbone.options."
        ) from error
    if backbone.weights is not None:
        load_weights(model, Path(backbone.weights))
    return model


def load_weights(model: Any, file: Path) -> None:
    """Weights from a file; a head of another number of classes is left out.

    Raises:
        ConfigError: the file is missing, or its weights are those of another model.
    """
    try:
        state = timm.models.load_state_dict(str(file))
    except FileNotFoundError:
        raise ConfigError(f"backbone.weights: there is no file {file}.") from None
    module = __import__(type(model).__module__, fromlist=["x"])
    adapt = getattr(module, "adapt_weights", getattr(module, "checkpoint_filter_fn", None))
    state = as_tensors(state) if adapt is None else adapt(state, model)
    own = model.state_dict()
    head = model.pretrained_cfg.get("classifier", "head")
    for key in [key for key in state if key.startswith(f"{head}.")]:
        if key not in own or state[key].shape != own[key].shape:
            del state[key]
    missing = sorted(key for key in own if key not in state and not key.startswith(f"{head}."))
    foreign = sorted(key for key in state if key not in own)
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in state
        if key in own and state[key].shape != own[key].shape
    ]
    if missing or foreign or shapes:
        parts = (("missing", missing), ("unknown", foreign), ("of another shape", shapes))
        listed = [f"{len(keys)} {what} ({', '.join(keys[:3])}, …)" for what, keys in parts if keys]
        raise ConfigError(
            f"backbone.weights: {file} holds the weights of another model: {'; '.join(listed)}. "
            "Correct backbone.name or the file."
        )
    model.load_state_dict(state, strict=False)


def check(config: SuperviseConfig) -> list[str]:
    """Open the images and make the model once; what the user should know."""
    train, held_out = images_of(config)
    if config.data.size < 8 or len(train) < config.training.batch:
        raise DataError(
            f"training.batch: {config.training.batch} images at a time, of {len(train)} in all. "
            "Lower it."
        )
    model = make_model(config, len(train.classes))
    notes = [
        f"{len(train):,} images to train on, {len(held_out):,} held out, {len(train.classes)} "
        f"classes; {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters"
    ]
    if config.backbone.drop_path > 0:
        try:
            left = install(model, config.backbone.drop_path).left
        except ValueError as error:
            raise ConfigError(f"backbone.drop_path: {error}") from error
        if left:
            notes.append(f"stochastic depth leaves {len(left)} blocks to the model: {left[0]}, …")
    elif any(isinstance(part, DropPath) and part.drop_prob for part in model.modules()):
        notes.append("the model drops paths by itself; backbone.drop_path=… would skip them")
    return notes


def make_task(config: SuperviseConfig) -> SuperviseTask:
    """What a worker trains."""
    return SuperviseTask(config)


def run(
    config: SuperviseConfig, run: RunDirectory, checkpoint: Checkpoint | None
) -> dict[str, float]:
    """Train to the end; see `farreach.launch`."""
    return fit(config, run, checkpoint, make_task)


def evaluate(
    config: SuperviseConfig, run: RunDirectory, checkpoint: Checkpoint, *, episodes: int | None
) -> dict[str, float]:
    """Metrics of a checkpoint on the held-out images; `episodes`: on so many of them alone."""
    task = _restored(config, checkpoint)
    if episodes is not None:
        task.look_at(episodes)
    with torch.no_grad():
        return task.evaluate(Place())


def plot(config: SuperviseConfig, run: RunDirectory, checkpoint: Checkpoint) -> list[Path]:
    """Predictions on held-out images, and what the network looks at if it can say so."""
    task = _restored(config, checkpoint)
    images, labels, classes = task.look_at(PICTURED)
    with torch.no_grad():
        logits = task.model(images)
    files = [pictures.predictions(images, logits, labels, classes, run.figures / "predictions.png")]
    maps_of = getattr(task.model, "attention_maps", None)
    if maps_of is None:
        return files
    some, file = images[:ATTENDED], run.figures / "attention.png"
    maps = maps_of(some)
    if isinstance(task.model, Resmlp):
        files.append(pictures.patch_weights({name: m[0] for name, m in maps.items()}, file))
    elif maps.get("pool", some).shape[1] == len(classes):
        best = logits[:ATTENDED].topk(min(3, len(classes))).indices
        chosen = {"pool": torch.stack([m[b] for m, b in zip(maps["pool"], best, strict=True)])}
        names = [[classes[int(index)] for index in row] for row in best]
        files.append(pictures.attention(some, chosen, names, file))
    else:
        files.append(pictures.attention(some, maps, [], file))
    return files


def _restored(config: SuperviseConfig, checkpoint: Checkpoint) -> SuperviseTask:
    task = SuperviseTask(config)
    task.model.load_state_dict(as_tensors(checkpoint.part("learner")["model"]))
    task.model.eval()
    return task
