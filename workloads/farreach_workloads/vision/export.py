"""Writes trained encoders for other software: timm, and whatever reads ONNX."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from farreach.disk import sync
from farreach.errors import ConfigError, FarreachError
from farreach.workload import Format
from farreach_workloads.vision.augment import MEAN, STD
from farreach_workloads.vision.backbones.resmlp import Resmlp
from farreach_workloads.vision.backbones.xcit import Xca, cheaper_form

MODEL_FILE, WEIGHTS_FILE = "model.onnx", "model.safetensors"
# Largest difference between the written model's logits and ours, in units of the largest logit.
TOLERANCE = 1e-4
# A second size with which a model that takes any is traced and tried.
OTHER_SHAPE = (1.5, 2.0)


def write(
    model: nn.Module, classes: Sequence[str], size: int, crop_ratio: float, out: Path, fmt: Format
) -> Path:
    """Make the folder `out`, whole or not at all.

    Args:
        model: in evaluation mode, on the CPU.
        classes: names.
        size: side of the images that it was trained for.
        crop_ratio: of evaluation.
        out: must not be there.
        fmt: `timm`: model.safetensors and config.json, for `timm.create_model("local-dir:…")`;
            `safetensors`: model.safetensors alone, by timm's names;
            `onnx`: model.onnx, folded where ours is, checked against `model`, and config.json.

    Raises:
        ConfigError: another format is asked for, the folder is there, or packages are missing.
        FarreachError: what was written does not compute what the model does.
    """
    if fmt not in ("timm", "safetensors", "onnx"):
        raise ConfigError(f"--format {fmt}: an encoder is exported as timm, safetensors or onnx.")
    if out.exists():
        raise ConfigError(f"--out {out}: is there already. Name a folder that is not.")
    preprocessing = {
        "input_size": (3, size, size),
        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic",
        "crop_pct": crop_ratio,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    working = out.with_name(f".tmp-{out.name}-{os.getpid()}")
    try:
        if fmt == "timm":
            timm.models.save_for_hf(
                model,
                str(working),
                safe_serialization=True,
                model_config={"label_names": list(classes)},
                data_config=preprocessing,
            )
        elif fmt == "safetensors":
            working.mkdir()
            weights = {name: value.contiguous() for name, value in model.state_dict().items()}
            save_file(weights, working / WEIGHTS_FILE)
        else:
            working.mkdir()
            shapes = _to_onnx(model, size, working / MODEL_FILE)
            content = {"label_names": list(classes), "checked_shapes": shapes, **preprocessing}
            (working / "config.json").write_text(json.dumps(content, indent=2))
        for file in working.iterdir():
            sync(file)
        os.rename(working, out)
        sync(out.parent)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return out


def _to_onnx(model: nn.Module, size: int, file: Path) -> list[list[int]]:
    """Write and check; the shapes that were tried."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch needs it)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--format onnx: needs the package {error.name}. Install farreach's extra: "
            "pip install -e '.[onnx]'."
        ) from error
    other = tuple(round(size * factor / 32) * 32 for factor in OTHER_SHAPE)
    takes_any = _takes(model, other)
    for part in model.modules():
        if isinstance(part, Xca) and part.form == "auto":
            # It cannot choose by the number of tokens any more: the cheaper one at this size.
            stride = int(model.feature_info[-1]["reduction"])  # type: ignore[index]
            width = part.qkv.in_features
            part.form = cheaper_form((size // stride) ** 2, width, width // part.num_heads)
    # Traced on a shape without equal or small lengths, which a tracer would take for fixed.
    example = torch.randn(2, 3, *(other if takes_any else (size, size)))
    dynamic: dict[int, Any] = {0: torch.export.Dim("batch")}
    if takes_any:
        dynamic |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            model.fold() if isinstance(model, Resmlp) else model,
            (example,),
            str(file),
            dynamo=True,
            dynamic_shapes=(dynamic,),
            input_names=["image"],
            output_names=["logits"],
            external_data=False,
        )
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    shapes = [(1, 3, size, size), (3, 3, size, size)] + ([(2, 3, *other)] if takes_any else [])
    for shape in shapes:
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        gap = _gap(model, lambda x: session.run(None, {"image": x.numpy()})[0], x)
        if not gap <= TOLERANCE:
            raise FarreachError(
                f"{file.name}: on images {shape} its logits differ from the model's by {gap:.1e} "
                f"of the largest; {TOLERANCE:g} is allowed. Nothing was written."
            )
    return [list(shape) for shape in shapes]


def _takes(model: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, *shape))
    except (AssertionError, RuntimeError, ValueError):
        return False
    return True


@torch.no_grad()
def _gap(model: nn.Module, written: Callable[[Tensor], Any], x: Tensor) -> float:
    ours = model(x).numpy()
    return float(np.abs(written(x) - ours).max() / np.abs(ours).max())


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the exporter's account of its steps."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
