import json
import math

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from farreach.errors import RunDirectoryError
from farreach.metrics import Levels, MetricsWriter, Rates, read_metrics
from farreach.rundir import RunDirectory


@pytest.fixture
def run(tmp_path, monkeypatch):
    # Event files of one second sort by a counter of the process ("10" before "9"): move the clock.
    seconds = iter(range(1_700_000_000, 1_800_000_000, 60))
    monkeypatch.setattr(
        "tensorboard.summary.writer.event_file_writer.time.time", lambda: next(seconds)
    )
    return RunDirectory.create(tmp_path, "maze", "", [], seed=0)


def events(run, folder="."):
    accumulator = EventAccumulator(str(run.tensorboard / folder), size_guidance={"images": 0})
    return accumulator.Reload()


def scalars(run, name):
    return [(event.step, event.value) for event in events(run).Scalars(name)]


def test_scalars_are_read_back_from_both_files(run):
    with MetricsWriter(run) as metrics:
        metrics.scalars(10, {"loss/actor": 0.5, "eval/success": np.float32(0.25)})
        metrics.scalars(20, {"loss/actor": 1.5})
    assert scalars(run, "loss/actor") == [(10, 0.5), (20, 1.5)]
    assert scalars(run, "eval/success") == [(10, 0.25)]
    first, second = read_metrics(run.metrics_path)
    assert {key: first[key] for key in ("step", "loss/actor", "eval/success")} == {
        "step": 10,
        "loss/actor": 0.5,
        "eval/success": 0.25,
    }
    assert second["step"] == 20
    assert second["time"] >= first["time"]


def test_nan_is_null_in_json_and_nan_when_read(run):
    with MetricsWriter(run) as metrics:
        metrics.scalars(1, {"loss/actor": math.nan})
    assert json.loads(run.metrics_path.read_text())["loss/actor"] is None
    assert math.isnan(read_metrics(run.metrics_path)[0]["loss/actor"])
    assert math.isnan(scalars(run, "loss/actor")[0][1])


def test_steps_that_a_resumed_run_does_again_appear_once(run):
    with MetricsWriter(run) as metrics:
        for step in (10, 20, 30):
            metrics.scalars(step, {"a/b": step})
            metrics.figure(step, "a/picture", np.zeros((2, 2, 3), np.uint8))
    with MetricsWriter(run, purge_step=20) as metrics:
        metrics.scalars(30, {"a/b": 300})
    assert scalars(run, "a/b") == [(10, 10), (20, 20), (30, 300)]
    assert [event.step for event in events(run).Images("a/picture")] == [10, 20]
    records = read_metrics(run.metrics_path)
    assert [(record["step"], record["a/b"]) for record in records] == [
        (10, 10),
        (20, 20),
        (30, 300),
    ]
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 20, 30]
    assert lines[3]["event"] == "resumed"


def test_a_run_that_begins_again_supersedes_all_of_its_first_attempt(run):
    with MetricsWriter(run) as metrics:
        metrics.scalars(0, {"a/b": 1})
        metrics.scalars(10, {"a/b": 2})
    with MetricsWriter(run) as metrics:
        metrics.scalars(0, {"a/b": 3})
    assert scalars(run, "a/b") == [(0, 3)]
    assert [record["a/b"] for record in read_metrics(run.metrics_path)] == [3]


def test_a_half_written_last_line_is_skipped_and_then_removed(run):
    with MetricsWriter(run) as metrics:
        metrics.scalars(1, {"a/b": 1})
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 2, "a/')
    assert [record["step"] for record in read_metrics(run.metrics_path)] == [1]
    with MetricsWriter(run, purge_step=1) as metrics:
        metrics.scalars(2, {"a/b": 2})
    assert [record["step"] for record in read_metrics(run.metrics_path)] == [1, 2]


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(RunDirectoryError, match=r"metrics\.jsonl:2: not a JSON line"):
        read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(RunDirectoryError, match="has logged no metrics"):
        read_metrics(tmp_path / "none.jsonl")


def test_a_histogram_counts_the_finite_values(run):
    with MetricsWriter(run) as metrics:
        metrics.histogram(5, "a/ages", np.array([[1.0, 2.0], [math.nan, 4.0]]))
        metrics.histogram(6, "a/ages", np.array([math.inf]))
        metrics.histogram(6, "a/ages", np.array([]))
    (event,) = events(run).Histograms("a/ages")
    assert event.step == 5
    assert event.histogram_value.num == 3
    assert event.histogram_value.sum == 7.0


def test_figures_come_from_arrays_and_from_files(run, tmp_path):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    with MetricsWriter(run) as metrics:
        metrics.figure(1, "a/picture", pixels)
        metrics.figure(2, "a/picture", tmp_path / "picture.png")
    first, second = events(run).Images("a/picture")
    assert (first.height, first.width) == (2, 3)
    assert first.encoded_image_string == second.encoded_image_string


def test_an_animation_is_logged_as_it_is_in_its_file(run, tmp_path):
    frames = [Image.new("RGB", (6, 4), (shade, 0, 0)) for shade in (0, 100, 200)]
    film = tmp_path / "film.gif"
    frames[0].save(film, save_all=True, append_images=frames[1:], duration=100, loop=0)
    with MetricsWriter(run) as metrics:
        metrics.animation(7, "a/film", film)
    (event,) = events(run).Images("a/film")
    assert (event.step, event.height, event.width) == (7, 4, 6)
    assert event.encoded_image_string == film.read_bytes()


def projector(run):
    config = ProjectorConfig()
    text_format.Parse((run.tensorboard / "projector_config.pbtxt").read_text(), config)
    return config.embeddings


def test_an_embedding_lists_vectors_labels_and_thumbnails(run):
    thumbnails = np.stack([np.full((2, 4, 3), 10 * i, np.uint8) for i in range(3)])
    with MetricsWriter(run) as metrics:
        metrics.embedding(
            *(5, "memory/nodes", np.array([[1.0, 2.0], [3.0, 4.5], [5.0, 6.0]])),
            metadata=["a", "b\tc\nd", "e"],
            thumbnails=thumbnails,
        )
    (info,) = projector(run)
    assert info.tensor_name == "memory/nodes:5"
    assert (run.tensorboard / info.tensor_path).read_text() == "1\t2\n3\t4.5\n5\t6\n"
    assert (run.tensorboard / info.metadata_path).read_text() == "a\nb c d\ne\n"
    assert list(info.sprite.single_image_dim) == [4, 2]  # width, height
    with Image.open(run.tensorboard / info.sprite.image_path) as sprite:
        assert sprite.size == (8, 4)
        corners = [sprite.getpixel(at)[0] for at in ((0, 0), (4, 0), (0, 2), (4, 2))]
    assert corners == [0, 10, 20, 0]


def test_embeddings_after_the_checkpoint_go_and_earlier_ones_stay(run):
    with MetricsWriter(run) as metrics:
        for step in (10, 20, 30):
            metrics.embedding(step, "memory/nodes", np.full((1, 2), step))
    assert [info.tensor_name for info in projector(run)] == [
        f"memory/nodes:{step}" for step in (10, 20, 30)
    ]
    with MetricsWriter(run, purge_step=20) as metrics:
        metrics.embedding(20, "memory/nodes", np.full((1, 2), 21.0))
    names = [info.tensor_name for info in projector(run)]
    assert names == ["memory/nodes:10", "memory/nodes:20"]
    assert (run.tensorboard / projector(run)[1].tensor_path).read_text() == "21\t21\n"
    assert len(list((run.tensorboard / "projector").iterdir())) == 2


def test_hparams_show_the_config_beside_the_final_metrics_once(run):
    for final in (0.5, 0.75):
        with MetricsWriter(run) as metrics:
            metrics.hparams(
                {"seed": 1, "agent.lr": 1e-3, "dims": [1, 2], "no": None}, {"eval/x": final}
            )
    assert [event.value for event in events(run, "hparams").Scalars("eval/x")] == [0.75]
    start = events(run, "hparams").SummaryMetadata("_hparams_/session_start_info")
    assert start.plugin_data.plugin_name == "hparams"
    assert b"agent.lr" in start.plugin_data.content


def test_rates_are_counts_per_second_since_the_last_call():
    now = 100.0
    rates = Rates(clock=lambda: now)
    rates.add("a/steps_per_s", 30)
    rates.add("a/steps_per_s", 20)
    assert rates.rates() == {"a/steps_per_s": 0.0}  # no time has passed
    now = 110.0
    assert rates.rates() == {"a/steps_per_s": 5.0}
    now = 112.0
    assert rates.rates() == {"a/steps_per_s": 0.0}
    rates.add("a/steps_per_s", 4)
    now = 116.0
    assert rates.rates() == {"a/steps_per_s": 1.0}


def test_levels_are_means_over_time():
    seconds = iter([0.0, 1.0, 4.0, 4.0, 10.0, 10.0])
    levels = Levels(clock=lambda: next(seconds))
    levels.set("queue/calls", 4.0)  # at 0 s
    levels.set("queue/calls", 1.0)  # at 1 s
    assert levels.means() == {"queue/calls": (4.0 * 1 + 1.0 * 3) / 4}  # at 4 s
    levels.set("queue/calls", 3.0)  # at 4 s
    assert levels.means() == {"queue/calls": 3.0}  # at 10 s
    assert levels.means() == {"queue/calls": 3.0}  # no time has passed
