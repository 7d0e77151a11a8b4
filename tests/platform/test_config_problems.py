import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, field_validator, model_validator

from farreach.config import Config, load
from farreach.errors import ConfigError


class Relabel(Config):
    original: float = Field(0.5, ge=0, le=1)
    future: float = Field(0.5, ge=0, le=1)
    node: float = 0.0

    @model_validator(mode="after")
    def _shares_add_up(self):
        if self.original + self.future + self.node != 1:
            raise ValueError("original + future + node must add up\nto 1")
        return self


class Agent(Config):
    lr: float = Field(1e-3, gt=0)
    kind: Literal["concat", "heads"] = "concat"
    layers: tuple[int, ...] = (8, 8)
    pair: tuple[int, int] = (1, 2)
    batch: int | Literal["auto"] = "auto"
    name: str

    @field_validator("name")
    @classmethod
    def _short(cls, name):
        if len(name) > 5:
            raise ValueError("is too long for the table")
        return name


class Maze(Config):
    type: Literal["maze"]
    cells: int = 3


class Walker(Config):
    type: Literal["walker"]
    legs: int = 2


class Run(Config):
    seed: int = 0
    relabel: Relabel = Relabel()
    agent: Agent | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    stages: list[Relabel] = Field(default_factory=list)
    named: dict[str, Relabel] = Field(default_factory=dict)
    world: Annotated[Maze | Walker, Field(discriminator="type")] = Maze(type="maze")

    @model_validator(mode="after")
    def _combinations(self):
        if self.seed == 13:
            raise ValueError("seed 13 brings bad luck; choose another")
        return self


@pytest.fixture
def complain(tmp_path, monkeypatch):
    """The lines of the error for a file and overrides."""
    monkeypatch.chdir(tmp_path)

    def lines(text, *overrides):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            load("x.yaml", overrides, model=Run)
        return str(caught.value).splitlines()

    return lines


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "\nrelabel:\n  futur: 1.0\n",
            "x.yaml:3: relabel.futur: unknown key. Did you mean 'future'? "
            "Known keys: future, node, original",
        ),
        ("relabel:\n  zzz: 1\n", "x.yaml:2: relabel.zzz: unknown key. Known keys: future, node, o"),
        ("sed: 1\n", "x.yaml:1: sed: unknown key. Did you mean 'seed'? Known keys: agent, base, "),
        ("agent:\n  name: x\n  lr: -1\n", "x.yaml:3: agent.lr: should be greater than 0 (got -1)"),
        (
            "agent: {name: x, kind: head}\n",
            "x.yaml:1: agent.kind: should be 'concat' or 'heads' (got \"head\")",
        ),
        ("\nagent:\n  lr: 1\n", "x.yaml:2: agent.name: is missing, and has no default."),
        ("seed: 1.5\n", "x.yaml:1: seed: should be a valid integer (got 1.5)"),
        ("seed: true\n", "x.yaml:1: seed: should be a valid integer (got true)"),
        ("seed: '1'\n", 'x.yaml:1: seed: should be a valid integer (got "1")'),
        ("seed:\n", "x.yaml:1: seed: should be a valid integer (got null)"),
        ("relabel:\n", "x.yaml:1: relabel: is empty. Write keys below it, or remove the line."),
        ("options:\n", "x.yaml:1: options: is empty. Write keys below it, or remove the line."),
        ("relabel: 3\n", "x.yaml:1: relabel: should be a mapping of keys to values (got 3)"),
        ("options: [1]\n", "x.yaml:1: options: should be a mapping of keys to values (got [1])"),
        ("stages: 1\n", "x.yaml:1: stages: should be a list (got 1)"),
        ("agent: {name: x, layers: 1}\n", "x.yaml:1: agent.layers: should be a list (got 1)"),
        (
            "agent:\n  name: x\n  layers:\n    - 8\n    - a\n",
            'x.yaml:5: agent.layers.1: should be a valid integer (got "a")',
        ),
        ("agent: {name: x, pair: [1]}\n", "x.yaml:1: agent.pair: has too few entries."),
        (
            "agent: {name: x, pair: [1, 2, 3]}\n",
            "x.yaml:1: agent.pair: should have at most 2 items after validation, not 3 (got [1, 2",
        ),
        (
            "agent: {name: x, batch: many}\n",
            "x.yaml:1: agent.batch: should be a valid integer or should be 'auto' (got \"many\")",
        ),
        ("agent: {name: longer}\n", "x.yaml:1: agent.name: is too long for the table"),
        (
            "seed: 1\nrelabel:\n  node: 0.5\n",
            "x.yaml:2: relabel: original + future + node must add up to 1",
        ),
        ("seed: 13\n", "x.yaml: seed 13 brings bad luck; choose another"),
        (
            "stages:\n  - {}\n  - nod: 1\n",
            "x.yaml:3: stages.1.nod: unknown key. Did you mean 'node'? Known keys: future, node,",
        ),
        (
            "named:\n  any:\n    nod: 1\n",
            "x.yaml:3: named.any.nod: unknown key. Did you mean 'node'? Known keys: future, node,",
        ),
        (
            "world:\n  type: walker\n  leg: 1\n",
            "x.yaml:3: world.leg: unknown key. Did you mean 'legs'? Known keys: legs, type",
        ),
        (
            "world:\n  type: wlker\n",
            "x.yaml:2: world.type: there is no kind 'wlker'. Did you mean 'walker'?",
        ),
        ("world:\n  cells: 1\n", "x.yaml:1: world: "),
    ],
)
def test_a_mistake_is_one_line_with_file_line_and_key(complain, text, line):
    lines = complain(text)
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_all_mistakes_are_reported_at_once(complain):
    text = "seed: x\nagent:\n  lr: 0\n  kin: heads\nrelabel:\n  future: 2\n"
    lines = complain(text, "nonsense", "relabel.original=-1", "agnt.lr=1", "agent.name=")
    assert lines == [
        "command line 'nonsense': should read key=value, such as section.key=1.",
        "command line 'agent.name=': has no value. Write null if that is meant.",
        'x.yaml:1: seed: should be a valid integer (got "x")',
        "command line 'relabel.original=-1': relabel.original: should be greater than or equal "
        "to 0 (got -1)",
        "x.yaml:6: relabel.future: should be less than or equal to 1 (got 2)",
        "x.yaml:3: agent.lr: should be greater than 0 (got 0)",
        "x.yaml:2: agent.name: is missing, and has no default.",
        "x.yaml:4: agent.kin: unknown key. Did you mean 'kind'? "
        "Known keys: batch, kind, layers, lr, name, pair",
        "command line 'agnt.lr=1': agnt: unknown key. Did you mean 'agent'? Known keys: agent, "
        "base, named, options, relabel, seed, stages, workload, world",
    ]


def test_a_value_from_the_base_is_reported_with_the_base_file(complain, tmp_path):
    (tmp_path / "base.yaml").write_text("\nrelabel:\n  future: 2\n  node: 3.0\nseed: x\n")
    lines = complain("base: base.yaml\nrelabel:\n  original: 5\nseed: y\n")
    assert [line.split(": should")[0] for line in lines] == [
        "x.yaml:4: seed",
        "x.yaml:3: relabel.original",
        "base.yaml:3: relabel.future",
    ]


def test_a_section_only_on_the_command_line_is_reported_with_the_override(complain):
    assert complain("seed: 1\n", "agent.lr=1") == [
        "command line 'agent.lr=1': agent.name: is missing, and has no default."
    ]


def test_the_last_override_of_a_key_is_the_one_reported(complain):
    assert complain("seed: 1\n", "seed=a", "seed=b") == [
        "command line 'seed=b': seed: should be a valid integer (got \"b\")"
    ]


def test_a_mapping_on_the_command_line_is_reported_by_key(complain):
    assert complain("agent: {name: x}\n", "agent={lr: -1}") == [
        "command line 'agent={lr: -1}': agent.lr: should be greater than 0 (got -1)"
    ]


def test_long_values_are_cut(complain):
    (line,) = complain(f"seed: {'x' * 500}\n")
    assert re.fullmatch(r'x\.yaml:1: seed: should be a valid integer \(got "x{59}…\)', line)
