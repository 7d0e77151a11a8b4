"""The cluster of a RayCluster, RayJob or RayService: head, worker groups and their pods."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

from farreach.cluster.findings import Finding, at, did_you_mean, items, mapping
from farreach.cluster.images import image_findings
from farreach.cluster.kuberay_refusals import refused_clusters
from farreach.cluster.plan import Group
from farreach.cluster.ray_start import LOOPBACK, known_options, resource_findings
from farreach.yaml_source import KeyPath

# Where node pools say that their machines may be taken away.
SPOT = {
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-preemptible": "true",
    "eks.amazonaws.com/capacityType": "spot",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
_DRAIN_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
_DRAIN_S = _GRACE_S = 30.0  # defaults of Ray and of Kubernetes
_IDLE_S = 60
_QUOTED = re.compile(r'"\{.*\}"')
_UNREADABLE = "Ray cannot read the group's resources:"
_OUTSIDE = ("NodePort", "LoadBalancer")


def cluster_findings(spec: dict[str, Any], path: KeyPath, *, served: bool) -> Iterator[Finding]:
    """What is wrong with a cluster.

    Args:
        spec: of the cluster.
        path: keys that lead to it.
        served: the operator itself uses the dashboard: it submits a job or deploys a service.
    """
    import ray

    yield from _access_findings(spec, path, served=served)
    yield from _autoscaler_findings(spec, path)
    head = mapping(spec.get("headGroupSpec"))
    yield from _group_findings(head, (*path, "headGroupSpec"))
    yield from _head_findings(spec, head, (*path, "headGroupSpec"))
    names: list[Any] = []
    for index, one in enumerate(items(spec.get("workerGroupSpecs"))):
        group, place = mapping(one), (*path, "workerGroupSpecs", index)
        yield from _group_findings(group, place)
        yield from _worker_findings(spec, group, place)
        name = group.get("groupName")
        if name is not None and name in names:
            yield Finding((*place, "groupName"), f"{name!r} is there twice.")
        names.append(name)
    version = spec.get("rayVersion")
    if isinstance(version, str) and version != ray.__version__:
        message = f"is {version}, and here is Ray {ray.__version__}. Take the same version on both."
        yield Finding((*path, "rayVersion"), message)
    yield from image_findings(_images(spec, path), ray.__version__)
    yield from refused_clusters(spec, path, served=served)


def follows(finding: Finding, places: list[KeyPath]) -> bool:
    """Whether a finding only says in Ray's words what is wrong with the group's fields anyway.

    Args:
        finding: what is to be said.
        places: keys that lead to fields that are wrong.
    """
    if not finding.message.startswith(_UNREADABLE):
        return False
    keys = [key for key in ("rayStartParams", "resources") if key in finding.path]
    group = finding.path[: finding.path.index(keys[0])]
    return any(place[: len(group)] == group for place in places)


def groups_of(spec: dict[str, Any]) -> Iterator[Group]:
    """The head and the worker groups of a cluster that is fine."""
    head = mapping(spec.get("headGroupSpec"))
    yield Group("head", 1, 1, _resources(head, head=True), _image(head) or "", head=True)
    scales = spec.get("enableInTreeAutoscaling") is True
    idle_s = at(spec, "autoscalerOptions", "idleTimeoutSeconds")
    for one in items(spec.get("workerGroupSpecs")):
        group = mapping(one)
        fixed = group.get("replicas", 0)
        hosts = group.get("numOfHosts", 1)
        yield Group(
            str(group.get("groupName")),
            hosts * (group.get("minReplicas", 0) if scales else fixed),
            hosts * (group.get("maxReplicas", fixed) if scales else fixed),
            _resources(group, head=False),
            _image(group) or "",
            is_spot(group),
            group.get("idleTimeoutSeconds", _IDLE_S if idle_s is None else idle_s),
        )


def is_spot(group: dict[str, Any]) -> bool:
    """Whether a group's pods are put on machines that may be taken away."""
    pod = at(group, "template", "spec")
    pairs = list(mapping(at(pod, "nodeSelector")).items())
    terms = at(pod, "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    for term in items(at(terms, "nodeSelectorTerms")):
        for rule in items(at(term, "matchExpressions")):
            if at(rule, "operator") == "In":
                pairs += [(at(rule, "key"), value) for value in items(at(rule, "values"))]
    return any(key in SPOT and SPOT[key] == str(value).lower() for key, value in pairs)


def _access_findings(spec: dict[str, Any], path: KeyPath, *, served: bool) -> Iterator[Finding]:
    """Who can use the cluster."""
    mode = at(spec, "authOptions", "mode") if "authOptions" in spec else "disabled"
    if mode == "disabled":
        yield Finding(
            (*path, "authOptions"),
            "no token is asked for: whoever reaches the pods can run code. Write "
            "authOptions: {mode: token}; KubeRay makes the token.",
        )
    elif "rayVersion" not in spec:
        yield Finding((*path, "rayVersion"), "is missing; KubeRay wants it where a token is used.")
    head = mapping(spec.get("headGroupSpec"))
    place: KeyPath = (*path, "headGroupSpec")
    for key in (("serviceType",), ("headService", "spec", "type")):
        if at(head, *key) in _OUTSIDE:
            message = f"{at(head, *key)} opens Ray's ports to outside of the cluster. Leave it out"
            yield Finding((*place, *key), f"{message}, and use kubectl port-forward.")
    if head.get("enableIngress") is True:
        message = "opens the dashboard to outside of the cluster. Use kubectl port-forward."
        yield Finding((*place, "enableIngress"), message)
    host = at(head, "rayStartParams", "dashboard-host")
    if served and host in LOOPBACK:
        message = f"with {host} KubeRay's operator cannot submit or deploy anything. Leave it out."
        yield Finding((*place, "rayStartParams", "dashboard-host"), message)


def _autoscaler_findings(spec: dict[str, Any], path: KeyPath) -> Iterator[Finding]:
    options = mapping(spec.get("autoscalerOptions"))
    place: KeyPath = (*path, "autoscalerOptions")
    groups = [mapping(one) for one in items(spec.get("workerGroupSpecs"))]
    if spec.get("enableInTreeAutoscaling") is not True:
        if options:
            message = "has no effect without enableInTreeAutoscaling: true. Add that."
            yield Finding(place, message)
        elif any(group.get("minReplicas") != group.get("maxReplicas") for group in groups):
            message = "is not true: no group grows or shrinks by itself. Write true."
            yield Finding((*path, "enableInTreeAutoscaling"), message, "warning")
        return
    if options.get("version") == "v1":
        message = "v1 knows no idle time and no priority of a group. Write v2."
        yield Finding((*place, "version"), message, "warning")


def _head_findings(spec: dict[str, Any], head: dict[str, Any], path: KeyPath) -> Iterator[Finding]:
    if is_spot(head):
        message = "the head is on a spot machine: when it is taken away, the cluster is gone."
        yield Finding((*path, "template", "spec"), f"{message} Put it elsewhere.")
    cpus = at(head, "resources", "CPU") or at(head, "rayStartParams", "num-cpus")
    if items(spec.get("workerGroupSpecs")) and str(cpus) != "0":
        yield Finding(
            (*path, "resources" if "resources" in head else "rayStartParams"),
            "the head would run work, and takes the cluster down if that fills its memory. Write "
            '`num-cpus: "0"` into rayStartParams; the driver of a job still runs there.',
        )


def _worker_findings(
    spec: dict[str, Any], group: dict[str, Any], path: KeyPath
) -> Iterator[Finding]:
    low, high, now = (group.get(key) for key in ("minReplicas", "maxReplicas", "replicas"))
    if isinstance(low, int) and isinstance(high, int):
        if low > high:
            message = (
                f"minReplicas={low} is above maxReplicas={high}. Lower it, or raise the other."
            )
            yield Finding((*path, "minReplicas"), message)
        elif isinstance(now, int) and not low <= now <= high:
            message = f"{now} is not from minReplicas={low} to maxReplicas={high}."
            yield Finding((*path, "replicas"), message)
    if spec.get("enableInTreeAutoscaling") is True and high is None:
        message = "is missing: the group could grow without end. Write it."
        yield Finding((*path, "maxReplicas"), message, "warning")
    resources = _resources(group, head=False)
    if is_spot(group) and resources.get("learner"):
        yield Finding(
            (*path, "template", "spec"),
            "learners are on spot machines: every time one is taken away, all of them start again "
            "from the newest checkpoint. Put them elsewhere; rollouts may stay.",
        )
    if resources.get("rollout", 0) > resources.get("CPU", 0):
        message = f"{resources['rollout']} rollouts on {resources.get('CPU', 0)} CPUs: a rollout"
        place = (*path, "resources" if "resources" in group else "rayStartParams")
        yield Finding(place, f"{message} takes at least one of its own.", "warning")
    yield from _grace_findings(group, path)


def _grace_findings(group: dict[str, Any], path: KeyPath) -> Iterator[Finding]:
    """Whether a pod that has to go has the time to hand over what it holds."""
    pod = mapping(at(group, "template", "spec"))
    grace = pod.get("terminationGracePeriodSeconds", _GRACE_S)
    drain = _DRAIN_S
    for variable in items(at(pod, "containers", 0, "env")):
        if at(variable, "name") == _DRAIN_VARIABLE:
            with contextlib.suppress(TypeError, ValueError):
                drain = float(at(variable, "value"))
    if isinstance(grace, int | float) and grace <= drain:
        yield Finding(
            (*path, "template", "spec", "terminationGracePeriodSeconds"),
            f"is {grace:g} s, and Ray hands over what a pod holds for up to {drain:g} s "
            f"({_DRAIN_VARIABLE}) before it ends. Write more, such as {drain * 2:g}.",
        )


def _group_findings(group: dict[str, Any], path: KeyPath) -> Iterator[Finding]:
    """What holds for the head and for workers."""
    yield from _start_findings(group, path)
    pod = mapping(at(group, "template", "spec"))
    if pod.get("restartPolicy", "Never") != "Never":
        message = "the autoscaler replaces pods itself. Write Never, or leave it out."
        yield Finding((*path, "template", "spec", "restartPolicy"), message)
    volumes = [at(volume, "name") for volume in items(pod.get("volumes"))]
    known = [name for name in volumes if isinstance(name, str)]
    for number, container in enumerate(items(pod.get("containers"))):
        for index, mount in enumerate(items(at(container, "volumeMounts"))):
            name = at(mount, "name")
            if isinstance(name, str) and name not in known:
                place = ("template", "spec", "containers", number, "volumeMounts", index, "name")
                message = f"the pod has no volume {name!r}.{did_you_mean(name, known)}"
                yield Finding((*path, *place), message)


def _start_findings(group: dict[str, Any], path: KeyPath) -> Iterator[Finding]:
    """Options of `ray start`, and resources."""
    options = mapping(group.get("rayStartParams"))
    place: KeyPath = (*path, "rayStartParams")
    for name in options:
        if name not in known_options():
            near = did_you_mean(name, known_options())
            yield Finding((*place, name), f"`ray start` has no option --{name}.{near}")
    if "labels" in options:
        message = "is refused by KubeRay. Write `labels` beside rayStartParams."
        yield Finding((*place, "labels"), message)
    written = options.get("resources")
    if isinstance(written, str) and not _QUOTED.fullmatch(written.strip()):
        yield Finding(
            (*place, "resources"),
            "is unquoted by the shell that starts Ray. Write it as "
            """'"{\\"rollout\\": 14}"', or beside rayStartParams as resources: {rollout: "14"}.""",
        )
        return
    own = mapping(group.get("resources"))
    both = [name for name in ("num-cpus", "num-gpus", "memory", "resources") if name in options]
    if own and both:
        message = f"KubeRay refuses {', '.join(both)} here where the group has `resources` too."
        yield Finding((*place, both[0]), f"{message} Move it there.")
    yield from _resource_findings(group, path, written)


def _resource_findings(
    group: dict[str, Any], path: KeyPath, written: str | None
) -> Iterator[Finding]:
    place: KeyPath = (*path, "resources")
    if written is not None and "resources" not in group:
        place = (*path, "rayStartParams", "resources")
    if not items(at(group, "template", "spec", "containers")):
        return
    try:
        resources = ray_resources(group, head=path[-1] == "headGroupSpec")
    except Exception as error:  # of whatever kind: it is Ray's own reading of what was written
        lines = " ".join(str(error).split()) or type(error).__name__
        yield Finding(place, f"{_UNREADABLE} {lines}")
        return
    for finding in resource_findings((), [name for name in resources if name != "memory"]):
        where = (*place, *finding.path) if "resources" in group else place
        yield Finding(where, finding.message, finding.level)


def ray_resources(group: dict[str, Any], *, head: bool) -> dict[str, int]:
    """The resources of a group as Ray's own autoscaler reads them.

    Raises whatever Ray does.
    """
    from ray.autoscaler._private.kuberay import autoscaling_config

    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        found = autoscaling_config._get_ray_resources_from_group_spec(group, head)
    finally:
        logging.disable(disabled)
    return dict(found)


def _resources(group: dict[str, Any], *, head: bool) -> dict[str, int]:
    """Those that count as work; {} if Ray cannot read them."""
    try:
        found = ray_resources(group, head=head)
    except Exception:
        return {}
    return {name: amount for name, amount in found.items() if name != "memory"}


def _image(group: dict[str, Any]) -> str | None:
    image = at(group, "template", "spec", "containers", 0, "image")
    return image if isinstance(image, str) else None


def _images(spec: dict[str, Any], path: KeyPath) -> dict[KeyPath, str]:
    inner = ("template", "spec", "containers", 0, "image")
    places: list[KeyPath] = [("headGroupSpec", *inner)]
    places += [
        ("workerGroupSpecs", index, *inner)
        for index in range(len(items(spec.get("workerGroupSpecs"))))
    ]
    found = {(*path, *place): at(spec, *place) for place in places}
    return {place: image for place, image in found.items() if isinstance(image, str)}
