import pytest

from farreach.cluster.demand import (
    Demand,
    bundles,
    in_words,
    lacking,
    largest,
    processes,
    several_in_words,
    too_large,
    total,
)

LEARNER = Demand("learner", 1, {"CPU": 1, "GPU": 0.0, "learner": 1})
ROLLOUTS = Demand("rollout", 4, {"CPU": 0.5, "rollout": 1}, "SPREAD", later=2)
IDLER = Demand("board", 3, {"CPU": 0.0})


def test_what_is_needed_to_begin_is_listed_process_by_process():
    found = bundles([LEARNER, ROLLOUTS, IDLER], first=True)
    assert found == [{"CPU": 1, "learner": 1}, *[{"CPU": 0.5, "rollout": 1}] * 2]
    assert total(found) == {"CPU": 2.0, "learner": 1, "rollout": 2}
    assert total(bundles([LEARNER, ROLLOUTS, IDLER])) == {"CPU": 3.0, "learner": 1, "rollout": 4}


# (count, least, later) → (needed, first)
@pytest.mark.parametrize(
    ("asked", "needed", "first"),
    [((2, None, 0), 2, 2), ((2, 8, 0), 2, 2), ((4, 1, 0), 1, 1), ((4, 0, 0), 0, 0),
     ((4, None, 3), 4, 1), ((4, 2, 1), 2, 1), ((4, 1, 3), 1, 0)],
)  # fmt: skip
def test_some_are_needed_and_some_of_those_before_the_run_begins(asked, needed, first):
    count, least, later = asked
    demand = Demand("worker", count, {"CPU": 1}, least=least, later=later)
    assert (demand.needed, demand.first) == (needed, first)


def test_roles_in_a_placement_group_have_their_places_together():
    assert not LEARNER.together
    assert not ROLLOUTS.together
    assert Demand("worker", 2, {"CPU": 1}, "PACK").together


@pytest.mark.parametrize(
    ("cpus", "expected"),
    [(0, []), (0.3, [0.3]), (2, [1.0, 1.0]), (2.5, [1.0, 1.0, 0.5])],
)
def test_a_number_of_cpus_stands_for_pieces_of_one(cpus, expected):
    assert [bundle["CPU"] for bundle in bundles(processes(cpus))] == pytest.approx(expected)


def test_what_is_missing_is_told_by_resource_and_rounding_is_forgiven():
    assert lacking({"CPU": 3, "GPU": 1, "rollout": 2}, {"CPU": 4, "rollout": 0.5}) == {
        "GPU": 1,
        "rollout": 1.5,
    }
    assert lacking({"CPU": 0.1 + 0.2}, {"CPU": 0.3}) == {}


def test_a_process_that_no_machine_has_room_for_is_found():
    machines = [{"CPU": 8.0}, {"CPU": 2.0, "learner": 1.0}]
    assert too_large([ROLLOUTS], [{"CPU": 1, "rollout": 1}]) is None
    assert too_large([IDLER, LEARNER], machines) is None
    both = Demand("learner", 1, {"CPU": 4, "learner": 1})
    assert too_large([LEARNER, both], machines) is both
    assert largest(both.asked, machines) == {"CPU": 8.0, "learner": 0.0}


def test_amounts_are_read_as_people_say_them():
    assert in_words({}) == "nothing"
    assert in_words({"CPU": 1}) == "1 CPU"
    assert in_words({"CPU": 0.5, "GPU": 2, "rollout": 3}) == "0.5 CPUs, 2 GPUs and 3 rollout"
    assert in_words({"memory": 1.5 * 2**30}) == "1.5 GiB memory"
    assert several_in_words([LEARNER, ROLLOUTS]) == (
        "learner (1 CPU and 1 learner), 2 × rollout (0.5 CPUs and 1 rollout each)"
    )
