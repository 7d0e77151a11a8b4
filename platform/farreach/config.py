"""Configurations: YAML files and `key=value` overrides → frozen, validated models.

Every mistake a user can make becomes a line of one `ConfigError` that names the file and the line.
"""

from __future__ import annotations

import difflib
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from farreach import config_problems, yaml_source
from farreach.config_problems import models_in, value_text
from farreach.errors import ConfigError
from farreach.imports import imported
from farreach.registry import near_match
from farreach.yaml_source import KeyPath, Sources, Tree, located

_SUFFIXES = (".yaml", ".yml")
# A configuration that is no file: `env:VARIABLE` names the variable that holds its text.
ENVIRONMENT = "env:"

ConfigModel = TypeVar("ConfigModel", bound="Config")


class Config(BaseModel):
    """Base of every section: strict types, no unknown keys, immutable.

    A docstring below a field is its help text.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_what_yaml_writes(cls, raw: Any) -> Any:
        """YAML has no tuples, and people write 3e6 for an integer; strict mode refuses both."""
        if not isinstance(raw, dict):
            return raw
        fields = cls.model_fields
        return {
            key: _adapted(value, fields[key].annotation) if key in fields else value
            for key, value in raw.items()
        }


@dataclass(frozen=True)
class Loaded:
    """A configuration and where it came from.

    Attributes:
        config: the validated model.
        workload: dotted name of the module that runs it; empty if the file names none.
        path: the file.
        raw: the mapping after base and overrides, without any defaults.
    """

    config: Config
    workload: str
    path: Path
    raw: Tree


class Setting(NamedTuple):
    """One key of a model, for help."""

    key: str
    type: str
    default: str
    doc: str


def load(
    path: str | Path, overrides: Sequence[str] = (), model: type[Config] | None = None
) -> Loaded:
    """Read a file, its base and overrides, and validate them.

    Args:
        path: a YAML file; its optional keys `base` and `workload` name another file, relative to
            this one or shipped, and the module whose `Config` describes the rest.
        overrides: such as `agent.lr=1e-3`; the value is YAML, and later ones win.
        model: takes the place of the workload's `Config`.

    Raises:
        ConfigError: one line for every mistake that was found.
    """
    path = Path(path)
    raw, sources = _read_with_base(path)
    config, raw = _validated(raw, sources, overrides, model)
    return Loaded(config, str(raw.get("workload", "")), path, raw)


def from_words(words: Sequence[str], model: type[ConfigModel]) -> ConfigModel:
    """Settings that the command line alone gives, as `key=value`; ConfigError as of `load`."""
    config, _ = _validated({}, {(): "command line"}, words, model)
    assert isinstance(config, model)
    return config


def _validated(
    raw: Tree, sources: Sources, overrides: Sequence[str], model: type[Config] | None
) -> tuple[Config, Tree]:
    """The model of a mapping after overrides, and that mapping."""
    mistakes: list[str] = []
    for override in overrides:
        try:
            raw = _overridden(raw, override, sources)
        except ConfigError as error:  # noqa: PERF203 - all mistakes are reported at once
            mistakes.append(str(error))
    settings = {key: value for key, value in raw.items() if key != "workload"}
    try:
        model = model or _workload_model(raw, sources)
        config = model.model_validate(settings)
    except ValidationError as error:
        assert model is not None
        mistakes += config_problems.problems(error, settings, sources, model)
    except ConfigError as error:
        mistakes.append(str(error))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return config, raw


def find(name: str) -> Path:
    """The file that a name on the command line means.

    Args:
        name: a path, a shipped configuration as `goals/maze`, `maze` or `maze.yaml`, or
            `env:VARIABLE`: the text in an environment variable, which `load` reads.

    Raises:
        ConfigError: there is none, or several shipped ones have that name.
    """
    path = Path(name)
    if path.is_file() or name.startswith(ENVIRONMENT):
        return path
    wanted = path.with_suffix("") if path.suffix in _SUFFIXES else path
    short = wanted.as_posix().removeprefix("configs/")
    folder = _shipped_folder()
    known = {file.relative_to(folder).with_suffix("").as_posix(): file for file in shipped()}
    if short in known:
        return known[short]
    same = [key for key in known if Path(key).name == short]
    if len(same) == 1:
        return known[same[0]]
    if same:
        raise ConfigError(f"configuration {name!r} is one of {', '.join(same)}; write which.")
    # What may be meant → how to write it: shipped files, and those beside the one that is missing.
    names = {key: key for key in known} | {Path(key).name: Path(key).name for key in known}
    names |= {Path(file).stem: str(path.parent / file) for file in _siblings(path)}
    near = [m for word in (short, wanted.name) for m in difflib.get_close_matches(word, names, n=1)]
    mend = f"Did you mean {names[near[0]]!r}?" if near else "`farreach list configs` names those."
    raise ConfigError(f"no configuration {name!r}, neither a file nor a shipped one. {mend}")


def shipped() -> list[Path]:
    """The configurations that come with farreach, sorted."""
    return sorted(_shipped_folder().rglob("*.yaml"))


def dump(config: Config, workload: str) -> str:
    """Every value of a configuration as YAML that `load` reads back as an equal one."""
    return yaml_source.to_text({"workload": workload, **config.model_dump()})


def differences(a: Config, b: Config) -> list[str]:
    """The keys in which two configurations differ, as `agent.lr: 0.001 -> 0.0003`."""
    old, new = dict(_leaves(a.model_dump())), dict(_leaves(b.model_dump()))
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def describe(model: type[Config]) -> list[Setting]:
    """Every key of a model and its sections, in their order, for help."""
    return list(_settings(model, None, ""))


def _adapted(value: Any, annotation: Any) -> Any:
    """The value with integral floats as ints and lists as tuples where the type wants that."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _adapted(value, arguments[0])
    if origin in (Union, types.UnionType):
        if type(value) in arguments:
            return value
        candidates = (_adapted(value, argument) for argument in arguments)
        return next((one for one in candidates if one is not value), value)
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if origin is tuple and isinstance(value, (list, tuple)):
        repeated = arguments[-1] is Ellipsis
        items = arguments[:1] * len(value) if repeated else arguments
        if len(items) != len(value):  # left for pydantic to refuse
            return tuple(value)
        return tuple(_adapted(item, want) for item, want in zip(value, items, strict=True))
    if origin is list and isinstance(value, list):
        return [_adapted(item, arguments[0]) for item in value]
    if origin is dict and isinstance(value, dict):
        return {key: _adapted(item, arguments[1]) for key, item in value.items()}
    return value


def _read_with_base(path: Path) -> tuple[Tree, Sources]:
    """A file merged over the one that its key `base` names; `base` itself is taken out."""
    raw, sources = _read(path)
    if "base" not in raw:
        return raw, sources
    base, source = raw.pop("base"), sources[("base",)]
    if not isinstance(base, str):
        message = f"should name a YAML file (got {value_text(base)})"
        raise ConfigError(located(source, ("base",), message))
    other = Path(os.path.normpath(path.parent / base))
    if not other.is_file():
        with suppress(ConfigError):  # what follows says what is there
            other = find(base)
    if other.resolve() == path.resolve():
        raise ConfigError(located(source, ("base",), "names this file itself."))
    try:
        below, below_sources = _read(other)
    except ConfigError as error:
        if other.is_file():
            raise
        raise ConfigError(located(source, ("base",), str(error))) from error
    if "base" in below:
        where = below_sources[("base",)]
        message = f"has a base itself ({where}). One level is all there is: merge the two files."
        raise ConfigError(located(source, ("base",), f"{_shown(other)} {message}"))
    return _merged(below, raw), below_sources | sources


def _read(path: Path) -> tuple[Tree, Sources]:
    if str(path).startswith(ENVIRONMENT):
        return _read_variable(str(path))
    if not path.is_file():
        siblings = _siblings(path)
        mend = near_match(path.name, siblings) if siblings else "Nor is there another YAML file."
        raise ConfigError(f"{_shown(path)}: there is no such file. {mend}")
    return yaml_source.read(path, _shown(path))


def _read_variable(shown: str) -> tuple[Tree, Sources]:
    name = shown.removeprefix(ENVIRONMENT)
    if name not in os.environ:
        raise ConfigError(f"{shown}: there is no environment variable {name!r}.")
    return yaml_source.read_text(os.environ[name], shown)


def _siblings(path: Path) -> list[str]:
    """Names of the YAML files in a path's folder, which may be missing."""
    if not path.parent.is_dir():
        return []
    return sorted(file.name for file in path.parent.iterdir() if file.suffix in _SUFFIXES)


def _merged(below: Tree, above: Tree) -> Tree:
    """Both mappings in one; where both have a value, mappings merge and others are replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        merged[key] = value
    return merged


def _overridden(raw: Tree, override: str, sources: Sources) -> Tree:
    """The mapping with one `key=value` applied; its keys are added to `sources`."""
    source = f"command line '{override}'"
    name, equals, text = override.partition("=")
    keys: KeyPath = tuple(name.strip().split("."))
    if not equals or not all(keys):
        raise ConfigError(f"{source}: should read key=value, such as section.key=1.")
    tree, added = yaml_source.parse(text, source, keys)
    above: Any = raw
    for length in range(1, len(keys)):
        above = above.get(keys[length - 1])
        if above is None:
            break
        if not isinstance(above, dict):
            whole, found = ".".join(map(str, keys[:length])), value_text(above)
            raise ConfigError(
                f"{source}: {whole} is {found} ({sources[keys[:length]]}), which would be lost. If "
                f"that is its name, write {whole}.name={found} in its place."
            )
    for length in range(1, len(keys)):
        # A section that a file has already keeps its line there.
        sources.setdefault(keys[:length], source)
    sources.update(added)
    for key in reversed(keys):
        tree = {key: tree}
    return _merged(raw, tree)


def _workload_model(raw: Tree, sources: Sources) -> type[Config]:
    """The `Config` of the module that the key `workload` names."""
    place: KeyPath = ("workload",)
    if "workload" not in raw:
        near = difflib.get_close_matches("workload", raw, n=1)
        mend = f"Is {near[0]!r} ({sources[(near[0],)]}) meant?" if near else "Add that key."
        raise ConfigError(
            located(sources[()], place, f"is missing: which module runs this? {mend}")
        )
    name, source = raw["workload"], sources[place]
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        message = f"should be the dotted name of a module (got {value_text(name)})"
        raise ConfigError(located(source, place, message))
    try:
        module = imported(name)
    except ImportError as error:
        message = f"cannot import {name!r}: {error}. Mend the name, or install what is missing."
        raise ConfigError(located(source, place, message)) from error
    model = getattr(module, "Config", None)
    if not (isinstance(model, type) and issubclass(model, Config)):
        message = f"module {name!r} has no `Config`, so it is not a workload."
        raise ConfigError(located(source, place, message))
    return model


def _shown(path: Path) -> str:
    """The path as errors name it: relative where it lies below the working directory."""
    full = path.absolute()
    return str(full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full)


def _shipped_folder() -> Path:
    """Where the shipped configurations are: inside an installed package, or in the repository."""
    package = Path(__file__).resolve().parent
    installed = package / "_assets" / "configs"
    return installed if installed.is_dir() else package.parents[1] / "configs"


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and text of every value that is not a mapping."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value_text(value)


def _settings(model: type[BaseModel], defaults: BaseModel | None, prefix: str) -> Iterator[Setting]:
    """The keys of one section; `defaults` are those of the section around it, where it has any."""
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        if defaults is not None:
            default = getattr(defaults, name)
        sections = models_in(field.annotation)
        if field.annotation not in sections:
            text = "required" if default is PydanticUndefined else value_text(default)
            doc = " ".join((field.description or "").split())
            yield Setting(f"{prefix}{name}", _field_type(field), text, doc)
        for section in sections:
            inner = default if isinstance(default, section) else None
            tag = f"[{_tag(section)}]" if len(sections) > 1 and _tag(section) else ""
            yield from _settings(section, inner, f"{prefix}{name}{tag}.")


def _tag(section: type[BaseModel]) -> str:
    """What tells a member of a union from the others: the only value of a field of its own."""
    for field in section.model_fields.values():
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            return str(get_args(field.annotation)[0])
    return ""


def _field_type(field: FieldInfo) -> str:
    """A field's type with its range, such as `float (> 0, <= 1)`."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "multiple of"}
    ranges = [
        f"{sign} {getattr(constraint, name)}"
        for constraint in field.metadata
        for name, sign in signs.items()
        if hasattr(constraint, name)
    ]
    text = _type_text(field.annotation)
    return f"{text} ({', '.join(ranges)})" if ranges else text


def _type_text(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_text(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(map(_type_text, arguments))
    if origin is not None:
        inner = ", ".join("..." if one is Ellipsis else _type_text(one) for one in arguments)
        return f"{origin.__name__}[{inner}]"
    if annotation is type(None):
        return "null"
    return "any" if annotation is Any else annotation.__name__
