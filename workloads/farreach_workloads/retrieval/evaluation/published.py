"""Published results on common sets, to set beside what was measured; values in percent.

Source: arXiv:2112.09118 (Contriever): tables 2, 10 and 11 (BEIR: test sets, MS MARCO's development
set), 4 and 15 (Mr. TyDi), 1 (NQ and TriviaQA; tuned on MS MARCO: the release's README), 5, 13 and
14 (MKQA).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from farreach.errors import DataError

Values = Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Table:
    """Results of some systems.

    Attributes:
        systems: their names.
        values: measure → set → of each system, None where none is published.
        remarks: (set, measure or None for any) → what to know of it.
        other_measures: (set, measure) → what was measured there under its name.
    """

    systems: tuple[str, ...]
    values: Mapping[str, Values]
    remarks: Mapping[tuple[str, str | None], str] = field(default_factory=dict)
    other_measures: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def as_measured(self, name: str, measure: str) -> str:
        """The measure that is published of a set under the name of another, which it mostly is."""
        return self.other_measures.get((name, measure), measure)


_BEIR = {
    "msmarco": ((22.8, 20.6, 40.7), (65.8, 67.2, 89.1)),
    "trec-covid": ((65.6, 27.4, 59.6), (49.8, 17.2, 40.7)),
    "nfcorpus": ((32.5, 31.7, 32.8), (25.0, 29.4, 30.0)),
    "nq": ((32.9, 25.4, 49.8), (76.0, 77.1, 92.5)),
    "hotpotqa": ((60.3, 48.1, 63.8), (74.0, 70.4, 77.7)),
    "fiqa": ((23.6, 24.5, 32.9), (53.9, 56.2, 65.6)),
    "arguana": ((31.5, 37.9, 44.6), (94.2, 90.1, 97.7)),
    "webis-touche2020": ((36.7, 19.3, 23.0), (53.8, 22.5, 29.4)),
    "cqadupstack": ((29.9, 28.4, 34.5), (60.6, 61.4, 66.3)),
    "quora": ((78.9, 83.5, 86.5), (97.3, 98.7, 99.3)),
    "dbpedia-entity": ((31.3, 29.2, 41.3), (39.8, 45.3, 54.1)),
    "scidocs": ((15.8, 14.9, 16.5), (35.6, 36.0, 37.8)),
    "fever": ((75.3, 68.2, 75.8), (93.1, 93.6, 94.9)),
    "climate-fever": ((21.3, 15.5, 23.7), (43.6, 44.1, 57.4)),
    "scifact": ((66.5, 64.9, 67.7), (90.8, 92.6, 94.7)),
}
# MRR@100 and recall@100 of each system.
_MR_TYDI = {
    "arabic": ((36.7, 27.3, 43.4, 72.4), (80.0, 82.0, 88.7, 94.0)),
    "bengali": ((41.3, 36.3, 42.3, 67.2), (87.4, 89.6, 91.4, 98.6)),
    "english": ((15.1, 9.2, 27.1, 56.6), (55.1, 48.8, 77.2, 92.2)),
    "finnish": ((28.8, 21.1, 35.1, 60.2), (72.5, 79.6, 88.1, 92.7)),
    "indonesian": ((38.2, 23.5, 42.6, 63.0), (84.6, 81.4, 89.8, 94.5)),
    "japanese": ((21.7, 19.5, 32.4, 54.9), (65.6, 72.8, 81.7, 88.8)),
    "korean": ((28.1, 22.3, 34.2, 55.3), (79.7, 66.2, 78.2, 88.9)),
    "russian": ((32.9, 17.5, 36.1, 59.7), (66.0, 68.5, 83.8, 92.4)),
    "swahili": ((39.6, 38.3, 51.2, 70.7), (76.4, 88.7, 91.4, 93.7)),
    "telugu": ((42.4, 22.5, 37.4, 90.3), (81.3, 80.8, 96.6, 98.9)),
    "thai": ((41.7, 37.2, 40.2, 67.3), (85.3, 90.3, 90.5, 95.2)),
}
# Hits among the first 5, 20 and 100.
_OPEN = {
    "nq": ((None, 47.8, 65.7), (62.9, 67.8, 79.6), (78.3, 82.1, 88.0)),
    "triviaqa": ((None, 59.4, 71.3), (76.4, 74.2, 80.4), (83.2, 83.2, 85.7)),
}
_MKQA = {
    "ar": (43.0, 53.3), "da": (49.3, 72.0), "de": (49.0, 66.6), "en": (65.3, 75.6),
    "es": (37.2, 70.0), "fi": (43.1, 66.6), "fr": (50.2, 70.1), "he": (44.7, 59.6),
    "hu": (47.7, 66.7), "it": (56.7, 70.3), "ja": (47.1, 60.4), "km": (27.8, 37.8),
    "ko": (44.8, 55.4), "ms": (56.7, 71.6), "nl": (61.7, 71.4), "no": (50.2, 71.5),
    "pl": (44.4, 68.8), "pt": (54.5, 68.5), "ru": (51.8, 64.7), "sv": (54.5, 70.8),
    "th": (51.4, 63.5), "tr": (44.3, 68.7), "vi": (45.1, 67.8), "zh_cn": (54.3, 64.1),
    "zh_hk": (51.9, 64.5), "zh_tw": (52.5, 64.3),
}  # fmt: skip


def _by_measure(
    names: Sequence[str], table: Mapping[str, tuple[tuple[float | None, ...], ...]]
) -> dict[str, Values]:
    return {
        measure: {name: row[number] for name, row in table.items()}
        for number, measure in enumerate(names)
    }


BEIR = Table(
    ("BM25", "Contriever", "Contriever-ms"),
    _by_measure(("ndcg@10", "recall@100"), _BEIR),
    {
        ("trec-covid", "recall@100"): (
            "trec-covid: capped_recall@100, here as there; of recall itself BEIR's collection of "
            "reproductions has 3.7 for Contriever and 9.1 for Contriever-ms"
        ),
        ("webis-touche2020", "ndcg@10"): (
            "webis-touche2020: its data changed after these results; on the new the collection of "
            "reproductions has 16.7 for Contriever and 20.4 for Contriever-ms"
        ),
        ("webis-touche2020", "recall@100"): (
            "webis-touche2020: its data changed after these results; on the new the collection of "
            "reproductions has 37.4 for Contriever and 44.2 for Contriever-ms"
        ),
        ("cqadupstack", None): "cqadupstack: the mean of its 12 parts",
        (
            "arguana",
            None,
        ): "arguana: BM25 was published with the queries' own documents among the found",
    },
    {("trec-covid", "recall@100"): "capped_recall@100"},
)
MR_TYDI = Table(
    ("BM25", "mContriever", "mContriever-ms", "mContriever-tydi"),
    _by_measure(("mrr@100", "recall@100"), _MR_TYDI),
)
OPEN_QUESTIONS = Table(
    ("BM25", "Contriever", "Contriever-ms"), _by_measure(("hit@5", "hit@20", "hit@100"), _OPEN)
)
MKQA = Table(("mContriever", "mContriever-ms"), {"hit@100": _MKQA})
_NONE = "–"


def beside(
    measured: Mapping[str, float],
    measure: str,
    table: Table = BEIR,
    systems: Sequence[str] | None = None,
) -> str:
    """A table of measured and published results, with an average and the sets it is over.

    Args:
        measured: by set, shares from 0 to 1. TREC-COVID's recall is to be the capped one.
        measure: which one it is, of the table's.
        table: what is published.
        systems: some of the table's; None: all.

    Returns:
        Lines of text, values in percent. Averages are over the sets that are both measured and
        published, and the last line but the remarks names these.

    Raises:
        DataError: nothing is measured, a value is no share, or there is no such system.
    """
    systems = table.systems if systems is None else systems
    wrong = [name for name, value in measured.items() if not 0 <= value <= 1]
    if wrong or not measured:
        what = f"{wrong[0]} is {measured[wrong[0]]:g}" if wrong else "there is none"
        raise DataError(f"measured {measure}: {what}. Give shares from 0 to 1 by set.")
    unknown = [system for system in systems if system not in table.systems]
    if unknown:
        raise DataError(
            f"system {unknown[0]!r}: is none of {', '.join(table.systems)}. Name one of them."
        )
    places = [table.systems.index(system) for system in systems]
    published = table.values[measure]
    both = [name for name in published if name in measured]
    rows: list[list[float | None]] = [
        [100 * measured[name], *(published[name][place] for place in places)] for name in both
    ]
    shown = [["set", "measured", *systems]]
    shown += [[name, *map(_shown, row)] for name, row in zip(both, rows, strict=True)]
    only = [name for name in measured if name not in published]
    shown += [[name, _shown(100 * measured[name]), *[_NONE] * len(systems)] for name in only]
    columns = list(zip(*rows, strict=True)) or [()] * (1 + len(systems))
    shown.append(["average", *(_shown(_mean(column)) for column in columns)])
    over = f"{measure}, average over {len(both)} sets: {', '.join(both) or 'none'}"
    remarks = [
        text for (name, of), text in table.remarks.items() if name in both and of in (None, measure)
    ]
    return "\n".join([*_aligned(shown), over, *remarks])


def _shown(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1f}"


def _mean(column: Sequence[float | None]) -> float | None:
    """None where one lacks, or all do."""
    values = [value for value in column if value is not None]
    return sum(values) / len(values) if values and len(values) == len(column) else None


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
