import os
import pickle
import signal
import threading

import pytest

from farreach.launch import training_time_s
from farreach.stopping import Stopped, StopRequest


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
