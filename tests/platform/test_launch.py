import errno
import os
import pickle
import re
import signal
import threading

import pytest
from tests.platform import counting_workload

from farreach import afterwards, launch
from farreach.config import Config
from farreach.errors import ConfigError, RunDirectoryError
from farreach.launch import training_time_s
from farreach.stopping import Stopped, StopRequest
from farreach.unforeseen import explained
from farreach.workload import Evaluation


def test_the_first_signal_asks_and_a_second_ctrl_c_aborts():
    with StopRequest() as stop:
        assert stop.signum is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_in_another_thread_signals_stay_as_they_are():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def enter():
        with StopRequest() as stop:
            seen.append((stop.signum, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_stopped_survives_pickling_with_its_exit_code(signum, code):
    assert pickle.loads(pickle.dumps(Stopped(signum))).exit_code == code


def test_training_time_leaves_out_the_pauses():
    events = [
        {"event": "started", "time": 100.0},
        {"event": "checkpoint", "time": 130.0},  # killed some time later
        {"event": "resumed", "time": 500.0},
        {"event": "stopped", "time": 510.0},
        {"event": "resumed", "time": 900.0},
        {"event": "finished", "time": 905.0},
    ]
    assert training_time_s(events) == 30.0 + 10.0 + 5.0
    assert training_time_s([]) == 0.0


@pytest.fixture
def count(tmp_path, monkeypatch):
    """A configuration of the counting workload, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "count.yaml"
    path.write_text("workload: tests.platform.counting_workload\nname: count\n")
    return str(path)


@pytest.mark.parametrize("name", ["my run", "a/b", "-x"])
def test_a_name_that_no_folder_can_have_is_a_mistake_of_the_configuration(count, name):
    for look in (launch.check, launch.trainable, launch.train):
        with pytest.raises(ConfigError, match=r"count.yaml: name: run name .* cannot name a f"):
            look(count, [f"name='{name}'"])


def test_commands_to_go_on_with_can_be_copied_where_a_path_has_spaces(count, tmp_path, capsys):
    place = tmp_path / "my $runs" / "first"
    launch.train(count, run_dir=place)
    shown = capsys.readouterr().out
    assert f"continue with farreach resume '{place}'\n" in shown
    assert f"watch     tensorboard --logdir '{place}/tensorboard'\n" in shown
    with pytest.raises(RunDirectoryError, match=re.escape(f"`farreach resume '{place}'`")):
        launch.train(count, run_dir=place)


def test_what_an_evaluation_has_found_is_told_though_it_cannot_be_kept(count, monkeypatch, capsys):
    run = launch.train(count, run_dir="first")
    found = Evaluation(lambda config, run, checkpoint, settings: {"knn/top1": 0.5}, Config)
    monkeypatch.setattr(counting_workload, "EVALUATIONS", {"knn": found}, raising=False)
    (run.path / "evaluations").write_text("no folder")
    assert afterwards.evaluate("first", what="knn")["knn/top1"] == 0.5
    assert "note      it is not kept: cannot write first/evaluations" in capsys.readouterr().err


def test_a_disk_that_is_read_only_is_one_line(count):
    run = launch.train(count, run_dir="first")
    error = OSError(errno.EROFS, "Read-only file system", "first/figures/1.png")
    told = "^cannot write first/figures/1.png: Read-only file system. Free or mount the disk"
    with pytest.raises(RunDirectoryError, match=told), explained(run):
        raise error
    assert not run.error_path.exists()
