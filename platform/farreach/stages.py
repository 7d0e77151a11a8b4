"""Stages of a pipeline whose results are kept: what did not change is not done again."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from farreach.config import flat
from farreach.disk import sync

MANIFEST = "manifest.json"
_KEY_LENGTH = 12
# Begins the names of unfinished artefacts; the number of the process that makes it follows.
_MINE = f".tmp-{socket.gethostname()}-"


class StageCache:
    """A folder of artefacts, one folder each, named by stage and by everything it depends on.

    ```
    cache = StageCache(Path("runs/cache"), say)
    network = cache.get("reachability", {"data": content_hash, "settings": {...}}, train_into)
    graph = cache.get("graph", {"network": network.name, "settings": {...}}, build_into)
    ```
    An input that changes gives a stage another name, and all that are built on it, since they have
    its name among their inputs. An artefact appears whole, by a rename; one whose files are not
    those that were written is built again.
    """

    def __init__(self, root: Path, log: Callable[[str], None]) -> None:
        """Artefacts live under `root`; `log` is told what is done and why."""
        self._root, self._log = root, log

    def get(self, stage: str, inputs: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
        """The folder of a stage's artefact, built if it is not there.

        Args:
            stage: its name.
            inputs: everything that the result depends on; JSON.
            build: fills an empty folder.
        """
        key = _key(inputs)
        folder = self._root / f"{stage}-{key}"
        damage = _damage(folder)
        if damage is None:
            self._log(f"{stage:<13} unchanged, from {folder}")
            return folder
        self._log(f"{stage:<13} {damage or self._reason(stage, inputs)}")
        self._root.mkdir(parents=True, exist_ok=True)
        self._clear_leftovers()
        working = self._root / f"{_MINE}{os.getpid()}-{secrets.token_hex(4)}"
        working.mkdir()
        try:
            build(working)
            _seal(working, inputs)
            self._put(working, folder)
        finally:
            shutil.rmtree(working, ignore_errors=True)
        return folder

    def _clear_leftovers(self) -> None:
        """Remove what processes of this machine left that were killed in the middle of a stage."""
        for folder in self._root.glob(f"{_MINE}*"):
            pid = folder.name.removeprefix(_MINE).partition("-")[0]
            if not Path("/proc", pid).exists():
                shutil.rmtree(folder, ignore_errors=True)

    def _put(self, working: Path, folder: Path) -> None:
        """Give an artefact its name; one that another process has made meanwhile stays."""
        if folder.exists() and _damage(folder) is None:
            return
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(working, folder)
        sync(self._root)

    def _reason(self, stage: str, inputs: Mapping[str, Any]) -> str:
        """Why a stage has to be built: what differs from the newest artefact of that stage."""
        manifests = [
            path for path in self._root.glob(f"{stage}-*/{MANIFEST}") if _read(path) is not None
        ]
        if not manifests:
            return "not built yet"
        newest = max(manifests, key=lambda path: path.stat().st_mtime_ns)
        before, now = flat((_read(newest) or {})["inputs"]), flat(_plain(inputs))
        changed = [
            f"{name} {before.get(name)!r} → {now.get(name)!r}"
            for name in sorted(before | now)
            if before.get(name) != now.get(name)
        ]
        return f"to be built: {', '.join(changed)}"


def _plain(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(inputs, sort_keys=True))
    return plain


def _key(inputs: Mapping[str, Any]) -> str:
    text = json.dumps(_plain(inputs), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


def _seal(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Put everything on the disk, and write down what is there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    records = {path.relative_to(folder).as_posix(): _record(path) for path in files}
    for path in files:
        sync(path)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"inputs": _plain(inputs), "files": records}, indent=2))
    sync(manifest)
    sync(folder)


def _record(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _read(manifest: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(manifest.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and {"inputs", "files"} <= content.keys() else None


def _damage(folder: Path) -> str | None:
    """What is wrong with an artefact; "" if there is none, None if it is whole."""
    if not folder.exists():
        return ""
    content = _read(folder / MANIFEST)
    if content is None:
        return f"to be built again: {folder} has no readable {MANIFEST}"
    for name, expected in content["files"].items():
        path = folder / name
        if not path.is_file() or _record(path) != expected:
            return f"to be built again: {path} is not what was written"
    return None
