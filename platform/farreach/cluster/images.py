"""Container images: which versions of Ray and Python they bring, and whether these go together."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from farreach import __version__
from farreach.cluster.findings import Finding
from farreach.cluster.leaks import PLACEHOLDER
from farreach.yaml_source import KeyPath

# What pyproject.toml allows.
PYTHONS = ((3, 10), (3, 14))

_RAY_TAG = re.compile(r"(?P<ray>\d+\.\d+\.\d+)(?:\.\w+)?(?:-py(?P<python>3\d+))?(?:-\w+)*$")


class Image(NamedTuple):
    """What the name of an image tells; None: nothing.

    Attributes:
        ray: the version of Ray, such as "2.60.0".
        python: the version of Python, such as (3, 11).
        farreach: the version of farreach.
        tag: what is behind the colon.
    """

    ray: str | None
    python: tuple[int, int] | None
    farreach: str | None
    tag: str | None


def image_of(name: str) -> Image:
    """What the name of an image tells: Ray's own tell its version, ours that of farreach."""
    base, _, tag = name.partition("@")[0].rpartition(":")
    if not base or "/" in tag:
        return Image(None, None, None, None)
    last = base.rpartition("/")[2]
    if last == "farreach":
        return Image(None, None, tag, tag)
    found = _RAY_TAG.match(tag) if base.endswith(("rayproject/ray", "rayproject/ray-ml")) else None
    if found is None:
        return Image(None, None, None, tag)
    python = found["python"]
    return Image(found["ray"], (3, int(python[1:])) if python else None, None, tag)


def image_findings(images: dict[KeyPath, str], ray_version: str) -> Iterator[Finding]:
    """What is wrong with the images of one cluster.

    Args:
        images: where an image is named → its name.
        ray_version: that of the machine the cluster is used from.
    """
    told = {path: image_of(name) for path, name in images.items()}
    for path, image in told.items():
        yield from _versions(path, image, ray_version)
        if image.tag in (None, "latest", "nightly") and PLACEHOLDER not in images[path]:
            yield Finding(
                path,
                f"{images[path]!r} is another image whenever it is built anew. Name a version, so "
                "that all machines have the same.",
                "warning",
            )
    yield from _differences(told)


def _versions(path: KeyPath, image: Image, ray_version: str) -> Iterator[Finding]:
    if image.ray not in (None, ray_version):
        yield Finding(
            path,
            f"brings Ray {image.ray}, and here is Ray {ray_version}: jobs could not be submitted. "
            f"Take the image of {ray_version}, or install Ray {image.ray} here.",
        )
    if image.farreach not in (None, __version__):
        yield Finding(
            path,
            f"is farreach {image.farreach}, and here is {__version__}. Build the image anew, or "
            "check with the version that runs.",
            "warning",
        )
    if image.python is None:
        return
    shown = ".".join(map(str, image.python))
    if not PYTHONS[0] <= image.python < PYTHONS[1]:
        low, high = PYTHONS[0][1], PYTHONS[1][1] - 1
        yield Finding(path, f"brings Python {shown}; farreach needs 3.{low} to 3.{high}.")
    elif image.python != sys.version_info[:2]:
        here = ".".join(map(str, sys.version_info[:2]))
        yield Finding(
            path,
            f"brings Python {shown}, and here is {here}: submitted jobs run, but RAY_ADDRESS from "
            "this machine does not.",
            "warning",
        )


def _differences(told: dict[KeyPath, Image]) -> Iterator[Finding]:
    """Images of one cluster that bring different versions of Python or of farreach."""
    for what, name in (("python", "Python"), ("farreach", "farreach")):
        known = {path: value for path, image in told.items() if (value := getattr(image, what))}
        first = next(iter(known.values()), None)
        for path, value in known.items():
            if value != first:
                message = f"brings another version of {name} than the cluster's first image."
                yield Finding(path, message)
