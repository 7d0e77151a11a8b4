"""Fine-tuning of a pretrained encoder: a run of supervised training inside of the run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import nn

from farreach import launch, yaml_source
from farreach.config import Config
from farreach.disk import atomic_write
from farreach.rundir import RunDirectory
from farreach_workloads.vision.config import ImagesConfig

WORKLOAD = "farreach_workloads.vision.supervise"


# What published runs on ImageNet set; VISSL's colours are ours, as is its weight decay.
RECIPES: dict[str, dict[str, Any]] = {
    "mae": {
        "epochs": 100,
        "batch": 1024,
        "lr": 2e-3,
        "warmup_epochs": 5,
        "drop_path": 0.2,
        "augment": "rand",
        "min_scale": 0.08,
        "mixup": 0.8,
        "cutmix": 1.0,
    },
    "vissl": {
        "size": 384,
        "epochs": 105,
        "batch": 256,
        "optimizer": "sgd",
        "lr": 0.1,
        "drops": (30, 60, 90, 100),
        "warmup_epochs": 0,
        "layer_decay": None,
        "drop_path": 0.0,
        "weight_decay": 1e-4,
        "min_scale": 0.08,
        "smoothing": 0.0,
    },
}


class FinetuneConfig(Config):
    """Of fine-tuning; `recipe` has its own values for what is not set."""

    recipe: Literal["short", "mae", "vissl"] = "short"
    """`short`: the defaults below, for small sets and machines. `mae`: of transformers
    (arXiv:2111.06377, table 9), as MSN was fine-tuned. `vissl`: of convolutional networks at 384
    pixels, as SEER was."""
    data: str | None = None
    """Other images than those of the run; see farreach.data.images."""
    size: int | None = Field(None, ge=8)
    """Side of the images; None: that of the run."""
    epochs: float = Field(30.0, gt=0)
    batch: int = Field(128, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    """The highest, for the whole batch as it is."""
    warmup_epochs: float | None = Field(None, ge=0)
    """None: a twentieth of the epochs."""
    drops: tuple[float, ...] = ()
    """Epochs after which the rate falls to a tenth; none: it falls along half a cosine."""
    layer_decay: float | None = Field(0.65, gt=0, le=1)
    """How much slower each layer learns than the one above it."""
    drop_path: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.05, ge=0)
    augment: Literal["simple", "three", "rand"] = "simple"
    """Beside crop, flip and colours: 3-Augment, or RandAugment."""
    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)
    smoothing: float = Field(0.1, ge=0, lt=1)
    min_scale: float = Field(0.35, gt=0, le=1)
    """Smallest share of the area that a training image shows."""

    @model_validator(mode="before")
    @classmethod
    def _take_recipe(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        return RECIPES.get(str(raw.get("recipe")), {}) | raw


def finetuned(
    config: Any, run: RunDirectory, step: int, encoder: nn.Module, settings: FinetuneConfig
) -> dict[str, float]:
    """Train all of a copy of the encoder, with a head, on the labels; its result.

    Args:
        config: of the run of pretraining.
        run: its directory; training goes to `evaluations/finetune-STEP-KEY` in it, with a key that
            follows from the settings, and goes on there if it was interrupted.
        step: updates of the checkpoint.
        encoder: timm's model.
        settings: how.
    """
    asked = {"path": settings.data, "size": settings.size}
    named = {name: value for name, value in asked.items() if value is not None}
    data = ImagesConfig(**(config.data.model_dump() | named))
    key = _key(settings.model_dump() | {"data": data.path})
    folder = run.path / "evaluations" / f"finetune-{step}-{key}"
    if RunDirectory(folder).result_path.exists():
        return _result(folder)
    folder.parent.mkdir(exist_ok=True)
    weights = folder.with_name(f"finetune-{step}.safetensors")
    temporary = weights.with_name(f".{weights.name}")
    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, temporary)
    temporary.rename(weights)
    backbone, warmup = config.backbone, settings.warmup_epochs
    tree = {
        "workload": WORKLOAD,
        "name": f"{config.name}_finetune",
        "seed": config.seed,
        "data": data.model_dump(),
        "backbone": {
            "name": backbone.name,
            "options": backbone.options,
            "weights": str(weights),
            "drop_path": settings.drop_path,
        },
        "augment": {"kind": settings.augment, "min_scale": settings.min_scale},
        "mix": {name: getattr(settings, name) for name in ("mixup", "cutmix", "smoothing")},
        "optimizer": {
            "kind": settings.optimizer,
            "weight_decay": settings.weight_decay,
            "layer_decay": settings.layer_decay,
        },
        "training": {
            "epochs": settings.epochs,
            "batch": settings.batch,
            "lr": settings.lr,
            "warmup_epochs": settings.epochs / 20 if warmup is None else warmup,
            "schedule": "steps" if settings.drops else "cosine",
            "drops": settings.drops,
        },
        "runtime": config.runtime.model_dump(),
    }
    file = folder.with_suffix(".yaml")
    atomic_write(file, yaml_source.to_text(tree))
    launch.train(str(file), run_dir=folder, go_on=True)
    return _result(folder)


def _key(settings: dict[str, Any]) -> str:
    """Short, and another one for other settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _result(folder: Path) -> dict[str, float]:
    result = RunDirectory.open(folder).read_result()
    return {
        f"finetune/{name.partition('/')[2]}": value
        for name, value in result.items()
        if name.startswith(("evaluation/", "training/"))
    }
