import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from regression import Regression, loop_of


def test_the_learning_rate_rises_and_falls_by_the_share_that_is_done(tmp_path):
    loop = loop_of(tmp_path, Regression(), epochs=4, warmup_epochs=1, warmup_lr=0.0, min_lr=0.001)
    rates = {}
    for step in (0, 4, 5, 20):
        loop.step = step
        rates[step] = loop.lr()
    # 20 updates, of which five are the rise; half a cosine from 0.01 to 0.001 after it.
    assert rates == pytest.approx({0: 0.0, 4: 0.008, 5: 0.01, 20: 0.001})


def test_a_learning_rate_can_fall_in_a_line_or_in_steps(tmp_path):
    def rates(**settings):
        loop = loop_of(
            tmp_path, Regression(), epochs=4, warmup_epochs=1, warmup_lr=0.002, **settings
        )
        found = []
        for loop.step in (0, 1, 5, 10, 15, 20):  # of 20; the first five rise
            found.append(loop.lr())
        return found

    # In a line from 0.01 to 0.002 at the end; while it rises, times 0.2, 0.36, 1.
    line = [0.01 * 0.2, (0.002 + 0.008 * 0.95) * 0.36, 0.008, 0.006, 0.004, 0.002]
    assert rates(schedule="linear", min_lr=0.002) == pytest.approx(line)
    in_steps = [0.002, 0.0036, 0.01, 0.001, 0.0001, 0.0001]
    assert rates(schedule="steps", drops=(2, 3)) == pytest.approx(in_steps)
    # After the rise in a line, of which a third, two thirds and all are done.
    after = [0.002, 0.0036, 0.01, 0.01 - 0.008 / 3, 0.01 - 0.016 / 3, 0.002]
    assert rates(schedule="warmup_linear", min_lr=0.002) == pytest.approx(after)
    # A cosine over all of training, whose beginning the rise takes the place of.
    halves = [0.5 * (1 + math.cos(math.pi * share)) for share in (0.25, 0.5, 0.75, 1)]
    whole = [0.002, 0.0036, *(0.002 + 0.008 * half for half in halves)]
    assert rates(schedule="whole_cosine", min_lr=0.002) == pytest.approx(whole)


@pytest.mark.parametrize("stretch", [1.0, 1.5, 4.0])
def test_steps_come_after_their_epochs_however_long_the_run_would_be(tmp_path, stretch):
    """Of a run of three epochs, five updates each; a longer one that is cut off has the same."""
    settings = {"schedule": "steps", "drops": (1, 2, 6), "stretch": stretch}
    loop = loop_of(tmp_path, Regression(), epochs=3, **settings)
    found = []
    for loop.step in (0, 4, 5, 9, 10, 14):
        found.append(loop.lr())
    assert found == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001])
