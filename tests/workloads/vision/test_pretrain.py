import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from farreach import afterwards, launch
from farreach import config as configs
from farreach.errors import ConfigError, DataError
from farreach.learn.report import Report
from farreach.learn.restored import restored
from farreach.metrics import read_metrics
from farreach.rundir import RunDirectory
from farreach.stopping import Stopped
from farreach_workloads.vision.selfsup.task import PretrainTask

DEBUG = "vision/msn_clipart_debug"


def train(path, *words):
    return launch.train(DEBUG, list(words), run_dir=path)


def result(run):
    return json.loads(run.result_path.read_text())


def test_views_that_are_made_on_the_device_have_the_same_loss():
    def loss(where):
        config = configs.load(configs.find(DEBUG), [f"views.on_device={where}"]).config
        torch.manual_seed(0)
        task = PretrainTask(config)
        batch = task.data.batch(np.arange(32), np.arange(32))
        return task.loss(task.model, batch, 0, 0)[0]

    assert torch.allclose(loss("true"), loss("false"), rtol=2e-3)


@pytest.mark.slow
def test_loaders_leave_the_views_to_the_device(tmp_path):
    run = train(tmp_path / "run", "views.on_device=true", "runtime.loaders=1")
    assert result(run)["training/updates"] == 13


@pytest.mark.slow
def test_views_come_to_agree_without_a_collapse(tmp_path):
    words = ["training.epochs=3", "training.evaluate_every_epochs=3", "probe.references=4000"]
    run = train(tmp_path / "run", *words)
    found = result(run)
    lines = [line for line in read_metrics(run.metrics_path) if "learner/cross_entropy" in line]
    # A network whose every output is the same has log 32 at best.
    assert lines[-1]["learner/cross_entropy"] < 0.8 * math.log(32)
    assert lines[-1]["learner/prior_divergence"] < 0.3
    assert lines[-1]["learner/prototypes_used"] >= 4
    again = afterwards.evaluate(run.path)
    assert again["evaluation/knn_top1"] == pytest.approx(found["evaluation/knn_top1"])
    files = afterwards.plot(run.path)
    assert [file.name for file in files] == [
        "training.png", "neighbours.png", "attention.png", "prototypes.png", "projector",
    ]  # fmt: skip

    out = afterwards.export(run.path, tmp_path / "encoder", "timm")
    config = configs.load(run.config_path).config
    task = restored(PretrainTask(config), afterwards.find_checkpoint(run, "best"))
    x = torch.randn(2, 3, 32, 32)
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    plain = afterwards.export(run.path, tmp_path / "weights", "safetensors")
    assert [file.name for file in plain.iterdir()] == ["model.safetensors"]
    weights = load_file(plain / "model.safetensors")
    assert sorted(weights) == sorted(model.state_dict())
    torch.testing.assert_close(model(x), task.encoder.features(x))


@pytest.mark.slow
def test_a_run_in_two_parts_is_the_run_in_one(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")

    def stops_at_the_sixth(report):
        report.asked = getattr(report, "asked", 0) + 1
        if report.asked >= 6:
            report._stop.signum = signal.SIGTERM
        return report.asked >= 6

    monkeypatch.setattr(Report, "stop_asked", stops_at_the_sixth)
    with pytest.raises(Stopped):
        train(tmp_path / "part")
    monkeypatch.undo()
    part = RunDirectory.open(tmp_path / "part")
    assert afterwards.find_checkpoint(part, "newest").step == 5
    launch.resume(part.path)
    weights = []
    for run in (whole, part):
        state = afterwards.find_checkpoint(run, "newest").part("learner")
        arrays = [*state["model"].values(), *state["companions"][0].values()]
        weights.append(np.concatenate([np.asarray(a, np.float64).ravel() for a in arrays]))
    np.testing.assert_array_equal(*weights)


def test_a_skewed_prior_says_where_training_would_collapse():
    notes = launch.check(DEBUG, ["method.prior.kind=power", "method.prior.exponent=1"])
    assert any("cross-entropy of 1.46" in note for note in notes), notes


def test_views_that_patches_do_not_fill_are_named():
    notes = launch.check(DEBUG, ["views.small_size=12", "views.small=1"])
    assert any("last 4 rows and columns of images of 12 pixels" in note for note in notes), notes
    with pytest.raises(ConfigError, match=r"views\.small_size: 12 pixels have no room for a patch"):
        launch.check(
            DEBUG, ["views.small_size=12", "views.small=1", "backbone.options.patch_size=16"]
        )


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="5000 images at a time, of 4235 in all"):
        launch.check(DEBUG, ["training.batch=5000"])


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_as_if_nothing_had_happened(tmp_path):
    words = [
        "training.epochs=1",
        "training.checkpoint_every_epochs=0.1",
        "training.evaluate_every_epochs=1",
    ]
    whole = train(tmp_path / "whole", *words)
    command = [sys.executable, "-m", "farreach", "train", DEBUG, *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.Popen([*command, "--run-dir", str(tmp_path / "killed")], env=environment)
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step_*")) and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    run = RunDirectory.open(tmp_path / "killed")
    assert afterwards.find_checkpoint(run, "newest").step < 132
    launch.resume(run.path)
    losses = []
    for path in (whole.path, run.path):
        state = afterwards.find_checkpoint(RunDirectory.open(path), "newest").part("learner")
        arrays = [*state["model"].values(), *state["companions"][0].values()]
        losses.append(np.concatenate([np.asarray(a, np.float64).ravel() for a in arrays]))
    np.testing.assert_array_equal(*losses)
