"""Search as a service: a deployment of Ray Serve that opens an index and answers in JSON.

`cluster/kuberay/rayservice.yaml` serves it on Kubernetes, `serve run` anywhere else:

```
serve run farreach_workloads.retrieval.serving:application index=index/debian
curl -d '{"query": "how do I mount a disk", "k": 5}' http://127.0.0.1:8000/
```

Questions that come while a search runs are searched for together once it has ended, and an index
that is changed meanwhile is searched as it is then. It needs the extra `serve`, and knows no users:
whoever reaches its port may ask.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from farreach.errors import ConfigError, FarreachError
from farreach_workloads.retrieval.batching import Batched
from farreach_workloads.retrieval.half_characters import half_in
from farreach_workloads.retrieval.live import Live
from farreach_workloads.retrieval.searcher import Found, Mode, Searcher

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.requests import Request
    from starlette.responses import Response

MOST_QUERIES, MOST_HITS = 256, 1000
LONGEST_QUERY, LONGEST_WHERE = 2000, 1000
MOST_BYTES = 1 << 20
# Questions that a copy of the service takes at once; Ray Serve's own 5 would keep batches small.
MOST_ONGOING = 64
_CLIENT_ERROR, _TOO_LARGE = 400, 413


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Question(_Strict):
    """What a client asks, in JSON."""

    query: str | list[str]
    """What is looked for, or several such texts."""
    k: int = Field(10, ge=1, le=MOST_HITS)
    """Documents for each, at most."""
    mode: Mode | None = None
    """By vectors, by words or by both; null: by both if words are indexed."""
    where: str | None = Field(None, max_length=LONGEST_WHERE)
    """A filter on metadata; see `farreach.index.where`."""


class Arguments(_Strict):
    """What the service is started with."""

    index: str
    """Folder of an index, as all machines see it."""
    device: str = "cpu"
    """Where queries are encoded."""


class _Kind(NamedTuple):
    """What questions have in common that are searched for together."""

    k: int
    mode: Mode | None
    where: str | None


class SearchService:
    """Answers questions about one index, in many threads at once; works without Ray Serve too."""

    def __init__(self, index: str, device: str = "cpu") -> None:
        """Open an index.

        Args:
            index: its folder.
            device: where queries are encoded.

        Raises:
            DataError: there is no index, or it is damaged.
        """
        self._live = Live(Searcher.open(Path(index), device=device))
        self._search = Batched(self._found, MOST_QUERIES)
        # They only wait for one another; asyncio's own are too few to make a batch of.
        self._threads = ThreadPoolExecutor(MOST_ONGOING, thread_name_prefix="question")

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a question, as JSON takes both.

        Args:
            question: see `Question`.

        Returns:
            `documents`: how many there are; `seconds` it took, with waiting; `hits`: a row for each
            document that was found, see `Found.as_row`, or a list of such lists if `query` is one.

        Raises:
            ConfigError: a field is unknown, missing, of another type or out of range.
            DataError: a query is blank, or the filter is wrong.
        """
        asked = _question(question)
        queries = [asked.query] if isinstance(asked.query, str) else asked.query
        began = time.perf_counter()
        found = self._search(_Kind(asked.k, asked.mode, asked.where), queries)
        hits = [[hit.as_row() for hit in of_one] for of_one in found]
        return {
            "documents": self._live.now().documents,
            "seconds": time.perf_counter() - began,
            "hits": hits[0] if isinstance(asked.query, str) else hits,
        }

    def _found(self, kind: _Kind, queries: Sequence[str]) -> list[list[Found]]:
        searcher = self._live.now()
        k = min(kind.k, searcher.documents)
        return searcher.search(queries, k, mode=kind.mode, where=kind.where)

    async def __call__(self, request: Request) -> Response:
        """Answer a POST of a question; an `error` with status 400 says what is wrong with it."""
        from starlette.responses import JSONResponse

        body = await request.body()
        if len(body) > MOST_BYTES:
            error = f"the question has {len(body):,} bytes, and {MOST_BYTES:,} are allowed."
            return JSONResponse({"error": error}, _TOO_LARGE)
        try:
            question = await request.json()
        except ValueError as error:
            return JSONResponse({"error": f"the question is no JSON: {error}."}, _CLIENT_ERROR)
        try:
            answer = asyncio.get_running_loop().run_in_executor(
                self._threads, self.answer, question
            )
            return JSONResponse(await answer)
        except FarreachError as error:
            return JSONResponse({"error": str(error)}, _CLIENT_ERROR)


def application(arguments: dict[str, Any]) -> Application:
    """The application for Ray Serve, whose options of deployment its configuration sets.

    Args:
        arguments: see `Arguments`.

    Raises:
        ConfigError: an argument is wrong, or Ray Serve is not installed.
    """
    try:
        settings = Arguments.model_validate(arguments)
    except ValidationError as error:
        raise ConfigError(_told(error, Arguments)) from error
    try:
        from ray import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Ray Serve lacks the package {error.name!r}. Install it on every machine: "
            "pip install 'farreach[serve]'."
        ) from error
    deployment: Any = serve.deployment(SearchService, max_ongoing_requests=MOST_ONGOING)
    return deployment.bind(**settings.model_dump())


def _question(question: Any) -> Question:
    if not isinstance(question, Mapping):
        raise ConfigError('the question should be a mapping, such as {"query": "mount a disk"}.')
    try:
        asked = Question.model_validate(question)
    except ValidationError as error:
        raise ConfigError(_told(error, Question)) from error
    queries = [asked.query] if isinstance(asked.query, str) else asked.query
    if not 1 <= len(queries) <= MOST_QUERIES:
        raise ConfigError(f"query: should be 1 to {MOST_QUERIES} texts (got {len(queries)}).")
    longest = max(map(len, queries))
    if longest > LONGEST_QUERY:
        raise ConfigError(
            f"query: has {longest:,} characters, and {LONGEST_QUERY:,} are allowed. Shorten it."
        )
    if half := half_in(*queries):
        raise ConfigError(f"query: has half a character, {half}. Write it whole.")
    return asked


def _told(error: ValidationError, model: type[BaseModel]) -> str:
    """All mistakes, a sentence each."""
    known = ", ".join(model.model_fields)
    sentences = {}
    for details in error.errors(include_url=False):
        name = str(details["loc"][0]) if details["loc"] else "question"
        if details["type"] == "extra_forbidden":
            sentences[name] = f"{name}: is unknown. Give {known}."
        elif details["type"] == "missing":
            sentences[name] = f"{name}: is missing."
        else:
            sentences.setdefault(name, f"{name}: {_lower(details['msg'])}.")
    return " ".join(sentences.values())


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
