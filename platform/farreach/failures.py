"""Why a process died, what that cost and what happens next: one report instead of a stack trace.

Ray says the same of a process that was killed, has crashed or has left without a word. What tells
them apart was seen from outside (`actors/witness.py`): how the kernel says that it ended, the last
lines of its log, its memory, and whether its machine had been told to leave. `explain` puts both
together; it knows Ray's errors by their names alone, so that it needs no Ray.
"""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from farreach.console import warn

Cause = Literal[
    "out_of_memory", "signal", "exit", "node_lost", "preempted", "exception", "ended", "unknown"
]

# The raylet's words → the signal, where the kernel is too old to tell how a process ended.
_CRASH = re.compile(r"\*\*\* (SIG[A-Z]+) received")
_EXIT_CODE = re.compile(r"exits with an exit code (-?\d+)")
_USED = re.compile(r"was ([\d.]+ ?[GMK]?B) used / ([\d.]+ ?[GMK]?B) limit")
_PID, _IP = re.compile(r"\bpid[:=] ?(\d+)"), re.compile(r"\bip[:=] ?([\d.a-f:]+)", re.IGNORECASE)
_ECHO = re.compile(
    r"closed by peer|Connection reset by peer|Connection refused|Broken pipe|NCCL|gloo"
)
_TRACE_LINES = 40
_SHOWN_SAMPLES = 8


@dataclass(frozen=True)
class Fault:
    """What an error says, in a form that any process can take over.

    Attributes:
        names: of its class and of those that this is derived from.
        text: its message.
        is_preemption: Ray says that the machine was taken away after a notice.
        trace: of the exception that ended a call, as lines; empty if none did.
    """

    names: tuple[str, ...]
    text: str
    is_preemption: bool = False
    trace: str = ""


@dataclass(frozen=True)
class Facts:
    """What was seen of a process, each with its value for what nobody saw.

    Attributes:
        role: such as `rollout-3`.
        pid: on its machine.
        node: the machine, as name and address.
        status: how the kernel says that it ended: as `os.waitpid` gives it.
        log: the last lines of what it wrote to stderr.
        samples: (seconds before its end, resident bytes), oldest first.
        oom_kills: processes that the kernel's out-of-memory killer ended there meanwhile.
        node_is_gone: whether the machine no longer answers.
        notice_s: seconds between the machine's notice to leave and the death.
    """

    role: str
    pid: int | None = None
    node: str = ""
    status: int | None = None
    log: str = ""
    samples: Sequence[tuple[float, int]] = ()
    oom_kills: int = 0
    node_is_gone: bool = False
    notice_s: float | None = None


@dataclass(frozen=True)
class Report:
    """What the user is told of a death.

    Attributes:
        role: who died.
        cause: in one word, to be counted.
        detail: in one sentence.
        node, pid: where it was.
        memory: (seconds before its end, resident bytes), oldest first.
        trace: of the exception that ended it, as lines.
        lost: work that is done again or is missing.
        then: what happens next.
    """

    role: str
    cause: Cause
    detail: str
    node: str = ""
    pid: int | None = None
    memory: Sequence[tuple[float, int]] = ()
    trace: str = ""
    lost: str = ""
    then: str = ""

    def lines(self) -> list[str]:
        """The block for the terminal."""
        place = ", ".join(
            [self.node or "a machine unknown", *([f"pid {self.pid}"] * bool(self.pid))]
        )
        rows = [("cause", self.detail), ("where", place), ("memory", self._memory())]
        rows += [("lost", self.lost), ("next", self.then)]
        shown = [f"{self.role} died", *(f"  {name:<7} {text}" for name, text in rows if text)]
        trace = self.trace.rstrip().splitlines()[-_TRACE_LINES:]
        return shown + [f"  | {line}" for line in trace]

    def fields(self) -> dict[str, Any]:
        """The event's fields, as JSON takes them."""
        found: dict[str, Any] = {
            "role": self.role,
            "node": self.node,
            "pid": self.pid,
            "cause": self.cause,
            "detail": self.detail,
            "lost": self.lost,
            "next": self.then,
        }
        if self.memory:
            found["memory_mb"] = [[round(ago, 1), size >> 20] for ago, size in self.memory]
        return found | ({"trace": self.trace} if self.trace else {})

    def _memory(self) -> str:
        """Its last samples, oldest first, and over how long they were taken."""
        samples = list(self.memory)[-_SHOWN_SAMPLES:]
        if not samples:
            return ""
        sizes = ", ".join(f"{size / 2**30:.2f}" for _, size in samples)
        return f"{sizes} GiB, from {samples[0][0]:.0f} s before its end to {samples[-1][0]:.0f} s"


def show(report: Report) -> None:
    """Print a report to stderr."""
    warn("\n".join(report.lines()))


def is_echo(report: Report) -> bool:
    """Whether a process only says that another, which it worked with, no longer answers."""
    return report.cause == "exception" and _ECHO.search(report.trace) is not None


def fault_of(error: BaseException) -> Fault:
    """What an error says; of those that Ray wraps, the one inside."""
    inner = getattr(error, "health_check_failure", None)  # Ray Train's wrapper
    if isinstance(inner, BaseException):
        return fault_of(inner)
    names = tuple(kind.__name__ for kind in type(error).__mro__)
    is_preemption = bool(getattr(error, "preempted", False))
    trace = ""
    if "RayTaskError" in names:
        trace = str(getattr(error, "traceback_str", "")) or str(error)
    elif "RayError" not in names:
        trace = "".join(traceback.format_exception(error))
    elif getattr(error, "_actor_init_failed", False) or "creation task" in str(error):
        trace = str(error)
    return Fault(names, str(error), is_preemption, trace)


def explain(
    error: BaseException | Fault, facts: Facts, *, lost: str = "", then: str = ""
) -> Report:
    """Why a process died.

    Args:
        error: what its caller was told.
        facts: what was seen of it.
        lost: work that is done again or is missing.
        then: what happens next.
    """
    fault = error if isinstance(error, Fault) else fault_of(error)
    cause, detail = _cause(fault, facts)
    return Report(
        facts.role,
        cause,
        detail,
        facts.node or _found(_IP, fault.text),
        facts.pid or int(_found(_PID, fault.text) or 0) or None,
        facts.samples,
        fault.trace if cause == "exception" else "",
        lost,
        then,
    )


def _cause(fault: Fault, facts: Facts) -> tuple[Cause, str]:
    """The cause, from what says most to what says least."""
    if "OutOfMemoryError" in fault.names and "RayError" in fault.names:
        return "out_of_memory", _of_memory(fault.text)
    is_gone = facts.node_is_gone or _speaks_of_node(fault)
    if fault.is_preemption or (facts.notice_s is not None and not fault.trace):
        notice = "" if facts.notice_s is None else f", {facts.notice_s:.0f} s after its notice"
        return "preempted", f"its machine was taken away{notice}"
    if fault.trace:
        return "exception", f"it raised {_last_line(fault)}"
    if is_gone:
        return "node_lost", "its machine no longer answers"
    if "ray.kill" in fault.text or "INTENDED_USER_EXIT" in fault.text:
        return "ended", "it was ended through Ray"
    return _ending(fault, facts)


def _ending(fault: Fault, facts: Facts) -> tuple[Cause, str]:
    """How a single process ended, its machine being there."""
    number = _signal_number(fault, facts)
    if number == signal.SIGKILL and facts.oom_kills > 0:
        return "out_of_memory", "the kernel's out-of-memory killer ended it (signal 9, SIGKILL)"
    if number is not None:
        return "signal", f"signal {number} ({_signal_name(number)}): {_meaning(number)}"
    code = _exit_code(fault, facts)
    if code is not None:
        return "exit", f"the process left by itself with exit code {code}"
    if "ActorUnavailableError" in fault.names:
        return "unknown", "it does not answer; the network may be interrupted"
    if facts.oom_kills > 0:
        return "out_of_memory", "the kernel's out-of-memory killer was at work when it ended"
    if "unexpectedly" in fault.text:
        return "signal", "signal 9 (SIGKILL), or it left without a word (`os._exit`)"
    return "unknown", " ".join(fault.text.split())[:300]


def _signal_number(fault: Fault, facts: Facts) -> int | None:
    if facts.status is not None and facts.status & 0x7F:
        return facts.status & 0x7F
    if found := _CRASH.search(facts.log):
        return int(getattr(signal, found[1], 0)) or None
    return int(signal.SIGTERM) if "receives a SIGTERM" in fault.text else None


def _exit_code(fault: Fault, facts: Facts) -> int | None:
    if found := _EXIT_CODE.search(fault.text):  # Ray's workers end with 0 whatever they say
        return int(found[1])
    return None if facts.status is None else (facts.status >> 8) & 0xFF


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "no name"


def _meaning(number: int) -> str:
    if number == signal.SIGKILL:
        return "somebody killed the process"
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return "somebody asked the process to end"
    return "compiled code crashed; its log has the trace"


def _speaks_of_node(fault: Fault) -> bool:
    return (
        "NodeDiedError" in fault.names
        or "LocalRayletDiedError" in fault.names
        or "its node has died" in fault.text
        or "node was terminated" in fault.text
    )


def _of_memory(text: str) -> str:
    found = _USED.search(text)
    use = f" at {found[1]} of {found[2]}" if found else ""
    return f"out of memory: Ray's monitor ended it{use} on its machine"


def _last_line(fault: Fault) -> str:
    lines = [line for line in fault.trace.strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else fault.names[0]


def _found(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""
