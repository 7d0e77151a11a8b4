"""The commands of a launcher file: how Ray is started on head and workers, and who may use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from farreach.cluster.findings import Finding, at, items, mapping
from farreach.cluster.ray_start import auth_mode, option_findings, started
from farreach.yaml_source import KeyPath, Tree

_HEAD, _WORKERS = "head_start_ray_commands", "worker_start_ray_commands"
_TOKEN_FILE = ".ray/auth_token"
_GCS_PORT = "6379"


def command_findings(tree: Tree) -> list[Finding]:
    """What is wrong with the commands of a launcher file.

    Args:
        tree: the file.
    """
    found: list[Finding] = []
    for key in (_HEAD, _WORKERS):
        for path, options in _starts(tree, key):
            found += option_findings(path, options)
    found += [*_head_findings(tree), *_worker_findings(tree), *_token_findings(tree)]
    return [*found, *_published_ports(tree)]


def _commands(tree: Tree, key: str) -> list[tuple[KeyPath, str]]:
    return [
        ((key, index), command)
        for index, command in enumerate(items(tree.get(key)))
        if isinstance(command, str)
    ]


def _starts(tree: Tree, key: str) -> list[tuple[KeyPath, dict[str, str]]]:
    return [
        (path, options) for path, command in _commands(tree, key) for options in started(command)
    ]


def _head_findings(tree: Tree) -> Iterator[Finding]:
    starts = _starts(tree, _HEAD)
    if _HEAD not in tree:
        message = "is missing: Ray's default asks for no token, and on clouds opens the dashboard."
        yield Finding((_HEAD,), message)
    elif not starts:
        message = "has no `ray start`: how Ray is started was not looked at."
        yield Finding((_HEAD,), message, "warning")
    for path, options in starts:
        if "head" not in options:
            yield Finding(path, "starts no head: --head is missing.")
        if "autoscaling-config" not in options:
            message = (
                "starts no autoscaler: --autoscaling-config=~/ray_bootstrap_config.yaml is missing."
            )
            yield Finding(path, message)
        own = at(tree, "provider", "type") == "local" and items(at(tree, "provider", "worker_ips"))
        if own and options.get("num-cpus") != "0":
            yield Finding(
                path,
                "the head would run work, and takes the cluster down if that fills its memory. Add "
                "--num-cpus=0; the driver of a job still runs there.",
            )


def _worker_findings(tree: Tree) -> Iterator[Finding]:
    ports = {options.get("port", _GCS_PORT) for _, options in _starts(tree, _HEAD)}
    for path, options in _starts(tree, _WORKERS):
        address = options.get("address", "")
        if not address:
            yield Finding(path, "joins no cluster: --address=$RAY_HEAD_IP:6379 is missing.")
        elif ports and address.rpartition(":")[2] not in ports:
            yield Finding(path, f"joins {address}, and the head listens on port {min(ports)}.")


def _token_findings(tree: Tree) -> Iterator[Finding]:
    """Whether only who has the token can use the cluster."""
    everywhere = [*items(at(tree, "docker", "run_options")), *items(tree.get("setup_commands"))]
    shared = {auth_mode(text) for text in everywhere if isinstance(text, str)} - {None}
    for key in (_HEAD, _WORKERS):
        for path, command in _commands(tree, key):
            if not started(command):
                continue
            mode = auth_mode(command) or next(iter(shared), None)
            if mode != "token":
                yield Finding(
                    path,
                    "Ray is started without a token: whoever reaches its ports can run code. Put "
                    "RAY_AUTH_MODE=token before `ray start`.",
                )
    mounts = mapping(tree.get("file_mounts"))
    if not any(str(path).endswith((_TOKEN_FILE, "/.ray", "/.ray/")) for path in mounts):
        yield Finding(
            ("file_mounts",),
            f"brings no token to the machines. Make one by `ray get-auth-token --generate`, and "
            f'write "~/{_TOKEN_FILE}": "~/{_TOKEN_FILE}" here.',
        )


def _published_ports(tree: Tree) -> Iterator[Finding]:
    places: list[KeyPath] = [
        ("docker", key) for key in ("run_options", "head_run_options", "worker_run_options")
    ]
    for path in places:
        for index, option in enumerate(items(at(tree, *path))):
            if _publishes(option):
                message = f"{option!r} opens a port of the container to the network. Remove it."
                yield Finding((*path, index), message)


def _publishes(option: Any) -> bool:
    if not isinstance(option, str):
        return False
    name, _, value = option.partition("=" if "=" in option else " ")
    return name in ("-p", "--publish", "-P", "--publish-all") and not value.startswith("127.")
