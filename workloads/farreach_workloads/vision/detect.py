"""Object detection with masks: Mask R-CNN (torchvision's) over any backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.transforms.v2 import functional as TF

from farreach import seeding
from farreach.checkpoint import Checkpoint
from farreach.data.fetched import here
from farreach.data.images import first_readable
from farreach.data.instances import Instances, InstanceSet, open_instances
from farreach.figures import rendered, save
from farreach.learn.demand import demand as asked_of_ray
from farreach.learn.order import Rows
from farreach.learn.place import Place
from farreach.learn.restored import evaluated, restored
from farreach.learn.task import Batch, Pixels
from farreach.learn.trainer import fit
from farreach.linear import use_fast_linear
from farreach.rundir import RunDirectory
from farreach_workloads.vision import pictures
from farreach_workloads.vision.augment import MEAN, STD
from farreach_workloads.vision.dense.average_precision import Collected, average_precision
from farreach_workloads.vision.dense.checks import check_backbone
from farreach_workloads.vision.dense.config import STRIDES, DetectAugmentConfig, DetectConfig
from farreach_workloads.vision.dense.optimizer import optimizer_of
from farreach_workloads.vision.dense.pyramid import Pyramid, has_fixed_size
from farreach_workloads.vision.dense.scenes import SceneInstances, open_scenes
from farreach_workloads.vision.models import without_weights
from farreach_workloads.vision.pictures import Found
from farreach_workloads.vision.stochastic_depth import StochasticDepth, install
from farreach_workloads.vision.unreadable import REPLACED, Unreadable, left_out_note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Config = DetectConfig
demand = asked_of_ray

PICTURED = 8
LEAST_SHOWN = 0.5
MASK_THRESHOLD = 0.5
MASK_LAYERS = 4
ASPECTS = (0.5, 1.0, 2.0)
# Shorter sides between which an image is cropped before it is resized to the final one.
CROPPED_FROM = (400, 500, 600)
CROP_SHARE = 0.5
# Of an object's box, below which a crop leaves it out.
LEAST_SIDE = 1.0


class Body(nn.Module):
    """Backbone and feature pyramid, as Mask R-CNN wants them."""

    def __init__(self, config: DetectConfig) -> None:
        """Raises ConfigError; see `Pyramid`."""
        super().__init__()
        self.pyramid = Pyramid(config.backbone, config.data.size, config.frozen)
        self.out_channels = config.detector.width
        self.fpn = FeaturePyramidNetwork(self.pyramid.widths, self.out_channels, LastLevelMaxPool())
        self.reduced_precision = False

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(b, 3, h, w) → five maps of strides 4 to 64, float32."""
        with torch.autocast(images.device.type, torch.bfloat16, self.reduced_precision):
            maps = self.pyramid(images)
            named = self.fpn({str(level): m for level, m in enumerate(maps)})
        return {name: m.float() for name, m in named.items()}


class Detector(nn.Module):
    """Mask R-CNN; losses in training, what is found otherwise."""

    def __init__(self, config: DetectConfig, classes: int) -> None:
        """Raises ConfigError; see `Pyramid`."""
        super().__init__()
        settings, size = config.detector, config.data.size
        body = Body(config)
        scales = (*STRIDES, 2 * STRIDES[-1])
        anchors = AnchorGenerator(
            tuple((round(settings.anchor_scale * stride),) for stride in scales),
            (ASPECTS,) * len(scales),
        )
        self.fixed = has_fixed_size(body.pyramid.backbone)
        self.rcnn = MaskRCNN(
            body,
            classes + 1,  # the first is the ground
            min_size=config.augment.short_sides or (size,),
            max_size=settings.longest,
            image_mean=MEAN,
            image_std=STD,
            rpn_anchor_generator=anchors,
            rpn_post_nms_top_n_train=settings.proposals,
            rpn_post_nms_top_n_test=settings.proposals,
            box_batch_size_per_image=settings.sampled,
            size_divisible=STRIDES[-1],
            fixed_size=(size, size) if self.fixed else None,
        )
        width = settings.width
        self.rcnn.roi_heads.mask_head = MaskRCNNHeads(width, (width,) * MASK_LAYERS, 1)
        self.rcnn.roi_heads.mask_predictor = MaskRCNNPredictor(width, width, classes + 1)
        use_fast_linear(self.rcnn)
        self._sizes = self.rcnn.transform.min_size
        self._tested = (size,)

    @property
    def body(self) -> Body:
        """What makes the maps."""
        body: Body = self.rcnn.backbone
        return body

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None) -> Any:
        """Images (3, h, w) in [0, 1]: a loss by name, or boxes, labels, scores and masks."""
        self.rcnn.transform.min_size = self._sizes if self.training else self._tested
        # Boxes are computed in full precision, whatever the backbone is.
        self.body.reduced_precision = torch.is_autocast_enabled(images[0].device.type)
        with torch.autocast(images[0].device.type, enabled=False):
            return self.rcnn(images, targets)


class Views:
    """Training samples; each view follows from the seed and its position in the run."""

    def __init__(self, images: InstanceSet, config: DetectConfig) -> None:
        """Of `images`, by the recipe of the run."""
        self._images, self._seed, self._augment = images, config.seed, config.augment

    def __len__(self) -> int:
        """How many images an epoch has."""
        return len(self._images)

    def batch(self, rows: Rows, positions: Rows) -> Batch:
        """Images of different sizes and their objects, side by side in the largest frame.

        `image` (b, 3, h, w) float32 in [0, 1]; `size` (b, 2) height and width; `count` (b,) of
        objects; `boxes` (b, most, 4); `label` (b, most) int64 from 1 on; `mask` (b, most, h, w);
        `replaced` (b,) bool, in place of an image that cannot be read comes the next of the set.
        """
        views, replaced = [], []
        for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
            rng = seeding.generator(self._seed, "view", position)
            image, found = first_readable(self._images.image, row, len(self._images))
            replaced.append(found != row)
            objects = self._images.instances(found)
            objects = objects.select(~objects.crowd)
            views.append(augmented(image, objects, self._augment, rng))
        height = max(image.height for image, _ in views)
        width = max(image.width for image, _ in views)
        most = max(1, *(len(objects) for _, objects in views))
        batch = {
            "image": torch.zeros(len(views), 3, height, width),
            "size": torch.tensor([[image.height, image.width] for image, _ in views]),
            "count": torch.tensor([len(objects) for _, objects in views]),
            "boxes": torch.zeros(len(views), most, 4),
            "label": torch.zeros(len(views), most, dtype=torch.int64),
            "mask": torch.zeros(len(views), most, height, width, dtype=torch.uint8),
            REPLACED: torch.tensor(replaced),
        }
        for index, (image, objects) in enumerate(views):
            count = len(objects)
            batch["image"][index, :, : image.height, : image.width] = as_pixels(image)
            batch["boxes"][index, :count] = torch.from_numpy(objects.boxes)
            batch["label"][index, :count] = torch.from_numpy(objects.labels) + 1
            masks = torch.from_numpy(objects.masks.astype(np.uint8))
            batch["mask"][index, :count, : image.height, : image.width] = masks
        return batch


class DetectTask:
    """Trains a detector; see `farreach.learn.task.Task`."""

    score = "evaluation/box_ap"
    companions: Sequence[nn.Module] = ()

    def __init__(self, config: DetectConfig) -> None:
        """Open the images and make the model; raises as `check` does."""
        self._config = config
        train, self._held_out = images_of(config)
        self._evaluated = len(self._held_out)
        self.class_names = train.classes
        self._unreadable = Unreadable(train.path, config.training.batch)
        self._left_out = 0
        self.data = Views(train, config)
        self.model = Detector(config, len(train.classes))
        self._depth: StochasticDepth | None = None
        if config.backbone.drop_path > 0:
            rate, schedule = config.backbone.drop_path, config.backbone.drop_path_schedule
            self._depth = install(self.model.body.pyramid, rate, schedule, seed=config.seed)

    def optimizer(self) -> torch.optim.Optimizer:
        """See `optimizer_of`."""
        config = self._config
        return optimizer_of(
            self.model, self.model.body.pyramid, config.optimizer, config.training.lr
        )

    def loss(
        self, model: nn.Module, batch: Batch, step: int, rank: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of Mask R-CNN's five."""
        if self._depth is not None:
            self._depth.reseed(step, torch.initial_seed())
        images, targets = [], []
        for index, (height, width) in enumerate(batch["size"].tolist()):
            count = int(batch["count"][index])
            images.append(batch["image"][index, :, :height, :width])
            targets.append(
                {
                    "boxes": batch["boxes"][index, :count],
                    "labels": batch["label"][index, :count],
                    "masks": batch["mask"][index, :count, :height, :width],
                }
            )
        losses: dict[str, Tensor] = model(images, targets)
        shown = {f"learner/{name.removeprefix('loss_')}_loss": v for name, v in losses.items()}
        shown |= self._unreadable.count(batch[REPLACED])
        return torch.stack(list(losses.values())).sum(), shown

    def before_update(self, step: int) -> None:
        """All gradients count."""

    def after_update(self, step: int) -> None:
        """Nothing follows."""

    def evaluate(self, place: Place) -> dict[str, float]:
        """COCO's average precisions of boxes and masks, by pycocotools."""
        every, mine = self._evaluated, Collected()
        for begin in range(0, every, place.world):
            # Workers without an image of their own in the last round, or with one that cannot be
            # read, take another, which is not counted: they must call the model as often as the
            # others.
            index = begin + place.rank
            image, row = first_readable(self._held_out.image, min(index, every - 1), every)
            found = self.predict(image, place.device)
            if row == index:
                mine.add(index, self._held_out.instances(index), found)
        parts = place.gathered(mine)
        self._left_out = every - sum(len(part.images) for part in parts)
        return average_precision(parts, self.class_names)

    def predict(self, image: Image.Image, device: torch.device) -> Found:
        """What is in an image, best first."""
        found = self.model([as_pixels(image).to(device)], None)[0]
        return Found(
            boxes=found["boxes"].float().cpu().numpy(),
            labels=found["labels"].cpu().numpy() - 1,
            scores=found["scores"].float().cpu().numpy(),
            masks=(found["masks"][:, 0] > MASK_THRESHOLD).cpu().numpy(),
        )

    def pictures(self) -> dict[str, Pixels]:
        """Images with their objects, and with those that are found."""
        return {"evaluation/objects": rendered(self.figure())}

    def figure(self) -> Figure:
        """Held-out images, spread evenly, with what they hold and what is found."""
        rows = np.linspace(0, self._evaluated - 1, min(PICTURED, self._evaluated))
        device = next(self.model.parameters()).device
        shown = []
        for row in rows.astype(int).tolist():
            image, row = first_readable(self._held_out.image, row, len(self._held_out))
            true = self._held_out.instances(row)
            ones = np.ones(len(true), np.float32)
            known = Found(true.boxes, true.labels, ones, true.masks)
            shown.append((image, known, self.predict(image, device)))
        return pictures.detections(shown, self.class_names, LEAST_SHOWN)

    def only(self, count: int) -> None:
        """Evaluate on the first `count` of the held-out images alone."""
        self._evaluated = min(count, len(self._held_out))

    def remarks(self) -> Sequence[str]:
        """Held-out images that could not be read."""
        return left_out_note(self._left_out)

    def state(self) -> dict[str, Any]:
        """Nothing: everything random follows from the number of the update."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to take over."""


def as_pixels(image: Image.Image) -> Tensor:
    """PIL image → (3, height, width) float32 in [0, 1]; the model normalises by itself."""
    pixels: Tensor = TF.to_dtype(TF.to_image(image), torch.float32, scale=True)
    return pixels


def augmented(
    image: Image.Image, objects: Instances, config: DetectAugmentConfig, rng: np.random.Generator
) -> tuple[Image.Image, Instances]:
    """Perhaps cropped, perhaps mirrored; objects that a crop leaves nothing of are gone."""
    if config.crop is not None and rng.random() < CROP_SHARE:
        factor = rng.choice(CROPPED_FROM) / min(image.size)
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        low, high = config.crop
        wide, tall = (min(int(rng.integers(low, high + 1)), length) for length in size)
        left, top = (
            int(rng.integers(0, length - part + 1))
            for length, part in zip(size, (wide, tall), strict=True)
        )
        # The box of the crop in the image as it is: cut first, resize once.
        edges = np.array([left, top, left + wide, top + tall]) / factor
        box = tuple(round(edge) for edge in edges)
        box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
        image, objects = image.crop(box), _cut(objects, box)
    if config.flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes = objects.boxes.copy()
        boxes[:, [0, 2]] = image.width - boxes[:, [2, 0]]
        masks = np.ascontiguousarray(objects.masks[:, :, ::-1])
        objects = Instances(boxes, objects.labels, masks, objects.crowd)
    return image, objects


def _cut(objects: Instances, box: tuple[int, ...]) -> Instances:
    left, top, right, bottom = box
    boxes = objects.boxes - np.array([left, top, left, top], np.float32)
    boxes[:, [0, 2]] = boxes[:, [0, 2]].clip(0, right - left)
    boxes[:, [1, 3]] = boxes[:, [1, 3]].clip(0, bottom - top)
    kept = np.all(boxes[:, 2:] - boxes[:, :2] > LEAST_SIDE, axis=1)
    masks = objects.masks[:, top:bottom, left:right]
    return Instances(boxes, objects.labels, masks, objects.crowd).select(np.flatnonzero(kept))


def images_of(config: DetectConfig) -> tuple[InstanceSet, InstanceSet]:
    """Training and held-out images."""
    data = config.data
    if data.path is not None:
        return open_instances(here(data.path))
    scenes = data.scenes
    train, held_out = open_scenes(scenes.cut_outs, scenes.grounds, data.size, scenes.most)
    return SceneInstances(train, scenes.train), SceneInstances(held_out, scenes.held_out)


def check(config: DetectConfig) -> list[str]:
    """Open the images and make the model once; what the user should know."""
    train, held_out = images_of(config)
    first_readable(train.image, 0, len(train))
    model = Detector(config, len(train.classes))
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    notes = [
        f"{len(train):,} images to train on, {len(held_out):,} held out, {len(train.classes)} "
        f"classes; {parameters:.1f}M parameters",
        *check_backbone(model.body.pyramid, config),
    ]
    if model.fixed:
        side = config.data.size
        notes.append(f"{config.backbone.name} takes {side} by {side} pixels alone: images are bent")
    return notes


def make_task(config: DetectConfig) -> DetectTask:
    """What a worker trains."""
    return DetectTask(config)


def run(config: DetectConfig, run: RunDirectory, checkpoint: Checkpoint | None) -> dict[str, float]:
    """Train to the end; see `Workload`."""
    return fit(config, run, checkpoint, make_task)


def evaluate(
    config: DetectConfig, run: RunDirectory, checkpoint: Checkpoint, *, episodes: int | None
) -> dict[str, float]:
    """Metrics of a checkpoint on the held-out images; `episodes`: on so many of them alone."""
    return evaluated(DetectTask(without_weights(config)), checkpoint, episodes)


def plot(config: DetectConfig, run: RunDirectory, checkpoint: Checkpoint) -> list[Path]:
    """Held-out images with what is found in them."""
    task = restored(DetectTask(without_weights(config)), checkpoint)
    with torch.no_grad():
        return [save(task.figure(), run.figures / "objects.png")]
