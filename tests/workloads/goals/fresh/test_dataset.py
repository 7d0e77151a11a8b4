"""Data are those of the run's environment, whoever has recorded them, and are taken as they are."""

from pathlib import Path

import msgpack
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from farreach import config as configs
from farreach import datasets, launch
from farreach.cli.main import main
from farreach.data.episodes import EpisodeStore, write_index, write_shard
from farreach.errors import ConfigError, DataError
from farreach_workloads.goals.config import EnvironmentConfig
from farreach_workloads.goals.data.generate import _source
from farreach_workloads.goals.environments.factory import make_environment
from farreach_workloads.goals.fresh import pipeline
from farreach_workloads.goals.fresh.config import FreshRunConfig
from farreach_workloads.goals.fresh.dataset import check_data

FOLDER = Path(__file__).parents[4] / "configs" / "goals"
LOADED = {path.stem: configs.load(path).config for path in sorted(FOLDER.glob("*.yaml"))}
WITH_DATA = [name for name, config in LOADED.items() if isinstance(config, FreshRunConfig)]
SMALL = [
    "training.epochs=1",
    "training.epoch_updates=3",
    "evaluation.episodes=4",
    "agent.batch=32",
    "agent.hidden=8",
]
POINT_MAZE = "gymnasium:id=PointMaze_UMaze-v3"


@pytest.fixture
def holding(tmp_path):
    """A data set of one transition that says it was made in some way."""

    def make(source, dims):
        columns = {name: np.zeros((2, dim), np.float32) for name, dim in dims.items()}
        record = write_shard(tmp_path / "shard-00000.arrow", columns, [2], 0, source)
        write_index(tmp_path, "made", [record])
        return tmp_path

    return make


def dims_of(env):
    return {"observation": env.spec.observation_dim, "action": env.spec.action_dim}


def checked(config, path, env):
    data = config.data.model_copy(update={"path": str(path)})
    return check_data(config.model_copy(update={"data": data}), env)


@pytest.mark.parametrize("name", WITH_DATA)
def test_what_the_configuration_records_fits_and_is_not_remarked(name, holding):
    config = LOADED[name]
    env = make_environment(config.environment, 1)
    source = _source(datasets.load(config.data.config)[0])
    assert checked(config, holding(source, dims_of(env)), env) == []


def test_data_of_another_environment_with_the_same_dims_are_refused(holding):
    config = LOADED["ogbench_large_navigate"]
    env = make_environment(config.environment, 1)
    for recorded, named in (
        ({"name": "ogbench_pointmaze", "options": {"maze": "giant"}}, "{'maze': 'giant'}"),
        ({"name": "ogbench_pointmaze", "options": {}}, "'ogbench_pointmaze' with options {}"),
        ({"name": "maze", "options": {}}, "'maze' with options {}"),
        ("maze", "'maze' with options"),
    ):
        path = holding({"environment": recorded}, dims_of(env))
        with pytest.raises(DataError, match=r"was recorded in .*, the run's .*'large'") as caught:
            checked(config, path, env)
        assert named in str(caught.value)


def test_what_no_transition_depends_on_may_differ(holding):
    config = LOADED["ogbench_medium_navigate"]
    env = make_environment(config.environment, 1)
    name = "ogbench_pointmaze"
    for recorded in (
        {"name": name, "options": {"num_threads": 2}},  # medium is the default
        {"name": name, "options": {"maze": "medium"}},
        name,  # an older copy of a recording
        None,
    ):
        assert checked(config, holding({"environment": recorded}, dims_of(env)), env) == []


def test_other_data_than_the_configuration_records_are_remarked(holding):
    config = LOADED["fresh_maze_debug"]
    env = make_environment(config.environment, 1)
    source = _source(datasets.load("data/maze_random_debug", ["episodes=3", "seed=1"])[0])
    path = holding(source, dims_of(env))
    assert checked(config, path, env) == [
        f"{path} holds other data than data/maze_random_debug records: episodes 3 instead of 60, "
        "seed 1 instead of 0"
    ]
    data = config.data.model_copy(update={"config": "data/pusher_random_debug"})
    config = config.model_copy(update={"data": data})
    [note] = checked(config, path, env)
    assert "environment {'name': 'maze', 'options': {}} instead of {'name': 'pusher'" in note


def test_a_folder_without_an_index_is_not_filled_from_another_environment(tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    config = LOADED["fresh_maze_debug"]
    data = config.data.model_copy(update={"path": str(begun), "config": "data/pusher_random"})
    config = config.model_copy(update={"data": data})
    with pytest.raises(ConfigError, match=r"data/pusher_random records 'pusher'"):
        check_data(config, make_environment(config.environment, 1))


@pytest.fixture(scope="module")
def maze(tmp_path_factory):
    return datasets.generate("data/maze_random_debug", out=tmp_path_factory.mktemp("data") / "maze")


@pytest.fixture
def recorded(maze, tmp_path):
    """The maze's episodes as others record them: numbers of double width."""

    def write(scale=1.0):
        folder = tmp_path / "npz"
        folder.mkdir()
        for number, episode in enumerate(maze.episodes()):
            columns = {name: values.astype(np.float64) for name, values in episode.columns.items()}
            columns["action"] *= scale
            np.savez(folder / f"{number:03}.npz", **columns)
        return folder

    return write


@pytest.fixture
def train(tmp_path):
    def run(name, *settings, config="goals/fresh_maze_debug"):
        paths = ["data.config=null", f"data.cache={tmp_path}/cache"]
        return launch.train(config, [*paths, *settings], run_dir=tmp_path / name)

    return run


@pytest.mark.parametrize("form", ["folder", "file"])
def test_a_recording_is_trained_on_though_the_preset_has_others_to_record(
    form, recorded, maze, train, tmp_path, capfd
):
    path = recorded()
    if form == "file":
        path = path / "007.npz"
    before = sorted(path.rglob("*"))
    train(
        "run",
        f"data.path={path}",
        "data.config=data/maze_random_debug",
        "memory.keep_frac=1",
        *SMALL,
    )
    assert "to be recorded" not in capfd.readouterr().err
    [copy] = (tmp_path / "cache").glob("import-*")
    assert len(EpisodeStore.open(copy)) == (1 if form == "file" else 60)
    assert sorted(path.rglob("*")) == before


def test_that_a_preset_records_nothing_beside_a_recording_is_remarked(recorded):
    config = LOADED["fresh_maze_debug"]
    path = recorded()
    [note] = checked(config, path, make_environment(config.environment, 1))
    assert note == (
        f"{path} holds episodes already (npz episodes), so that data/maze_random_debug records none"
    )


@pytest.mark.parametrize(
    "method",
    [
        (),
        ("method=hindsight", "hindsight.negative_actions=uniform", "hindsight.random_goals=value"),
        ("agent.kind=gciql",),
    ],
)
def test_actions_of_double_width_are_trained_on(method, recorded, train, tmp_path):
    run = train("run", f"data.path={recorded()}", *method, *SMALL)
    assert np.isfinite(run.read_result()["evaluation/success_final"])
    [copy] = (tmp_path / "cache").glob("import-*")
    assert EpisodeStore.open(copy)["action"].dtype == np.float64


def test_warnings_of_a_copy_are_said_by_every_run_until_it_is_made_anew(
    recorded, train, capfd, monkeypatch
):
    settings = (f"data.path={recorded(scale=2.0)}", *SMALL)
    train("one", *settings)
    assert "warning: " in capfd.readouterr().err
    train("two", *settings)
    said = capfd.readouterr().err
    assert "import        unchanged, from" in said
    assert "000.npz: actions lie outside of [-1, 1], as in 60 episodes" in said
    version = pipeline.VERSIONS["import"]
    monkeypatch.setitem(pipeline.VERSIONS, "import", 99)
    train("three", *settings)
    assert f"import        to be built: version {version} → 99" in capfd.readouterr().err


def as_rllib(path, episodes):
    """Observations of goal environments, as RLlib's new stack writes them."""

    def packed(values):
        head = {b"nd": True, b"type": values.dtype.str, b"kind": b"", b"shape": values.shape}
        return {**head, b"data": values.tobytes()}

    rows = []
    for number, (observations, actions) in enumerate(episodes):
        steps = [{key: packed(step[key]) for key in step} for step in observations]
        content = {
            "id_": f"episode-{number}",
            "t_started": 0,
            "observations": {"data": steps, "lookback": 0},
            "actions": {"data": [packed(action) for action in actions], "lookback": 0},
        }
        rows.append(msgpack.packb(content))
    parquet.write_table(pyarrow.table({"item": pyarrow.array(rows, pyarrow.binary())}), path)
    return path


@pytest.fixture(scope="module")
def rollouts():
    """Random episodes of gymnasium-robotics' PointMaze, and what our environment sees of them."""
    env = make_environment(
        EnvironmentConfig(name="gymnasium", options={"id": "PointMaze_UMaze-v3"}), 12
    )
    rng = np.random.default_rng(0)
    env.rng = rng
    seen, actions = [env.reset()], rng.uniform(-1, 1, (40, 12, 2)).astype(np.float32)
    seen += list(env.walk(actions))
    rows = np.stack(seen, axis=1)  # (12, 41, 6)
    observations = [
        [
            {"observation": row[2:], "achieved_goal": row[:2], "desired_goal": row[:2] + 1}
            for row in episode
        ]
        for episode in rows
    ]
    return list(zip(observations, actions.swapaxes(0, 1), strict=True)), rows


def test_recordings_of_gymnasium_are_checked_imported_and_trained_on(
    rollouts, train, tmp_path, capsys
):
    episodes, rows = rollouts
    path = as_rllib(tmp_path / "recorded.parquet", episodes)
    assert main(["data", "check", str(path), "--environment", POINT_MAZE]) == 0
    out = tmp_path / "imported"
    assert main(["data", "import", str(path), str(out), "--environment", POINT_MAZE]) == 0
    store = EpisodeStore.open(out)
    np.testing.assert_array_equal(store["observation"][np.arange(store.rows)], np.concatenate(rows))
    assert store.info["source"]["environment"]["options"] == {"id": "PointMaze_UMaze-v3"}
    assert main(["data", "check", str(path), "--environment", "maze"]) == 1
    assert main(["data", "check", str(path), "--environment", "gymnasium"]) == 2
    assert "--environment gymnasium:NAME=VALUE" in capsys.readouterr().err

    environment = "environment={name: gymnasium, options: {id: PointMaze_UMaze-v3}}"
    small = [*SMALL, environment, "reachability.window=5", "memory.keep_frac=1"]
    for name, data in (("recording", path), ("copy", out)):
        run = train(name, f"data.path={data}", *small)
        assert np.isfinite(run.read_result()["evaluation/success_final"])
        assert run.read_result()["memory/nodes"] > 1
    other = environment.replace("UMaze", "Medium")
    with pytest.raises(DataError, match=r"imported: was recorded in 'gymnasium' .*PointMaze_UMaze"):
        train("other", f"data.path={out}", *SMALL, other)
