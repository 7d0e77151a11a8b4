"""A small index that a page can search, and what asks a page for things."""

import contextlib
import http.client
import json
from urllib.parse import urlencode, urlsplit

import torch

from farreach.data import wordpieces
from farreach_workloads.retrieval import indexes
from farreach_workloads.retrieval.embed import EmbedConfig, embed
from farreach_workloads.retrieval.encoder import Bert, EncoderConfig
from farreach_workloads.retrieval.hub import save_encoder
from farreach_workloads.retrieval.searcher import Searcher

EVIL = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
TEXTS = {
    "mount": ("Mount", "attach the file system of a disk to a folder", "admin"),
    "umount": ("Unmount", "let go of a disk that is mounted", "admin"),
    "fdisk": ("", "cut a Disk into parts, a disk at a time", "admin"),
    "sox": ("Sound exchange", "convert files of sound", "sound"),
    "evil": (f"Evil {EVIL}", f"hostile text {EVIL} & more", "sound"),
    "rtl": ("שלום", "טקסט עברי עם 𝒟isk", "other"),
}


def made(folder):
    """A searcher of a new index with words, whose encoder was never trained."""
    lines = [
        json.dumps({"_id": name, "title": title, "text": text, "section": section})
        for name, (title, text, section) in TEXTS.items()
    ]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    vocabulary = wordpieces.trained([" ".join(text) for text in TEXTS.values()], 200)
    torch.manual_seed(0)
    sizes = {"width": 16, "depth": 1, "heads": 2, "hidden": 32, "positions": 64}
    encoder = Bert(vocabulary.size, EncoderConfig(kind="bert", **sizes))
    save_encoder(encoder.eval(), vocabulary, folder / "model")
    embed(folder / "model", folder / "corpus.jsonl", folder / "vectors", EmbedConfig())
    indexes.build(folder / "vectors", folder / "small <index>", indexes.BuildConfig())
    return Searcher.open(folder / "small <index>")


def without_words(searcher):
    """The same index, as if its words had not been counted."""
    return Searcher(
        searcher.index, None, searcher._encoder, searcher._words, searcher._texts, searcher.fusion
    )


def ask(address, path, method="GET", **headers):
    """Status, headers and body."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def found(address, **asked):
    status, _, body = ask(address, f"/search?{urlencode(asked)}")
    return status, json.loads(body)
