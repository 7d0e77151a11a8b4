"""A mistake in any key of any shipped configuration is named with file, line and key."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import annotated_types as bounds
import pytest
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from farreach import config as configs
from farreach.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "configs"
FILES = sorted(FOLDER.rglob("*.yaml"))
WRONG_VALUES = ("wrong", 1.5, {"wrong": 1}, [["wrong"]])


class Leaf(NamedTuple):
    """A key with a value: where it is, and what may stand there."""

    path: tuple[str, ...]
    field: FieldInfo


def leaves_of(section: BaseModel, above: tuple[str, ...] = ()) -> list[Leaf]:
    """All keys of a configuration that are not sections."""
    found = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        path = (*above, name)
        found += leaves_of(value, path) if isinstance(value, BaseModel) else [Leaf(path, field)]
    return found


def sections_of(section: BaseModel, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """All sections of a configuration, itself included."""
    values = {name: getattr(section, name) for name in type(section).model_fields}
    inner = [
        path
        for name, value in values.items()
        if isinstance(value, BaseModel)
        for path in sections_of(value, (*above, name))
    ]
    return [above, *inner]


def tells_kinds_apart(leaf: Leaf) -> bool:
    """Whether a wrong value here hides what is wrong beside it."""
    return (
        get_origin(leaf.field.annotation) is Literal and len(get_args(leaf.field.annotation)) == 1
    )


def adapter_of(field: FieldInfo) -> TypeAdapter[Any]:
    """Refuses what the field refuses; configurations are strict."""
    annotation: Any = field.annotation
    for constraint in field.metadata:
        annotation = Annotated[annotation, constraint]
    return TypeAdapter(annotation)


def refuses(field: FieldInfo, value: Any) -> bool:
    try:
        adapter_of(field).validate_python(value, strict=True)
    except ValidationError:
        return True
    return False


def wrong_type_for(field: FieldInfo) -> Any:
    """A value of a type that the field does not take, or None if it takes everything."""
    return next((value for value in WRONG_VALUES if refuses(field, value)), None)


def out_of_range_for(field: FieldInfo) -> Any:
    """A number just beyond one of the field's limits, or None if it has none."""
    whole = int in (field.annotation, *get_args(field.annotation))
    for limit in field.metadata:
        match limit:
            case bounds.Gt(gt=bound) | bounds.Lt(lt=bound):
                return bound
            case bounds.Ge(ge=bound):
                return bound - 1 if whole else bound - 0.5
            case bounds.Le(le=bound):
                return bound + 1 if whole else bound + 0.5
    return None


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


def lines_of(text: str) -> dict[tuple[str, ...], int]:
    """Key → line, by the YAML parser's own marks."""
    found: dict[tuple[str, ...], int] = {}

    def walk(node: yaml.Node, above: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                found[(*above, key.value)] = key.start_mark.line + 1
                walk(value, (*above, key.value))

    walk(yaml.compose(text), ())
    return found


def refused(loaded, mutations: dict[tuple[str, ...], Any], folder: Path) -> set[str]:
    """The mutated keys that the error does not name with file, line and key."""
    tree = yaml.safe_load(configs.dump(loaded.config, loaded.workload))
    for path, value in mutations.items():
        put(tree, path, value)
    file = folder / "mutant.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    with pytest.raises(ConfigError) as caught:
        configs.load(file)
    said = str(caught.value)
    lines = lines_of(file.read_text())
    expected = {path: f"{file}:{lines[path]}: {'.'.join(path)}" for path in mutations}
    return {".".join(path) for path, start in expected.items() if start not in said}


@pytest.fixture(params=FILES, ids=lambda path: path.relative_to(FOLDER).with_suffix("").as_posix())
def loaded(request):
    return configs.load(request.param)


def test_every_unknown_key_is_named(loaded, tmp_path):
    mutations = {(*section, "unknown_key"): 1 for section in sections_of(loaded.config)}
    assert not refused(loaded, mutations, tmp_path)


def test_every_wrong_type_is_named(loaded, tmp_path):
    leaves = leaves_of(loaded.config)
    together = [leaf for leaf in leaves if not tells_kinds_apart(leaf)]
    wrong = {leaf.path: wrong_type_for(leaf.field) for leaf in together}
    assert not [path for path, value in wrong.items() if value is None]
    assert not refused(loaded, wrong, tmp_path)
    for leaf in set(leaves) - set(together):
        assert not refused(loaded, {leaf.path: "no_such_kind"}, tmp_path)


def test_every_number_out_of_range_is_named(loaded, tmp_path):
    beyond = {leaf.path: out_of_range_for(leaf.field) for leaf in leaves_of(loaded.config)}
    mutations = {path: value for path, value in beyond.items() if value is not None}
    assert mutations
    assert not refused(loaded, mutations, tmp_path)


@pytest.mark.parametrize("folder", ["data", "goals", "retrieval", "vision"])
def test_no_seed_may_be_negative(folder):
    for path in sorted((FOLDER / folder).glob("*.yaml")):
        seeds = [leaf for leaf in leaves_of(configs.load(path).config) if leaf.path[-1] == "seed"]
        assert seeds
        assert not [(path.stem, leaf.path) for leaf in seeds if not refuses(leaf.field, -1)]
