"""Keys that actors encode ahead of time: by which weights, by whom, and what a death changes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from farreach import config as configs
from farreach import launch
from farreach.checkpoint import CheckpointStore
from farreach.errors import ConfigError
from farreach.learn.place import Place
from farreach_workloads.retrieval import keys_ahead, pretrain, stores

MINI = "retrieval/debian_mini_debug"
BATCH = 12


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def words_of(cache, *more):
    return [
        f"data.cache={cache}",
        "data.vocabulary=1500",
        "probe.documents=120",
        "probe.queries=20",
        "contrast.queue=100",
        "contrast.momentum=0.5",
        f"training.batch={BATCH}",
        "training.lr=1.0e-2",
        *more,
    ]


def part_of(run):
    return CheckpointStore(run / "checkpoints").newest().part("learner")


def trained_by_hand(task, updates):
    """Trains in this process; the moving averages after so many updates, oldest first."""
    optimizer = task.optimizer()
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    averages = [dict(task.method.follower.state_dict())]
    for step in range(updates):
        averages[step] = {name: value.clone() for name, value in averages[step].items()}
        positions = np.arange(BATCH * step, BATCH * (step + 1))
        optimizer.zero_grad()
        # In parts, as with training.part.
        for part in task.data.parts(positions, positions, 5):
            loss, metrics = task.loss(task.model, part, step, 0)
            (loss * len(part["place"]) / BATCH).backward()
        assert metrics["learner/key_age"] == step - max(0, step // 3 - 1) * 3
        optimizer.step()
        task.after_update(step)
        averages.append(dict(task.method.follower.state_dict()))
    return averages


def test_keys_are_those_of_the_average_when_the_block_before_began(cache):
    """Blocks of 3: updates 0 to 5 use the first weights, 6 to 8 those after 3, 9 those after 6."""
    words = words_of(cache, "contrast.ahead=3", "encoder.dropout=0", "contrast.queue=1000")
    config = configs.load(configs.find(MINI), words).config
    stores.prepare(config)
    task = pretrain.make_task(config)
    task.begin(0, 10, Place(), None)
    averages = trained_by_hand(task, 10)
    task.end()
    encoder = task.method.follower.eval()
    for step, since in enumerate([0, 0, 0, 0, 0, 0, 3, 3, 3, 6]):
        positions = np.arange(BATCH * step, BATCH * (step + 1))
        batch = task.data.batch(positions, positions)
        encoder.load_state_dict(averages[since])
        with torch.no_grad():
            expected = encoder(batch["key"], batch["key_length"])
        found = task.method.queue.keys[BATCH * step : BATCH * (step + 1)]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert (task.method.queue.written[BATCH * step : BATCH * (step + 1)] == step).all()


def test_keys_drop_out_by_the_number_of_the_update(cache):
    words = words_of(cache, "contrast.ahead=3", "encoder.dropout=0.3")
    config = configs.load(configs.find(MINI), words).config
    stores.prepare(config)
    one, other = (keys_ahead.KeyEncoder(config, torch.device("cpu")) for _ in range(2))
    weights = {name: value.numpy() for name, value in one._encoder.state_dict().items()}
    before = torch.random.get_rng_state()
    first = one.encode_with(weights, 0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.shape == (BATCH, 32)
    torch.manual_seed(99)
    again = other.encode_with(weights, 5)
    np.testing.assert_array_equal(other.encode_with(weights, 0), first)
    np.testing.assert_array_equal(one.encode_with(weights, 5), again)
    off = configs.load(configs.find(MINI), [*words, "contrast.key_dropout=false"]).config
    plain = keys_ahead.KeyEncoder(off, torch.device("cpu")).encode_with(weights, 0)
    assert np.abs(plain - first).max() > 1e-2


def test_settings_that_do_not_go_together_are_named(cache):
    for words, match in {
        ("contrast.ahead=4", "runtime.workers=1"): "key_encoders: contrast.ahead has keys encoded",
        ("runtime.key_encoders=1", "runtime.workers=1"): "key_encoders: encode keys ahead of time",
        ("contrast.ahead=4", "runtime.key_encoders=1"): r"runtime\.workers is 0",
        ("contrast.ahead=33",): r"contrast\.ahead.* 32",
    }.items():
        with pytest.raises(ConfigError, match=match):
            configs.load(configs.find(MINI), words_of(cache, *words))


def test_ray_is_asked_for_who_encodes():
    words = ["contrast.ahead=4", "runtime.workers=2", "runtime.key_encoders=3", "runtime.gpus=1"]
    demands = pretrain.demand(configs.load(configs.find(MINI), words).config)
    (found,) = [demand for demand in demands if demand.role == "key-encoder"]
    assert (found.count, dict(found.resources)) == (3, {"CPU": 1.0, "GPU": 1.0})
    growing = [*words, "runtime.min_workers=1"]
    (found,) = [
        demand
        for demand in pretrain.demand(configs.load(configs.find(MINI), growing).config)
        if demand.role == "key-encoder"
    ]
    assert found.resources["CPU"] == 0  # Ray Train takes all CPUs of a machine then
    assert not pretrain.demand(configs.load(configs.find(MINI)).config)


def events_of(run):
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.use_:DeprecationWarning")  # settings of Ray Data
def test_actors_change_nothing_and_neither_do_their_deaths(ray_local, cache, tmp_path):
    """Two workers and two encoders, both killed on the way, end as one process alone does."""
    words = words_of(
        cache, "contrast.ahead=3", "encoder.dropout=0", "training.epochs=40", "training.lr=1.0e-3"
    )
    launch.train(MINI, words, run_dir=tmp_path / "alone")
    more = ["runtime.workers=2", "runtime.cpus=0.5", "runtime.key_encoders=2"]
    run = tmp_path / "run"
    killed = []

    def kill():
        deadline = time.monotonic() + 120
        while len(killed) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
            if not (run / "events.jsonl").exists():
                continue
            pids = {}
            for event in events_of(run):
                pids |= event.get("pids", {})
            for role, pid in pids.items():
                if pid not in killed and role.startswith("key-encoder"):
                    killed.append(pid)
                    os.kill(pid, signal.SIGKILL)
                    time.sleep(1.0)
                    break

    killer = threading.Thread(target=kill)
    killer.start()
    launch.train(MINI, [*words, *more], run_dir=run)
    killer.join()
    deaths = [event for event in events_of(run) if event["event"] == "actor_died"]
    assert len(deaths) == len(killed) == 2
    for death in deaths:
        assert death["role"].startswith("key-encoder-")
        assert death["cause"] == "signal"
        assert death["lost"] == "what it was working on"
    one, other = part_of(tmp_path / "alone"), part_of(run)
    assert one["step"] == other["step"] == 40
    np.testing.assert_allclose(
        other["task"]["queue"]["keys"], one["task"]["queue"]["keys"], rtol=1e-3, atol=1e-3
    )
    for name, value in one["model"].items():
        np.testing.assert_allclose(other["model"][name], value, rtol=1e-2, atol=1e-3)
    assert not _processes_of(killed)


def _processes_of(pids):
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_bit_for_bit(cache, tmp_path):
    """Within a block, whose keys are encoded with weights that were there before."""
    words = words_of(cache, "contrast.ahead=4", "training.epochs=11", "training.keep_checkpoints=9")
    launch.train(MINI, words, run_dir=tmp_path / "whole")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "farreach", "train", MINI, *words, "--run-dir", str(run)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(run.glob("checkpoints/step_*"))) < 6:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    launch.resume(run)
    one, other = part_of(tmp_path / "whole"), part_of(run)
    for name, value in one["model"].items():
        np.testing.assert_array_equal(other["model"][name], value)
    np.testing.assert_array_equal(other["task"]["queue"]["keys"], one["task"]["queue"]["keys"])
    for name, value in one["task"]["ahead"]["newer"].items():
        np.testing.assert_array_equal(other["task"]["ahead"]["newer"][name], value)
