"""Any model of timm, ours included, by name and with weights from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from torch import nn

import farreach_workloads.vision.backbones  # noqa: F401 (registers our models with timm)
from farreach.config import Config
from farreach.data.fetched import here
from farreach.errors import ConfigError
from farreach.learn.collectives import count_statistics_once
from farreach.learn.keeping import as_tensors
from farreach.linear import use_fast_linear
from farreach.registry import near_match
from farreach_workloads.vision.config import BackboneConfig

AnyConfig = TypeVar("AnyConfig", bound=Config)


def make_model(
    backbone: BackboneConfig,
    size: int,
    classes: int,
    *,
    keep_head: bool = False,
    notes: list[str] | None = None,
) -> nn.Module:
    """The backbone with a head for the classes.

    Args:
        backbone: which, and how.
        size: side of the images.
        classes: of the head; 0: there is none.
        keep_head: the file of weights must have the head too, of as many classes.
        notes: to which is added what the user should know of the weights.

    Raises:
        ConfigError: there is no such model, or it does not take the options, the size or the file
            of weights.
    """
    if "num_classes" in backbone.options:
        raise ConfigError(
            f"backbone.options.num_classes: the images have {classes} classes, and so has the "
            "head. Leave it out."
        )
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
    use_fast_linear(model)
    if backbone.checkpointing:
        model.set_grad_checkpointing()  # type: ignore[operator]
        count_statistics_once(model)
    if backbone.weights is not None:
        file = here(backbone.weights)
        has_head = load_weights(model, file, keep_head)
        if notes is not None and classes and not has_head:
            notes.append(f"{file} has no head of {classes} classes: the head begins at random")
    return model


def without_weights(config: AnyConfig) -> AnyConfig:
    """A run's configuration, to make what takes its weights from a checkpoint.

    What the run began with, and who taught it, may be gone by then, and neither is needed.
    """
    settings: Any = config
    update = {"backbone": settings.backbone.model_copy(update={"weights": None})}
    if "objective" in type(config).model_fields:
        update["objective"] = settings.objective.model_copy(update={"teacher": None})
    return config.model_copy(update=update)


def patch_of(model: nn.Module) -> int | None:
    """Side of the patches that the model's first layer makes of an image, if it makes any."""
    patch: Any = getattr(_first(model), "patch_size", None)
    side: int | None = patch[0] if isinstance(patch, tuple) else patch
    return side


def _first(model: nn.Module) -> Any:
    return getattr(model, "patch_embed", getattr(model, "stem", None))


@torch.no_grad()
def rest_note(model: nn.Module, size: int, *, is_cut: bool = False) -> str | None:
    """What becomes of images whose side is no multiple of the patch, if the model takes them.

    Args:
        model: of timm.
        size: side of the images.
        is_cut: they are cut to whole patches before the model sees them.
    """
    first, side = _first(model), patch_of(model)
    if side is None or (rest := size % side) == 0:
        return None
    left_out = (
        f"the last {rest} rows and columns of images of {size} pixels are left out: patches have "
        f"{side}"
    )
    if is_cut:
        return left_out
    images = torch.zeros(2, 3, size, size)
    images[1, :, -rest:, -rest:] = 1.0
    seen = first(images)
    black, white = (seen[0] if isinstance(seen, tuple) else seen).unbind()
    if torch.equal(black, white):
        return left_out
    return (
        f"images of {size} pixels are padded to {size - rest + side}, a multiple of the patch's "
        f"{side}"
    )


def load_weights(model: Any, file: Path, keep_head: bool = False) -> bool:
    """Weights from a file; a head of another number of classes is left out, or refused.

    Returns:
        Whether the file had the head too.

    Raises:
        ConfigError: the file is missing or no file of weights, or they are those of another model.
    """
    try:
        state = timm.models.load_state_dict(str(file))
    except FileNotFoundError:
        raise ConfigError(f"backbone.weights: there is no file {file}.") from None
    except Exception as error:  # each kind of file has errors of its own
        reason = (str(error) or type(error).__name__).partition(". ")[0]
        raise ConfigError(
            f"backbone.weights: {file} is no file of weights ({reason}). Name a .safetensors, .pth "
            "or .pt file that is whole and holds nothing but tensors."
        ) from error
    module = __import__(type(model).__module__, fromlist=["x"])
    adapt = getattr(module, "adapt_weights", getattr(module, "checkpoint_filter_fn", None))
    state = as_tensors(state) if adapt is None else adapt(state, model)
    own = model.state_dict()
    heads = _heads(model)
    for key in [key for key in state if key.startswith(heads)]:
        if key not in own or state[key].shape != own[key].shape:
            del state[key]
    missing = sorted(key for key in own if key not in state and not key.startswith(heads))
    has_head = all(key in state for key in own if key.startswith(heads))
    if keep_head and not has_head:
        raise ConfigError(
            f"backbone.weights: {file} has no head of {model.num_classes} classes. Give the "
            "weights of a model that has learned these classes."
        )
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
    return has_head


def _heads(model: Any) -> tuple[str, ...]:
    """How the names of the weights begin that belong to classes; distilled models have two."""
    names: Any = model.pretrained_cfg.get("classifier") or "head"
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
