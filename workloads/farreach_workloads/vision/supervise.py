"""Supervised training of image encoders, plain or with two submodels that teach each other."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.layers import DropPath
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from farreach import config as configs
from farreach import seeding
from farreach.checkpoint import Checkpoint
from farreach.data.image_files import SUFFIXES
from farreach.data.images import UNREADABLE, ImageSet, as_rgb
from farreach.disk import atomic_write
from farreach.errors import ConfigError, DataError, UnreadableImageError
from farreach.figures import rendered, save
from farreach.learn.demand import demand as asked_of_ray
from farreach.learn.keeping import as_tensors
from farreach.learn.order import Rows
from farreach.learn.place import Place
from farreach.learn.restored import evaluated, restored, task_at
from farreach.learn.task import Batch, Pixels
from farreach.learn.trainer import fit
from farreach.rundir import RunDirectory
from farreach.workload import Format
from farreach_workloads.vision import attention, pictures
from farreach_workloads.vision.augment import evaluation_transform
from farreach_workloads.vision.config import SuperviseConfig
from farreach_workloads.vision.cosub import (
    classification_loss,
    cosub_loss,
    self_distillation_loss,
    soft_distillation,
)
from farreach_workloads.vision.evaluation import judgement, protocols, transfer
from farreach_workloads.vision.evaluation.classifier import Classifier
from farreach_workloads.vision.evaluation.features import source_of
from farreach_workloads.vision.export import write
from farreach_workloads.vision.image_sets import images_known, images_of, keep
from farreach_workloads.vision.mixing import Mixing
from farreach_workloads.vision.models import make_model, rest_note, without_weights
from farreach_workloads.vision.stochastic_depth import install
from farreach_workloads.vision.training_views import TrainingViews
from farreach_workloads.vision.unreadable import REPLACED, Unreadable, left_out_note

Config = SuperviseConfig
demand = asked_of_ray

EVALUATED_TOGETHER = 128
# Images of the pictures: with their predictions, and with what is looked at.
PICTURED, ATTENDED = 32, 6


class AugmentedImages:
    """Training samples; each view follows from the seed and its position in the run."""

    def __init__(self, images: ImageSet, config: SuperviseConfig) -> None:
        """Of `images`, by the recipe of the run."""
        self._images = images
        self._views = TrainingViews(config.augment, config.data.size, config.seed)

    def __len__(self) -> int:
        """How many images an epoch has."""
        return len(self._images)

    def batch(self, rows: Rows, positions: Rows) -> Batch:
        """Views (b, 3, size, size) float32, labels (b,) int64, and `replaced`, (b,) bool.

        In place of an image that cannot be read comes the next of the set, with its own label.
        """
        found = np.empty_like(rows)

        def images() -> Iterator[Image.Image]:
            for i, row in enumerate(rows.tolist()):
                image, found[i] = self._images.load_or_next(row, self._views.needed)
                yield image

        views = self._views.made(images(), positions)
        labels = torch.from_numpy(self._images.labels[found])
        return {"image": views, "label": labels, REPLACED: torch.from_numpy(found != rows)}


class SuperviseTask:
    """Trains a backbone on labels; see `farreach.learn.task.Task`."""

    score = "evaluation/top1"
    companions: Sequence[nn.Module] = ()

    def __init__(
        self, config: SuperviseConfig, images: tuple[ImageSet, ImageSet] | None = None
    ) -> None:
        """Open the images, unless they are given, and make the model.

        Raises:
            ConfigError: there is no such model, or it does not take these images or weights.
            DataError: the images cannot be read.
        """
        self._config = config
        train, self._held_out = images or images_of(config.data)
        self.class_names, self.classes = train.classes, len(train.classes)
        self.data = AugmentedImages(train, config)
        self.model = make_model(config.backbone, config.data.size, self.classes)
        self._unreadable = Unreadable(train.path, config.training.batch)
        self._left_out = 0
        self._mixing = Mixing(**config.mix.model_dump())
        backbone = config.backbone
        self._teacher: nn.Module | None = None
        if config.objective.teacher is not None:
            self._teacher = make_teacher(config, self.classes)
            self._teacher.requires_grad_(False).eval()
        self._average: ModelEmaV3 | None = None
        self._depth = None
        if backbone.drop_path > 0:
            self._depth = install(
                self.model, backbone.drop_path, backbone.drop_path_schedule, seed=config.seed
            )

    def optimizer(self) -> torch.optim.Optimizer:
        """timm's, which knows what of a model is not decayed."""
        settings, decay = self._config.optimizer, self._config.average.decay
        if decay is not None:
            self._average = ModelEmaV3(self.model, decay=decay)
        if self._teacher is not None:
            self._teacher.to(next(self.model.parameters()).device)
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            self.model,
            opt=settings.kind,
            lr=self._config.training.lr,
            weight_decay=settings.weight_decay,
            layer_decay=settings.layer_decay,
        )
        return optimizer

    def loss(
        self, model: nn.Module, batch: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the mixed batch."""
        config, counted = self._config.objective, self._unreadable.count(batch[REPLACED])
        rng = seeding.generator(self._config.seed, "mix", step)
        images, target = self._mixing(batch["image"], batch["label"], self.classes, rng)
        if config.loss == "bce":
            target = (target > 0).float()
        if self._depth is not None:
            # The loop seeds torch for every part of a batch on every worker.
            self._depth.reseed(step, torch.initial_seed())
        weight, taught = config.teacher_weight, None
        if self._teacher is not None:
            with torch.no_grad():
                taught = self._teacher(images).float()
        if config.kind != "supervised":
            assert self._depth is not None
            if taught is not None:
                target = (1.0 - weight) * target + weight * _named(taught)
            loss_of = cosub_loss if config.kind == "cosub" else self_distillation_loss
            weight = config.mutual_weight
            loss, metrics = loss_of(model, self._depth, images, target, weight, config.loss)
            return loss, metrics | counted
        logits = model(images).float()
        loss = classification_loss(logits, target, config.loss)
        if taught is None:
            return loss, counted
        if config.teacher_temperature is None:
            lesson = classification_loss(logits, _named(taught), "ce")
        else:
            lesson = soft_distillation(logits, taught, config.teacher_temperature)
        agreement = (logits.argmax(1) == taught.argmax(1)).float().mean()
        metrics = counted | {"learner/agrees_with_teacher": agreement}
        return (1.0 - weight) * loss + weight * lesson, metrics

    def before_update(self, step: int) -> None:
        """All gradients count."""

    def after_update(self, step: int) -> None:
        """The average follows."""
        if self._average is not None:
            self._average.update(self.model)

    def evaluated_model(self) -> nn.Module:
        """The weights that count: the average if the run says so."""
        if self._config.average.evaluate:
            assert self._average is not None
            averaged: nn.Module = self._average.module.eval()
            return averaged
        return self.model

    def evaluate(self, place: Place) -> dict[str, float]:
        """Accuracy and cross-entropy on the held-out images that can be read."""
        config = self._config.data
        images_in_all = len(self._held_out)
        rows = np.arange(images_in_all)[place.rank :: place.world]
        most = -(-images_in_all // place.world)  # rows of the first worker: all go as many rounds
        totals = torch.zeros(4, dtype=torch.float64)
        model = self.evaluated_model()
        for begin in range(0, most, EVALUATED_TOGETHER):
            images, labels = self._readable(rows[begin : begin + EVALUATED_TOGETHER])
            if not len(images):
                model(torch.zeros(1, 3, config.size, config.size, device=place.device))
                continue
            logits = model(images.to(place.device)).float().cpu()
            best = logits.topk(min(5, self.classes)).indices == labels[:, None]
            loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
            totals += torch.tensor(
                [len(images), int(best[:, 0].sum()), int(best.any(1).sum()), float(loss)]
            )
        count, first, five, loss_sum = place.sum(totals).tolist()
        self._left_out = images_in_all - int(count)
        if not count:
            self._held_out.load(0)  # which says why
        return {
            "evaluation/top1": first / count,
            "evaluation/top5": five / count,
            "evaluation/loss": loss_sum / count,
            "evaluation/images": count,
        }

    def _readable(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Some of the held-out images that can be read, (n, 3, size, size), and their labels."""
        config = self._config.data
        transform = evaluation_transform(config.size, config.crop_ratio)
        images, found = [], []
        for row in rows.tolist():
            try:
                images.append(transform(self._held_out.load(row)))
            except UnreadableImageError:
                continue
            found.append(row)
        if not images:
            return torch.empty(0, 3, config.size, config.size), torch.empty(0, dtype=torch.int64)
        return torch.stack(images), torch.from_numpy(self._held_out.labels[found])

    def only(self, count: int) -> None:
        """Evaluate on `count` of the held-out images alone, spread evenly."""
        self._held_out = self._held_out.subset(self._spread(count))

    def look_at(self, count: int) -> tuple[Tensor, Tensor]:
        """So many held-out images, spread evenly, and their labels, but for unreadable ones."""
        return self._readable(self._spread(count))

    def pictures(self) -> dict[str, Pixels]:
        """Held-out images with the class that is predicted."""
        images, labels = self.look_at(PICTURED)
        device = next(self.model.parameters()).device
        logits = self.evaluated_model()(images.to(device)).float().cpu()
        figure = pictures.predictions(images, logits, labels, self.class_names)
        return {"evaluation/predictions": rendered(figure)}

    def _spread(self, count: int) -> Rows:
        every = len(self._held_out)
        return np.linspace(0, every - 1, min(count, every)).astype(np.int64)

    def remarks(self) -> Sequence[str]:
        """Held-out images that could not be read."""
        return left_out_note(self._left_out)

    def state(self) -> dict[str, Any]:
        """The average; everything random follows from the number of the update."""
        return {} if self._average is None else {"average": self._average.module.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the average, if the run keeps one."""
        if self._average is not None:
            self._average.module.load_state_dict(as_tensors(state["average"]))


def make_teacher(config: SuperviseConfig, classes: int) -> nn.Module:
    """The model that teaches; raises ConfigError as `make_model` does, or if it has not learned."""
    teacher = config.objective.teacher
    assert teacher is not None
    if teacher.weights is None:
        raise ConfigError(
            "objective.teacher.weights: a teacher must have learned what it teaches. Name the file "
            "of its weights, such as one that `farreach export --format timm` wrote."
        )
    try:
        return make_model(teacher, config.data.size, classes, keep_head=True)
    except ConfigError as error:
        raise ConfigError(str(error).replace("backbone", "objective.teacher", 1)) from error


def _named(logits: Tensor) -> Tensor:
    """The class that has most, as a target: (b, k) → (b, k)."""
    return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()


def check(config: SuperviseConfig) -> list[str]:
    """Open the images and make the model once; what the user should know."""
    train, held_out = images_of(config.data)
    if len(train) < config.training.batch:
        raise DataError(
            f"training.batch: {config.training.batch} images at a time, of {len(train)} in all. "
            "Lower it."
        )
    notes: list[str] = []
    model = make_model(config.backbone, config.data.size, len(train.classes), notes=notes)
    if config.objective.teacher is not None:
        make_teacher(config, len(train.classes))
    notes.insert(
        0,
        f"{len(train):,} images to train on, {len(held_out):,} held out, {len(train.classes)} "
        f"classes; {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters",
    )
    if (note := rest_note(model, config.data.size)) is not None:
        notes.append(note)
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


def classifier_of(run: Path, checkpoint: Path | None) -> Classifier:
    """The classifier of a checkpoint of a run, or as the run began; for workers."""
    directory = RunDirectory.open(run)
    config = configs.load(directory.config_path).config
    assert isinstance(config, SuperviseConfig)
    if checkpoint is not None:
        config = without_weights(config)
    images = images_known(directory, config.data)
    task = task_at(config, partial(SuperviseTask, images=images), checkpoint)
    return Classifier(task.evaluated_model())


_source = source_of(__name__, classifier_of.__name__)
EVALUATIONS = {
    **protocols.evaluations(_source),
    **transfer.evaluations(_source),
    **judgement.evaluations(_source),
}


def make_task(config: SuperviseConfig) -> SuperviseTask:
    """What a worker trains."""
    return SuperviseTask(config)


def run(
    config: SuperviseConfig, run: RunDirectory, checkpoint: Checkpoint | None
) -> dict[str, float]:
    """Train to the end; see `Workload`."""
    keep(run, config.data)
    return fit(config, run, checkpoint, make_task)


def evaluate(
    config: SuperviseConfig, run: RunDirectory, checkpoint: Checkpoint, *, episodes: int | None
) -> dict[str, float]:
    """Metrics of a checkpoint on the held-out images; `episodes`: on so many of them alone."""
    return evaluated(SuperviseTask(without_weights(config)), checkpoint, episodes)


def plot(config: SuperviseConfig, run: RunDirectory, checkpoint: Checkpoint) -> list[Path]:
    """Predictions on held-out images, and what the network looks at if it can say so."""
    task = restored(SuperviseTask(without_weights(config)), checkpoint)
    images, labels = task.look_at(PICTURED)
    model = task.evaluated_model()
    with torch.no_grad():
        logits = model(images)
    figure = pictures.predictions(images, logits, labels, task.class_names)
    files = [save(figure, run.figures / "predictions.png")]
    looked = attention.draw(model, images[:ATTENDED], logits[:ATTENDED], task.class_names)
    if looked is not None:
        files.append(save(looked, run.figures / "attention.png"))
    return files


def plot_images(
    config: SuperviseConfig, run: RunDirectory, checkpoint: Checkpoint, images: Path, out: Path
) -> list[Path]:
    """What the network takes the user's own images for, and looks at in them.

    Each gets a picture, and its maps as `.npy`: (maps, rows, columns) float32.
    """
    files = [images] if images.is_file() else sorted(images.rglob("*"))
    files = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not files:
        raise DataError(f"--images {images}: holds no images ({', '.join(SUFFIXES)}).")
    known = images_known(run, config.data)
    task = restored(SuperviseTask(without_weights(config), known), checkpoint)
    model = task.evaluated_model()
    transform = evaluation_transform(config.data.size, config.data.crop_ratio)
    written = []
    for number, file in enumerate(files):
        image = transform(_read(file))[None]
        with torch.no_grad():
            logits = model(image)
        maps, names = attention.by_class(attention.maps_of(model, image), logits, task.class_names)
        stem = f"{number:04}-{file.stem}"
        best = [f"{name} {share:.2f}" for share, name in _best(logits, task.class_names)]
        figure = pictures.attention(image, maps, names, [", ".join(best)])
        written.append(save(figure, out / f"{stem}.png"))
        for name, m in maps.items():
            content = io.BytesIO()
            np.save(content, m[0].numpy().astype(np.float32))
            atomic_write(out / f"{stem}-{name}.npy", content.getvalue())
            written.append(out / f"{stem}-{name}.npy")
    return written


def _read(file: Path) -> Image.Image:
    try:
        return as_rgb(Image.open(file))
    except UNREADABLE as error:
        raise DataError(f"{file}: is no image that can be read: {error}.") from error


def _best(logits: Tensor, classes: list[str]) -> list[tuple[float, str]]:
    shares, rows = logits[0].softmax(0).topk(min(3, len(classes)))
    return [(float(s), classes[int(r)]) for s, r in zip(shares, rows, strict=True)]


def export(
    config: SuperviseConfig, run: RunDirectory, checkpoint: Checkpoint, out: Path, fmt: Format
) -> Path:
    """Write the evaluated model in some format; see `farreach_workloads.vision.export`."""
    data = config.data
    images = images_known(run, data)
    task = restored(SuperviseTask(without_weights(config), images), checkpoint)
    model = task.evaluated_model()
    return write(model, task.class_names, data.size, data.crop_ratio, out, fmt)
