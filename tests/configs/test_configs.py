"""Every shipped configuration loads, and what is quick to run stands beside what is not."""

from pathlib import Path

import pytest
import yaml

from farreach import config as configs
from farreach import launch

FOLDER = Path(__file__).parents[2] / "configs"
FILES = sorted(FOLDER.rglob("*.yaml"))
DEBUG = [path for path in FILES if path.stem.endswith("_debug")]
# Variants of one run need no twin each: variant → the debug configuration of their common base.
COVERED = {
    "goals/fresh_maze_actionable": "goals/fresh_maze_paper_debug",
    "goals/fresh_maze_her": "goals/fresh_maze_paper_debug",
    "goals/fresh_maze_her_uniform": "goals/fresh_maze_paper_debug",
    "goals/fresh_pusher_her": "goals/fresh_pusher_debug",
    "goals/fresh_pusher_paper_actionable": "goals/fresh_pusher_paper_debug",
    "goals/fresh_pusher_paper_her": "goals/fresh_pusher_paper_debug",
    "goals/fresh_pusher_paper_her_uniform": "goals/fresh_pusher_paper_debug",
    "goals/fresh_walker_paper_actionable": "goals/fresh_walker_paper_debug",
    "goals/fresh_walker_paper_actionable_once": "goals/fresh_walker_paper_debug",
    "goals/fresh_walker_paper_her": "goals/fresh_walker_paper_debug",
    "goals/fresh_walker_paper_her_uniform": "goals/fresh_walker_paper_debug",
    "goals/ogbench_giant_navigate": "goals/ogbench_medium_navigate_debug",
    "goals/ogbench_giant_stitch": "goals/ogbench_medium_navigate_debug",
    "goals/ogbench_large_navigate": "goals/ogbench_medium_navigate_debug",
    "goals/ogbench_large_stitch": "goals/ogbench_medium_navigate_debug",
    "goals/ogbench_medium_stitch": "goals/ogbench_medium_navigate_debug",
    "goals/oracle_curriculum": "goals/walk_maze_debug",
    "goals/oracle_reward": "goals/walk_maze_debug",
    "goals/random_walk_only": "goals/walk_maze_debug",
    "goals/sac_her": "goals/walk_maze_debug",
    "goals/sac_her_pusher": "goals/walk_pusher_debug",
}


def name_of(path):
    return path.relative_to(FOLDER).with_suffix("").as_posix()


def base_of(path):
    return yaml.safe_load(path.read_text()).get("base")


def test_there_are_configurations_and_all_of_them_are_shipped():
    assert DEBUG
    assert sorted(path.resolve() for path in configs.shipped()) == FILES


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_configuration_loads_and_is_named_as_its_file(path):
    loaded = configs.load(path)
    assert loaded.config.name == path.stem
    assert loaded.config == configs.load(configs.find(name_of(path))).config


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_configuration_says_first_what_it_is_for(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20


@pytest.mark.parametrize("path", [p for p in FILES if p not in DEBUG], ids=name_of)
def test_every_configuration_has_a_debug_twin_or_is_listed_as_covered_by_one(path):
    twin = path.with_name(f"{path.stem}_debug.yaml")
    assert twin.exists() != (name_of(path) in COVERED), f"give it {twin.name} or list it above"
    if twin.exists():
        # A twin takes everything else from its original, so that it runs the same code.
        assert base_of(twin) == path.name


@pytest.mark.parametrize(("variant", "debug"), COVERED.items())
def test_a_covered_configuration_is_a_variant_of_what_the_debug_one_runs(variant, debug):
    assert base_of(FOLDER / f"{variant}.yaml") == base_of(FOLDER / f"{debug}.yaml")
    assert launch.check(variant)


@pytest.mark.parametrize("path", DEBUG, ids=name_of)
def test_the_check_of_every_debug_configuration_passes(path):
    assert launch.check(str(path))
