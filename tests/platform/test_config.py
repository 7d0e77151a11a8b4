import math
import re
import sys
import types
from typing import Annotated, Any, Literal

import pytest
from pydantic import Discriminator, Field, ValidationError

from farreach import config as config_module
from farreach.config import Config, describe, differences, dump, find, load, shipped
from farreach.errors import ConfigError


class Agent(Config):
    """A section."""

    lr: float = Field(1e-3, gt=0, le=1)
    """Learning rate
    of Adam."""
    batch: int = Field(256, ge=1)
    network: Literal["concat", "heads"] = "concat"
    layers: tuple[int, ...] = (8, 8)
    plane: tuple[int, float] | None = None
    limit: float | None = Field(None, gt=0)
    workers: int | Literal["auto"] = "auto"


class Environment(Config):
    name: str = "maze"
    options: dict[str, Any] = Field(default_factory=dict)
    sizes: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    ratios: list[int | float] = Field(default_factory=list)


class Run(Config):
    seed: int
    total_env_steps: int = 1000
    agent: Agent = Agent()
    environment: Environment = Environment()


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, name="x.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A folder of shipped configurations."""
    folder = tmp_path / "shipped"
    for name in ["goals/maze", "goals/walker", "vision/walker", "top"]:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / f"{name}.yaml").write_text("seed: 1\n")
    monkeypatch.setattr(config_module, "_shipped_folder", lambda: folder)
    (tmp_path / "user").mkdir()
    monkeypatch.chdir(tmp_path / "user")
    return folder


def loaded(path, *overrides):
    return load(path, overrides, model=Run).config


def refused(path, *overrides, model=Run):
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, model=model)
    return str(caught.value)


def test_defaults_fill_what_the_file_leaves_out(write):
    config = loaded(write("seed: 3\nagent: {lr: 5e-4}\n"))
    assert config == Run(seed=3, agent=Agent(lr=0.0005))
    assert config.agent.batch == 256


def test_what_was_loaded_says_where_from(write):
    path = write("workload: some.module\nseed: 3\n")
    found = load(path, ["agent.lr=1e-2"], model=Run)
    assert found.path == path
    assert found.workload == "some.module"
    assert found.raw == {"workload": "some.module", "seed": 3, "agent": {"lr": 0.01}}


@pytest.mark.parametrize(
    ("override", "section", "key", "expected"),
    [
        ("total_env_steps=3e6", None, "total_env_steps", 3_000_000),
        ("agent.lr=1", "agent", "lr", 1.0),
        ("agent.batch=32.0", "agent", "batch", 32),
        ("agent.layers=[1, 2e1]", "agent", "layers", (1, 20)),
        ("agent.layers=[]", "agent", "layers", ()),
        ("agent.plane=[3.0, 1]", "agent", "plane", (3, 1.0)),
        ("agent.plane=null", "agent", "plane", None),
        ("agent.limit=2", "agent", "limit", 2.0),
        ("agent.workers=4.0", "agent", "workers", 4),
        ("agent.workers=auto", "agent", "workers", "auto"),
        ("environment.sizes={a: [1e2]}", "environment", "sizes", {"a": (100,)}),
        ("environment.ratios=[1, 2.0]", "environment", "ratios", [1, 2.0]),
        ("environment.options={x: 2.0, y: [1]}", "environment", "options", {"x": 2.0, "y": [1]}),
        ("environment.name=a=b", "environment", "name", "a=b"),
        ("environment.name='12'", "environment", "name", "12"),
    ],
)
def test_values_take_the_type_of_their_field(write, override, section, key, expected):
    config = loaded(write("seed: 3\n"), override)
    found = getattr(getattr(config, section) if section else config, key)
    assert found == expected
    assert repr(found) == repr(expected)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1.5",
        "seed=.inf",
        "seed=true",
        "seed='1'",
        "agent.lr='1'",
        "agent.lr=true",
        "environment.name=1",
        "environment.name=true",
        "agent.layers=[1.5]",
        "agent.layers={a: 1}",
        "agent.plane=[1]",
        "agent.plane=[1, 2, 3]",
        "agent.network=1",
    ],
)
def test_values_of_another_type_are_refused(write, override):
    assert refused(write("seed: 3\n"), override).startswith(f"command line '{override}': ")


def test_a_config_is_frozen_and_refuses_unknown_keys_in_python_too():
    with pytest.raises(ValidationError):
        Agent().lr = 1.0
    with pytest.raises(ValidationError):
        Agent(lrr=1.0)


def test_defaults_are_validated():
    class Wrong(Config):
        lr: float = Field(-1.0, gt=0)

    with pytest.raises(ValidationError):
        Wrong()


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones(write):
    config = loaded(write("seed: 3\nagent: {lr: 0.1, batch: 2}\n"), "agent.lr=0.2", "agent.lr=0.3")
    assert config.agent == Agent(lr=0.3, batch=2)


def test_an_override_with_a_mapping_merges(write):
    config = loaded(write("seed: 3\nagent: {lr: 0.1}\n"), "agent={batch: 2}")
    assert config.agent == Agent(lr=0.1, batch=2)


def test_unknown_options_of_an_environment_can_be_set_at_any_depth(write):
    config = loaded(write("seed: 3\n"), "environment.options.render.width=64")
    assert config.environment.options == {"render": {"width": 64}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("agent.lr=", "has no value. Write null if that is meant."),
        ("agent.lr", "should read key=value"),
        ("=1", "should read key=value"),
        ("agent..lr=1", "should read key=value"),
        ("agent.layers=[1", "malformed YAML: while parsing a flow sequence"),
        ("base=other.yaml", "unknown key"),
    ],
)
def test_a_malformed_override_is_quoted(write, override, message):
    error = refused(write("seed: 3\n"), override)
    assert error.startswith(f"command line '{override}':")
    assert message in error
    assert "\n" not in error


def test_a_value_is_not_lost_for_a_key_below_it(write):
    error = refused(write("environment: maze\n", "x.yaml"), "environment.options.speed=2")
    assert error.startswith("command line 'environment.options.speed=2': environment is ")
    assert '"maze" (x.yaml:1), which would be lost' in error
    assert 'write environment.name="maze" in its place.' in error
    error = refused(write("seed: 3\n"), "agent=sac", "agent.lr=1e-3")
    assert "agent is \"sac\" (command line 'agent=sac'), which would be lost" in error
    config = loaded(write("seed: 3\nenvironment: null\n"), "environment.options.speed=2")
    assert config.environment.options == {"speed": 2}


def test_a_colon_without_a_space_makes_no_key(write):
    error = refused(write("seed: 3\n"), "environment.options={speed:2}")
    assert "environment.options: 'speed:2' has no value. Write a space after the colon" in error
    config = loaded(write("seed: 3\n"), "environment.options={'speed:2': null, b: 1}")
    assert config.environment.options == {"speed:2": None, "b": 1}


def test_a_base_may_be_one_that_is_shipped(write):
    path = write("base: retrieval/debian\nname: mine\n", "mine.yaml")
    config = load(path).config
    assert config.name == "mine"
    assert config.encoder.kind == "bag"


def test_a_base_lies_below_the_file(write):
    write("seed: 1\nagent: {lr: 0.1, layers: [1, 2]}\n", "common/base.yaml")
    path = write("base: ../common/base.yaml\nagent: {layers: [3]}\n", "goals/x.yaml")
    assert loaded(path) == Run(seed=1, agent=Agent(lr=0.1, layers=(3,)))
    assert "base" not in load(path, model=Run).raw


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: x.yaml\n", "x.yaml:1: base: names this file itself."),
        ("base: ./a/../x.yaml\n", "x.yaml:1: base: names this file itself."),
        ("seed: 1\nbase: 3\n", "x.yaml:2: base: should name a YAML file (got 3)"),
        (
            "base: comon.yaml\n",
            "x.yaml:1: base: comon.yaml: there is no such file. Did you mean 'common.yaml'?",
        ),
        (
            "base: middle.yaml\n",
            "x.yaml:1: base: middle.yaml has a base itself (middle.yaml:2). One level is all",
        ),
        ("base: broken.yaml\n", "broken.yaml:1:2: malformed YAML"),
    ],
)
def test_a_wrong_base_is_refused(write, text, message):
    write("seed: 1\n", "common.yaml")
    write("seed: 1\nbase: common.yaml\n", "middle.yaml")
    write("[}", "broken.yaml")
    assert refused(write(text)).startswith(message)


@pytest.mark.parametrize("name", ["walk_mzae.yaml", "sub/walk.yaml"])
def test_a_missing_file_is_named_with_a_near_match(write, name):
    write("seed: 1\n", "walk_maze.yaml")
    message = {
        "walk_mzae.yaml": "walk_mzae.yaml: there is no such file. Did you mean 'walk_maze.yaml'?",
        "sub/walk.yaml": "sub/walk.yaml: there is no such file. Nor is there another YAML file.",
    }
    assert refused(name) == message[name]


def test_files_outside_of_the_working_directory_are_named_in_full(write, monkeypatch, tmp_path):
    path = write("sed: 1\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert refused(path).splitlines()[0].startswith(f"{path}: seed: is missing")


@pytest.fixture
def workload(monkeypatch):
    module = types.ModuleType("some_workload")
    module.Config = Run
    monkeypatch.setitem(sys.modules, "some_workload", module)
    return module


def test_the_workload_names_the_model(write, workload):
    found = load(write("workload: some_workload\nseed: 1\n"))
    assert found.config == Run(seed=1)
    assert found.workload == "some_workload"


def test_the_workload_may_come_from_the_command_line(write, workload):
    assert load(write("seed: 1\n"), ["workload=some_workload"]).config == Run(seed=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\n", "x.yaml: workload: is missing: which module runs this? Add that key."),
        (
            "seed: 1\nworklod: some_workload\n",
            "x.yaml: workload: is missing: which module runs this? Is 'worklod' (x.yaml:2) meant?",
        ),
        ("workload: 3\n", "x.yaml:1: workload: should be the dotted name of a module (got 3)"),
        ("workload: a/b.py\n", "x.yaml:1: workload: should be the dotted name of a module"),
        (
            "workload: no_such_module.sub\n",
            "x.yaml:1: workload: cannot import 'no_such_module.sub': No module named",
        ),
        ("workload: json\n", "x.yaml:1: workload: module 'json' has no `Config`"),
    ],
)
def test_a_wrong_workload_is_refused(write, workload, text, message):
    assert refused(write(text), model=None).startswith(message)


def test_a_wrong_workload_is_reported_together_with_malformed_overrides(write):
    error = refused(write("workload: json\n"), "seed=", model=None)
    assert [line.split(":")[0] for line in error.splitlines()] == [
        "command line 'seed='",
        "x.yaml",
    ]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("goals/maze", "goals/maze.yaml"),
        ("goals/maze.yaml", "goals/maze.yaml"),
        ("maze", "goals/maze.yaml"),
        ("maze.yaml", "goals/maze.yaml"),
        ("configs/goals/maze.yaml", "goals/maze.yaml"),
        ("vision/walker", "vision/walker.yaml"),
        ("top", "top.yaml"),
    ],
)
def test_shipped_configurations_are_found_by_any_of_their_names(configs, name, found):
    assert find(name) == configs / found


def test_a_file_of_the_user_comes_before_a_shipped_one(configs, tmp_path):
    (tmp_path / "user" / "maze.yaml").write_text("seed: 2\n")
    assert find("maze.yaml").read_text() == "seed: 2\n"
    assert find(str(tmp_path / "user" / "maze.yaml")).read_text() == "seed: 2\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("walker", "'walker' is one of goals/walker, vision/walker; write which."),
        (
            "goals/mazee",
            "no configuration 'goals/mazee', neither a file nor a shipped one. Did you "
            "mean 'goals/maze'?",
        ),
        ("mzae.yaml", "Did you mean 'maze'?"),
        ("my_rnu.yaml", "Did you mean 'my_run.yaml'?"),
        ("../user/my_rnu.yaml", "Did you mean '../user/my_run.yaml'?"),
        ("zzz", "neither a file nor a shipped one. `farreach list configs` names those."),
        ("", "no configuration ''"),
    ],
)
def test_an_unknown_configuration_is_named_with_a_near_match(configs, tmp_path, name, message):
    (tmp_path / "user" / "my_run.yaml").write_text("seed: 2\n")
    with pytest.raises(ConfigError, match=re.escape(message)):
        find(name)


def test_shipped_configurations_are_listed_sorted(configs):
    names = [path.relative_to(configs).as_posix() for path in shipped()]
    assert names == ["goals/maze.yaml", "goals/walker.yaml", "top.yaml", "vision/walker.yaml"]


def test_the_repository_ships_its_configs_folder_unless_a_package_does(monkeypatch, tmp_path):
    package = tmp_path / "platform" / "farreach"
    for folder in ["configs", "platform/farreach/_assets/configs"]:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "x.yaml").write_text("")
    monkeypatch.setattr(config_module, "__file__", str(package / "config.py"))
    assert shipped() == [package / "_assets" / "configs" / "x.yaml"]
    (package / "_assets").rename(package / "_other")
    assert shipped() == [tmp_path / "configs" / "x.yaml"]


@pytest.mark.parametrize(
    "config",
    [
        Run(seed=0),
        Run(
            seed=2**40,
            agent=Agent(lr=5e-4, layers=(), plane=(1, 1e-7), limit=1e20, workers=3),
            environment=Environment(
                name="on",
                options={"a": None, "b": {"c": [1, 2.0, "5e-4"]}, "d": True, "e": "null"},
                sizes={"x": (1, 2), "y": ()},
                ratios=[1, 2.0],
            ),
        ),
        Run(seed=1, agent=Agent(limit=math.inf), environment=Environment(name="two\nlines: #x")),
    ],
)
def test_a_dumped_configuration_is_read_back_equal(write, workload, config):
    text = dump(config, "some_workload")
    found = load(write(text))
    assert found.config == config
    assert repr(found.config) == repr(config)
    assert found.workload == "some_workload"
    assert dump(found.config, found.workload) == text


def test_differences_name_both_values():
    a = Run(seed=1, agent=Agent(lr=0.001, layers=(1,)), environment=Environment(options={"x": 1}))
    b = Run(seed=2, agent=Agent(lr=0.0003, layers=(1, 2)), environment=Environment(name="cube"))
    assert differences(a, b) == [
        "seed: 1 -> 2",
        "agent.lr: 0.001 -> 0.0003",
        "agent.layers: [1] -> [1, 2]",
        'environment.name: "maze" -> "cube"',
        "environment.options.x: 1 -> absent",
    ]
    assert differences(a, a) == []


def test_describe_lists_every_key_with_type_default_and_help():
    class Outer(Config):
        agent: Agent = Agent(lr=0.5)
        spare: Agent | None = None
        """Takes over."""
        share: Annotated[float, Field(ge=0, lt=1)] = 0.25
        names: list[str] = Field(default_factory=lambda: ["a"])
        anything: dict[str, Any] = Field(default_factory=dict)
        must: str

    rows = [tuple(row) for row in describe(Outer)]
    assert rows[:7] == [
        ("agent.lr", "float (> 0, <= 1)", "0.5", "Learning rate of Adam."),
        ("agent.batch", "int (>= 1)", "256", ""),
        ("agent.network", "concat | heads", '"concat"', ""),
        ("agent.layers", "tuple[int, ...]", "[8, 8]", ""),
        ("agent.plane", "tuple[int, float] | null", "null", ""),
        ("agent.limit", "float | null (> 0)", "null", ""),
        ("agent.workers", "int | auto", '"auto"', ""),
    ]
    assert rows[7] == ("spare", "Agent | null", "null", "Takes over.")
    assert rows[8] == ("spare.lr", "float (> 0, <= 1)", "0.001", "Learning rate of Adam.")
    assert rows[15:] == [
        ("share", "float (>= 0, < 1)", "0.25", ""),
        ("names", "list[str]", '["a"]', ""),
        ("anything", "dict[str, any]", "{}", ""),
        ("must", "str", "required", ""),
    ]


def test_describe_tells_the_members_of_a_union_apart_by_their_tag():
    class One(Config):
        kind: Literal["one"] = "one"
        size: int = 1

    class Two(Config):
        kind: Literal["two"] = "two"
        width: int = 2

    class Outer(Config):
        part: Annotated[One | Two, Discriminator("kind")] = Two(width=5)

    rows = {row.key: row.default for row in describe(Outer)}
    assert rows["part[one].size"] == "1"
    assert rows["part[two].width"] == "5"


def test_a_variable_may_hold_the_text_of_a_configuration(monkeypatch):
    monkeypatch.setenv("SENT", "seed: 3\nagent: {lr: 5e-4}\n")
    config = loaded(find("env:SENT"), "agent.batch=8")
    assert config == Run(seed=3, agent=Agent(lr=0.0005, batch=8))
    monkeypatch.setenv("SENT", "seed: 3\nagent:\n  lrr: 1\n")
    assert "env:SENT:3: agent.lrr: unknown key." in refused(find("env:SENT"))
    assert refused(find("env:OTHER")) == "env:OTHER: there is no environment variable 'OTHER'."


def test_a_variable_may_name_a_base(write, monkeypatch):
    write("seed: 1\ntotal_env_steps: 7\n", "below.yaml")
    monkeypatch.setenv("SENT", "base: below.yaml\nseed: 2\n")
    assert loaded(find("env:SENT")) == Run(seed=2, total_env_steps=7)
