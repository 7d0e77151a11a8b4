"""Files of Ray's cluster launcher (`ray up FILE`): what is wrong with one, what it would launch.

Ray's own schema and checks let pass typing errors in a machine's settings, a head that trains,
learners on spot machines, an open dashboard. All is found here, without a cloud.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Iterator
from typing import Any

from farreach.cluster.findings import Finding, at, did_you_mean, items, mapping, mistakes
from farreach.cluster.images import image_findings
from farreach.cluster.launcher_commands import command_findings
from farreach.cluster.leaks import placeholders, secrets
from farreach.cluster.plan import Group, Plan
from farreach.cluster.ray_start import resource_findings
from farreach.cluster.schemas import launcher_schema, schema
from farreach.yaml_source import KeyPath, Tree

# Whose machines we know the settings of.
PROVIDERS = ("local", "aws", "gcp", "azure")
_OTHER_PROVIDERS = ("vsphere", "aliyun", "spark", "external", "readonly", "fake_multinode")
_TYPES = "available_node_types"
_OPEN = ("0.0.0.0/0", "::/0")
_SSH_PORT = 22


def launcher_findings(tree: Tree) -> list[Finding]:
    """Everything that is to be said about a launcher file.

    Args:
        tree: the file, as YAML 1.1 has it.
    """
    import ray

    found = [*_schema_findings(tree), *_provider_findings(tree), *secrets(tree)]
    found += [*_head_type_findings(tree), *_count_findings(tree)]
    for name, node in _node_types(tree).items():
        found += _node_findings(tree, name, node)
    found += command_findings(tree)
    found += [*_docker_findings(tree), *image_findings(_images(tree), ray.__version__)]
    if not any(finding.level == "problem" for finding in found):
        found += _what_ray_says(tree)
    return [*found, *placeholders(tree)]


def launcher_plan(tree: Tree) -> Plan:
    """What a launcher file that is fine would launch."""
    provider = mapping(tree.get("provider"))
    kind = provider.get("type", "")
    title = f"a file of Ray's launcher, for {'machines of your own' if kind == 'local' else kind}"
    if kind == "local":
        count = len(items(provider.get("worker_ips")))
        head = Group("head", 1, 1, machine=str(provider.get("head_ip", "")), head=True)
        return Plan(title, (head, Group("workers", count, count)), count)
    head_type = tree.get("head_node_type")
    types = _node_types(tree)
    groups = [
        _group(tree, name, types[name]) for name in sorted(types, key=lambda n: n != head_type)
    ]
    return Plan(title, tuple(groups), tree.get("max_workers"))


def is_spot(kind: str, node_config: Any) -> bool:
    """Whether a machine may be taken away: of AWS, Google Cloud or Azure.

    Args:
        kind: the provider's type.
        node_config: the settings of the machine.
    """
    if kind == "aws":
        return at(node_config, "InstanceMarketOptions", "MarketType") == "spot"
    if kind == "azure":
        return at(node_config, "azure_arm_parameters", "priority") in ("Spot", "Low")
    scheduling = at(node_config, "scheduling")
    several = scheduling if isinstance(scheduling, list) else [scheduling]
    return any(
        at(one, "preemptible") is True or at(one, "provisioningModel") == "SPOT" for one in several
    )


def _group(tree: Tree, name: str, node: dict[str, Any]) -> Group:
    head = name == tree.get("head_node_type")
    kind = at(tree, "provider", "type")
    settings = mapping(node.get("node_config"))
    parameters = mapping(settings.get("azure_arm_parameters"))
    machine = (
        settings.get("InstanceType") or settings.get("machineType") or parameters.get("vmSize")
    )
    own_idle_s: float | None = node.get("idle_timeout_s")
    idle_s = tree.get("idle_timeout_minutes", 5) * 60 if own_idle_s is None else own_idle_s
    most: Any = node.get("max_workers", tree.get("max_workers", 0))
    return Group(
        name,
        1 if head else node.get("min_workers", 0),
        1 if head else most,
        mapping(node.get("resources")),
        str(machine or ""),
        is_spot(kind, settings),
        None if head else idle_s,
        head,
    )


def _node_types(tree: Tree) -> dict[str, dict[str, Any]]:
    return {name: mapping(node) for name, node in mapping(tree.get(_TYPES)).items()}


def _schema_findings(tree: Tree) -> Iterator[Finding]:
    for finding in mistakes(tree, launcher_schema()):
        if finding.path == ("min_workers",):
            message = "is no longer a setting of the whole cluster. Put it into the node types."
            yield Finding(finding.path, message)
        else:
            yield finding


def _provider_findings(tree: Tree) -> Iterator[Finding]:
    """Typing errors in the settings of provider and machines, which Ray hands on unread."""
    provider = mapping(tree.get("provider"))
    kind = provider.get("type")
    if kind in PROVIDERS:
        yield from mistakes(provider, schema("Provider", kind), ("provider",))
        for name, node in _node_types(tree).items():
            path = (_TYPES, name, "node_config")
            if isinstance(node.get("node_config"), dict):
                yield from mistakes(node["node_config"], schema("NodeConfig", kind), path)
        yield from _open_ports(provider)
    elif isinstance(kind, str) and kind not in _OTHER_PROVIDERS:
        near = did_you_mean(kind, (*PROVIDERS, *_OTHER_PROVIDERS))
        yield Finding(("provider", "type"), f"Ray knows no provider {kind!r}.{near}")
    elif isinstance(kind, str):
        message = f"the settings of machines of {kind!r} are not known here and were not checked."
        yield Finding(("provider", "type"), message, "note")
    if kind == "local":
        yield from _local_findings(tree, provider)


def _local_findings(tree: Tree, provider: dict[str, Any]) -> Iterator[Finding]:
    for key in (_TYPES, "head_node_type"):
        if key in tree:
            message = "machines of your own have no types. Remove it; `ray start` gives them roles."
            yield Finding((key,), message)
    if "coordinator_address" not in provider:
        for key in ("head_ip", "worker_ips"):
            if not provider.get(key):
                yield Finding(("provider", key), "is missing: which machines are there?")
    if provider.get("head_ip") in items(provider.get("worker_ips")):
        message = "is also among worker_ips. A machine runs Ray once: take it out there."
        yield Finding(("provider", "head_ip"), message)


def _open_ports(provider: dict[str, Any]) -> Iterator[Finding]:
    base: KeyPath = ("provider", "security_group", "IpPermissions")
    for index, rule in enumerate(items(at(provider, "security_group", "IpPermissions"))):
        ranges = [
            one.get("CidrIp") or one.get("CidrIpv6")
            for key in ("IpRanges", "Ipv6Ranges")
            for one in map(mapping, items(mapping(rule).get(key)))
        ]
        ports = (mapping(rule).get("FromPort"), mapping(rule).get("ToPort"))
        if ports == (_SSH_PORT, _SSH_PORT) or not any(where in _OPEN for where in ranges):
            continue
        shown = "all ports" if ports[0] in (None, -1) else f"ports {ports[0]} to {ports[1]}"
        yield Finding(
            (*base, index),
            f"opens {shown} to the whole internet. Leave port {_SSH_PORT} alone open, and reach "
            "dashboards through an SSH tunnel.",
        )


def _head_type_findings(tree: Tree) -> Iterator[Finding]:
    types, head = _node_types(tree), tree.get("head_node_type")
    if not types or at(tree, "provider", "type") == "local":
        return
    if head is None:
        yield Finding(("head_node_type",), f"is missing. One of {', '.join(types)}.")
    elif isinstance(head, str) and head not in types:  # of what is no text the schema tells
        near = did_you_mean(head, types) or f" Known: {', '.join(types)}."
        yield Finding(("head_node_type",), f"there is no node type {head!r}.{near}")


def _count_findings(tree: Tree) -> Iterator[Finding]:
    types = _node_types(tree)
    most = tree.get("max_workers")
    least_together = 0
    for name, node in types.items():
        low, high = node.get("min_workers", 0), node.get("max_workers")
        for key in ("min_workers", "max_workers"):
            if isinstance(node.get(key), int) and node[key] < 0:
                yield Finding((_TYPES, name, key), f"should be at least 0 (got {node[key]}).")
        if isinstance(low, int) and isinstance(high, int) and low > high:
            message = (
                f"min_workers={low} is above max_workers={high}. Lower it, or raise the other."
            )
            yield Finding((_TYPES, name, "min_workers"), message)
        least_together += low if isinstance(low, int) else 0
        if isinstance(high, int) and isinstance(most, int) and high > most:
            message = f"max_workers={high} is above that of the cluster ({most}), which counts."
            yield Finding((_TYPES, name, "max_workers"), message, "warning")
    if types and not isinstance(most, int):
        message = "is not said, so that Ray takes 2. Write how many workers there may be together."
        yield Finding(("max_workers",), message, "warning")
    elif isinstance(most, int) and least_together > most:
        message = f"is {most}, and the types' min_workers are {least_together} together. Raise it."
        yield Finding(("max_workers",), message)


def _node_findings(tree: Tree, name: str, node: dict[str, Any]) -> Iterator[Finding]:
    head = name == tree.get("head_node_type")
    path: KeyPath = (_TYPES, name)
    resources = mapping(node.get("resources"))
    yield from resource_findings((*path, "resources"), list(resources))
    spot = is_spot(at(tree, "provider", "type"), node.get("node_config"))
    if head:
        yield from _head_findings(path, node, resources, spot, alone=len(_node_types(tree)) == 1)
        return
    if spot and resources.get("learner"):
        yield Finding(
            (*path, "node_config"),
            "learners are on spot machines: every time one is taken away, all of them start again "
            "from the newest checkpoint. Take spot out here; rollouts may stay on it.",
        )
    cpus, rollouts = resources.get("CPU"), resources.get("rollout", 0)
    if isinstance(cpus, int) and isinstance(rollouts, int) and rollouts > cpus:
        message = f"rollout={rollouts} on {cpus} CPUs: a rollout takes at least one of its own."
        yield Finding((*path, "resources", "rollout"), message, "warning")


def _head_findings(
    path: KeyPath, node: dict[str, Any], resources: dict[str, Any], spot: bool, *, alone: bool
) -> Iterator[Finding]:
    if spot:
        message = "the head is on a spot machine: when it is taken away, the cluster is gone."
        yield Finding((*path, "node_config"), f"{message} Take spot out here.")
    if node.get("max_workers"):
        message = "allows workers of the head's type. Write 0, or leave it out."
        yield Finding((*path, "max_workers"), message)
    if resources.get("CPU") != 0 and not alone:
        yield Finding(
            (*path, "resources"),
            "the head would run work, and takes the cluster down if that fills its memory. Write "
            "`CPU: 0`; the driver of a job still runs there.",
        )


def _images(tree: Tree) -> dict[KeyPath, str]:
    docker = mapping(tree.get("docker"))
    paths: list[KeyPath] = [("docker", key) for key in ("image", "head_image", "worker_image")]
    found = {path: docker.get(str(path[-1])) for path in paths}
    for name in _node_types(tree):
        path = (_TYPES, name, "docker", "worker_image")
        found[path] = at(tree, *path)
    return {path: image for path, image in found.items() if isinstance(image, str) and image}


def _docker_findings(tree: Tree) -> Iterator[Finding]:
    docker = mapping(tree.get("docker"))
    if docker and ("container_name" in docker) != ("image" in docker or "head_image" in docker):
        lacking = "image" if "container_name" in docker else "container_name"
        yield Finding(("docker", lacking), "is missing: Ray needs both image and container_name.")


def _what_ray_says(tree: Tree) -> Iterator[Finding]:
    """What Ray's own checks refuse in a file that ours let pass."""
    import click
    from ray.autoscaler._private import util

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            util.validate_config(util.prepare_config(copy.deepcopy(tree)))
    except click.ClickException as error:
        yield Finding((), f"Ray refuses it: {error.message}")
    except Exception as error:  # of whatever kind: Ray's checks raise assertions and key errors too
        yield Finding((), f"Ray refuses it: {type(error).__name__}: {error}")
    finally:
        logging.disable(disabled)
