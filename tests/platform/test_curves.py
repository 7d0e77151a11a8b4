import json

import numpy as np
import pytest
from PIL import Image

from farreach import curves
from farreach.cli.main import main
from farreach.errors import ConfigError, RunDirectoryError
from farreach.rundir import RunDirectory

METRIC = "evaluation/success_final"


@pytest.fixture
def make(tmp_path):
    """A run directory with points of the metric, and other lines among them."""

    def run(name, seed, *lines):
        path = tmp_path / f"{name}-{seed}"
        made = RunDirectory.create(
            tmp_path, name, f"workload: x\nname: {name}\nseed: {seed}\n", [], seed, path=path
        )
        entries = []
        for line in lines:
            step, value = line if isinstance(line, tuple) else (None, None)
            if step is None:
                entries.append(line)
                continue
            time = 1000.0 + 6 * step
            entries.append({"step": step, "time": time, METRIC: value, "loss/actor": 1.0})
        made.metrics_path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return made

    return run


def test_points_come_in_order_of_their_steps_or_minutes(make):
    run = make("walk", 0, (0, 0.1), {"step": 5, "time": 1030.0, "loss/actor": 2.0}, (10, 0.3))
    series = curves.read_series(run, METRIC)
    assert series.name == "walk"
    np.testing.assert_array_equal(series.x, [0, 10])
    np.testing.assert_array_equal(series.y, [0.1, 0.3])
    np.testing.assert_allclose(curves.read_series(run, METRIC, "minutes").x, [0, 1.0])


def test_what_a_resumed_run_logged_again_counts_once(make):
    resumed = {"event": "resumed", "step": 10, "time": 1100.0}
    run = make("walk", 0, (0, 0.1), (10, 0.2), (20, 0.9), resumed, (20, 0.3), (30, 0.4))
    series = curves.read_series(run, METRIC)
    np.testing.assert_array_equal(series.x, [0, 10, 20, 30])
    np.testing.assert_array_equal(series.y, [0.1, 0.2, 0.3, 0.4])


def test_a_metric_that_is_null_or_half_written_is_no_point(make):
    run = make("walk", 0, (0, 0.1), {"step": 5, "time": 1.0, METRIC: None}, (10, 0.3))
    with run.metrics_path.open("a") as file:
        file.write('{"step": 20, "ti')
    np.testing.assert_array_equal(curves.read_series(run, METRIC).x, [0, 10])


def test_bands_are_means_and_deviations_over_seeds_of_a_name():
    ones = [
        curves.Series("b", np.array([0.0, 10]), np.array([0.0, 1.0])),
        curves.Series("b", np.array([0.0, 5, 20]), np.array([0.0, 1.0, 1.0])),
        curves.Series("a", np.array([3.0]), np.array([0.5])),
    ]
    a, b = curves.bands(ones)
    assert (a.name, a.seeds, b.name, b.seeds) == ("a", 1, "b", 2)
    assert (b.x[0], b.x[-1]) == (0, 10)  # what both cover
    # At 5: 0.5 and 1; mean 0.75, deviation 0.25.
    at = np.interp(5, b.x, b.mean), np.interp(5, b.x, b.low), np.interp(5, b.x, b.high)
    np.testing.assert_allclose(at, [0.75, 0.5, 1.0], atol=0.01)
    np.testing.assert_allclose(a.mean, 0.5)


def test_smoothing_averages_each_point_with_those_before_it():
    series = curves.Series("a", np.arange(5.0), np.array([0.0, 2.0, 4.0, 0.0, 8.0]))
    found = curves.smoothed(series, 3)
    np.testing.assert_array_equal(found.x, series.x)
    np.testing.assert_allclose(found.y, [0, 1, 2, 2, 4])
    np.testing.assert_array_equal(curves.smoothed(series, 1).y, series.y)


def test_bars_are_means_of_the_last_points_by_category(make, tmp_path, capsys):
    def lines(*values):
        return [
            {"step": n, "time": 0.0, METRIC: v, f"{METRIC}_room1": 1.0, f"{METRIC}_room2": 2 * v}
            for n, v in enumerate(values)
        ]

    make("walk", 0, *lines(0.9, 0.1, 0.3))
    make("walk", 1, *lines(0.9, 0.3, 0.5))
    make("her", 0, (0, 0.9), (1, 0.0), (2, 0.2))
    runs = [str(tmp_path / name) for name in ("walk-0", "walk-1", "her-0")]
    out = tmp_path / "bars.png"
    assert main(["curves", *runs, "--bars", "2", "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "her: all 0.100 ± 0.000, 1 runs",
        "walk: all 0.300 ± 0.100, room1 1.000 ± 0.000, room2 0.600 ± 0.200, 2 runs",
        str(out),
    ]
    picture = np.array(Image.open(out).convert("RGB"))
    for colour, least in (((31, 119, 180), 1_000), ((255, 127, 14), 10_000)):
        assert (np.abs(picture.astype(int) - colour).max(axis=2) < 12).sum() > least


def test_the_command_draws_all_runs_into_one_picture(make, tmp_path, capsys):
    for seed in (0, 1):
        make("walk", seed, (0, 0.0), (10, 0.5 + 0.2 * seed))
    make("her", 0, (0, 0.0), (10, 0.1))
    out = tmp_path / "figures" / "curves.png"
    runs = [str(tmp_path / name) for name in ("walk-0", "walk-1", "her-0")]
    assert main(["curves", *runs, "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "her: 0.100 ± 0.000 at the end, 1 runs",
        "walk: 0.600 ± 0.100 at the end, 2 runs",
        str(out),
    ]
    picture = np.array(Image.open(out).convert("RGB"))
    assert picture.shape == (495, 770, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):  # one line each
        assert (np.abs(picture.astype(int) - colour).max(axis=2) < 12).sum() > 100


def test_runs_of_a_name_that_differ_in_more_than_the_seed_are_told_apart(make, tmp_path):
    runs = []
    for seed, kind in ((0, "crl"), (1, "crl"), (2, "qrl")):
        run = make("maze", seed, (0, 0.0), (10, 0.1))
        more = f"agent: {{kind: {kind}}}\nruntime: {{cpus: {seed}}}\ndata: {{path: d{seed}}}\n"
        run.config_path.write_text(run.config_path.read_text() + more)
        runs.append(run)
    runs.append(make("walk", 0, (0, 0.0), (10, 0.1)))
    names = curves.distinct_names(runs)
    assert names == ["maze kind=crl", "maze kind=crl", "maze kind=qrl", "walk"]
    found = curves.draw([run.path for run in runs], METRIC, "step", tmp_path / "c.png")
    assert [(band.name, band.seeds) for band in found] == [
        ("maze kind=crl", 2),
        ("maze kind=qrl", 1),
        ("walk", 1),
    ]


def test_a_missing_metric_run_or_kind_of_file_is_named(make, tmp_path):
    run = make("walk", 0, (0, 0.0))
    with pytest.raises(RunDirectoryError, match=r"walk-0 has logged no .*Did you mean 'evaluation"):
        curves.read_series(run, "evaluation/sucess_final")
    with pytest.raises(ConfigError, match=r"curves.gif2: cannot draw a .gif2. Known: .*png"):
        curves.draw([run.path], METRIC, "step", tmp_path / "curves.gif2")
    with pytest.raises(RunDirectoryError, match="there is no run directory"):
        curves.draw([tmp_path / "nothing"], METRIC, "step", tmp_path / "curves.png")


def test_a_damaged_line_is_named(make, tmp_path, capsys):
    run = make("walk", 0, (0, 0.1), (10, 0.3))
    lines = run.metrics_path.read_text().splitlines()
    run.metrics_path.write_text("\n".join([lines[0], '{"step": 5, "ti', lines[1], ""]))
    assert main(["curves", str(run.path), "--out", str(tmp_path / "curves.png")]) == 1
    assert "metrics.jsonl:2: not a JSON line" in capsys.readouterr().err


def test_names_with_two_dollars_are_drawn_as_they_are(make, tmp_path):
    runs = []
    for seed, kind in ((0, r"$\frac$"), (1, "crl")):
        run = make("maze", seed, (0, 0.0), (10, 0.1))
        run.config_path.write_text(run.config_path.read_text() + f"agent: {{kind: '{kind}'}}\n")
        runs.append(run.path)
    found = curves.draw(runs, METRIC, "step", tmp_path / "c.png")
    assert [band.name for band in found] == [r"maze kind=$\frac$", "maze kind=crl"]
