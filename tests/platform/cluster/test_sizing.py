"""Expected values by hand from the costs below."""

from dataclasses import replace

import pytest

from farreach.cluster.sizing import REMEDIES, Costs, Site, rollouts_for, size

COSTS = Costs(
    step_s=1e-4,
    step_bytes=50,
    fragment_steps=1000,
    fragment_calls=4,
    call_s=2e-4,
    call_round_trips=3,
    update_s=5e-3,
    updates_per_step=0.02,
    publish_updates=40,
    weights_bytes=100_000,
    refresh_s=10,
    refresh_steps=50_000,
    guide_bytes=1_000_000,
)
# 80 Mbit/s
SITE = Site(rollouts_per_machine=10, bytes_per_s=10e6)


def rates(found):
    return {stage.name: pytest.approx(stage.steps_per_s) for stage in found.stages}


def test_each_part_bears_what_its_costs_allow():
    found = size(COSTS, SITE, 20)
    assert found.machines == 2
    assert rates(found) == {
        # 20 cores, 100 µs a step
        "rollouts": 200_000,
        # an update of 5 ms for every 50 steps
        "learner": 10_000,
        "fragments": 200_000,  # 10 MB/s of 50 bytes
        # Every fragment fetches 100 kB for 1,000 steps: 100 bytes a step. A bundle for each of two
        # machines every 10 s takes 0.2 MB/s of the 10.
        "weights": 98_000,
        # 4 calls in 1,000 steps and one in 2,000, of 0.2 ms
        "coordinator": 1 / (0.0045 * 2e-4),
    }
    assert (found.limit, found.steps_per_s) == ("learner", 10_000)
    assert found.remedies == [REMEDIES["learner"], REMEDIES["memory"]]
    assert [stage.name for stage in found.stages][:2] == ["learner", "weights"]


def test_what_flows_and_waits_at_the_rate_that_is_reached():
    found = size(COSTS, SITE, 20)
    assert found.calls_per_s == pytest.approx(45)
    assert found.received_bytes_per_s == pytest.approx(500_000)
    # 10,000 steps/s would refresh every 5 s, and a refresh takes 10.
    assert found.refresh_steps == pytest.approx(100_000)
    assert found.sent_bytes_per_s == pytest.approx(10_000 * 100 + 2e6 / 10)
    # 22 fragments of 50 kB, and two versions of weights and memory
    assert found.store_bytes == pytest.approx(22 * 50_000 + 2.2e6)
    assert found.rollout_store_bytes == pytest.approx(20 * 50_000 + 2.2e6)
    assert size(COSTS, SITE, 3).rollout_store_bytes == pytest.approx(6 * 50_000 + 2.2e6)


def test_a_fast_learner_leaves_the_memory_that_all_machines_fetch_as_the_limit():
    fast = replace(SITE, learner_speed=100, memory_speed=100)
    found = size(COSTS, fast, 1000)
    assert (found.machines, found.limit) == (100, "guide")
    # 100 bytes of weights a step, and 100 MB of bundles every 50,000 steps
    assert found.steps_per_s == pytest.approx(10e6 / (100 + 2000))
    assert found.refresh_steps == 50_000
    assert not found.memory_is_late


def test_a_machine_fetches_each_version_of_the_weights_once():
    # One machine: versions come every 2,000 steps, fragments every 1,000.
    found = size(COSTS, replace(SITE, rollouts_per_machine=20), 20)
    # 50 bytes a step beside a bundle of 1 MB every 10 s
    assert rates(found)["weights"] == pytest.approx((10e6 - 1e5) / 50)


def test_bundles_may_fill_the_network_by_themselves():
    slow = replace(SITE, bytes_per_s=150_000, memory_speed=10)
    # 200 bytes a step of both would be 150,000 / 140 steps/s; each refresh takes a second.
    found = size(COSTS, slow, 20)
    assert (found.limit, found.steps_per_s) == ("weights", pytest.approx(150_000 / 140))
    none_left = size(replace(COSTS, refresh_steps=100), slow, 20)
    assert (none_left.limit, none_left.steps_per_s) == ("guide", pytest.approx(150_000 / 20_100))


def test_distance_makes_rollouts_wait_and_more_of_them_are_needed():
    far = replace(SITE, round_trip_s=0.1)
    # 0.1 s of work, then three round trips
    assert rates(size(COSTS, far, 20))["rollouts"] == pytest.approx(20 * 1000 / 0.4)
    assert rollouts_for(COSTS, SITE, 100_000) == 10
    assert rollouts_for(COSTS, SITE, 100_001) == 11
    assert rollouts_for(COSTS, far, 100_000) == 40
