"""Published results on the sets of BEIR, to set beside what was measured.

Source: arXiv:2112.09118 (Contriever), tables 2, 10 and 11: test sets, MS MARCO's development set.
Values are in percent, by the names of BEIR's folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from farreach.errors import DataError

Measure = Literal["ndcg@10", "recall@100"]

# ndcg@10 and recall@100 of BM25, Contriever, and Contriever tuned on MS MARCO.
SYSTEMS = ("BM25", "Contriever", "Contriever-ms")
_TABLE = {
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
PUBLISHED: dict[Measure, dict[str, dict[str, float]]] = {
    "ndcg@10": {name: dict(zip(SYSTEMS, row[0], strict=True)) for name, row in _TABLE.items()},
    "recall@100": {name: dict(zip(SYSTEMS, row[1], strict=True)) for name, row in _TABLE.items()},
}
REMARKS: dict[tuple[str, Measure | None], str] = {
    ("trec-covid", "recall@100"): "trec-covid: the published recall@100 is capped_recall@100",
    ("webis-touche2020", None): "webis-touche2020: its data changed after these results",
    ("cqadupstack", None): "cqadupstack: the mean of its 12 parts",
    (
        "arguana",
        None,
    ): "arguana: BM25 was published with the queries' own documents among the found",
}
_NONE = "–"


def beside(
    measured: Mapping[str, float], measure: Measure, systems: Sequence[str] = SYSTEMS
) -> str:
    """A table of measured and published results, with an average and the sets it is over.

    Args:
        measured: by set, shares from 0 to 1. TREC-COVID's recall is to be the capped one.
        measure: which one it is.
        systems: some of `SYSTEMS`.

    Returns:
        Lines of text, values in percent. Averages are over the sets that are both measured and
        published, and the last line but the remarks names these.

    Raises:
        DataError: nothing is measured, a value is no share, or there is no such system.
    """
    wrong = [name for name, value in measured.items() if not 0 <= value <= 1]
    if wrong or not measured:
        what = f"{wrong[0]} is {measured[wrong[0]]:g}" if wrong else "there is none"
        raise DataError(f"measured {measure}: {what}. Give shares from 0 to 1 by set.")
    unknown = [system for system in systems if system not in SYSTEMS]
    if unknown:
        raise DataError(
            f"system {unknown[0]!r}: is none of {', '.join(SYSTEMS)}. Name one of them."
        )
    published = PUBLISHED[measure]
    both = [name for name in published if name in measured]
    only = [name for name in measured if name not in published]
    rows = [["set", "measured", *systems]]
    for name in both:
        own = [100 * measured[name], *(published[name][system] for system in systems)]
        rows.append([name, *(f"{value:.1f}" for value in own)])
    rows += [[name, f"{100 * measured[name]:.1f}", *[_NONE] * len(systems)] for name in only]
    columns = [[100 * measured[name] for name in both]]
    columns += [[published[name][system] for name in both] for system in systems]
    averages = [f"{sum(column) / len(column):.1f}" if column else _NONE for column in columns]
    rows.append(["average", *averages])
    over = f"{measure}, average over {len(both)} sets: {', '.join(both) or 'none'}"
    remarks = [
        text for (name, of), text in REMARKS.items() if name in both and of in (None, measure)
    ]
    return "\n".join([*_aligned(rows), over, *remarks])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
