"""Self-supervised pretraining of image encoders: MSN, PMSN, SwAV, DINO and their controls."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from farreach import config as configs
from farreach.checkpoint import Checkpoint
from farreach.data.images import UNLABELLED
from farreach.errors import ConfigError, DataError
from farreach.learn.demand import demand as asked_of_ray
from farreach.learn.restored import evaluated, restored, task_at
from farreach.learn.trainer import fit
from farreach.rundir import RunDirectory
from farreach.workload import Evaluation, Format
from farreach_workloads.vision.evaluation import protocols, transfer
from farreach_workloads.vision.evaluation.features import source_of
from farreach_workloads.vision.evaluation.finetune import FinetuneConfig, finetuned
from farreach_workloads.vision.export import write
from farreach_workloads.vision.image_sets import images_known, images_of, keep
from farreach_workloads.vision.models import patch_of, rest_note, without_weights
from farreach_workloads.vision.selfsup import figures
from farreach_workloads.vision.selfsup.assignments import constant_output_loss, prior_of
from farreach_workloads.vision.selfsup.config import PretrainConfig
from farreach_workloads.vision.selfsup.encoder import Encoder, Vit
from farreach_workloads.vision.selfsup.method_configs import MsnConfig
from farreach_workloads.vision.selfsup.task import PretrainTask

Config = PretrainConfig
demand = asked_of_ray


def encoder_of(run: Path, checkpoint: Path | None) -> Encoder:
    """The encoder of a checkpoint of a run, or as the run began; for workers."""
    directory = RunDirectory.open(run)
    config = configs.load(directory.config_path).config
    assert isinstance(config, PretrainConfig)
    if checkpoint is not None:
        config = without_weights(config)
    images = images_known(directory, config.data, labelled=False)
    return task_at(config, partial(PretrainTask, images=images), checkpoint).encoder


_source = source_of(__name__, encoder_of.__name__)


def finetune(
    config: PretrainConfig, run: RunDirectory, checkpoint: Checkpoint, settings: FinetuneConfig
) -> dict[str, float]:
    """All of the encoder learns the labels, in a run of its own below evaluations/."""
    trunk = _known(config, run, checkpoint).encoder.trunk
    return finetuned(config, run, checkpoint.step, trunk, settings)


def _known(config: PretrainConfig, run: RunDirectory, checkpoint: Checkpoint) -> PretrainTask:
    """The task of a checkpoint, whose images need not be there."""
    images = images_known(run, config.data, labelled=False)
    return restored(PretrainTask(without_weights(config), images), checkpoint)


EVALUATIONS = {
    **protocols.evaluations(_source),
    "finetune": Evaluation(finetune, FinetuneConfig),
    **transfer.evaluations(_source),
}


def check(config: PretrainConfig) -> list[str]:
    """Open the images and make the networks once; what the user should know."""
    train, held_out = images_of(config.data, labelled=False)
    if len(train) < config.training.batch:
        raise DataError(
            f"training.batch: {config.training.batch} images at a time, of {len(train)} in all. "
            "Lower it."
        )
    task = PretrainTask(config)
    count = sum(p.numel() for p in task.encoder.parameters()) / 1e6
    notes = [
        f"{len(train):,} images to train on, {len(held_out):,} held out; an encoder of "
        f"{count:.1f}M parameters"
    ]
    notes += _sizes_noted(config, task.encoder)
    if train.classes == [UNLABELLED]:
        notes.append("there are no labels: evaluation tells the rank of the features alone")
    msn = config.method
    if isinstance(msn, MsnConfig) and msn.prior.kind != "uniform":
        sharpening = msn.target_temperature / msn.temperature
        collapsed = constant_output_loss(prior_of(msn.prior, msn.prototypes), sharpening)
        notes.append(
            f"a network that always answers with the prior has a cross-entropy of {collapsed:.2f}: "
            "near it, with few prototypes in use, training has collapsed"
        )
    return notes


def _sizes_noted(config: PretrainConfig, encoder: Encoder) -> list[str]:
    """What becomes of views whose sides are no multiples of the patch.

    Raises:
        ConfigError: a view has no room for a patch.
    """
    sizes = {"views.size": config.views.size, "data.size": config.data.size}
    if config.views.small:
        sizes["views.small_size"] = config.views.small_size
    patch, is_cut = patch_of(encoder.trunk), isinstance(encoder, Vit)
    for setting, size in sizes.items():
        if patch is not None and size < patch:
            raise ConfigError(
                f"{setting}: {size} pixels have no room for a patch of {patch}. Raise it to a "
                f"multiple of {patch}."
            )
    notes = [rest_note(encoder.trunk, size, is_cut=is_cut) for size in sizes.values()]
    return [note for note in dict.fromkeys(notes) if note is not None]


def make_task(config: PretrainConfig) -> PretrainTask:
    """What a worker trains."""
    return PretrainTask(config)


def run(
    config: PretrainConfig, run: RunDirectory, checkpoint: Checkpoint | None
) -> dict[str, float]:
    """Train to the end; see `Workload`."""
    keep(run, config.data, labelled=False)
    return fit(config, run, checkpoint, make_task)


def evaluate(
    config: PretrainConfig, run: RunDirectory, checkpoint: Checkpoint, *, episodes: int | None
) -> dict[str, float]:
    """Nearest neighbours of the held-out images; `episodes`: of so many of them alone."""
    return evaluated(PretrainTask(without_weights(config)), checkpoint, episodes)


def plot(config: PretrainConfig, run: RunDirectory, checkpoint: Checkpoint) -> list[Path]:
    """Neighbours, prototypes, what the encoder looks at; and features for the projector."""
    return figures.draw(restored(PretrainTask(without_weights(config)), checkpoint), run)


def export(
    config: PretrainConfig, run: RunDirectory, checkpoint: Checkpoint, out: Path, fmt: Format
) -> Path:
    """Write the encoder in some format; see `farreach_workloads.vision.export`."""
    task, data = _known(config, run, checkpoint), config.data
    return write(task.encoder.trunk.eval(), [], data.size, data.crop_ratio, out, fmt)
