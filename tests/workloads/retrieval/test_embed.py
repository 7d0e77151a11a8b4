import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from farreach.data import text, wordpieces
from farreach.errors import ConfigError, DataError
from farreach.index.vectors import Vectors
from farreach_workloads.retrieval import embed as embedding_job
from farreach_workloads.retrieval.embed import embed
from farreach_workloads.retrieval.encoder import Bag, Bert, EncoderConfig
from farreach_workloads.retrieval.hub import open_encoder, save_encoder
from farreach_workloads.retrieval.jobs import EmbedConfig, texts_config
from farreach_workloads.retrieval.models import fingerprint, open_model
from farreach_workloads.retrieval.passages import begins

TEXT = "a tool that reads and writes files of sound pictures mail or code for the desktop"
WORDS = TEXT.split()
SIZES = {"width": 16, "depth": 1, "heads": 2, "hidden": 32, "positions": 64}


def sentences(count, longest=40, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) for _ in range(count)]


def save_model(folder, kind="bert", seed=0, normalised=False):
    words = wordpieces.trained(sentences(50), 200)
    config = EncoderConfig(kind=kind, normalised=normalised, **SIZES)
    torch.manual_seed(seed)
    encoder = (Bert if kind == "bert" else Bag)(words.size, config)
    save_encoder(encoder.eval(), words, folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "bert")


def write_corpus(file, count, seed=0):
    lines = [
        json.dumps({"_id": f"d{number}", "title": f"Title {number}", "text": sentence})
        for number, sentence in enumerate(sentences(count, seed=seed))
    ]
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


@pytest.fixture
def small_pieces(monkeypatch):
    """Cuts sources into pieces of a few kilobytes."""
    cut = text.pieces
    monkeypatch.setattr(text, "pieces", lambda source, most=0: cut(source, 4000))


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "embedding.json")
    }


def test_each_document_gets_the_vector_of_its_title_and_text(model, tmp_path, small_pieces):
    source = write_corpus(tmp_path / "corpus.jsonl", 60)
    vectors = embed(model, source, tmp_path / "out", EmbedConfig(stored="float32", budget=100))
    assert len(vectors.parts) > 2
    assert vectors.count == 60
    encoder, words = open_encoder(model)
    documents = vectors.documents(np.arange(60))
    assert [one.id for one in documents] == [f"d{number}" for number in range(60)]
    for row in (0, 17, 59):
        ids = words.encode([f"Title {row} {documents[row].text}"])[0]
        framed = torch.tensor([[words.cls, *ids, words.sep]])
        with torch.no_grad():
            alone = encoder(framed, torch.tensor([framed.shape[1]]))[0]
        found = torch.from_numpy(vectors.at(np.array([row]))[0])
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_windows_and_budgets_change_nothing(model, tmp_path, monkeypatch):
    source = write_corpus(tmp_path / "corpus.jsonl", 60)
    one = embed(model, source, tmp_path / "one", EmbedConfig(stored="float32"))
    monkeypatch.setattr(embedding_job, "TOGETHER", 7)
    many = embed(model, source, tmp_path / "many", EmbedConfig(stored="float32", budget=30))
    rows = np.arange(60)
    np.testing.assert_allclose(many.at(rows), one.at(rows), rtol=1e-4, atol=1e-5)
    assert many.ids(rows) == one.ids(rows)


def test_long_documents_have_a_vector_for_each_passage(model, tmp_path, monkeypatch):
    source = write_corpus(tmp_path / "corpus.jsonl", 30)
    monkeypatch.setattr(embedding_job, "TOGETHER_IN_PASSAGES", 7)
    config = EmbedConfig(stored="float32", passage=12, whole=0.25, budget=100)
    vectors = embed(model, source, tmp_path / "out", config)
    encoder, words = open_encoder(model)
    assert vectors.count == 30
    assert not vectors.normalised
    documents, expected, points = vectors.documents(np.arange(30)), [], []

    def encoded(ids):
        framed = torch.tensor([[words.cls, *ids, words.sep]])
        with torch.no_grad():
            return encoder(framed, torch.tensor([framed.shape[1]]))[0].numpy()

    for one in documents:
        ids = words.encode([f"{one.title} {one.text}"])[0].tolist()
        whole = encoded(ids)
        if len(ids) <= 12:
            parts = [whole]
        else:  # each begins 6 after the one before, until one reaches the end
            ends = [12]
            while ends[-1] < len(ids):
                ends.append(ends[-1] + 6)
            parts = [0.25 * whole + 0.75 * encoded(ids[end - 12 : end]) for end in ends]
        points.append(len(parts))
        expected += parts
    assert min(points) == 1
    assert max(points) > 3
    np.testing.assert_array_equal(np.diff(vectors.begins), points)
    found = vectors.at(np.arange(vectors.points))
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "length", "expected"),
    [
        (5, 0, []),
        (8, 8, []),
        (9, 8, [0, 4]),
        (12, 8, [0, 4]),
        (13, 8, [0, 4, 8]),
        (3, 1, [0, 1, 2]),
    ],
)
def test_passages_begin_half_of_one_after_another_and_reach_the_end(size, length, expected):
    assert list(begins(size, length)) == expected


def test_passages_longer_than_texts_are_refused(model, tmp_path):
    source = write_corpus(tmp_path / "corpus.jsonl", 3)
    with pytest.raises(ConfigError, match="passage: 63 word pieces do not fit, for texts have 62"):
        embed(model, source, tmp_path / "out", EmbedConfig(passage=63))
    assert not (tmp_path / "out").exists()


def test_a_job_begun_before_there_were_passages_goes_on(model, tmp_path):
    source = write_corpus(tmp_path / "corpus.jsonl", 10)
    vectors = embed(model, source, tmp_path / "out", EmbedConfig())
    file = tmp_path / "out" / "embedding.json"
    job = json.loads(file.read_text())
    for name in ("passage", "whole"):
        del job["settings"][name]
    file.write_text(json.dumps(job))
    assert embed(model, source, tmp_path / "out", EmbedConfig()).count == vectors.count
    with pytest.raises(DataError, match="was begun with passage=0, and now it is 20"):
        embed(model, source, tmp_path / "out", EmbedConfig(passage=20))


def test_half_precision_is_stored_unless_said(model, tmp_path):
    source = write_corpus(tmp_path / "corpus.jsonl", 20)
    exact = embed(model, source, tmp_path / "exact", EmbedConfig(stored="float32"))
    half = embed(model, source, tmp_path / "half", EmbedConfig())
    assert np.load(tmp_path / "half" / "part-00000.npy").dtype == np.float16
    expected = exact.at(np.arange(20)).astype(np.float16)
    np.testing.assert_array_equal(half.at(np.arange(20)), expected.astype(np.float32))


def test_texts_are_prepared_as_the_settings_say(model, tmp_path):
    source = tmp_path / "corpus.jsonl"
    long = "files of sound " * 40
    lines = [{"_id": "1", "title": "Mail", "text": "of code"}, {"_id": "2", "text": long}]
    source.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    plain = tmp_path / "plain.jsonl"
    short = "files of sound files of sound files of sound files"
    lines = [{"_id": "1", "text": "of code"}, {"_id": "2", "text": short}]
    plain.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    _, words = open_encoder(model)
    longest = 2 + len(words.encode([short])[0])
    config = EmbedConfig(no_title=True, longest=longest, lower=True)
    found = embed(model, source, tmp_path / "out", config)
    expected = embed(model, plain, tmp_path / "expected", EmbedConfig())
    np.testing.assert_array_equal(found.at(np.arange(2)), expected.at(np.arange(2)))
    assert texts_config(tmp_path / "out").longest == longest
    assert texts_config(tmp_path / "out").lower


def test_documents_alone_are_encoded_with_weights_of_8_bits(model, tmp_path, monkeypatch):
    source = write_corpus(tmp_path / "corpus.jsonl", 10)

    def negated(encoder):
        with torch.no_grad():
            encoder.norm.weight.neg_(), encoder.norm.bias.neg_()
        encoder.blocks = torch.nn.ModuleList()
        return encoder

    stand_in = types.SimpleNamespace(quantised=negated)
    monkeypatch.setitem(sys.modules, "farreach_workloads.retrieval.int8", stand_in)
    exact = embed(model, source, tmp_path / "exact", EmbedConfig())
    small = embed(model, source, tmp_path / "small", EmbedConfig(int8=True))
    assert not np.allclose(small.at(np.arange(10)), exact.at(np.arange(10)), atol=0.1)
    assert small.model == exact.model == fingerprint(*open_model(tmp_path / "small" / "model"))
    with pytest.raises(ValueError, match="is for CPUs alone"):
        EmbedConfig(int8=True, bfloat16=True)


def test_the_folder_holds_the_model_and_its_fingerprint(model, tmp_path):
    source = write_corpus(tmp_path / "corpus.jsonl", 5)
    embed(model, source, tmp_path / "out", EmbedConfig())
    expected = fingerprint(*open_model(model))
    assert fingerprint(*open_model(tmp_path / "out" / "model")) == expected
    assert Vectors.open(tmp_path / "out").model == expected


def test_a_fingerprint_tells_weights_vocabularies_and_lengths_apart(tmp_path):
    encoder, words = open_encoder(save_model(tmp_path / "bag", "bag"))
    other = wordpieces.trained(sentences(50), 200, lower=False)
    prints = {fingerprint(encoder, words), fingerprint(encoder, other)}
    encoder.normalised = True
    prints.add(fingerprint(encoder, words))
    with torch.no_grad():
        encoder.words.weight[3, 0] += 1e-4
    prints.add(fingerprint(encoder, words))
    assert len(prints) == 4


@pytest.mark.ray
def test_actors_write_what_the_driver_would(model, tmp_path, small_pieces, ray_local):
    source = write_corpus(tmp_path / "corpus.jsonl", 120)
    embed(model, source, tmp_path / "inline", EmbedConfig(passage=16))
    embed(model, source, tmp_path / "actors", EmbedConfig(passage=16, workers=2))
    assert files_of(tmp_path / "actors") == files_of(tmp_path / "inline")


def is_ours(pid):
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def kill_one_actor(folder):
    """SIGKILL to the first actor of ours that is at work, once a part is written."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        titles = Path("/proc").glob("[0-9]*/cmdline") if list(folder.glob("part-*.parquet")) else ()
        for title in titles:
            with contextlib.suppress(OSError):
                pid = int(title.parent.name)
                if b"ray::Host.work" in title.read_bytes() and is_ours(pid):
                    os.kill(pid, signal.SIGKILL)
                    return pid
        time.sleep(0.01)
    raise AssertionError("no actor was at work")


@pytest.mark.ray
def test_the_death_of_an_actor_costs_no_document(model, tmp_path, small_pieces, ray_local):
    source = write_corpus(tmp_path / "corpus.jsonl", 1000)
    embed(model, source, tmp_path / "calm", EmbedConfig())
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_one_actor, tmp_path / "out")
        embed(model, source, tmp_path / "out", EmbedConfig(workers=2))
        assert killed.result() > 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "calm")


KILLED = """
import os, signal, sys
from pathlib import Path
from farreach.data import text
from farreach.index import vectors
from farreach_workloads.retrieval.embed import EmbedConfig, embed
cut, write = text.pieces, vectors.write_part
text.pieces = lambda source, most=0: cut(source, 4000)
def write_three(folder, number, *rest):
    if number == 3:
        (folder / ".part-00003.npy.1.tmp").write_bytes(b"torn")
        os.kill(os.getpid(), signal.SIGKILL)
    write(folder, number, *rest)
vectors.write_part = write_three
model, source, out = map(Path, sys.argv[1:])
embed(model, source, out, EmbedConfig())
"""


def test_a_killed_job_goes_on_and_ends_as_if_nothing_had_happened(model, tmp_path, small_pieces):
    source = write_corpus(tmp_path / "corpus.jsonl", 150)
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", KILLED, model, source, out]
    done = subprocess.run(arguments, env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = {path: path.stat() for path in out.glob("part-*")}
    assert len(before) == 6
    assert not (out / "manifest.json").exists()
    with pytest.raises(DataError, match="Run the embedding to its end"):
        Vectors.open(out)
    embed(model, source, out, EmbedConfig())
    after = {path: path.stat() for path in before}
    assert {path: (s.st_ino, s.st_mtime_ns) for path, s in after.items()} == {
        path: (s.st_ino, s.st_mtime_ns) for path, s in before.items()
    }
    embed(model, source, tmp_path / "calm", EmbedConfig())
    assert files_of(out) == files_of(tmp_path / "calm")


def test_a_finished_job_is_left_as_it_is(model, tmp_path):
    source = write_corpus(tmp_path / "corpus.jsonl", 5)
    embed(model, source, tmp_path / "out", EmbedConfig())
    (tmp_path / "out" / "part-00000.npy").touch()
    before = (tmp_path / "out" / "part-00000.npy").stat().st_mtime_ns
    assert embed(model, source, tmp_path / "out", EmbedConfig(budget=64)).count == 5
    assert (tmp_path / "out" / "part-00000.npy").stat().st_mtime_ns == before


def test_a_folder_of_another_model_text_or_setting_is_refused(model, tmp_path):
    source = write_corpus(tmp_path / "corpus.jsonl", 5)
    out = tmp_path / "out"
    embed(model, source, out, EmbedConfig())
    other = save_model(tmp_path / "other", seed=1)
    with pytest.raises(DataError, match="was begun with another model"):
        embed(other, source, out, EmbedConfig())
    with pytest.raises(DataError, match="was begun with longest=None, and now it is 20"):
        embed(model, source, out, EmbedConfig(longest=20))
    write_corpus(source, 6)
    with pytest.raises(DataError, match=r"was begun with another text, .*corpus\.jsonl, or its"):
        embed(model, source, out, EmbedConfig())


def test_a_folder_of_something_else_is_left_alone(model, tmp_path):
    source = write_corpus(tmp_path / "corpus.jsonl", 5)
    with pytest.raises(DataError, match=r"holds something else, such as corpus\.jsonl"):
        embed(model, source, tmp_path, EmbedConfig())


def test_equal_ids_are_named(model, tmp_path):
    source = tmp_path / "corpus.jsonl"
    source.write_text('{"_id": "x", "text": "mail"}\n' * 2)
    with pytest.raises(DataError, match="1 ids belong to several documents: 'x'"):
        embed(model, source, tmp_path / "out", EmbedConfig())


def test_what_is_wrong_with_a_source_shows_before_anything_is_embedded(
    model, tmp_path, small_pieces, monkeypatch
):
    """Its last line is malformed, or has an id of before; mended, the same folder is made."""
    source, out = write_corpus(tmp_path / "corpus.jsonl", 200), tmp_path / "out"
    lines = source.read_text().splitlines(keepends=True)
    with monkeypatch.context() as watched:
        watched.setattr(embedding_job, "_embed_missing", None)
        for last, match in (
            ('{"_id": "d3", "text": "mail"}\n', r"corpus\.jsonl: 1 ids belong to .*: 'd3'"),
            ('{"_id": "d200"}\n', "has no key 'text'"),
            ('{"_id": \n', "JSON"),
        ):
            source.write_text("".join([*lines, last]))
            with pytest.raises(DataError, match=match):
                embed(model, source, out, EmbedConfig())
    source.write_text("".join(lines))
    assert embed(model, source, out, EmbedConfig()).count == 200


def test_blank_documents_are_counted(model, tmp_path, small_pieces, capsys):
    source = write_corpus(tmp_path / "corpus.jsonl", 50)
    blank = "".join(f'{{"_id": "b{n}", "text": " "}}\n' for n in range(1200))
    source.write_text(source.read_text() + blank)
    assert embed(model, source, tmp_path / "out", EmbedConfig()).count == 50
    assert "1,200 blank documents are passed over" in capsys.readouterr().err
    source.write_text(blank)
    with pytest.raises(DataError, match="holds blank documents alone"):
        embed(model, source, tmp_path / "other", EmbedConfig())
    assert not (tmp_path / "other" / "embedding.json").exists()


def test_vectors_in_bfloat16_are_near_those_in_single_precision(model, tmp_path):
    source = write_corpus(tmp_path / "corpus.jsonl", 40)
    exact = embed(model, source, tmp_path / "exact", EmbedConfig(stored="float32"))
    short = embed(model, source, tmp_path / "short", EmbedConfig(stored="float32", bfloat16=True))
    rows = np.arange(40)
    one, other = exact.at(rows), short.at(rows)
    assert not np.array_equal(one, other)
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosines.min() > 0.999


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(DataError, match=r"is neither a run nor a folder with config\.json"):
        open_model(tmp_path)


def test_a_large_packed_file_is_unpacked_into_pieces(model, tmp_path, small_pieces, monkeypatch):
    plain = tmp_path / "plain" / "corpus.jsonl"
    plain.parent.mkdir()
    rng = np.random.default_rng(0)
    lines = [{"text": " ".join(map(str, rng.integers(1000, 9999, 30)))} for _ in range(80)]
    plain.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    packed = tmp_path / "packed" / "corpus.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    whole = embed(model, packed, tmp_path / "whole", EmbedConfig())
    monkeypatch.setattr(embedding_job, "PACKED_SHARE", 1 << 14)
    cut = embed(model, packed, tmp_path / "cut", EmbedConfig())
    assert len(whole.parts) == 1
    assert len(cut.parts) > 2
    rows = np.arange(80)
    assert cut.ids(rows) == whole.ids(rows) == [d.id for d in text.documents(packed)]
    np.testing.assert_allclose(cut.at(rows), whole.at(rows), rtol=1e-2, atol=1e-3)
    assert not (tmp_path / "cut" / "unpacked").exists()


def test_progress_tells_documents_and_rates(model, tmp_path, small_pieces, capsys):
    source = write_corpus(tmp_path / "corpus.jsonl", 300)
    embed(model, source, tmp_path / "out", EmbedConfig())
    shown = capsys.readouterr().err
    assert "documents 300" in shown
    assert "tokens/s" in shown
