"""A small set of labelled texts, with a vocabulary of whole words."""

import json

from farreach.data.wordpieces import WordPieces

COLOURS = ("red", "blue", "green", "white", "black", "grey", "brown", "pink", "gold", "olive")
THINGS = ("car", "hat", "cup", "door", "fish", "bird", "tree", "shoe", "lamp", "ship")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def words(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *COLOURS, *THINGS]) + "\n")
    return WordPieces.open(folder)


def lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def context(text, title=""):
    return {"title": title, "text": text}


def beir(folder, questions=100):
    """Of every colour and thing there is a document; a question names both the other way round."""
    texts = [(colour, thing) for colour in COLOURS for thing in THINGS]
    lines(
        folder / "corpus.jsonl",
        [
            {"_id": f"d{i}", "title": "", "text": f"{colour} {thing} {thing}"}
            for i, (colour, thing) in enumerate(texts)
        ],
    )
    lines(
        folder / "queries.jsonl",
        [{"_id": f"q{i}", "text": f"{thing} {colour}"} for i, (colour, thing) in enumerate(texts)],
    )
    for split, rows in (("train", range(questions)), ("dev", range(0, 100, 9))):
        (folder / "qrels").mkdir(exist_ok=True)
        judged = "".join(f"q{i}\td{i}\t1\n" for i in rows)
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return folder
