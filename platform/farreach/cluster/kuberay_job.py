"""The job of a RayJob: what it runs, where its run is, and whether another try goes on with it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from farreach.cluster.findings import Finding, at, items, mapping
from farreach.cluster.kuberay_refusals import refused_deletions
from farreach.errors import ConfigError
from farreach.yaml_source import KeyPath, parse

_STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"


def job_findings(spec: dict[str, Any], path: KeyPath) -> Iterator[Finding]:
    """What is wrong with a job.

    Args:
        spec: of the RayJob, without what is wrong with its cluster.
        path: keys that lead to it.
    """
    if not spec.get("clusterSelector") and "rayClusterSpec" not in spec:
        message = "is missing: which cluster runs the job? Or name one by clusterSelector."
        yield Finding((*path, "rayClusterSpec"), message)
    if spec.get("ttlSecondsAfterFinished") and spec.get("shutdownAfterJobFinishes") is not True:
        message = "needs shutdownAfterJobFinishes: true, else KubeRay refuses the job."
        yield Finding((*path, "ttlSecondsAfterFinished"), message)
    elif spec.get("rayClusterSpec") and spec.get("shutdownAfterJobFinishes") is not True:
        message = "is not true: the cluster stays, and costs, when the job is done."
        yield Finding((*path, "shutdownAfterJobFinishes"), message, "warning")
    tries = spec.get("backoffLimit", 0)
    if tries and spec.get("submissionMode") == "InteractiveMode":
        yield Finding((*path, "backoffLimit"), "is not possible in InteractiveMode. Leave it out.")
    yield from refused_deletions(mapping(spec.get("deletionStrategy")), (*path, "deletionStrategy"))
    yield from _entrypoint_findings(spec, path)
    yield from _environment_findings(spec, path)


def _entrypoint_findings(spec: dict[str, Any], path: KeyPath) -> Iterator[Finding]:
    place: KeyPath = (*path, "entrypoint")
    command = spec.get("entrypoint")
    if not isinstance(command, str):
        if spec.get("submissionMode") != "InteractiveMode" and command is None:
            yield Finding(place, "is missing: what is to run?")
        return
    try:
        words = shlex.split(command)
    except ValueError as error:
        yield Finding(place, f"is no command: {error}.")
        return
    if "train" not in words or not any(word.endswith("farreach") for word in words):
        yield Finding(place, "does not run `farreach train`, and was not looked at.", "note")
        return
    names = [word.partition("=")[0] for word in words]
    if "--continue" not in names:
        yield Finding(
            place,
            "lacks --continue: another try, after the head is gone, would not go on with the run "
            "but stop at its folder.",
        )
    yield from _run_findings(spec, place, words)


def _run_findings(spec: dict[str, Any], place: KeyPath, words: list[str]) -> Iterator[Finding]:
    """Whether the run outlives the pods."""
    run = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--run-dir":
            run = following
        elif word.startswith("--run-dir="):
            run = word.partition("=")[2]
    if not run:
        message = "lacks --run-dir: every try would begin another run."
        yield Finding(place, f"{message} Add --run-dir with a folder or a URI that stays.")
        return
    containers = items(
        at(spec, "rayClusterSpec", "headGroupSpec", "template", "spec", "containers")
    )
    mounts = [
        at(mount, "mountPath") for one in containers[:1] for mount in items(at(one, "volumeMounts"))
    ]
    inside = any(isinstance(m, str) and PurePosixPath(run).is_relative_to(m) for m in mounts)
    if "rayClusterSpec" in spec and "://" not in run and not inside:
        yield Finding(
            place,
            f"--run-dir={run} is on no volume of the head: the run is gone with its pod. Name a "
            "folder of a volume that all pods share, or a URI such as s3://bucket/runs/mine.",
        )


def _environment_findings(spec: dict[str, Any], path: KeyPath) -> Iterator[Finding]:
    place: KeyPath = (*path, "runtimeEnvYAML")
    text = spec.get("runtimeEnvYAML")
    variables: dict[str, Any] = {}
    if isinstance(text, str) and text.strip():
        try:
            tree, _ = parse(text, "runtimeEnvYAML")
        except ConfigError as error:
            yield Finding(place, f"cannot be read: {error}")
            return
        if not isinstance(tree, dict):
            yield Finding(place, "should be a mapping of keys to values.")
            return
        variables = mapping(tree.get("env_vars"))
    for name, value in variables.items():
        if not isinstance(value, str):
            yield Finding(place, f"env_vars.{name}: should be text. Write it in quotes.")
    if _STOP_VARIABLE not in variables:
        yield Finding(
            place,
            f"sets no {_STOP_VARIABLE}: a job that is stopped has 3 s for its last checkpoint. "
            f'Write env_vars: {{{_STOP_VARIABLE}: "120"}}.',
            "warning",
        )
