"""Commands that start Ray on a machine: their options, ports, and who may reach what."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator

from farreach.cluster.findings import Finding, did_you_mean
from farreach.yaml_source import KeyPath

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Resources that farreach's workloads may ask for besides CPUs, GPUs and memory.
ROLES = ("rollout", "learner")
RAY_RESOURCES = ("CPU", "GPU", "TPU", "memory", "object_store_memory")

_COMMAND = re.compile(r"\bray\s+start\b(.*?)(?=;|&&|\|\||\||\n|$)", re.DOTALL)
_AUTH_MODE = re.compile(r"\bRAY_AUTH_MODE=[\"']?(\w+)")


@functools.cache
def known_options() -> frozenset[str]:
    """Options of `ray start` in the installed Ray, without their dashes."""
    from ray.scripts.scripts import start

    return frozenset(
        option.lstrip("-")
        for parameter in start.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    )


def started(command: str) -> list[dict[str, str]]:
    """The options of every `ray start` in a shell command, "" for those without a value."""
    found = []
    for match in _COMMAND.finditer(command):
        try:
            words = shlex.split(match[1])
        except ValueError:  # quotes that are closed behind what looked like the end
            continue
        options: dict[str, str] = {}
        name = None
        for word in words:
            if word.startswith("--"):
                name, _, value = word[2:].partition("=")
                options[name] = value
            elif name is not None and not options[name]:
                options[name] = word
        found.append(options)
    return found


def auth_mode(command: str) -> str | None:
    """What a command sets RAY_AUTH_MODE to."""
    found = _AUTH_MODE.search(command)
    return found[1] if found else None


def option_findings(path: KeyPath, options: dict[str, str]) -> Iterator[Finding]:
    """Options that `ray start` does not have, and a dashboard that everybody reaches.

    Args:
        path: keys that lead to the command.
        options: see `started`.
    """
    for name in options:
        if name not in known_options():
            near = did_you_mean(name, known_options())
            yield Finding(path, f"`ray start` has no option --{name}.{near}")
    host = options.get("dashboard-host", LOOPBACK[0])
    if host not in LOOPBACK:
        yield Finding(
            path,
            f"--dashboard-host={host} opens the dashboard, through which code can be run, to the "
            "network. Leave it out, and reach it through an SSH tunnel, `ray dashboard FILE`.",
        )


def resource_findings(path: KeyPath, names: list[str]) -> Iterator[Finding]:
    """Names of resources that no workload asks for.

    Args:
        path: keys that lead to the mapping that they are written in.
        names: its keys.
    """
    known = (*RAY_RESOURCES, *ROLES)
    for name in names:
        if name in known or name.startswith(("accelerator_type:", "node:", "TPU-")):
            continue
        near = did_you_mean(name, known) or did_you_mean(name.upper(), known)
        message = f"no workload of farreach asks for {name!r}.{near}"
        if near:
            yield Finding((*path, name), message)
        else:
            message += f" Those of roles are {' and '.join(ROLES)}; others need runtime.resources."
            yield Finding((*path, name), message, "warning")
