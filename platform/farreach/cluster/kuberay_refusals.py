"""What KubeRay 1.7 refuses though every field by itself is right: fields that do not go together.

Some of it the custom resources say themselves, and `kubectl apply` fails; the rest the operator
says in its log, and nothing happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from farreach.cluster.findings import Finding, at, items, mapping
from farreach.yaml_source import KeyPath

_INCREMENTAL = "NewClusterWithIncrementalUpgrade"
_ENDINGS = ("onSuccess", "onFailure")
# Of `gcsFaultToleranceOptions`: the head's state is in Redis or, with RocksDB, on a volume.
_OF_REDIS = ("redisAddress", "redisUsername", "redisPassword", "externalStorageNamespace")
# Of a volume that is made, rather than one that is there.
_OF_NEW_VOLUMES = ("size", "storageClassName", "accessModes")
_COLLECTED_INTO = "STORAGE_BACKEND"


def refused_clusters(spec: dict[str, Any], path: KeyPath, *, served: bool) -> Iterator[Finding]:
    """What does not go together in a cluster.

    Args:
        spec: of the cluster.
        path: keys that lead to it.
        served: it belongs to a RayJob or a RayService.
    """
    if served:
        own = "works in a RayCluster alone. Leave it out."
        if "upgradeStrategy" in spec:
            yield Finding((*path, "upgradeStrategy"), own)
        if at(spec, "authOptions", "enableK8sTokenAuth") is True:
            yield Finding((*path, "authOptions", "enableK8sTokenAuth"), own)
    yield from _state_findings(
        mapping(spec.get("gcsFaultToleranceOptions")), (*path, "gcsFaultToleranceOptions")
    )
    if "historyServerOptions" in spec:
        place: KeyPath = (*path, "historyServerOptions", "collectorOptions")
        collector = mapping(at(spec, "historyServerOptions", "collectorOptions"))
        if not collector.get("image"):
            yield Finding((*place, "image"), "is missing: KubeRay starts no collector without.")
        names = [at(one, "name") for one in items(collector.get("env"))]
        if _COLLECTED_INTO not in names:
            message = f"lacks {_COLLECTED_INTO}, which says where the history is kept. Add it."
            yield Finding((*place, "env"), message)


def _state_findings(options: dict[str, Any], path: KeyPath) -> Iterator[Finding]:
    """Where the state of the head is kept."""
    storage = mapping(options.get("storage"))
    if options.get("backend") == "rocksdb":
        for key in _OF_REDIS:
            if key in options:
                yield Finding((*path, key), "goes with backend: redis. Leave it out.")
    elif storage:
        yield Finding(
            (*path, "storage"), "goes with backend: rocksdb. Write that, or leave it out."
        )
    if "claimName" in storage:
        for key in _OF_NEW_VOLUMES:
            if key in storage:
                message = "goes with a volume that is made; claimName names one that is there."
                yield Finding((*path, "storage", key), f"{message} Leave out one of them.")


def refused_deletions(strategy: dict[str, Any], path: KeyPath) -> Iterator[Finding]:
    """What does not go together in what is deleted after a job.

    Args:
        strategy: `deletionStrategy` of a RayJob.
        path: keys that lead to it.
    """
    rules = strategy.get("deletionRules")
    endings = [key for key in _ENDINGS if key in strategy]
    if rules is not None and endings:
        message = (
            f"does not go with {' and '.join(endings)}. Write these as rules, or leave it out."
        )
        yield Finding((*path, "deletionRules"), message)
    elif rules == []:
        yield Finding((*path, "deletionRules"), "is empty. Write a rule, or leave it out.")
    for key in _ENDINGS:
        if endings and key not in strategy:
            yield Finding((*path, key), f"is missing beside {endings[0]}: KubeRay wants both.")
        elif key in strategy and "policy" not in mapping(strategy[key]):
            yield Finding((*path, key, "policy"), "is missing: what is to be deleted?")
    for index, rule in enumerate(items(rules)):
        condition = at(rule, "condition")
        told = [key for key in ("jobStatus", "jobDeploymentStatus") if key in mapping(condition)]
        if condition is not None and len(told) != 1:
            message = "should have one of jobStatus and jobDeploymentStatus, and not both."
            yield Finding((*path, "deletionRules", index, "condition"), message)


def refused_upgrades(spec: dict[str, Any], path: KeyPath) -> Iterator[Finding]:
    """What does not go together in how a service changes to a new cluster.

    Args:
        spec: of the RayService.
        path: keys that lead to it.
    """
    strategy, place = mapping(spec.get("upgradeStrategy")), (*path, "upgradeStrategy")
    options = strategy.get("clusterUpgradeOptions")
    if strategy.get("type") != _INCREMENTAL:
        return
    if at(spec, "rayClusterConfig", "enableInTreeAutoscaling") is not True:
        message = f"{_INCREMENTAL} needs rayClusterConfig.enableInTreeAutoscaling: true."
        yield Finding((*place, "type"), message)
    if options is None:
        message = f"is missing: {_INCREMENTAL} wants gatewayClassName, stepSizePercent and"
        yield Finding((*place, "clusterUpgradeOptions"), f"{message} intervalSeconds.")
        return
    step, most = at(options, "stepSizePercent"), mapping(options).get("maxSurgePercent", 100)
    if isinstance(most, int) and most > 100:
        message = f"should be at most 100 (got {most})."
        yield Finding((*place, "clusterUpgradeOptions", "maxSurgePercent"), message)
    elif isinstance(most, int) and isinstance(step, int) and step > most:
        message = f"{step} is above maxSurgePercent={most}. Lower it."
        yield Finding((*place, "clusterUpgradeOptions", "stepSizePercent"), message)
