import pytest

from farreach.cluster.demand import Demand
from farreach.cluster.forecast import forecast, hourly, limits, together
from farreach.cluster.plan import Group, Plan
from farreach.errors import ClusterError

HEAD = Group("head", 1, 1, {"CPU": 0}, head=True)
ROLLOUT = Group("rollout", 0, 32, {"CPU": 16, "rollout": 14})
LEARNER = Group("learner", 0, 2, {"CPU": 16, "GPU": 1, "learner": 1})
PLAN = Plan("", (HEAD, ROLLOUT, LEARNER), 34)


def rollouts(count):
    return Demand("rollout", count, {"CPU": 1, "rollout": 1}, "SPREAD")


# ⌈count / 14⌉ machines, 32 at most.
@pytest.mark.parametrize(
    ("count", "machines", "left"), [(1, 1, 0), (14, 1, 0), (15, 2, 0), (448, 32, 0), (450, 32, 2)]
)
def test_as_many_machines_are_started_as_the_rollouts_fill(count, machines, left):
    found = forecast(PLAN, [rollouts(count)])
    assert found.nodes == {"rollout": machines}
    assert found.unplaced == ({"rollout": left} if left else {})


def test_each_role_gets_the_machines_that_have_its_resource():
    learner = Demand("learner", 1, {"CPU": 1, "GPU": 1, "learner": 1})
    assert forecast(PLAN, [learner, rollouts(3)]).nodes == {"learner": 1, "rollout": 1}


def test_the_head_is_filled_before_machines_are_started():
    plan = Plan("", (Group("head", 1, 1, {"CPU": 4}, head=True), Group("more", 0, 2, {"CPU": 2})))
    assert forecast(plan, [Demand("task", 4, {"CPU": 1})]).nodes == {}
    found = forecast(plan, [Demand("task", 9, {"CPU": 1})])
    assert found.nodes == {"more": 2}
    assert found.unplaced == {"task": 1}


def test_machines_that_are_always_there_are_counted_once():
    plan = Plan("", (HEAD, Group("more", 2, 4, {"CPU": 2})))
    assert forecast(plan, []).nodes == {"more": 2}
    assert forecast(plan, [Demand("task", 4, {"CPU": 1})]).nodes == {"more": 2}
    assert forecast(plan, [Demand("task", 5, {"CPU": 1})]).nodes == {"more": 3}
    assert forecast(plan, [Demand("task", 9, {"CPU": 1})]).unplaced == {"task": 1}


def test_workers_of_one_placement_group_have_places_together_or_none():
    plan = Plan("", (HEAD, Group("more", 0, 2, {"CPU": 4})))
    assert forecast(plan, [Demand("worker", 4, {"CPU": 2}, "PACK")]).nodes == {"more": 2}
    found = forecast(plan, [Demand("worker", 5, {"CPU": 2}, "PACK")])
    assert (found.nodes, found.unplaced) == ({}, {"worker": 5})
    apart = Demand("worker", 2, {"CPU": 1}, "STRICT_SPREAD")
    assert forecast(plan, [apart]).nodes == {"more": 2}
    assert forecast(plan, [Demand("worker", 3, {"CPU": 2}, "STRICT_PACK")]).unplaced == {
        "worker": 3
    }


def test_the_limit_of_the_whole_cluster_counts():
    plan = Plan("", (HEAD, ROLLOUT), most_workers=2)
    found = forecast(plan, [rollouts(30)])
    assert (found.nodes, found.unplaced) == ({"rollout": 2}, {"rollout": 2})
    assert limits(plan, rollouts(30)) == (
        "each has room on rollout (at most 32); there may be 2 machines besides the head"
    )


def test_of_equal_demands_the_last_goes_without():
    plan = Plan("", (HEAD, Group("more", 0, 1, {"CPU": 1})))
    asked = [Demand(role, 1, {"CPU": 0.5}) for role in ("memory", "reachability", "evaluator")]
    assert forecast(plan, asked).unplaced == {"evaluator": 1}


def test_a_process_without_room_anywhere_is_an_error_that_says_what_is_nearest():
    with pytest.raises(ClusterError) as caught:
        forecast(PLAN, [rollouts(1), Demand("learner", 1, {"CPU": 32, "learner": 1})])
    assert str(caught.value).startswith(
        "learner asks for 32 CPUs and 1 learner on one machine, and no kind of machine has that: "
        "the nearest has 16 CPUs and 1 learner."
    )


def test_machines_of_unknown_size_are_an_error():
    with pytest.raises(ClusterError, match="the machines of 'workers' have no resources"):
        forecast(Plan("", (HEAD, Group("workers", 2, 2))), [rollouts(1)])


def test_machines_cost_what_their_cpus_and_gpus_do():
    nodes = {"rollout": 2, "learner": 1}
    assert together(PLAN, nodes) == {"CPU": 48, "GPU": 1}
    assert together(PLAN, {"rollout": 3}) == {"CPU": 48}
    assert hourly(PLAN, nodes, {"CPU": 0.04}) == pytest.approx(1.92)
    assert hourly(PLAN, nodes, {"CPU": 0.04, "GPU": 2.0}) == pytest.approx(3.92)
    assert hourly(PLAN, {"rollout": 3}, {"GPU": 2.0}) == 0
