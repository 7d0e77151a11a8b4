import matplotlib.image
import numpy as np
import pytest

from farreach.errors import RunDirectoryError
from farreach.figures import png
from farreach.panels import Panel, draw_panels, panels

RECORDS = [
    {"step": 1, "training/updates": 10.0, "learner/loss": 3.0, "learner/age": 40.0},
    {"step": 2, "training/updates": 20.0, "learner/loss": float("nan"), "learner/age": 50.0},
    {"step": 3, "training/updates": 30.0, "learner/loss": 1.0, "learner/share": 0.5},
]
LOSS = Panel("Loss", ("learner/loss",))
QUEUE = Panel("Queue", ("learner/age", "learner/share"), from_zero=True)
NEVER = Panel("Never", ("learner/never",))


def lines(figure):
    """Title → {label: points} of what can be seen."""
    found = {}
    title = ""
    for axes in figure.axes:
        if axes.get_visible():
            title = axes.get_title() or title  # a second scale has none
            found.setdefault(title, {}).update(
                {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
            )
    return found


def test_each_group_that_was_logged_has_a_panel():
    """What is no number is left out, and so is what was never logged."""
    found = lines(panels(RECORDS, [LOSS, NEVER]))
    assert found == {"Loss": {"loss": [[10, 3], [30, 1]]}}
    assert panels(RECORDS, [LOSS]).axes[0].get_ylim()[0] > 0


def test_a_line_that_hardly_varies_is_seen_below_the_frame():
    records = [{"step": s, "training/updates": s, "learner/age": 40 + 0.01 * s} for s in range(9)]
    low, high = panels(records, [QUEUE]).axes[0].get_ylim()
    assert (low, high) == (0, pytest.approx(1.08 * 40.08))


def test_a_small_line_beside_a_large_one_has_its_own_scale():
    figure = panels(RECORDS, [QUEUE])
    (age,), (share,) = (axes.get_lines() for axes in figure.axes)
    assert age.get_label() == "age"
    assert share.get_label() == "share (right)"
    assert share.get_xydata().tolist() == [[30, 0.5]]
    assert [axes.get_ylim()[0] for axes in figure.axes] == [0, 0]
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["age", "share (right)"]


def test_nothing_logged_is_no_figure(tmp_path):
    assert panels(RECORDS, [NEVER]) is None
    assert panels([], [LOSS]) is None
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1}\n')
    assert draw_panels(metrics, [LOSS], tmp_path / "panels.png") == []


def test_panels_are_drawn_from_a_file(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 4, "learner/loss": 2.0}\n{"step": 8, "learner/loss": null}\n')
    (file,) = draw_panels(metrics, [LOSS], tmp_path / "panels.png")
    picture = matplotlib.image.imread(file)
    assert np.unique(picture.reshape(-1, picture.shape[-1]), axis=0).shape[0] > 10


def test_a_run_without_metrics_says_so(tmp_path):
    with pytest.raises(RunDirectoryError, match="has logged no metrics yet"):
        draw_panels(tmp_path / "metrics.jsonl", [LOSS], tmp_path / "panels.png")


def test_names_with_two_dollars_are_drawn_as_they_are():
    name = r"learner/$\frac$"
    figure = panels([{"step": 1, name: 1.0}], [Panel(r"of $\frac$", (name,))])
    assert len(png(figure)) > 1000
