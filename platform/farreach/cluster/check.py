"""Checks a file for Ray's launcher or for KubeRay without a cloud and without a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from farreach.cluster.findings import Finding
from farreach.cluster.kuberay import is_kubernetes, kuberay_findings, kuberay_plan
from farreach.cluster.launcher import launcher_findings, launcher_plan
from farreach.cluster.plan import Plan
from farreach.errors import ConfigError
from farreach.yaml_source import Tree, located, read_documents, source_of

_LAUNCHER_KEYS = {"cluster_name", "provider", "available_node_types"}


@dataclass(frozen=True)
class Report:
    """What was found in a file; every line begins with the file and the line.

    Attributes:
        problems: what does not work, loses work or is unsafe.
        warnings: what is hardly meant.
        notes: what is still to be filled in, or was not looked at.
        plans: what each document without a problem would launch.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    plans: tuple[Plan, ...]


def check_file(path: Path) -> Report:
    """Everything that is to be said about a file.

    Raises:
        ConfigError: it cannot be read, is malformed or empty.
    """
    documents = read_documents(path, str(path))
    if not documents:
        raise ConfigError(f"{path}: is empty.")
    lines: dict[str, list[str]] = {"problem": [], "warning": [], "note": []}
    plans = []
    for tree, sources in documents:
        findings = _findings(tree, alone=len(documents) == 1)
        told = set()  # what an alias repeats is said once
        located_findings = [(source_of(one.path, sources), one) for one in findings]
        for where, finding in sorted(located_findings, key=lambda pair: _line(pair[0])):
            if (where, finding.message) not in told:
                told.add((where, finding.message))
                lines[finding.level].append(located(where, finding.path, finding.message))
        if all(finding.level != "problem" for finding in findings):
            plan = kuberay_plan(tree) if is_kubernetes(tree) else launcher_plan(tree)
            plans += [plan] if plan else []
    problems, warnings, notes = (tuple(one) for one in lines.values())
    return Report(problems, warnings, notes, tuple(plans))


def _findings(tree: Tree, *, alone: bool) -> list[Finding]:
    if is_kubernetes(tree):
        return kuberay_findings(tree)
    if not tree.keys() & _LAUNCHER_KEYS:
        message = (
            "is neither for Ray's launcher (cluster_name, provider) nor for Kubernetes (kind)."
        )
        return [Finding((), message)]
    several = "Ray's launcher takes one document alone. Remove the lines with ---."
    return [*([] if alone else [Finding((), several)]), *launcher_findings(tree)]


def _line(source: str) -> int:
    """The line in "file:line", 0 if there is none."""
    line = source.rpartition(":")[2]
    return int(line) if line.isdecimal() else 0
