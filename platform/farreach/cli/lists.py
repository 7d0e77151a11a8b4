"""What `farreach list` shows: each entry with a line about it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from farreach.console import say
from farreach.imports import imported

if TYPE_CHECKING:
    from farreach.config import Config

# Imports of torch and of everything that needs it wait until they are asked for.

ENVIRONMENTS_MODULE = "farreach_workloads.goals.environments"
BACKBONES_MODULE = "farreach_workloads.vision.backbones"
BEHAVIOURS_MODULE = "farreach_workloads.goals.data.generate"  # importing it registers all

Rows = Iterable[tuple[str, str]]


def shipped_configs() -> Rows:
    """Each shipped configuration with the first line of its opening comment."""
    from farreach import config

    for path in config.shipped():
        first = path.read_text().partition("\n")[0]
        name = f"{path.parent.name}/{path.stem}"
        yield name, first.removeprefix("#").strip() if first.startswith("#") else ""


def environments() -> Rows:
    """Each registered environment with its first line."""
    from farreach.registry import environments

    imported(ENVIRONMENTS_MODULE)
    for name in environments:
        yield name, _first_line(environments.get(name))


def backbones() -> Rows:
    """Ours with their number of parameters, and how many others there are."""
    import timm
    import torch

    package = imported(BACKBONES_MODULE)
    ours = [name for family in package.FAMILIES for name in family.default_cfgs]
    for name in ours:
        with torch.device("meta"):
            model = timm.create_model(name)
        count = sum(parameter.numel() for parameter in model.parameters())
        yield name, f"{count / 1e6:.1f}M parameters"
    others = len(timm.list_models()) - len(ours)
    yield "…", f"and {others:,} of timm's: python -c 'import timm; print(timm.list_models())'"


def behaviours() -> Rows:
    """Each behaviour that records data with its first line."""
    behaviours = imported(BEHAVIOURS_MODULE).behaviours
    for name in behaviours:
        yield name, _first_line(behaviours.get(name))


def workloads() -> Rows:
    """Each workload that a shipped configuration names with its first line."""
    from farreach import config

    for name in sorted({config.load(path).workload for path in config.shipped()}):
        yield name, _first_line(imported(name))


def say_settings(name: str) -> None:
    """Print every key of a configuration with type, default and meaning."""
    from farreach import config

    _say_model(type(config.load(config.find(name)).config), "")


def say_evaluations(name: str) -> None:
    """Print what there is to evaluate a run of a configuration by, with the settings of each."""
    from farreach import config
    from farreach.workload import Evaluation

    module = imported(config.load(config.find(name)).workload)
    found: dict[str, Evaluation] = getattr(module, "EVALUATIONS", {})
    for key, evaluation in found.items():
        say(f"{key}: {_first_line(evaluation.run)}")
        _say_model(evaluation.settings, "  ")


def _say_model(model: type[Config], indent: str) -> None:
    from farreach import config

    for setting in config.describe(model):
        say(f"{indent}{setting.key}: {setting.type} = {setting.default}")
        if setting.doc:
            say(f"{indent}    {' '.join(setting.doc.split())}")


def _first_line(documented: Any) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def say_table(rows: Rows) -> None:
    """Print two columns."""
    table = list(rows)
    width = max((len(left) for left, _ in table), default=0)
    for left, right in table:
        say(f"{left:<{width}}  {right}".rstrip())


LISTS: dict[str, Callable[[], Rows]] = {
    "configs": shipped_configs,
    "environments": environments,
    "backbones": backbones,
    "behaviours": behaviours,
    "workloads": workloads,
}
OF_CONFIGS: dict[str, Callable[[str], None]] = {
    "settings": say_settings,
    "evaluations": say_evaluations,
}
