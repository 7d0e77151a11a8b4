import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.platform.data.test_instances import coco

from farreach import afterwards, launch
from farreach import config as configs
from farreach.data.instances import Instances
from farreach.errors import DataError
from farreach.rundir import RunDirectory
from farreach_workloads.vision import detect
from farreach_workloads.vision.config import BackboneConfig
from farreach_workloads.vision.dense.config import DetectAugmentConfig
from farreach_workloads.vision.detect import DetectTask, Views, augmented

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'workloads'}",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
DEBUG = "vision/detect_scenes_debug"


def config_of(*overrides):
    return configs.load(configs.find(DEBUG), list(overrides)).config


def picture(width=40, height=20):
    """A white square of 6 x 5 pixels at (10, 4), and its annotation."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[4:9, 10:16] = 255
    objects = Instances(
        np.array([[10, 4, 16, 9]], np.float32),
        np.array([2]),
        (pixels[None, ..., 0] > 0),
        np.array([False]),
    )
    return Image.fromarray(pixels), objects


def check_together(image, objects):
    solid = np.asarray(image)[..., 0] > 127
    np.testing.assert_array_equal(objects.masks[0], solid)
    rows, columns = np.nonzero(solid)
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert objects.boxes[0].tolist() == edges


def test_mirrored_objects_stay_where_their_pixels_are():
    seen = set()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        image, objects = augmented(*picture(), DetectAugmentConfig(), rng)
        check_together(image, objects)
        seen.add(float(objects.boxes[0, 0]))
    assert seen == {10.0, 24.0}


def test_a_crop_cuts_objects_or_leaves_them_out():
    config = DetectAugmentConfig(flip=False, crop=(300, 420))
    sizes, counts = set(), set()
    for seed in range(60):
        image, objects = augmented(*picture(), config, np.random.default_rng(seed))
        assert objects.masks.shape[1:] == (image.height, image.width)
        sizes.add(image.size)
        counts.add(len(objects))
        if len(objects):
            check_together(image, objects)
    assert counts == {0, 1}
    assert (40, 20) in sizes, "every other image stays whole"
    # 300 to 420 of 400 to 600 pixels of the shorter side, which has 20: 10 or more are left.
    assert min(height for _, height in sizes) >= 9
    assert len(sizes) > 10


def test_images_of_different_sizes_share_a_frame():
    class Two:
        classes = ("a", "b", "c")

        def __len__(self):
            return 2

        def image(self, index):
            return picture(*((40, 20), (16, 30))[index])[0]

        def instances(self, index):
            objects = picture(*((40, 20), (16, 30))[index])[1]
            return objects.select(np.arange(1 - index))

    batch = Views(Two(), config_of("augment.flip=false")).batch(np.arange(2), np.arange(2))
    assert batch["image"].shape == (2, 3, 30, 40)
    assert batch["size"].tolist() == [[20, 40], [30, 16]]
    assert batch["count"].tolist() == [1, 0]
    assert batch["label"].tolist() == [[3], [0]]
    assert batch["boxes"][0].tolist() == [[10, 4, 16, 9]]
    assert int(batch["mask"].sum()) == 30
    assert float(batch["image"].sum()) == pytest.approx(2 * 3 * 30)


def test_the_five_losses_are_finite_without_any_object_and_add_up():
    task = DetectTask(config_of())
    task.model.train()
    batch = task.data.batch(np.arange(2), np.arange(2))
    loss, shown = task.loss(task.model, batch, 0, 0)
    names = {"classifier", "box_reg", "mask", "objectness", "rpn_box_reg"}
    assert float(shown.pop("data/replaced_share")) == 0
    assert set(shown) == {f"learner/{name}_loss" for name in names}
    assert float(loss.detach()) == pytest.approx(sum(float(v.detach()) for v in shown.values()))
    loss.backward()
    assert [n for n, p in task.model.named_parameters() if p.grad is None] == []
    empty = dict(batch) | {"count": torch.zeros(2, dtype=torch.int64)}
    loss, _ = task.loss(task.model, empty, 0, 0)
    assert torch.isfinite(loss)


def test_an_image_that_cannot_be_read_ends_nothing(tmp_path):
    folder = coco(tmp_path / "set")
    for part in ("train2017", "val2017"):
        (folder / part / "3.png").write_bytes(b"no picture")
    config = config_of(f"data.path={folder}", "augment.flip=false")
    batch = DetectTask(config).data.batch(np.arange(2), np.arange(2))
    assert batch["replaced"].tolist() == [True, False]  # they are in the order of their ids
    assert torch.equal(batch["image"][0], batch["image"][1])
    assert batch["count"].tolist() == [1, 1]
    assert torch.equal(batch["mask"][0], batch["mask"][1])
    words = [f"data.path={folder}", "training.epochs=2", "training.batch=2"]
    run = launch.train(DEBUG, words, run_dir=tmp_path / "run")
    assert run.read_result()["evaluation/images"] == 1
    notes = [event["text"] for event in run.events() if event["event"] == "remark"]
    assert any("1 held-out images cannot be read and are left out" in note for note in notes)
    (folder / "train2017" / "7.png").unlink()
    (folder / "train2017" / "7.png").write_bytes(b"no picture either")
    with pytest.raises(DataError, match=r"3\.png: is no image that can be read"):
        launch.check(DEBUG, words)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resmlp_s12"])
def test_a_backbone_of_one_size_gets_its_size(name):
    depth = "num_blocks" if name == "resmlp_s12" else "depth"
    backbone = BackboneConfig(name=name, options={depth: 2})
    task = DetectTask(config_of().model_copy(update={"backbone": backbone}))
    assert task.model.fixed
    task.model.eval()
    with torch.no_grad():
        found = task.predict(picture()[0], torch.device("cpu"))
    assert found.masks.shape[1:] == (20, 40)
    assert "are bent" in detect.check(task._config)[1]


@pytest.mark.slow
def test_a_detector_learns_and_two_workers_evaluate_as_one(tmp_path):
    settings = ["data.scenes.train=64", "data.scenes.held_out=9", "training.epochs=6"]
    settings += ["training.evaluate_every_epochs=6", "training.lr=1e-3", "runtime.workers=2"]
    settings += ["training.precision=bfloat16"]
    command = [sys.executable, "-m", "farreach", "train", DEBUG, *settings]
    command += ["--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run = RunDirectory.open(tmp_path / "run")
    found = json.loads(run.result_path.read_text())
    assert found["evaluation/images"] == 9
    assert found["evaluation/box_ap50"] > 0
    joined = [e for e in run.events() if e["event"] == "worker"]
    assert sorted(e["rank"] for e in joined) == [0, 1]
    assert os.getpid() not in {e["pid"] for e in joined}
    again = afterwards.evaluate(run.path)
    for name in ("evaluation/box_ap50", "evaluation/mask_ap50"):
        assert again[name] == pytest.approx(found[name])
    files = afterwards.plot(run.path)
    assert [file.name for file in files] == ["objects.png"]


def test_every_weight_is_saved_once():
    model = DetectTask(config_of()).model
    saved = sum(value.numel() for value in model.state_dict().values())
    own = sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in model.buffers())
    assert saved == own


def test_a_range_of_crops_and_sides_of_images_are_refused_where_nothing_can_come_of_them():
    with pytest.raises(ValueError, match=r"\[600, 384\] is no range from 32 pixels on"):
        DetectAugmentConfig(crop=(600, 384))
    with pytest.raises(ValueError, match="0 pixels are too few"):
        DetectAugmentConfig(short_sides=(480, 0))
    assert DetectAugmentConfig(crop=(384, 600), short_sides=(480, 800)).crop == (384, 600)
