"""All checks in their order, what they found, and how it is shown."""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import farreach
from farreach import memory, runtime
from farreach.doctor import machine, packages, probes, ray_here, runs
from farreach.doctor.finding import Finding, Level, fault, warning

WORDS: dict[Level, str] = {"fault": "faults", "warning": "warnings", "ok": "ok"}


class Check(NamedTuple):
    """One thing to look at: its name, and what looks."""

    name: str
    look: Callable[[], Finding | Sequence[Finding]]


class Named(NamedTuple):
    """A finding and the check that made it."""

    check: str
    finding: Finding


def checks(root: Path, variables: Mapping[str, str] = os.environ) -> list[Check]:
    """All checks; what later ones need has been looked at by those before.

    Args:
        root: where runs live.
        variables: of the environment.
    """
    wanted, installed = packages.wanted_here, packages.installed_version
    temporary = ray_here.temporary_folder(variables)
    processes = ray_here.ray_processes()
    alive = [process.session for process in processes]
    version = ".".join(map(str, sys.version_info[:3]))
    hiding = packages.shadows(packages.folders_looked_into(), packages.standard_library())
    light = [
        Check("shadowing", lambda: packages.shadowing(hiding)),
        Check("python", lambda: packages.python_version(version, wanted())),
        Check("packages", lambda: packages.requirements(wanted(), installed)),
        Check("ray", lambda: packages.pins_of_ray(packages.requirements_of_ray(), installed)),
        Check("faiss", lambda: packages.faiss_wheels(installed)),
    ]
    heavy = _with_imports(variables) if not hiding else []
    here = [
        Check(
            "open files", lambda: machine.open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
        ),
        Check("shared memory", _shared_memory),
        Check("disk", lambda: machine.disk(machine.disks_of([root, temporary]))),
        Check("memory", _memory),
        Check("clock", lambda: _clock(root)),
        Check("host name", _host_name),
        Check("variables", lambda: machine.environment(variables)),
        Check("ports", lambda: ray_here.ports(ray_here.taken_ports())),
        Check("token", lambda: ray_here.tokens(variables, ray_here.token_file(variables))),
        Check("cluster", lambda: ray_here.address(variables.get("RAY_ADDRESS"))),
        Check("ray folder", lambda: ray_here.folder_length(temporary)),
        Check("ray processes", lambda: ray_here.left_processes(processes)),
        Check("ray sessions", lambda: ray_here.left_sessions(ray_here.sessions(temporary, alive))),
        Check("runs", lambda: runs.runs(runs.runs_below(root), root)),
    ]
    return [*light, *heavy, *here]


def _with_imports(variables: Mapping[str, str]) -> list[Check]:
    """Checks of what processes tell that import; they run when the first is looked at."""
    answers: list[probes.Probed] = []

    def probed() -> probes.Probed:
        if not answers:
            answers.append(probes.probe())
        return answers[0]

    def threads() -> Finding:
        own = probed().found.get(probes.TORCH, {}).get("threads")
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return machine.threads(cores, variables.get("OMP_NUM_THREADS"), own)

    return [
        Check("imports", lambda: probes.imports(probed())),
        Check("pytorch", lambda: probes.torch_at_work(probed())),
        Check("rendering", lambda: probes.rendering(probed(), variables.get("MUJOCO_GL"))),
        Check("threads", threads),
    ]


def _shared_memory() -> Finding:
    wanted = min(runtime.MAX_OBJECT_STORE_BYTES, memory.usable_bytes() // 10)
    return machine.shared_memory(machine.shared_here(), wanted, runtime.MIN_OBJECT_STORE_BYTES)


def _memory() -> Finding:
    return machine.memory(memory.physical_bytes(), memory.limit_bytes(), memory.available_bytes())


def _clock(root: Path) -> Finding:
    now = time.time()
    return machine.clock(now, *machine.file_times(root, Path(farreach.__file__).parent))


def _host_name() -> Finding:
    name = socket.gethostname()
    return machine.hostname(name, machine.own_address(name))


def look(todo: Sequence[Check]) -> list[Named]:
    """What all checks find; one that fails itself is a warning, and the others go on."""
    found = []
    for check in todo:
        try:
            findings = check.look()
        except ModuleNotFoundError as error:
            findings = fault(f"needs {error.name}, which is not installed", "pip install farreach")
        except Exception as error:
            findings = warning(
                f"could not be looked at: {type(error).__name__}: {error}",
                "look at it by hand; the other checks are not affected",
            )
        several = [findings] if isinstance(findings, Finding) else findings
        found += [Named(check.name, finding) for finding in several]
    return found


def lines(found: Sequence[Named]) -> list[str]:
    """For the terminal: findings in the order of the checks, then how many there are of each."""
    shown = []
    for name, (level, text, mend) in found:
        shown.append(f"{level:<8} {name:<14} {text}")
        if mend:
            shown.append(f"{'':<8} {'':<14} → {mend}")
    counts = Counter(one.finding.level for one in found)
    shown.append(", ".join(f"{counts[level]} {word}" for level, word in WORDS.items()))
    return shown


def as_json(found: Sequence[Named]) -> list[dict[str, str]]:
    """For programs: `check`, `level`, `text`, `mend` of each finding."""
    return [{"check": name, **finding._asdict()} for name, finding in found]
