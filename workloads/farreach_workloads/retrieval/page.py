"""A local web page to search an index with: by vectors, by words and by both, side by side.

If a re-ranker puts hits into another order, that is a fourth column.

`/` is the page, `/search?q=…&k=…&where=…` answers with JSON, and nothing else is there. The page
loads nothing from elsewhere. Unless it is told otherwise, only this machine reaches it, and only
under a name of this machine, so that no other site's scripts read it under a name of their own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from farreach.console import say
from farreach.errors import ConfigError, FarreachError
from farreach_workloads.retrieval import snippets
from farreach_workloads.retrieval.live import Live
from farreach_workloads.retrieval.searcher import Column, Found, Searcher

HOST, LOCAL_NAMES = "127.0.0.1", ("127.0.0.1", "localhost", "::1")
SHOWN, MOST = 10, 100
LONGEST_QUERY, LONGEST_WHERE = 2000, 1000
COLUMNS: tuple[Column, ...] = ("dense", "lexical", "hybrid")
PAGE = Path(__file__).with_name("page.html")

# Seconds that a client may take to send its request.
_PATIENCE = 30
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_NOTHING_ALLOWED = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


def serve(searcher: Searcher, port: int, host: str = HOST) -> None:
    """Serve the page until Ctrl-C.

    Args:
        searcher: what is searched.
        port: to listen at; 0 takes one that is free.
        host: an address of this machine; any but its own loopback opens the page to the network.

    Raises:
        ConfigError: the address cannot be used.
    """
    with _Server(searcher, port, host) as server, suppress(KeyboardInterrupt):
        say(f"page      {server.address}  (Ctrl-C ends it)")
        server.serve_forever()


@contextmanager
def served(searcher: Searcher, port: int = 0, host: str = HOST) -> Iterator[str]:
    """The page's address, as `serve` has it, which is served as long as the context lasts."""
    with _Server(searcher, port, host) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.address
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Request:
    """What a search asks for.

    Attributes:
        query: a text that is not blank.
        k: documents of each column, at most.
        where: a filter, see `farreach.index.where`; None: there is none.
    """

    query: str
    k: int = SHOWN
    where: str | None = None

    @classmethod
    def parse(cls, text: str) -> Request:
        """From the part of an address after its question mark.

        Raises:
            ConfigError: something is missing, unknown, given twice, too long or out of range.
        """
        try:
            given = parse_qs(text, keep_blank_values=True, errors="strict", max_num_fields=8)
        except ValueError as error:
            raise ConfigError(
                f"address: cannot be read: {error}. Give q, k and where, in UTF-8."
            ) from error
        for name, values in given.items():
            if name not in ("q", "k", "where"):
                raise ConfigError(f"{name:.50}: is unknown. Give q, k and where.")
            if len(values) > 1:
                raise ConfigError(f"{name}: is there {len(values)} times. Give it once.")
        query, k, where = (given.get(name, [""])[0].strip() for name in ("q", "k", "where"))
        if not query:
            raise ConfigError("q: is missing or blank. Write what is looked for.")
        for name, value, most in (("q", query, LONGEST_QUERY), ("where", where, LONGEST_WHERE)):
            if len(value) > most:
                raise ConfigError(
                    f"{name}: has {len(value):,} characters, and {most:,} are allowed. Shorten it."
                )
        if k and not (re.fullmatch("[0-9]{1,4}", k) and 1 <= int(k) <= MOST):
            raise ConfigError(f"k={k:.50}: is no number from 1 to {MOST}. Give such a one.")
        return cls(query, int(k) if k else SHOWN, where or None)


def answer(searcher: Searcher, request: Request) -> dict[str, Any]:
    """What each kind of search finds, as JSON takes it.

    Returns:
        `query` and `where` as given, `k` as used, how many `documents` there are, `seconds`, and
        `columns`: each has its `mode` and `hits`, which are None if the index has no words; the
        last is `reranked` if there is a judge. A hit is what `Found.as_row` has, its `name`, and
        `parts` of its title and its snippet, of which every second one, from the second on, is one
        of the query's words.

    Raises:
        ConfigError, DataError: see `Searcher.compared`.
    """
    began = time.perf_counter()
    k = max(1, min(request.k, searcher.documents))
    found = searcher.compared(request.query, k, request.where)
    columns: list[dict[str, Any]] = [
        {"mode": column, "hits": [_row(hit) for hit in found[column]] if column in found else None}
        for column in dict.fromkeys((*COLUMNS, *found))
    ]
    return {
        "query": request.query,
        "where": request.where,
        "k": k,
        "documents": searcher.documents,
        "seconds": time.perf_counter() - began,
        "columns": columns,
    }


def _row(found: Found) -> dict[str, Any]:
    texts = {"title": found.title, "snippet": found.snippet}
    parts = {name: _parts(text, found.matched) for name, text in texts.items()}
    return found.as_row() | {"name": found.name, "parts": parts}


def _parts(text: str, words: Sequence[str]) -> list[str]:
    cuts = [0, *(at for place in snippets.places(text, words) for at in place), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(cuts)]


def _filled(searcher: Searcher) -> str:
    """The page of an index."""
    facts = {
        "name": searcher.index.path.resolve().name,
        "documents": f"{searcher.documents:,}",
        "columns": ", ".join(searcher.index.vectors.columns),
        "shown": SHOWN,
        "most": MOST,
        "longest_query": LONGEST_QUERY,
        "longest_where": LONGEST_WHERE,
    }
    return re.sub(
        r"\{\{(\w+)\}\}", lambda match: html.escape(str(facts[match[1]])), PAGE.read_text("utf-8")
    )


def _policy(page: str) -> str:
    """The Content-Security-Policy that lets a page's own style and script run, and no others."""
    found = (re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL) for tag in ("style", "script"))
    style, script = (
        base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()
        for match in found
        if match
    )
    return (
        f"{_NOTHING_ALLOWED}; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "connect-src 'self'; img-src data:"
    )


class _Server(ThreadingHTTPServer):
    """Listens as soon as it is made; requests come in threads of their own, searches one by one."""

    def __init__(self, searcher: Searcher, port: int, host: str) -> None:
        self.live, self.searching = Live(searcher), threading.Lock()
        self.policy = _policy(_filled(searcher))
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"{host}:{port}: cannot be listened at: {error}. Name another port or host."
            ) from error

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return str(self.server_address[0]).startswith("127.")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell of what went wrong, unless a client went away."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: _Server
    timeout = _PATIENCE
    server_version, sys_version = "farreach", ""

    def do_GET(self) -> None:
        """Answer with the page, what is found, or an error as JSON."""
        path, _, query = self.path.partition("?")
        if not self._is_meant():
            self.send_error(
                HTTPStatus.FORBIDDEN, f"Host: is another machine. Use {self.server.address}."
            )
        elif path == "/":
            self._send(
                HTTPStatus.OK, "text/html", _filled(self.server.live.now()), self.server.policy
            )
        elif path == "/search":
            self._search(query)
        else:
            self.send_error(HTTPStatus.NOT_FOUND, f"{path:.100}: is not here. The page is at /.")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with an error as JSON; the base class does so too, for what it cannot read."""
        text = message or HTTPStatus(code).phrase
        self._send(code, "application/json", json.dumps({"error": text}), _NOTHING_ALLOWED)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Say nothing of requests."""

    def _search(self, query: str) -> None:
        try:
            request = Request.parse(query)
            with self.server.searching:
                found = json.dumps(answer(self.server.live.now(), request))
        except FarreachError as error:
            self.send_error(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:
            text = f"The search failed: {type(error).__name__}: {error}"
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, text)
            raise
        else:
            self._send(HTTPStatus.OK, "application/json", found, _NOTHING_ALLOWED)

    def _is_meant(self) -> bool:
        """Whether the client knows this server by a name that is its own."""
        try:
            name = urlsplit(f"//{self.headers.get('Host', HOST)}").hostname
        except ValueError:
            return False
        return not self.server.is_local or name in LOCAL_NAMES

    def _send(self, code: int, kind: str, text: str, policy: str) -> None:
        body = text.encode()
        self.send_response(code)
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
        }
        for name, value in (headers | _HEADERS).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
