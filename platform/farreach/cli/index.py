"""The command line's part about search: `farreach embed | index … | search | data prepare`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from farreach.cli.arguments import UsageError, positive
from farreach.cli.lists import say_table
from farreach.console import say, warn
from farreach.errors import DataError
from farreach.imports import imported
from farreach.registry import near_match

# Imports of torch and of everything that needs it wait until a command does.

EMBED_MODULE = "farreach_workloads.retrieval.embed"
INDEXES_MODULE = "farreach_workloads.retrieval.indexes"
RERANK_MODULE = "farreach_workloads.retrieval.rerank"
SEARCHER_MODULE = "farreach_workloads.retrieval.searcher"
LIVE_MODULE = "farreach_workloads.retrieval.live"
PAGE_MODULE = "farreach_workloads.retrieval.page"
TUNING_MODULE = "farreach_workloads.retrieval.tuning"
SETS_MODULE = "farreach_workloads.retrieval.corpora.sets"
DOWNLOADED_MODULE = "farreach_workloads.retrieval.corpora.downloaded"

MODES = ("hybrid", "dense", "lexical")
SHOWN = 10
PAGE_PORT = 8080
PROMPT = "search> "
BOLD, PLAIN = "\033[1m", "\033[0m"


def embed_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `embed`."""
    parser.add_argument(
        "model", metavar="RUN_OR_MODEL", help="a run directory, 'latest', or an exported encoder"
    )
    _add_source(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make, or to go on with")
    _add_settings(parser, "workers=4, gpus=0.5, longest=256, bfloat16=true, …")


def embed(options: argparse.Namespace) -> None:
    """Embed a source."""
    from farreach import config as configs

    module = imported(EMBED_MODULE)
    config = configs.from_words(options.settings, module.EmbedConfig)
    try:
        vectors = module.embed(options.model, options.source, options.out, config)
    except KeyboardInterrupt:
        warn(f"stopped; the same command goes on with {options.out}")
        raise
    say(f"{options.out}: {vectors.count:,} documents, vectors of {vectors.width:,} numbers")


def index_argument(parser: argparse.ArgumentParser) -> None:
    """The index that a command is about."""
    parser.add_argument("index", type=Path, metavar="INDEX", help="folder of an index")


def build_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `index build`."""
    parser.add_argument(
        "vectors", type=Path, metavar="VECTORS", help="folder that `farreach embed` made"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    _add_settings(parser, "kind=hnsw, shards=8, lexical=false, …")


def build(options: argparse.Namespace) -> None:
    """Make an index."""
    from farreach import config as configs

    module = imported(INDEXES_MODULE)
    config = configs.from_words(options.settings, module.BuildConfig)
    module.build(options.vectors, options.out, config)
    say_table(module.facts(options.out))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `index add`."""
    index_argument(parser)
    _add_source(parser)
    _add_settings(parser, "of embedding: workers=4, gpus=0.5, …")


def add(options: argparse.Namespace) -> None:
    """Add documents."""
    module = imported(INDEXES_MODULE)
    count = module.add(options.index, options.source, options.settings)
    say(f"{options.index}: {count:,} documents added")


def delete_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `index delete`."""
    index_argument(parser)
    parser.add_argument("ids", nargs="+", metavar="ID", help="of a document")


def delete(options: argparse.Namespace) -> None:
    """Take documents out."""
    imported(INDEXES_MODULE).delete(options.index, options.ids)
    say(f"{options.index}: {len(options.ids):,} documents deleted")


def merge_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `index merge`."""
    parser.add_argument("indexes", nargs="+", type=Path, metavar="INDEX", help="two or more")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")


def merge(options: argparse.Namespace) -> None:
    """Make one index of several."""
    if len(options.indexes) < 2:
        raise UsageError("name two indexes or more, and then the folder to make.")
    module = imported(INDEXES_MODULE)
    module.merge(options.indexes, options.out)
    say_table(module.facts(options.out))


def compact_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `index compact`."""
    index_argument(parser)
    _add_settings(parser, "workers=2")


def compact(options: argparse.Namespace) -> None:
    """Build an index anew."""
    module = imported(INDEXES_MODULE)
    module.compact(options.index, options.settings)
    say_table(module.facts(options.index))


def show(options: argparse.Namespace) -> None:
    """Say what an index holds."""
    say_table(imported(INDEXES_MODULE).facts(options.index))


def tune_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `index tune`."""
    index_argument(parser)
    parser.add_argument(
        "queries", type=Path, metavar="FOLDER", help="with queries.jsonl and qrels/SPLIT.tsv"
    )
    _add_settings(parser, "split=dev, fusion=rrf")


def tune(options: argparse.Namespace) -> None:
    """Choose the weight of words."""
    from farreach import config as configs

    module = imported(TUNING_MODULE)
    config = configs.from_words(options.settings, module.TuneConfig)
    tuned = module.tune(options.index, options.queries, config)
    for weight, quality in sorted(tuned.curve.items()):
        mark = "  *" if weight == tuned.weight else ""
        say(f"weight {weight:.1f}  ndcg@10 {quality:.4f}{mark}")
    if tuned.recall is not None:
        say(f"recall of the truly best ten: {tuned.recall:.3f}")


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `index compare`."""
    parser.add_argument("vectors", type=Path, metavar="VECTORS", help="what `embed` has written")
    parser.add_argument("queries", type=Path, metavar="FOLDER", help="with queries.jsonl")
    parser.add_argument(
        "--out", type=Path, default=Path("recall_speed.png"), help="picture to draw"
    )


def compare(options: argparse.Namespace) -> None:
    """Say and draw how much each kind of index finds, and how fast."""
    from farreach.figures import save
    from farreach.index.compare import drawn

    points = []
    for point in imported(TUNING_MODULE).compared(options.vectors, options.queries):
        points.append(point)
        say(
            f"{point.kind:<9} {point.effort:<11} recall {point.recall:.3f}  "
            f"{point.rate:>9,.0f} queries/s  {point.megabytes:>8,.1f} MB"
        )
    file = options.out if options.out.suffix else options.out.with_suffix(".png")
    say(str(save(drawn(points, str(options.vectors)), file)))


def search_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `search`."""
    index_argument(parser)
    parser.add_argument(
        "query", nargs="?", metavar="QUERY", help="without one, queries are asked for line by line"
    )
    parser.add_argument(
        "--k", type=positive, metavar="N", help=f"documents to show (default: {SHOWN})"
    )
    parser.add_argument(
        "--where", metavar="FILTER", help="only documents whose metadata are so, such as lang='de'"
    )
    parser.add_argument("--mode", choices=MODES, help="default: hybrid if words are indexed")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object for each query, and no more"
    )
    parser.add_argument(
        "--rerank",
        type=Path,
        metavar="RUN",
        help="put the first 50 into the order of a re-ranker: a run, or a folder of Hugging Face's",
    )
    parser.add_argument(
        "--spread",
        action="store_true",
        help="search each shard in a Ray actor, on whichever machines RAY_ADDRESS has",
    )
    parser.add_argument(
        "--page", action="store_true", help="search in a browser instead, on this machine alone"
    )
    parser.add_argument(
        "--port", type=positive, default=PAGE_PORT, help=f"of the page (default: {PAGE_PORT})"
    )


def search(options: argparse.Namespace) -> None:
    """Search for one query, or for those that are typed or piped in."""
    searcher = imported(SEARCHER_MODULE).Searcher.open(options.index)
    if options.rerank is not None:
        searcher.judge = imported(RERANK_MODULE).Reranker.open(options.rerank)
    with searcher.spread() if options.spread else contextlib.nullcontext(searcher) as chosen:
        if options.page:
            imported(PAGE_MODULE).serve(chosen, options.port)
        else:
            _search(chosen, options)


def _search(searcher: Any, options: argparse.Namespace) -> None:
    live = imported(LIVE_MODULE).Live(searcher)
    if options.query is not None:
        _answer(live.now(), options.query, options)
        return
    is_typed = sys.stdin.isatty()
    for query in _asked():
        if not (is_typed or options.json):
            say(f"\n{query}")
        try:
            _answer(live.now(), query, options)
        except DataError as error:  # the next one may be better
            warn(f"error: {error}")


def _answer(searcher: Any, query: str, options: argparse.Namespace) -> None:
    k = options.k or min(SHOWN, searcher.documents)
    found = searcher.search([query], k, mode=options.mode, where=options.where)[0]
    if options.json:
        hits = [hit.as_row() for hit in found]
        say(json.dumps({"query": query, "hits": hits}, ensure_ascii=False))
    else:
        _say_hits(found)


def prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `data prepare`."""
    parser.add_argument(
        "name",
        metavar="NAME",
        help="debian, debian_languages, faq, faq_languages; with --from: mr_tydi, mkqa",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument(
        "--from",
        type=Path,
        dest="source",
        metavar="PATH",
        help="what you downloaded of a set that others publish",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/cache/corpora"),
        metavar="DIR",
        help="for what is downloaded (default: runs/cache/corpora)",
    )


def prepare(options: argparse.Namespace) -> None:
    """Make a corpus with queries."""
    if options.source is not None:
        for folder in imported(DOWNLOADED_MODULE).converted(
            options.name, options.source, options.out
        ):
            say(str(folder))
        return
    module = imported(SETS_MODULE)
    if options.name in imported(DOWNLOADED_MODULE).DOWNLOADED:
        raise UsageError(
            f"{options.name}: is made of what others publish. Download it, and say where it is "
            "with --from PATH."
        )
    if options.name not in module.SETS:
        known = [*module.SETS, *imported(DOWNLOADED_MODULE).DOWNLOADED]
        raise UsageError(f"there is no corpus {options.name!r}. {near_match(options.name, known)}")
    for folder in module.prepare(options.name, options.out, options.cache):
        say(str(folder))


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="documents: .jsonl, .tsv, .txt, Parquet, packed or not, or a folder of these",
    )


def _add_settings(parser: argparse.ArgumentParser, examples: str) -> None:
    parser.add_argument("settings", nargs="*", metavar="key=value", help=examples)


def _asked() -> Iterator[str]:
    """Lines of stdin that are not blank, with a prompt on a terminal."""
    prompt = ""
    if sys.stdin.isatty():
        prompt = PROMPT
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives `input` a history)
    while True:
        try:
            line = input(prompt)
        except EOFError:
            return
        except UnicodeDecodeError as error:
            warn(f"error: a line is not UTF-8: {error.reason}. It is passed over.")
            continue
        if any("\ud800" <= sign <= "\udfff" for sign in line):  # what stands for other bytes
            warn("error: a line is not UTF-8. It is passed over.")
        elif line.strip():
            yield line


def _say_hits(hits: Sequence[Any]) -> None:
    shows_bold = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    if not hits:
        say("nothing is found")
    for hit in hits:
        texts = (hit.title, hit.snippet)
        if shows_bold:
            texts = tuple(hit.marked(text, BOLD, PLAIN) for text in texts)
        name = texts[0] or hit.name
        named = name if name == hit.id else f"{name}  ({hit.id})"
        say(f"{hit.rank:>3}  {hit.score:.4f}  {named}")
        say(f"     {texts[1]}")
