import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.platform.data.test_label_maps import ade

from farreach import afterwards, launch
from farreach import config as configs
from farreach.data.label_maps import IGNORED
from farreach.errors import ConfigError, DataError
from farreach.learn.place import Place
from farreach.learn.restored import restored
from farreach_workloads.vision import segment
from farreach_workloads.vision.config import BackboneConfig
from farreach_workloads.vision.segment import (
    Crops,
    Distortion,
    Segmenter,
    SegmentTask,
    _starts,
    confusion,
    normalised,
    scores,
)

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'workloads'}",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
DEBUG = "vision/segment_scenes_debug"


def config_of(*overrides):
    return configs.load(configs.find(DEBUG), list(overrides)).config


def test_scores_by_hand():
    """Four pixels of class 0, one of which is taken for 1; two of class 1; one not counted."""
    labels = np.array([[0, 0, 0, 0], [1, 1, IGNORED, IGNORED]], np.uint8)
    found = np.array([[0, 0, 0, 1], [1, 1, 0, 2]])
    counts = confusion(found, labels, 3)
    assert counts.tolist() == [[3, 1, 0], [0, 2, 0], [0, 0, 0]]
    metrics = scores(counts, ["sky", "sea", "land"])
    assert metrics == pytest.approx(
        {
            "evaluation/iou_sky": 3 / 4,
            "evaluation/iou_sea": 2 / 3,
            "evaluation/mean_iou": (3 / 4 + 2 / 3) / 2,
            "evaluation/pixel_accuracy": 5 / 6,
            "evaluation/mean_accuracy": (3 / 4 + 1) / 2,
        }
    )


@pytest.mark.parametrize(("length", "size"), [(32, 32), (33, 32), (100, 32), (64, 32), (75, 32)])
def test_windows_cover_everything_and_overlap(length, size):
    starts = _starts(length, size)
    covered = np.zeros(length, int)
    for start in starts:
        assert 0 <= start <= length - size
        covered[start : start + size] += 1
    assert covered.min() >= 1
    assert len(starts) == len(set(starts))


def test_an_image_in_one_window_is_predicted_as_a_whole():
    task = SegmentTask(config_of())
    task.model.eval()
    image, _ = task.data._images.load(0)
    x = normalised(image)[None]
    with torch.no_grad():
        torch.testing.assert_close(task._slid(x), task.model(x)[0])
        wide = torch.cat([x, x.flip(3)], 3)
        slid = task._slid(wide)
        left = task.model(wide[:, :, :, :32])[0]
    assert slid.shape == (1, 11, 32, 64)
    # The first columns are in the first window alone.
    torch.testing.assert_close(slid[..., :21], left[..., :21])


class Halves:
    """Left half class 0, right half class 1; its pixels say so."""

    classes = ("left", "right")

    def __len__(self):
        return 4

    def load(self, index):
        labels = np.zeros((20, 60), np.uint8)
        labels[:, 30:] = 1
        pixels = np.repeat((labels * 200 + 20)[..., None], 3, axis=2)
        return Image.fromarray(pixels), labels


@pytest.mark.parametrize("ratio", [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0)])
def test_a_crop_keeps_pixels_and_classes_together(ratio):
    config = config_of("augment.photometric=false", f"augment.ratio={list(ratio)}")
    data = Crops(Halves(), config)
    batch = data.batch(np.arange(4), np.arange(4))
    assert batch["image"].shape == (4, 3, 32, 32)
    red = batch["image"][:, 0] * 0.229 + 0.485
    known = batch["label"] != IGNORED
    is_right = red > 0.5
    wrong = (is_right != (batch["label"] == 1)) & known
    assert float(wrong.sum() / known.sum()) < 0.05  # the border is blurred
    # At half the size 16 of 32 rows are a border, which nobody counts; its pixels are the mean.
    share = float(known.float().mean())
    assert share == pytest.approx(0.5 if ratio[0] == 0.5 else 1.0)
    torch.testing.assert_close(
        batch["image"][~known.unsqueeze(1).expand(-1, 3, -1, -1)],
        torch.zeros(3 * int((~known).sum())),
        atol=0.02,
        rtol=0,
    )
    again = data.batch(np.arange(4), np.arange(4))
    torch.testing.assert_close(again["image"], batch["image"])


def test_distorted_colours_stay_those_of_the_thing_that_is_seen():
    """Red is brighter or paler, but never green or blue."""
    torch.manual_seed(0)
    distort, red = Distortion(), Image.new("RGB", (4, 4), (200, 60, 40))
    found = np.array([np.asarray(distort(red))[0, 0] for _ in range(200)], int)
    assert (found.argmax(1) == 0).all()
    assert len({tuple(color) for color in found.tolist()}) > 100


def test_a_crop_shows_less_than_all_of_one_class_where_it_can():
    most = {}
    for limit in (0.75, 1.0):
        config = config_of("augment.ratio=[2,2]", f"augment.most_of_a_class={limit}")
        labels = Crops(Halves(), config).batch(np.zeros(64, int), np.arange(64))["label"]
        share = (labels == 0).float().mean((1, 2))
        most[limit] = float((torch.maximum(share, 1 - share) > 0.75).float().mean())
    # A crop with enough of both begins in 17 of 161 columns: of ten one is found in two thirds.
    assert most[0.75] < 0.55 < 0.8 < most[1.0]


def test_a_frozen_backbone_stays_as_it_began_while_the_head_learns(tmp_path):
    """Runs of one seed and different lengths share the backbone alone."""
    ended = []
    for epochs in (1, 2):
        settings = ["frozen=true", f"training.epochs={epochs}"]
        run = launch.train(DEBUG, settings, run_dir=tmp_path / str(epochs))
        checkpoint = afterwards.find_checkpoint(run, "newest")
        ended.append(restored(SegmentTask(config_of(*settings)), checkpoint).model.state_dict())
    short, long = ended
    moved = {name for name in short if not torch.equal(short[name], long[name])}
    assert not any(name.startswith("pyramid.backbone.") for name in moved)
    assert any(name.startswith("head.") for name in moved)


def test_an_image_or_a_map_that_cannot_be_read_ends_nothing(tmp_path):
    folder = ade(tmp_path / "set", count=6, shape=(32, 32))
    (folder / "images/training/a/1.jpg").write_bytes(b"no picture")
    (folder / "annotations/training/a/2.png").write_bytes(b"no map")
    (folder / "annotations/validation/a/5.png").write_bytes(b"no map")
    plain = ("augment.photometric=false", "augment.ratio=[1,1]")
    task = SegmentTask(config_of(f"data.path={folder}", *plain))
    batch = task.data.batch(np.arange(4), np.arange(4))
    assert batch["replaced"].tolist() == [False, True, True, False]
    grey = (batch["image"][:, 0].amax((1, 2)) * 0.229 + 0.485) * 255 / 10
    assert grey.round().tolist() == [0, 3, 3, 3]
    task.model.eval()
    with torch.no_grad():
        found = task.evaluate(Place())
        assert task.remarks()[0].startswith("1 held-out images cannot be read and are left out")
        task.figure()
        for number in range(5):
            (folder / f"images/validation/a/{number}.jpg").write_bytes(b"no picture")
        with pytest.raises(DataError, match=r"0\.jpg or 0\.png: is no image that can be read"):
            task.evaluate(Place())
    assert 0 <= found["evaluation/pixel_accuracy"] <= 1


def test_what_is_wrong_or_doubtful_about_a_frozen_backbone():
    notes = segment.check(config_of("frozen=true"))
    assert "the frozen backbone has random weights: backbone.weights names none" in notes
    with pytest.raises(ConfigError, match=r"backbone\.drop_path: a frozen backbone drops nothing"):
        segment.check(config_of("frozen=true", "backbone.drop_path=0.1"))


@pytest.mark.parametrize("kind", ["fpn", "upernet"])
def test_logits_are_as_large_as_the_image_whatever_its_size(kind):
    model = Segmenter(config_of(f"head.kind={kind}"), 5)
    logits, second = model.train()(torch.randn(2, 3, 40, 50))
    assert logits.shape == (2, 5, 40, 50)
    assert (second is None) == (kind == "fpn")
    assert second is None or second.shape == logits.shape
    assert model.eval()(torch.randn(2, 3, 40, 50))[1] is None


@pytest.mark.slow
def test_a_network_learns_the_classes_of_pixels(tmp_path):
    settings = [
        *("data.scenes.train=96", "data.scenes.held_out=20", "training.lr=7e-4"),
        *("training.epochs=24", "training.evaluate_every_epochs=24", "head.kind=upernet"),
    ]
    run = launch.train(DEBUG, settings, run_dir=tmp_path / "run")
    found = json.loads(run.result_path.read_text())
    # All ground has 0.85 of the pixels and, of eleven classes, a mean of about 0.08.
    assert found["evaluation/iou_ground"] > 0.85
    assert found["evaluation/mean_iou"] > 0.095
    again = afterwards.evaluate(run.path)
    assert again["evaluation/mean_iou"] == pytest.approx(found["evaluation/mean_iou"])
    fewer = afterwards.evaluate(run.path, episodes=2)
    assert fewer["evaluation/mean_iou"] != pytest.approx(found["evaluation/mean_iou"])
    files = afterwards.plot(run.path)
    assert [file.name for file in files] == ["classes.png"]
    with Image.open(files[0]) as drawn:
        assert drawn.size[0] > 500


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match=r"stride 32 do not divide 50 pixels. Take 32 or 64"):
        config_of("data.size=50")
    with pytest.raises(ConfigError, match="which is a single image"):
        config_of("training.part=1")
    with pytest.raises(ConfigError, match="5 images in parts of 2 leave a single one"):
        config_of("training.batch=5", "training.part=2")
    with pytest.raises(ConfigError, match="leave a single one"):
        config_of("training.batch=5", "training.part=2", "runtime={workers: 2, min_workers: 1}")
    config_of("training.batch=5", "training.part=2", "runtime.workers=2")  # who have two together
    with pytest.raises(ConfigError, match="no range above 0"):
        config_of("augment.ratio=[2,1]")
    with pytest.raises(DataError, match=r"/nowhere/images/training: is no folder"):
        launch.check(DEBUG, ["data.path=/nowhere"])


def test_a_dropped_path_needs_blocks_that_are_known():
    backbone = BackboneConfig(name="ghostnet_050", drop_path=0.1)
    with pytest.raises(ConfigError, match=r"backbone\.drop_path: .*no block"):
        segment.check(config_of().model_copy(update={"backbone": backbone}))


@pytest.mark.ray
@pytest.mark.slow
def test_workers_with_parts_of_the_parameters_evaluate_and_save_the_whole(tmp_path):
    settings = ["runtime.workers=2", "runtime.sharded=true", "head.kind=upernet"]
    command = [sys.executable, "-m", "farreach", "train", DEBUG, *settings]
    command += ["data.scenes.held_out=7", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    again = afterwards.evaluate(tmp_path / "run")
    for name in ("evaluation/mean_iou", "evaluation/pixel_accuracy"):
        assert again[name] == pytest.approx(found[name], abs=1e-4)
