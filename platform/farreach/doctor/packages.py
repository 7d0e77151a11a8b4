"""Checks of Python and of what is installed, from metadata alone: nothing is imported for them."""

from __future__ import annotations

import importlib.metadata
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import farreach
from farreach.doctor.finding import Finding, fault, ok, warning

SOURCE = Path(farreach.__file__).resolve().parents[2]
# Wheels that install one module, `faiss`, over one another.
FAISS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cuvs")
# A name → its installed version, None if it is not installed.
Installed = Callable[[str], str | None]


class Wanted(NamedTuple):
    """What a distribution asks for.

    Attributes:
        source: where that is written.
        python: versions of Python, such as `>=3.10`.
        requirements: lines as pip takes them.
        extras: names of the groups of them that are optional.
    """

    source: str
    python: str
    requirements: Sequence[str]
    extras: Sequence[str] = ()


def installed_version(name: str) -> str | None:
    """Version of a distribution, None if it is not installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def wanted_here(source: Path = SOURCE) -> Wanted | None:
    """What farreach asks for: its pyproject.toml if it runs from a clone, else its metadata."""
    path = source / "pyproject.toml"
    if path.exists() and sys.version_info >= (3, 11):
        import tomllib

        project = tomllib.loads(path.read_text()).get("project", {})
        if project.get("name") == "farreach":
            lines, optional = list(project["dependencies"]), project["optional-dependencies"]
            for extra, more in optional.items():
                lines += [_of_extra(line, extra) for line in more]
            return Wanted(str(path), project["requires-python"], lines, list(optional))
    with suppress(importlib.metadata.PackageNotFoundError):
        data = importlib.metadata.metadata("farreach")
        lines = importlib.metadata.requires("farreach") or []
        extras = data.get_all("Provides-Extra") or []
        return Wanted("its metadata", data["Requires-Python"] or "", lines, extras)
    return None


def _of_extra(line: str, extra: str) -> str:
    """A requirement of pyproject.toml's extras in the form that metadata have."""
    requirement, _, marker = line.partition(";")
    both = f"({marker.strip()}) and " if marker else ""
    return f'{requirement}; {both}extra == "{extra}"'


def shadows(folders: Iterable[Path], standard: Path) -> list[Path]:
    """Files called like the standard library's `platform` in folders that Python looks into."""
    found = []
    for folder in dict.fromkeys(path.resolve() for path in folders):
        for name in ("platform.py", "platform/__init__.py"):
            path = folder / name
            with suppress(OSError):
                if path.exists() and path != standard / "platform.py":
                    found.append(path)
    return found


def folders_looked_into() -> list[Path]:
    """Where this Python finds modules, where it would from here, and the clone's top folder."""
    return [*(Path(entry or ".") for entry in sys.path), Path.cwd(), SOURCE]


def shadowing(files: Sequence[Path]) -> Finding:
    """Whether anything hides the standard library's `platform`."""
    if files:
        return fault(
            f"{files[0]} hides the standard library's module `platform`, without which Python, "
            "Ray and PyTorch do not start",
            f"remove it: rm {' '.join(map(str, files))} (folders called platform are harmless "
            "without an __init__.py)",
        )
    return ok("nothing hides the standard library's `platform`")


def standard_library() -> Path:
    """Its folder."""
    return Path(sysconfig.get_path("stdlib")).resolve()


def python_version(version: str, wanted: Wanted | None) -> Finding:
    """Whether farreach is made for this Python."""
    from packaging.specifiers import SpecifierSet

    if wanted is not None and not SpecifierSet(wanted.python).contains(version, prereleases=True):
        return fault(
            f"Python {version}, but farreach takes {wanted.python}",
            "make a virtual environment of another Python and install farreach there",
        )
    return ok(f"Python {version}, {sys.executable}")


def requirements(wanted: Wanted | None, installed: Installed) -> list[Finding]:
    """Whether what farreach needs is there in versions that it takes; extras only if installed."""
    if wanted is None:
        return [
            warning(
                "farreach is not installed here, and there is no pyproject.toml to compare with",
                "pip install farreach's folder, or let the job bring its dependencies",
            )
        ]
    wrong, count = [], 0
    for extra in ("", *wanted.extras):
        for name, versions in _of(wanted.requirements, extra):
            version = _any_of(name, installed)
            if version is None and extra:
                continue
            count += 1
            problem = _problem(name, versions, version)
            if problem is not None:
                wrong.append(warning(*problem) if extra else fault(*problem))
    return wrong or [ok(f"{count} packages in versions that {wanted.source} takes")]


def pins_of_ray(lines: Sequence[str], installed: Installed) -> list[Finding]:
    """Whether the parts of Ray that farreach uses are there, gymnasium's exact version included."""
    if not lines:
        return [fault("Ray is not installed", "pip install farreach's folder")]
    wrong: dict[str, Finding] = {}
    gymnasium = ""
    for extra in ("default", "rllib", "train"):
        for name, versions in [*_of(lines, ""), *_of(lines, extra)]:
            gymnasium = f"{name}{versions}" if name == "gymnasium" else gymnasium
            problem = _problem(name, versions, installed(name))
            if problem is not None:
                wrong.setdefault(name, fault(f"ray[{extra}]: {problem[0]}", problem[1]))
    return list(wrong.values()) or [
        ok(f"all of ray[default,rllib,train] {installed('ray')}, {gymnasium} among it")
    ]


def requirements_of_ray() -> list[str]:
    """Lines of Ray's metadata, [] if it is not installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.requires("ray") or []
    return []


def faiss_wheels(installed: Installed) -> Finding:
    """Whether one of the wheels that hold `faiss` is installed, and no more."""
    found = {name: version for name in FAISS if (version := installed(name)) is not None}
    if len(found) > 1:
        return fault(
            f"{' and '.join(found)} are both installed, and their files overwrite one another's",
            f"pip uninstall -y {' '.join(found)}, then pip install the one you want",
        )
    if not found:
        return fault("FAISS is not installed", "pip install faiss-cpu")
    ((name, version),) = found.items()
    return ok(f"{name} {version} alone")


def _any_of(name: str, installed: Installed) -> str | None:
    """Version of a distribution or of one that stands in for it."""
    names = FAISS if name == "faiss-cpu" else (name,)
    return next((version for other in names if (version := installed(other)) is not None), None)


def _of(lines: Sequence[str], extra: str) -> Iterator[tuple[str, str]]:
    """(name, versions) of the requirements that an extra adds here; of those without one for ""."""
    from packaging.requirements import Requirement

    for line in lines:
        requirement = Requirement(line)
        if requirement.name == "farreach":
            continue
        marker = requirement.marker
        is_always = marker is None or marker.evaluate({"extra": ""})
        is_added = marker is not None and not is_always and marker.evaluate({"extra": extra})
        if is_added if extra else is_always:
            yield requirement.name, str(requirement.specifier)


def _problem(name: str, wanted: str, version: str | None) -> tuple[str, str] | None:
    from packaging.specifiers import SpecifierSet

    if version is None:
        return f"{name} is not installed", f"pip install '{name}{wanted}'"
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return f"{name} {version} is installed, not {wanted}", f"pip install '{name}{wanted}'"
    return None
