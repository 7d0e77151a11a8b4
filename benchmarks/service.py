"""Questions per second that a search service answers many clients, beside one search at a time.

`python benchmarks/service.py [dense] [hybrid] [--clients 16] [--documents 100000]` prints one JSON
line per row. Clients are threads; each asks its next question as soon as the last is answered, by
vectors or by vectors and words. Both sides are `retrieval.serving.SearchService` over the same
index, exact search; the peer's searches wait for one another and go one by one, as in a service
that only locks. `p50_ms` and `p99_ms` are how long a question takes with waiting, ours and the
peer's. With `--clients 1` nothing can be gained.

The encoder has 4 layers of 256 with random weights, the documents are the descriptions of the
shipped extract again and again, their vectors drawn. `OMP_NUM_THREADS` is 2 unless it is set.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import itertools
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch

from farreach.data.text import Document
from farreach.data.wordpieces import trained
from farreach.index.vectors import finish, write_part
from farreach_workloads.retrieval.corpora import extract
from farreach_workloads.retrieval.embed import EmbedConfig, embed
from farreach_workloads.retrieval.encoder import Bert, EncoderConfig
from farreach_workloads.retrieval.evaluation.beir import open_beir
from farreach_workloads.retrieval.hub import save_encoder
from farreach_workloads.retrieval.indexes import BuildConfig, build
from farreach_workloads.retrieval.jobs import JOB, MODEL, read_job
from farreach_workloads.retrieval.serving import SearchService

WIDTH, VOCABULARY, PART, K = 256, 30_522, 50_000, 10
SECONDS, ROUNDS = 5.0, 3
Search = Callable[[Any, Sequence[str]], Any]


def index_of(count: int, folder: Path) -> tuple[Path, list[str]]:
    """An index of so many documents, and questions."""
    corpus = open_beir(extract.folder(folder / "extract"), "dev")
    texts = list(corpus.documents())
    torch.manual_seed(0)
    words = trained([text.whole for text in texts], VOCABULARY)
    sizes = {"width": WIDTH, "depth": 4, "heads": 4, "hidden": 4 * WIDTH, "positions": WIDTH}
    save_encoder(Bert(words.size, EncoderConfig.model_validate(sizes)), words, folder / MODEL)
    (folder / "one.txt").write_text(texts[0].whole.replace("\n", " "))
    embed(folder / MODEL, folder / "one.txt", folder / "one", EmbedConfig())

    vectors, rng = folder / "vectors", np.random.default_rng(0)
    again = itertools.cycle(texts)
    for number, begin in enumerate(range(0, count, PART)):
        size = min(PART, count - begin)
        drawn = rng.standard_normal((size, WIDTH)).astype(np.float32)
        named = [Document(str(begin + i), next(again).title, next(again).text) for i in range(size)]
        write_part(vectors, number, drawn, named)
    finish(
        vectors, parts=-(-count // PART), model=read_job(folder / "one")["model"], normalised=False
    )
    shutil.copy(folder / "one" / JOB, vectors / JOB)
    shutil.copytree(folder / "one" / MODEL, vectors / MODEL)
    build(vectors, folder / "index", BuildConfig(kind="flat"))
    return folder / "index", list(corpus.queries.values())


def one_by_one(search: Search) -> Search:
    """The same for one caller at a time."""
    lock = threading.Lock()

    def locked(kind: Any, queries: Sequence[str]) -> Any:
        with lock:
            return search(kind, queries)

    return locked


def asked(service: SearchService, mode: str, clients: int, questions: Sequence[str]) -> list[float]:
    """How long each question took that so many clients asked for `SECONDS`, in s."""
    end = time.perf_counter() + SECONDS

    def client(number: int) -> list[float]:
        taken = []
        for query in itertools.islice(itertools.cycle(questions), number * 7, None):
            begin = time.perf_counter()
            if begin > end:
                break
            service.answer({"query": query, "k": K, "mode": mode})
            taken.append(time.perf_counter() - begin)
        return taken

    with ThreadPoolExecutor(clients) as pool:
        return [seconds for taken in pool.map(client, range(clients)) for seconds in taken]


def compare(service: SearchService, mode: str, clients: int, questions: Sequence[str]) -> None:
    """Print the row of a mode; both sides take turns."""
    together = service._search
    sides: dict[str, Any] = {"ours": together, "peer": one_by_one(service._found)}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    waits: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        for name, search in sides.items():
            service._search = search
            begin = time.perf_counter()
            taken = asked(service, mode, clients, questions)
            if number:  # the first is to warm up
                rates[name].append(len(taken) / (time.perf_counter() - begin))
                waits[name] += taken
    service._search = together
    ours, peer = (statistics.median(rates[name]) for name in sides)
    measure.row(
        f"service_{mode}",
        ours,
        peer,
        "questions per s",
        ours / peer,
        clients=clients,
        documents=service.answer({"query": questions[0], "k": 1})["documents"],
        p50_ms=[round(1e3 * float(np.quantile(waits[name], 0.5)), 1) for name in sides],
        p99_ms=[round(1e3 * float(np.quantile(waits[name], 0.99)), 1) for name in sides],
        threads=os.environ["OMP_NUM_THREADS"],
    )


def main() -> None:
    """Print the rows that are asked for."""
    parser = measure.parser(__doc__)
    parser.add_argument("modes", nargs="*", help="dense or hybrid; both by default")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--documents", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, questions = index_of(arguments.documents, Path(name))
        service = SearchService(str(folder))
        for mode in arguments.modes or ["dense", "hybrid"]:
            compare(service, mode, arguments.clients, questions)


if __name__ == "__main__":
    main()
