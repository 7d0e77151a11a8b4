"""What a user is told of a death, from what Ray and the kernel say of it."""

import signal

import pytest

from farreach.failures import Facts, Fault, Report, explain, fault_of, is_echo

# How Ray 2.60 words them, shortened.
BROKE = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: Host\n\tpid: 4241\n"
    "\tip: 192.0.2.2\nThe actor is dead because its worker process has died. Worker exit type: "
    "SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2."
)
OUT_OF_MEMORY = (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "192.0.2.2, ID: b808) was 7.59GB used / 23.54GB limit (0.322465)\nOOM kill reason: Memory "
    "usage 8094097408B exceeded threshold of 8063206912B"
)
NODE_DIED = (
    "The actor died because its node has died. Node Id: 6e50\n\tthe actor's node was terminated "
    "unexpectedly: health check failed due to missing too many heartbeats"
)
DIED = ("ActorDiedError", "RayActorError", "RayError")


def told(text=BROKE, names=DIED, preempted=False, trace="", **facts):
    return explain(Fault(names, text, preempted, trace), Facts("learner", **facts))


@pytest.mark.parametrize(
    ("report", "cause", "detail"),
    [
        (told(status=9), "signal", "signal 9 (SIGKILL): somebody killed the process"),
        (told(status=9, oom_kills=1), "out_of_memory", "the kernel's out-of-memory killer"),
        (told(status=11), "signal", "signal 11 (SIGSEGV): compiled code crashed"),
        (told(log="x\n*** SIGABRT received at time=1"), "signal", "signal 6 (SIGABRT)"),
        (told(status=3 << 8), "exit", "with exit code 3"),
        (told("Worker exits with an exit code 4.", status=0), "exit", "with exit code 4"),
        (told("exit code 1. The process receives a SIGTERM."), "signal", "signal 15 (SIGTERM)"),
        (told(), "signal", "signal 9 (SIGKILL), or it left without a word"),
        (told(oom_kills=2), "out_of_memory", "the kernel's out-of-memory killer was at work"),
        (
            told(OUT_OF_MEMORY, ("OutOfMemoryError", "RayError")),
            "out_of_memory",
            "Ray's monitor ended it at 7.59GB of 23.54GB",
        ),
        (told(NODE_DIED), "node_lost", "its machine no longer answers"),
        (told("", ("ActorUnavailableError", *DIED[1:]), node_is_gone=True), "node_lost", "answers"),
        (told("", ("ActorUnavailableError", *DIED[1:])), "unknown", "the network"),
        (told("", preempted=True), "preempted", "its machine was taken away"),
        (told(status=9, notice_s=7.9), "preempted", "taken away, 8 s after its notice"),
        (told("it was killed by `ray.kill`."), "ended", "through Ray"),
        (told("E", ("RayTaskError", "RayError"), trace="a\nE: b\n"), "exception", "it raised E: b"),
    ],
)
def test_causes_are_told_apart(report, cause, detail):
    assert report.cause == cause
    assert detail in report.detail


def test_memory_that_is_gone_is_no_signal_of_its_own():
    """A process that a crash ended while the kernel was short of memory has crashed."""
    assert told(status=11, oom_kills=1).cause == "signal"


def test_where_it_was_is_taken_from_the_message_if_nobody_has_seen_it():
    assert (told().pid, told().node) == (4241, "192.0.2.2")
    assert (told(pid=7, node="a (1.2.3.4)").pid, told(node="a").node) == (7, "a")


def test_an_exception_brings_its_own_trace_and_those_that_wrap_it_do_not():
    class WrappedError(Exception):
        health_check_failure = None

    try:
        raise ValueError("no such room")
    except ValueError as error:
        wrapper = WrappedError("A worker health check failed.")
        wrapper.health_check_failure = error
    report = explain(wrapper, Facts("worker-1"))
    assert report.cause == "exception"
    assert report.detail == "it raised ValueError: no such room"
    assert 'raise ValueError("no such room")' in report.trace
    assert "no such room" in fault_of(wrapper).text


def test_a_block_says_who_where_why_what_was_lost_and_what_happens_next():
    samples = [(8.0, 400 << 20), (6.0, 900 << 20), (4.0, 2 << 30)]
    report = Report(
        "rollout-3", "signal", "signal 9 (SIGKILL): somebody killed the process", "a (10.0.0.7)",
        4242, samples, "", "1,600 steps", "a new one takes its place",
    )  # fmt: skip
    assert report.lines() == [
        "rollout-3 died",
        "  cause   signal 9 (SIGKILL): somebody killed the process",
        "  where   a (10.0.0.7), pid 4242",
        "  memory  0.39, 0.88, 2.00 GiB, from 8 s before its end to 4 s",
        "  lost    1,600 steps",
        "  next    a new one takes its place",
    ]
    assert report.fields() == {
        "role": "rollout-3",
        "node": "a (10.0.0.7)",
        "pid": 4242,
        "cause": "signal",
        "detail": "signal 9 (SIGKILL): somebody killed the process",
        "lost": "1,600 steps",
        "next": "a new one takes its place",
        "memory_mb": [[8.0, 400], [6.0, 900], [4.0, 2048]],
    }


def test_a_long_trace_is_shown_from_its_end_and_kept_whole():
    trace = "\n".join(f"line {number}" for number in range(100)) + "\nValueError: odd"
    report = told("", ("RayTaskError", "RayError"), trace=trace)
    assert report.lines()[-1] == "  | ValueError: odd"
    assert len(report.lines()) < 50
    assert report.fields()["trace"] == trace


def test_who_only_lost_touch_with_another_is_an_echo():
    lost = "RuntimeError: [../gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]"
    assert is_echo(told("", ("RuntimeError",), trace=lost))
    assert not is_echo(told("", ("ValueError",), trace="ValueError: odd"))
    assert not is_echo(told(status=signal.SIGKILL))
