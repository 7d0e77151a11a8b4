"""Files for KubeRay (`kubectl apply -f FILE`): what is wrong with a document, what it would launch.

Kubernetes drops fields that it does not know without a word, and the operator says what it dislikes
in its own log. Both are found here without a cluster.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from farreach.cluster.findings import Finding, at, did_you_mean, mapping, mistakes, shown
from farreach.cluster.kuberay_cluster import cluster_findings, follows, groups_of
from farreach.cluster.kuberay_job import job_findings
from farreach.cluster.kuberay_service import service_findings
from farreach.cluster.leaks import placeholders, secrets
from farreach.cluster.plan import Plan
from farreach.cluster.schemas import schema
from farreach.yaml_source import KeyPath, Tree

API = "ray.io/v1"
# Kind → where the cluster is, and how long a name may be before the operator refuses it.
KINDS: dict[str, tuple[KeyPath, int]] = {
    "RayCluster": (("spec",), 53),
    "RayJob": (("spec", "rayClusterSpec"), 47),
    "RayService": (("spec", "rayClusterConfig"), 47),
    "RayCronJob": (("spec", "jobTemplate", "rayClusterSpec"), 36),
}
# Of Kubernetes itself, whose fields we know too.
_PLAIN_KINDS = ("PersistentVolumeClaim", "ConfigMap", "Service")
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def is_kubernetes(tree: Tree) -> bool:
    """Whether a document is meant for Kubernetes, rather than for Ray's launcher."""
    return "apiVersion" in tree or "kind" in tree


def kuberay_findings(tree: Tree) -> list[Finding]:
    """Everything that is to be said about a document for Kubernetes.

    Args:
        tree: the document, as YAML 1.1 has it.
    """
    kind = tree.get("kind")
    if isinstance(kind, str) and kind in KINDS:
        found = [*_api_findings(tree), *_fields(tree, str(kind), "kuberay", "kubernetes")]
        found += _name_findings(tree, KINDS[str(kind)][1])
        places = [finding.path for finding in found]
        found += [one for one in _spec_findings(tree, str(kind)) if not follows(one, places)]
    elif kind in _PLAIN_KINDS:
        found = list(_fields(tree, str(kind), "kubernetes"))
    else:
        found = list(_other_findings(tree, kind))
    return [*found, *secrets(tree), *placeholders(tree)]


def kuberay_plan(tree: Tree) -> Plan | None:
    """What a document that is fine would launch; None if it launches no Ray."""
    kind = tree.get("kind")
    if kind not in KINDS:
        return None
    spec = at(tree, *KINDS[kind][0])
    title = f"a {kind} for KubeRay: {at(tree, 'metadata', 'name')}"
    return Plan(title, tuple(groups_of(mapping(spec))))


def _api_findings(tree: Tree) -> Iterator[Finding]:
    version = tree.get("apiVersion")
    if version != API:
        yield Finding(("apiVersion",), f"should be {API} (got {version!r}).")


def _fields(tree: Tree, kind: str, *files: str) -> Iterator[Finding]:
    for finding in mistakes(tree, schema(kind, *files)):
        unknown = finding.message.startswith("unknown key.")
        extra = " Kubernetes would drop it without a word." if unknown else ""
        yield Finding(finding.path, f"{finding.message}{extra}", finding.level)


def _name_findings(tree: Tree, longest: int) -> Iterator[Finding]:
    name = at(tree, "metadata", "name")
    if name is None and at(tree, "metadata", "generateName") is None:
        yield Finding(("metadata", "name"), "is missing.")
    if not isinstance(name, str):
        return
    if not _NAME.fullmatch(name):
        message = f"{name!r} should be of a-z, 0-9 and '-', and begin with a letter."
        yield Finding(("metadata", "name"), message)
    if len(name) > longest:
        message = f"has {len(name)} characters; KubeRay takes at most {longest}."
        yield Finding(("metadata", "name"), message)


def _spec_findings(tree: Tree, kind: str) -> Iterator[Finding]:
    path = KINDS[kind][0]
    cluster: Any = at(tree, *path)
    if isinstance(cluster, dict):
        yield from cluster_findings(cluster, path, served=kind != "RayCluster")
    if kind == "RayJob":
        yield from job_findings(mapping(tree.get("spec")), ("spec",))
    elif kind == "RayCronJob":
        yield from job_findings(mapping(at(tree, "spec", "jobTemplate")), ("spec", "jobTemplate"))
    elif kind == "RayService":
        yield from service_findings(mapping(tree.get("spec")))


def _other_findings(tree: Tree, kind: Any) -> Iterator[Finding]:
    if kind is None:
        yield Finding(("kind",), f"is missing. One of {', '.join(KINDS)}.")
    elif not isinstance(kind, str):
        yield Finding(("kind",), f"should be text (got {shown(kind)}).")
    elif kind == "Secret":
        for key in ("data", "stringData"):
            if tree.get(key):
                message = (
                    "is a secret in a file. Make it by `kubectl create secret generic NAME "
                    "--from-literal=KEY=…` instead, and make a new one: this one has been read."
                )
                yield Finding((key,), message)
    elif str(tree.get("apiVersion", "")).startswith("ray.io/"):
        yield Finding(("kind",), f"KubeRay knows no {kind!r}.{did_you_mean(kind, KINDS)}")
    else:
        yield Finding(("kind",), f"a {kind} is not known here and was not checked.", "note")
