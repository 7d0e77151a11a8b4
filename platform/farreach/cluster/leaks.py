"""Secrets that are written in a cluster file, and placeholders that still are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from farreach.cluster.findings import Finding, texts
from farreach.yaml_source import KeyPath, Tree

PLACEHOLDER = "CHANGE-ME"

_NAMES = r"token|secret|passw(?:or)?d|api_?key|access_?key(?:_?id)?|account_?key|credentials"
_KEY = re.compile(rf"\w*(?:{_NAMES})", re.IGNORECASE)
# NAME=value in a command; what begins with $ or ( is looked up where the command runs.
_ASSIGNED = re.compile(rf"\b\w*(?:{_NAMES})=[\"']?(?![$(]|{PLACEHOLDER})[^\s\"';&|]", re.IGNORECASE)
_SHAPES = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an access key of AWS": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a token of GitHub": r"\b(?:gh[pousr]_\w{30,}|github_pat_\w{30,})",
    "a token of Hugging Face": r"\bhf_[A-Za-z0-9]{30,}",
    "an API key of Google": r"\bAIza[\w-]{35}",
    "a signed token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.",
    "a key of an Azure account": r"\bAccountKey=[\w+/=]{20,}",
    "a password in an address": r"\w://[^/\s:@$]+:[^/\s:@$]+@",
}


def secrets(tree: Tree) -> Iterator[Finding]:
    """A problem for each text that is or assigns a secret; what is found is never repeated.

    Args:
        tree: a cluster file, or one document of it.
    """
    for path, text in texts(tree):
        what = _what(path, text, tree)
        if what:
            yield Finding(
                path,
                f"holds {what}. Take it out and make a new one; name a file or a Kubernetes Secret "
                "(valueFrom.secretKeyRef) in its place, or give the machines a role of the cloud.",
            )


def placeholders(tree: Tree) -> Iterator[Finding]:
    """A note for each text that is still to be filled in, where it is first."""
    told: set[str] = set()
    for path, text in texts(tree):
        if PLACEHOLDER in text and text not in told:
            told.add(text)
            yield Finding(path, f"is still {text!r}. Fill it in.", "note")


def _what(path: KeyPath, text: str, tree: Tree) -> str | None:
    for what, shape in _SHAPES.items():
        if re.search(shape, text):
            return what
    if _ASSIGNED.search(text):
        return "a secret in a command"
    name = _name_of(path, tree)
    if text and PLACEHOLDER not in text and name and _KEY.fullmatch(name):
        return f"the value of {name}"
    return None


def _name_of(path: KeyPath, tree: Any) -> str | None:
    """What a text is the value of: its key, or the name of an environment variable."""
    if not path:
        return None
    parent, above = tree, None
    for key in path[:-1]:
        parent, above = parent[key], key
    if path[-1] == "value":
        return str(parent.get("name", above))
    return path[-1] if isinstance(path[-1], str) else None
