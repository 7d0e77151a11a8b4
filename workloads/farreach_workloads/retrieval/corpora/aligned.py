"""Texts that are translations of one another, as rows that a retriever can be fine-tuned on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from farreach.data.text import documents
from farreach.disk import sync
from farreach_workloads.retrieval.corpora.layout import TRAIN, Shares, part_of

ALIGNED = "aligned.jsonl"


def write_aligned(out: Path, folders: list[tuple[Path, Path]], shares: Shares) -> Path:
    """Write a file of pairs beside the corpora of languages, whole or not at all; its path.

    A question is a translated description, the text that answers it the same one in English, of
    families that neither `dev` nor `test` has queries of.

    Args:
        out: the folder above them.
        folders: of each language that of its own descriptions and that of the English ones.
        shares: how families are parted.
    """
    file, working = out / ALIGNED, out / f".tmp-{ALIGNED}"
    with working.open("w", encoding="utf-8") as lines:
        for own, english in folders:
            for question, answer in pairs(own, english, shares):
                row = {"question": question, "positive_ctxs": [{"text": answer}]}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    sync(working)
    working.rename(file)
    sync(out)
    return file


def pairs(own: Path, english: Path, shares: Shares) -> Iterator[tuple[str, str]]:
    """Descriptions of one id in two folders, of the families that are to train on."""
    originals = {document.id: document for document in documents(english / "corpus.jsonl")}
    for document in documents(own / "corpus.jsonl"):
        original = originals.get(document.id)
        if original is not None and part_of(original.meta["source"], shares) == TRAIN:
            yield document.whole, original.whole
