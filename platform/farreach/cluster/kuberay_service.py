"""The service of a RayService: its configuration of Ray Serve, which is YAML inside of YAML."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from farreach.cluster.findings import Finding, at, items, mapping, mistakes
from farreach.cluster.kuberay_refusals import refused_upgrades
from farreach.cluster.schemas import schema
from farreach.errors import ConfigError
from farreach.yaml_source import KeyPath, parse

_PLACE: KeyPath = ("spec", "serveConfigV2")


def service_findings(spec: dict[str, Any]) -> Iterator[Finding]:
    """What is wrong with a service, without what is wrong with its cluster.

    Args:
        spec: of the RayService.
    """
    kind = at(spec, "serveService", "spec", "type")
    if kind in ("NodePort", "LoadBalancer"):
        yield Finding(
            ("spec", "serveService", "spec", "type"),
            f"{kind} lets everybody outside of the cluster ask the service, which knows no users.",
            "warning",
        )
    yield from refused_upgrades(spec, ("spec",))
    text = spec.get("serveConfigV2")
    if text is None:
        yield Finding(_PLACE, "is missing: what is to be served?")
    if not isinstance(text, str):
        return
    try:
        tree, _ = parse(text, "serveConfigV2", ())
    except ConfigError as error:
        yield Finding(_PLACE, f"cannot be read: {error}")
        return
    for finding in mistakes(tree, schema("ServeConfig", "serve")):
        dotted = ".".join(map(str, finding.path))
        yield Finding(_PLACE, f"{dotted}: {finding.message}" if dotted else finding.message)
    yield from _application_findings(tree)


def _application_findings(tree: Any) -> Iterator[Finding]:
    names, prefixes = [], []
    for index, one in enumerate(items(at(tree, "applications"))):
        application = mapping(one)
        where = f"applications.{index}"
        names.append(application.get("name", "default"))
        prefixes.append(application.get("route_prefix", "/"))
        if names.count(names[-1]) > 1:
            yield Finding(_PLACE, f"{where}.name: {names[-1]!r} is there twice.")
        if prefixes.count(prefixes[-1]) > 1:
            yield Finding(_PLACE, f"{where}.route_prefix: {prefixes[-1]!r} is there twice.")
        path = application.get("import_path")
        if isinstance(path, str):
            yield from _import_findings(path, f"{where}.import_path")


def _import_findings(path: str, where: str) -> Iterator[Finding]:
    module, _, name = path.replace(":", ".").rpartition(".")
    if not module or not name:
        yield Finding(_PLACE, f"{where}: should be MODULE:NAME (got {path!r}).")
    elif module.startswith("farreach"):  # others may be on the cluster alone
        try:
            missing = importlib.util.find_spec(module) is None
        except ModuleNotFoundError:
            missing = True
        if missing:
            yield Finding(_PLACE, f"{where}: there is no module {module!r}.")
