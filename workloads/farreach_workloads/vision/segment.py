"""Semantic segmentation: a class for every pixel, by Semantic FPN or UperNet over any backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from farreach import seeding
from farreach.checkpoint import Checkpoint
from farreach.data.fetched import here
from farreach.data.images import first_readable
from farreach.data.label_maps import IGNORED, LabelMap, LabelMapSet, open_label_maps
from farreach.figures import rendered, save
from farreach.learn.demand import demand as asked_of_ray
from farreach.learn.order import Rows
from farreach.learn.place import Place
from farreach.learn.restored import evaluated, restored
from farreach.learn.task import Batch, Pixels
from farreach.learn.trainer import fit
from farreach.rundir import RunDirectory
from farreach_workloads.vision import pictures
from farreach_workloads.vision.augment import MEAN, STD, seed_globals
from farreach_workloads.vision.dense.checks import check_backbone
from farreach_workloads.vision.dense.config import SegmentConfig
from farreach_workloads.vision.dense.heads import AuxiliaryHead, FpnHead, UperHead
from farreach_workloads.vision.dense.optimizer import optimizer_of
from farreach_workloads.vision.dense.pyramid import Pyramid, has_fixed_size, padded
from farreach_workloads.vision.dense.scenes import SceneLabelMaps, open_scenes
from farreach_workloads.vision.models import without_weights
from farreach_workloads.vision.stochastic_depth import StochasticDepth, install
from farreach_workloads.vision.unreadable import REPLACED, Unreadable, left_out_note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Config = SegmentConfig
demand = asked_of_ray

PICTURED = 8
CROPS_TRIED = 10
# Windows over an image overlap by a third.
WINDOW_STEP = 2 / 3


class Segmenter(nn.Module):
    """Backbone, pyramid and head."""

    def __init__(self, config: SegmentConfig, classes: int) -> None:
        """Raises ConfigError; see `Pyramid`."""
        super().__init__()
        self.pyramid = Pyramid(config.backbone, config.data.size, config.frozen)
        make = FpnHead if config.head.kind == "fpn" else UperHead
        self.head = make(self.pyramid.widths, config.head.width, classes)
        has_two = config.head.kind == "upernet" and config.head.auxiliary_weight > 0
        self.auxiliary = AuxiliaryHead(self.pyramid.widths, classes) if has_two else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """(b, 3, h, w) → logits (b, classes, h, w), and in training the second head's."""
        maps = self.pyramid(padded(images))
        second = None
        if self.training and self.auxiliary is not None:
            second = _as_large(self.auxiliary(maps), images)
        return _as_large(self.head(maps), images), second


class Distortion(v2.RandomPhotometricDistort):
    """Of brightness, contrast, saturation and hue; torchvision's swaps red, green and blue too."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """See torchvision."""
        return super().make_params(flat_inputs) | {"channel_permutation": None}


class Crops:
    """Training samples; each view follows from the seed and its position in the run."""

    def __init__(self, images: LabelMapSet, config: SegmentConfig) -> None:
        """Of `images`, by the recipe of the run."""
        self._images, self._seed = images, config.seed
        self._augment, self._size = config.augment, config.data.size
        self._distort = Distortion() if config.augment.photometric else None

    def __len__(self) -> int:
        """How many images an epoch has."""
        return len(self._images)

    def batch(self, rows: Rows, positions: Rows) -> Batch:
        """Crops (b, 3, size, size) float32, classes (b, size, size) int64, `replaced` (b,) bool.

        In place of an image that cannot be read, or whose classes cannot, comes the next.
        """
        views, classes, replaced = [], [], []
        for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
            seed_globals(seeding.child_seed(self._seed, "view", position))
            rng = seeding.generator(self._seed, "crop", position)
            read, found = first_readable(self._images.load, row, len(self._images))
            replaced.append(found != row)
            image, labels = self._cropped(*read, rng)
            if self._augment.flip and rng.random() < 0.5:
                image, labels = TF.horizontal_flip(image), labels[:, ::-1]
            if self._distort is not None:
                image = self._distort(image)
            views.append(normalised(image))
            classes.append(torch.from_numpy(labels.astype(np.int64)))
        return {
            "image": torch.stack(views),
            "label": torch.stack(classes),
            REPLACED: torch.tensor(replaced),
        }

    def _cropped(
        self, image: Image.Image, labels: LabelMap, rng: np.random.Generator
    ) -> tuple[Image.Image, LabelMap]:
        """Resized by a random factor, then cut to the size, with a border if it is smaller."""
        factor = rng.uniform(*self._augment.ratio) * self._size / min(image.size)
        image, labels = resized(image, labels, factor)
        size, (height, width) = self._size, labels.shape
        if height < size or width < size:
            grown = (max(width, size), max(height, size))
            ground = Image.new("RGB", grown, tuple(round(255 * value) for value in MEAN))
            ground.paste(image)
            image, labels = (
                ground,
                np.pad(
                    labels, ((0, grown[1] - height), (0, grown[0] - width)), constant_values=IGNORED
                ),
            )
        for _ in range(CROPS_TRIED):
            top = int(rng.integers(0, labels.shape[0] - size + 1))
            left = int(rng.integers(0, labels.shape[1] - size + 1))
            crop = labels[top : top + size, left : left + size]
            counts = np.bincount(crop.reshape(-1), minlength=IGNORED + 1)[:IGNORED]
            if counts.max() <= self._augment.most_of_a_class * max(1, counts.sum()):
                break
        return image.crop((left, top, left + size, top + size)), crop


class SegmentTask:
    """Trains a segmenter; see `farreach.learn.task.Task`."""

    score = "evaluation/mean_iou"
    companions: Sequence[nn.Module] = ()

    def __init__(self, config: SegmentConfig) -> None:
        """Open the images and make the model; raises as `check` does."""
        self._config = config
        train, self._held_out = images_of(config)
        self.class_names = train.classes
        self._unreadable = Unreadable(train.path, config.training.batch)
        self._left_out = 0
        self.data = Crops(train, config)
        self.model = Segmenter(config, len(train.classes))
        self._depth: StochasticDepth | None = None
        if config.backbone.drop_path > 0:
            backbone = config.backbone
            self._depth = install(
                self.model.pyramid,
                backbone.drop_path,
                backbone.drop_path_schedule,
                seed=config.seed,
            )
        self._windows = has_fixed_size(self.model.pyramid.backbone)

    def optimizer(self) -> torch.optim.Optimizer:
        """See `optimizer_of`."""
        config = self._config
        return optimizer_of(self.model, self.model.pyramid, config.optimizer, config.training.lr)

    def loss(
        self, model: nn.Module, batch: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy of the pixels that have a class."""
        if self._depth is not None:
            self._depth.reseed(step, torch.initial_seed())
        logits, second = model(batch["image"])
        loss = _cross_entropy(logits, batch["label"])
        known = batch["label"] != IGNORED
        right = ((logits.argmax(1) == batch["label"]) & known).sum() / known.sum().clamp(min=1)
        shown = {"learner/pixel_accuracy": right.detach()}
        shown |= self._unreadable.count(batch[REPLACED])
        if second is not None:
            weight = self._config.head.auxiliary_weight
            loss = loss + weight * _cross_entropy(second, batch["label"])
        return loss, shown

    def before_update(self, step: int) -> None:
        """All gradients count."""

    def after_update(self, step: int) -> None:
        """Nothing follows."""

    def evaluate(self, place: Place) -> dict[str, float]:
        """Intersection over union of every class, at the images' own resolution."""
        classes = len(self.class_names)
        counts = torch.zeros(classes, classes, dtype=torch.float64)
        every, read = len(self._held_out), torch.zeros(())
        for begin in range(0, every, place.world):
            # Workers without an image of their own in the last round, or with one that cannot be
            # read, take another, which is not counted: they must call the model as often as the
            # others.
            index = begin + place.rank
            (image, labels), row = first_readable(self._held_out.load, min(index, every - 1), every)
            found = self.predict(image, place.device)
            if row == index:
                counts += torch.from_numpy(confusion(found, labels, classes))
                read += 1
        self._left_out = every - int(place.sum(read))
        return scores(place.sum(counts).cpu().numpy(), self.class_names)

    def predict(self, image: Image.Image, device: torch.device) -> NDArray[np.int64]:
        """The class of every pixel, (height, width)."""
        size = self._config.data.size
        small, _ = resized(image, None, size / min(image.size))
        x = normalised(small).to(device)[None]
        logits = self._slid(x) if self._windows else self.model(x)[0]
        whole = (image.size[1], image.size[0])
        grown = F.interpolate(logits.float(), whole, mode="bilinear", align_corners=False)
        found: NDArray[np.int64] = grown.argmax(1)[0].cpu().numpy()
        return found

    def _slid(self, x: Tensor) -> Tensor:
        """Mean logits of all windows that cover a pixel, for backbones of one size."""
        size = self._config.data.size
        corners = [
            (top, left) for top in _starts(x.shape[2], size) for left in _starts(x.shape[3], size)
        ]
        windows = [x[0, :, top : top + size, left : left + size] for top, left in corners]
        logits = self.model(torch.stack(windows))[0]
        total = logits.new_zeros(logits.shape[1], *x.shape[2:])
        covered = logits.new_zeros(x.shape[2:])
        for (top, left), window in zip(corners, logits, strict=True):
            total[:, top : top + size, left : left + size] += window
            covered[top : top + size, left : left + size] += 1
        return (total / covered)[None]

    def pictures(self) -> dict[str, Pixels]:
        """Images, their classes, and those that are found."""
        return {"evaluation/classes": rendered(self.figure())}

    def figure(self) -> Figure:
        """Held-out images, spread evenly, with what they hold and what is found."""
        rows = np.linspace(0, len(self._held_out) - 1, min(PICTURED, len(self._held_out)))
        device = next(self.model.parameters()).device
        shown = []
        for row in rows.astype(int).tolist():
            (image, labels), _ = first_readable(self._held_out.load, row, len(self._held_out))
            shown.append((image, labels, self.predict(image, device)))
        return pictures.label_maps(shown, self.class_names)

    def only(self, count: int) -> None:
        """Evaluate on `count` of the held-out images alone."""
        self._held_out = _First(self._held_out, count)

    def remarks(self) -> Sequence[str]:
        """Held-out images that could not be read."""
        return left_out_note(self._left_out)

    def state(self) -> dict[str, Any]:
        """Nothing: everything random follows from the number of the update."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to take over."""


class _First(LabelMapSet):
    def __init__(self, whole: LabelMapSet, count: int) -> None:
        super().__init__(whole.path, whole.classes)
        self._whole, self._count = whole, min(count, len(whole))

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> tuple[Image.Image, LabelMap]:
        return self._whole.load(index)


def normalised(image: Image.Image) -> Tensor:
    """PIL image → (3, height, width) float32."""
    x = TF.to_dtype(TF.to_image(image), torch.float32, scale=True)
    normal: Tensor = TF.normalize(x, MEAN, STD)
    return normal


def resized(
    image: Image.Image, labels: LabelMap | None, factor: float
) -> tuple[Image.Image, LabelMap]:
    """Both by a factor; classes are those of the nearest pixel."""
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
        if labels is not None:
            grown = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
            labels = np.asarray(grown)
    return image, np.zeros((0, 0), np.uint8) if labels is None else labels


def confusion(found: NDArray[np.int64], labels: LabelMap, classes: int) -> NDArray[np.float64]:
    """How many pixels of each class (row) are taken for which (column), (classes, classes)."""
    known = labels != IGNORED
    pairs = labels[known].astype(np.int64) * classes + found[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes).astype(np.float64)


def scores(counts: NDArray[np.float64], classes: list[str]) -> dict[str, float]:
    """Metrics of a confusion matrix; classes that neither occur nor are found have no part."""
    right, true, found = np.diag(counts), counts.sum(1), counts.sum(0)
    union = true + found - right
    present = union > 0
    iou = right[present] / union[present]
    names = [name for name, is_there in zip(classes, present, strict=True) if is_there]
    return {
        "evaluation/mean_iou": float(iou.mean()) if len(iou) else 0.0,
        "evaluation/pixel_accuracy": float(right.sum() / max(1.0, counts.sum())),
        "evaluation/mean_accuracy": float((right / np.maximum(true, 1.0))[true > 0].mean()),
        **{f"evaluation/iou_{n}": float(v) for n, v in zip(names, iou, strict=True)},
    }


def images_of(config: SegmentConfig) -> tuple[LabelMapSet, LabelMapSet]:
    """Training and held-out images."""
    data = config.data
    if data.path is not None:
        return open_label_maps(here(data.path))
    scenes = data.scenes
    train, held_out = open_scenes(scenes.cut_outs, scenes.grounds, data.size, scenes.most)
    return SceneLabelMaps(train, scenes.train), SceneLabelMaps(held_out, scenes.held_out)


def _as_large(logits: Tensor, images: Tensor) -> Tensor:
    """Grown by four or sixteen, without the border that `padded` put around them."""
    height, width = images.shape[2:]
    padded_size = (height + -height % 32, width + -width % 32)
    grown = F.interpolate(logits, padded_size, mode="bilinear", align_corners=False)
    return grown[:, :, :height, :width]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def _starts(length: int, size: int) -> list[int]:
    """Where windows begin that cover `length` pixels."""
    step = max(1, int(size * WINDOW_STEP))
    count = max(0, -(-(length - size) // step)) + 1
    return [min(number * step, length - size) for number in range(count)]


def check(config: SegmentConfig) -> list[str]:
    """Open the images and make the model once; what the user should know."""
    train, held_out = images_of(config)
    first_readable(train.load, 0, len(train))
    model = Segmenter(config, len(train.classes))
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    return [
        f"{len(train):,} images to train on, {len(held_out):,} held out, {len(train.classes)} "
        f"classes; {parameters:.1f}M parameters",
        *check_backbone(model.pyramid, config),
    ]


def make_task(config: SegmentConfig) -> SegmentTask:
    """What a worker trains."""
    return SegmentTask(config)


def run(
    config: SegmentConfig, run: RunDirectory, checkpoint: Checkpoint | None
) -> dict[str, float]:
    """Train to the end; see `Workload`."""
    return fit(config, run, checkpoint, make_task)


def evaluate(
    config: SegmentConfig, run: RunDirectory, checkpoint: Checkpoint, *, episodes: int | None
) -> dict[str, float]:
    """Metrics of a checkpoint on the held-out images; `episodes`: on so many of them alone."""
    return evaluated(SegmentTask(without_weights(config)), checkpoint, episodes)


def plot(config: SegmentConfig, run: RunDirectory, checkpoint: Checkpoint) -> list[Path]:
    """Held-out images with what is found in them."""
    task = restored(SegmentTask(without_weights(config)), checkpoint)
    with torch.no_grad():
        return [save(task.figure(), run.figures / "classes.png")]
