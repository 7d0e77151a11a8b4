"""What sentence-transformers says beside an encoder: how its tokens become one vector.

```
modules.json               what follows on what: Transformer, Pooling and perhaps Normalize
1_Pooling/config.json      which tokens count, by a name or by one truth value for each way
```
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from farreach.errors import DataError
from farreach_workloads.retrieval.encoder import Pooling

MODULES = "modules.json"
# Dropout changes nothing outside of training.
_KNOWN = ("Transformer", "Pooling", "Normalize", "Dropout")
# Their names, and what a file names that has a truth value for each of their ways.
_POOLINGS: dict[str, Pooling] = {"mean": "average", "cls": "cls"}
_MODE, _ENDINGS = "pooling_mode", ("_tokens", "_token")


def manner(folder: Path) -> tuple[Pooling | None, bool]:
    """How tokens become one vector, if that is said, and whether vectors are normalised.

    Raises:
        DataError: a file is damaged or missing, or what it says would give other vectors here.
    """
    modules = _read(folder / MODULES) if (folder / MODULES).is_file() else []
    try:
        places = {str(one["type"]).rpartition(".")[2]: str(one["path"]) for one in modules}
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / MODULES}: lists no modules. Get the file again.") from error
    unknown = [kind for kind in places if kind not in _KNOWN]
    if unknown:
        raise DataError(
            f"{folder / MODULES}: {unknown[0]} makes other vectors of what the transformer gives, "
            f"and {', '.join(_KNOWN)} alone are known. Take another model."
        )
    pooling = _pooling(folder / places["Pooling"] / "config.json") if "Pooling" in places else None
    return pooling, "Normalize" in places


def _pooling(file: Path) -> Pooling:
    found = _read(file)
    if not isinstance(found, dict):
        raise DataError(f"{file}: is no JSON object. Get the file again.")
    if _MODE in found:
        named = found[_MODE] if isinstance(found[_MODE], list) else [found[_MODE]]
    else:
        prefix = f"{_MODE}_"
        named = [key.removeprefix(prefix) for key in found if key.startswith(prefix) and found[key]]
        for ending in _ENDINGS:
            named = [name.removesuffix(ending) for name in named]
    if len(named) != 1 or named[0] not in _POOLINGS:
        raise DataError(
            f"{file}: pools by {' and '.join(map(str, named)) or 'nothing'}; one of "
            f"{', '.join(_POOLINGS)} is known. Take another model."
        )
    return _POOLINGS[named[0]]


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read: {error}. Get the whole folder of the model again."
        ) from error
