import math

import pytest

from farreach.gauges import ABOUT
from farreach.learn import report as learning
from farreach.rundir import RunDirectory
from farreach.vitals import EVERY_S, FIRST_AFTER_S, Vitals
from farreach.watch import COMMON, Rule, Watch, is_of_learning
from farreach_workloads.goals import report as goals

DATA = Rule("data", "throughput/data_wait_share", lambda share: share > 0.5, "waits {value:.0%}")


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path, "maze", "", [], seed=0)


class Clock:
    """Seconds that a test sets."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def remarks(run):
    return [event["text"] for event in run.events() if event["event"] == "remark"]


def feed(watch, clock, name, values, every_s=10.0):
    """Write a metric every so often, beginning now."""
    for step, value in enumerate(values):
        watch.look(step, {name: value})
        clock.now += every_s


def test_what_is_wrong_for_a_minute_and_a_half_is_said_once(run, capsys):
    clock = Clock()
    watch = Watch(run, [DATA], clock)
    feed(watch, clock, "throughput/data_wait_share", [0.8] * 9)  # 80 s
    assert remarks(run) == []
    feed(watch, clock, "throughput/data_wait_share", [0.8] * 9)
    assert remarks(run) == ["waits 80%"]
    assert capsys.readouterr().err == "note      waits 80%\n"
    assert run.events()[-1]["about"] == "data"


def test_the_mean_decides_and_not_one_value(run):
    clock = Clock()
    watch = Watch(run, [DATA], clock)
    feed(watch, clock, "throughput/data_wait_share", [0.9, 0.4] * 6)
    # After 90 s: nine values, of which four are 0.9 and five 0.4, or five and four.
    assert len(remarks(run)) == 1
    calm = Watch(run, [DATA], clock)
    feed(calm, clock, "throughput/data_wait_share", [0.9, 0.3, 0.2] * 6)
    assert len(remarks(run)) == 1


def test_what_was_wrong_long_ago_does_not_count(run):
    clock = Clock()
    watch = Watch(run, [DATA], clock)
    feed(watch, clock, "throughput/data_wait_share", [1.0] * 4 + [0.1] * 20)
    assert remarks(run) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_said_at_once(run, value):
    watch = Watch(run)
    watch.look(7, {"evaluation/distance": math.nan, "learner/critic_loss": value})
    watch.look(8, {"learner/critic_loss": value})
    (text,) = remarks(run)
    assert text.startswith(f"learner/critic_loss is {value}: training has diverged")


def test_evaluations_may_lack_numbers_and_losses_of_other_parts_may_not():
    assert is_of_learning("learner/q_value")
    assert is_of_learning("reachability/validation_loss")
    assert not is_of_learning("evaluation/loss")
    assert not is_of_learning("throughput/env_steps_per_s")


def test_evaluations_that_follow_one_another_are_too_long(run):
    clock = Clock()
    watch = Watch(run, [], clock)
    for step in range(3):
        watch.look(step, {"evaluation/seconds": 50.0})
        clock.now += 60.0
    assert remarks(run)[0].startswith("an evaluation takes 50 s, and they come every 60 s")


def test_evaluations_with_training_between_them_are_not(run):
    clock = Clock()
    watch = Watch(run, [], clock)
    for step in range(5):
        watch.look(step, {"evaluation/seconds": 50.0})
        clock.now += 300.0
    assert remarks(run) == []


@pytest.mark.parametrize(
    ("metric", "fine", "wrong", "said"),
    [
        ("machine/disk_free_gb", 5.0, 0.4, "only 0.40 GB are free"),
        ("machine/memory_free_share", 0.3, 0.03, "only 3% of this machine's memory"),
        ("ray/spilled_mb", 0.0, 120.0, "Ray has moved 120 MB"),
    ],
)
def test_trouble_of_the_machine_is_said_at_once(run, metric, fine, wrong, said):
    watch = Watch(run)
    watch.look(1, {metric: fine})
    assert remarks(run) == []
    watch.look(2, {metric: wrong})
    assert remarks(run)[0].startswith(said)


@pytest.mark.parametrize(
    ("rules", "metric", "wrong", "setting"),
    [
        (learning.RULES, "throughput/data_wait_share", 0.7, "runtime.loaders"),
        (goals.RULES, "throughput/learner_waiting_share", 0.9, "runtime.rollout_actors"),
        (goals.RULES, "throughput/rollouts_held_share", 0.9, "agent.batch"),
        (goals.RULES, "weights/age_versions", 300.0, "phases.policy_steps"),
    ],
)
def test_each_workload_names_the_settings_that_help(run, rules, metric, wrong, setting):
    clock = Clock()
    watch = Watch(run, (*COMMON, *rules), clock)
    feed(watch, clock, metric, [wrong] * 11)
    (text,) = remarks(run)
    assert setting in text
    assert text.endswith(".")


def test_what_rules_look_at_is_described_for_dashboards():
    rules = (*COMMON, *learning.RULES, *goals.RULES)
    assert {rule.metric for rule in rules} <= set(ABOUT)


def test_the_machine_is_measured_every_half_minute(tmp_path):
    clock = Clock()
    vitals = Vitals(tmp_path, clock)
    assert vitals.due() == {}
    clock.now += FIRST_AFTER_S
    found = vitals.due()
    assert found["machine/disk_free_gb"] > 0
    assert 0 < found["machine/memory_free_share"] <= 1
    assert found["machine/driver_memory_gb"] > 0.01
    assert vitals.due() == {}
    clock.now += EVERY_S
    assert "machine/disk_free_gb" in vitals.due()
