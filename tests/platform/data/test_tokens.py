import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from farreach.data import token_building, token_parts
from farreach.data.text import documents, pieces
from farreach.data.tokens import TokenStore, build
from farreach.data.wordpieces import trained
from farreach.errors import DataError

SYLLABLES = ["ba", "be", "di", "do", "fa", "fu", "ge", "go", "ha", "hi", "ka", "ku", "lo", "mi"]


@pytest.fixture(scope="module")
def words():
    return trained((f"{a}{b} {b}{a}{a}" for a in SYLLABLES for b in SYLLABLES), 200)


def text(rng, count):
    return " ".join("".join(rng.choice(SYLLABLES, 2)) for _ in range(count))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Five files of about 4,000 bytes; documents of 1 to 60 words, some blank or without tokens."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for number in range(5):
        lines = [text(rng, rng.integers(1, 60)) for _ in range(30)]
        lines[7:9] = ["", "\u200b"]
        (folder / f"{number}.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(token_building, "PART_BYTES", 2500)


@pytest.fixture(scope="module")
def stream(corpus, words):
    """All tokens, and where documents begin, without a store."""
    ids = [i for i in words.encode([d.whole for d in documents(corpus)]) if len(i)]
    return np.concatenate(ids), np.cumsum([0, *map(len, ids)])


@pytest.fixture(scope="module")
def store(corpus, words, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_building, "PART_BYTES", 2500)
        return build(corpus, tmp_path_factory.mktemp("store"), words)


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_tokens_come_in_the_order_of_pieces(store, stream, corpus):
    tokens, begins = stream
    assert (store.tokens, store.documents) == (len(tokens), len(begins) - 1) == (len(tokens), 140)
    manifest = manifest_of(store.path)
    assert len(manifest["parts"]) == len(pieces(corpus, 2500)) == 10
    assert manifest["skipped"] == 10
    parts = [np.fromfile(store.path / f"part-{i:05}.bin", np.uint16) for i in range(10)]
    np.testing.assert_array_equal(np.concatenate(parts), tokens)
    first = np.load(store.path / "part-00000.doc")
    assert first.dtype == np.uint64
    assert first.tolist() == begins[: len(first)].tolist()


@pytest.mark.parametrize("length", [1, 2, 64, 1000, 5000])
def test_windows_are_runs_of_the_stream(store, stream, length):
    tokens, _ = stream
    starts = np.random.default_rng(1).integers(0, len(tokens) - length + 1, 200)
    starts[:2] = 0, len(tokens) - length
    windows = store.windows(starts, length)
    assert windows.dtype == np.uint16
    np.testing.assert_array_equal(windows, [tokens[start : start + length] for start in starts])
    np.testing.assert_array_equal(store.windows(np.sort(starts), length), windows[starts.argsort()])


def test_a_window_may_be_the_whole_store(store, stream):
    tokens, _ = stream
    np.testing.assert_array_equal(store.windows(np.array([0]), len(tokens)), tokens[None])


def test_bounds_hold_every_position(store, stream):
    tokens, begins = stream
    positions = np.random.default_rng(2).permutation(len(tokens))
    found = store.bounds(positions)
    number = np.array([sum(b <= p for b in begins[1:]) for p in positions.tolist()])
    np.testing.assert_array_equal(found, [begins[number], begins[number + 1]])
    assert found[0].dtype == np.int64


def test_no_windows_and_no_positions_are_nothing(store):
    assert store.windows(np.zeros(0, np.int64), 8).shape == (0, 8)
    assert [len(found) for found in store.bounds(np.zeros(0, np.int64))] == [0, 0]


def test_what_is_out_of_the_store_is_refused(store):
    for starts in ([-1], [0, store.tokens - 7]):
        with pytest.raises(IndexError, match="are not within 0 and"):
            store.windows(np.array(starts), 8)
    with pytest.raises(IndexError, match="are not within 0 and"):
        store.bounds(np.array([store.tokens]))


def test_a_store_is_pickled_by_its_path(store, stream, monkeypatch, tmp_path):
    monkeypatch.chdir(store.path.parent)
    content = pickle.dumps(TokenStore.open(store.path.relative_to(store.path.parent)))
    assert len(content) < 500
    monkeypatch.chdir(tmp_path)
    other = pickle.loads(content)
    np.testing.assert_array_equal(other.windows(np.array([5]), 9)[0], stream[0][5:14])
    assert other.fingerprint == store.fingerprint


@pytest.mark.ray
def test_tasks_build_the_same_bytes_as_this_process(ray_local, corpus, words, store, tmp_path):
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    other = build(corpus, tmp_path / "store", words, workers=2)
    assert contents(tmp_path / "store") == contents(store.path)
    assert other.fingerprint == store.fingerprint
    assert os.environ.get("TOKENIZERS_PARALLELISM") == before


def test_title_and_text_are_tokenised_normalised_where_asked(words, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": "ba\\u2010be", "text": "di\\u2033do"}\n')
    plain = build(tmp_path / "a.jsonl", tmp_path / "plain", words)
    other = build(tmp_path / "a.jsonl", tmp_path / "other", words, normalise=True)
    for store, expected in ((plain, "ba‐be di″do"), (other, "ba-be di''do")):
        ids = words.encode([expected])[0]
        np.testing.assert_array_equal(store.windows(np.array([0]), store.tokens)[0], ids)
    assert manifest_of(other.path)["normalised"] is True
    assert plain.fingerprint != other.fingerprint


def test_large_vocabularies_take_four_bytes(corpus, words, tmp_path, monkeypatch, stream):
    monkeypatch.setattr(token_parts, "SMALL_VOCABULARY", words.size)
    store = build(corpus, tmp_path, words)
    assert manifest_of(tmp_path)["dtype"] == "uint32"
    windows = store.windows(np.array([9]), 50)
    assert windows.dtype == np.uint32
    np.testing.assert_array_equal(windows[0], stream[0][9:59])


def test_small_files_share_a_part_and_large_stores_have_few(words, tmp_path, monkeypatch):
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text(f"ba be {number}\n")
    build(tmp_path, tmp_path / "one", words)
    assert len(manifest_of(tmp_path / "one")["parts"]) == 1
    monkeypatch.setattr(token_building, "PART_BYTES", 1)
    monkeypatch.setattr(token_building, "MOST_PARTS", 4)
    build(tmp_path, tmp_path / "four", words)
    assert 4 <= len(manifest_of(tmp_path / "four")["parts"]) <= 8


def test_a_part_without_tokens_is_passed_over(words, tmp_path):
    (tmp_path / "a.txt").write_text("ba be\n" * 500 + "\n" * 6000 + "di do\n" * 500)
    store = build(tmp_path / "a.txt", tmp_path / "store", words)
    assert 0 in [part["tokens"] for part in manifest_of(store.path)["parts"]]
    ids = words.encode(["ba be", "di do"])
    middle = np.concatenate([*ids[:1] * 500, *ids[1:] * 500])
    np.testing.assert_array_equal(store.windows(np.array([0]), store.tokens)[0], middle)
    at = 500 * len(ids[0])
    assert [int(b[0]) for b in store.bounds(np.array([at]))] == [at, at + len(ids[1])]


def test_building_again_changes_nothing(corpus, words, store):
    before = {file.name: file.stat().st_mtime_ns for file in store.path.iterdir()}
    assert build(corpus, store.path, words).fingerprint == store.fingerprint
    assert {file.name: file.stat().st_mtime_ns for file in store.path.iterdir()} == before


@pytest.mark.ray
@pytest.mark.parametrize("workers", [0, 2])
def test_a_build_that_failed_keeps_the_parts_that_are_done(
    ray_local, corpus, words, store, tmp_path, workers
):
    source, out = tmp_path / "corpus", tmp_path / "store"
    shutil.copytree(corpus, source)
    good = (source / "3.txt").read_bytes()
    (source / "3.txt").write_bytes(good + b"caf\xe9\n")
    with pytest.raises(DataError, match=r"3\.txt, line 31: is not UTF-8"):
        build(source, out, words, workers=workers)
    assert workers or [file.name for file in out.glob(".*")] == [".lock"]
    with pytest.raises(DataError, match=r"holds no manifest\.json\. Build it again to go on"):
        TokenStore.open(out)
    finished = [file.with_suffix(".bin") for file in out.glob("part-0000[0-5].json")]
    done = {file: file.stat().st_mtime_ns for file in finished}
    assert workers or len(done) == 6
    (source / "3.txt").write_bytes(good)
    assert build(source, out, words, workers=workers).fingerprint == store.fingerprint
    assert {file: file.stat().st_mtime_ns for file in done} == done
    assert contents(out).keys() == contents(store.path).keys()


def test_a_build_that_was_killed_goes_on(corpus, words, store, tmp_path):
    words.save(tmp_path / "words")
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from farreach.data import token_building, token_parts\n"
        "from farreach.data.wordpieces import WordPieces\n"
        "encode, calls = WordPieces.encode, []\n"
        "def dying(self, texts):\n"
        "    calls.append(texts)\n"
        "    if len(calls) == 12:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return encode(self, texts)\n"
        "WordPieces.encode = dying\n"
        "token_building.PART_BYTES, token_parts.BATCH_CHARACTERS = 2500, 1000\n"
        "source, out, words = map(Path, sys.argv[1:])\n"
        "token_building.build_files(source, out, WordPieces.open(words), 0, False, False)\n"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry)
    out = tmp_path / "store"
    command = [sys.executable, "-c", script, str(corpus), str(out), str(tmp_path / "words")]
    environment = {**os.environ, "PYTHONPATH": path}
    killed = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert list(out.glob(".part-*.tmp"))
    done = {file: file.stat().st_mtime_ns for file in out.glob("part-*.bin")}
    assert 2 <= len(done) <= 6
    other = build(corpus, out, words)
    assert {file: file.stat().st_mtime_ns for file in done} == done
    assert contents(out) == contents(store.path)
    assert other.fingerprint == store.fingerprint


def test_a_finished_store_of_text_that_has_changed_is_refused(corpus, words, tmp_path):
    source = tmp_path / "corpus"
    shutil.copytree(corpus, source)
    build(source, tmp_path / "store", words)
    (source / "4.txt").write_text("ba be\n")
    with pytest.raises(DataError, match="was built from another text than"):
        build(source, tmp_path / "store", words)


def test_a_store_is_made_anew_of_text_that_has_changed_if_that_is_wanted(corpus, words, tmp_path):
    source, out = tmp_path / "corpus", tmp_path / "store"
    shutil.copytree(corpus, source)
    build(source, out, words)
    os.utime(source / "4.txt")  # touched
    build(source, out, words, renew=True)
    assert contents(out) == contents(build(source, tmp_path / "touched", words).path)
    (source / "4.txt").write_text("ba be\n")
    changed = build(source, out, words, renew=True)
    fresh = build(source, tmp_path / "fresh", words)
    assert contents(changed.path) == contents(fresh.path) != contents(tmp_path / "touched")


def test_other_vocabularies_and_choices_are_refused(corpus, words, store, tmp_path):
    other = trained(["ba be di do"] * 9, 40)
    with pytest.raises(DataError, match=r"another vocabulary \(\w{8}\) than .* Choose another"):
        build(corpus, store.path, other)
    with pytest.raises(DataError, match="holds tokens of unchanged text, which now is not"):
        build(corpus, store.path, words, normalise=True)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("ba\n" * 999)
    (tmp_path / "corpus" / "b.txt").write_bytes(b"\xff\n" * 999)
    with pytest.raises(DataError, match="is not UTF-8"):
        build(tmp_path / "corpus", tmp_path / "store", words)
    with pytest.raises(DataError, match="another vocabulary"):
        build(tmp_path / "corpus", tmp_path / "store", other)


def test_a_store_smaller_than_a_window_says_so(words, tmp_path):
    (tmp_path / "a.txt").write_text("ba be\n")
    store = build(tmp_path / "a.txt", tmp_path / "store", words)
    with pytest.raises(DataError, match=r"holds \d tokens, fewer than one window of 256\. Add"):
        store.windows(np.array([0]), 256)


def test_text_without_tokens_is_refused(words, tmp_path):
    (tmp_path / "a.txt").write_text("\u200b\n\n")
    with pytest.raises(DataError, match=r"a\.txt: gives no token"):
        build(tmp_path / "a.txt", tmp_path / "store", words)


def cut_tokens(path):
    file = path / "part-00002.bin"
    file.write_bytes(file.read_bytes()[:-2])


def cut_documents(path):
    file = path / "part-00001.doc"
    file.write_bytes(file.read_bytes()[:-8])


def fewer_documents(path):
    np.save(path / "begins.npy", np.zeros(3, np.uint64))
    (path / "begins.npy").rename(path / "part-00001.doc")


def remove_part(path):
    (path / "part-00003.doc").unlink()


def break_manifest(path):
    (path / "manifest.json").write_text("{")


def other_format(path):
    (path / "manifest.json").write_text('{"format": 99}')


def remove_all(path):
    for file in path.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_tokens, r"part-00002\.bin: has \d+ bytes, of \d+\. Copy the store again"),
        (cut_documents, r"part-00001\.doc: cannot be read"),
        (fewer_documents, r"part-00001\.doc: has the shape \(3,\), not \d+\. Copy"),
        (remove_part, r"part-00003\.doc: is missing\. Copy the store again"),
        (break_manifest, r"manifest\.json: is no manifest of a token store"),
        (other_format, r"manifest\.json: is of format 99, this reads 1"),
        (remove_all, r"holds no manifest\.json\. Give the folder of a store"),
    ],
)
def test_damage_is_named(store, tmp_path, spoil, message):
    shutil.copytree(store.path, tmp_path / "store")
    spoil(tmp_path / "store")
    with pytest.raises(DataError, match=message):
        TokenStore.open(tmp_path / "store")


@pytest.mark.parametrize("suffix", [".bin", ".doc"])
def test_bytes_that_have_changed_are_found_once_it_is_copied(store, tmp_path, suffix, monkeypatch):
    """Sizes and shapes are right: only the content tells."""
    copy = tmp_path / "copy"
    shutil.copytree(store.path, copy, ignore=shutil.ignore_patterns(".verified"))
    TokenStore.open(copy).verify()
    opened = TokenStore.open(copy)
    with monkeypatch.context() as unread:
        unread.setattr(np, "load", None)
        opened.verify()
    file = copy / f"part-00002{suffix}"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    for _ in range(2):
        with pytest.raises(DataError, match=r"part-00002\.bin: is damaged: it or part-00002\.doc"):
            TokenStore.open(copy).verify()


def test_a_damaged_part_of_an_unfinished_build_is_made_again(corpus, words, store, tmp_path):
    out = tmp_path / "store"
    parts = [[piece] for piece in pieces(corpus.resolve(), 2500)]
    for number in (0, 1):
        out.mkdir(exist_ok=True)
        token_parts.write_part(out, number, parts[number], words, False, True)
    cut_documents(out)
    assert build(corpus, out, words).fingerprint == store.fingerprint
    assert contents(out) == contents(store.path)


def test_two_builds_at_once_are_as_one(corpus, words, store, tmp_path, monkeypatch):
    """The second waits for the first, which takes its time, and takes its store."""
    halfway, wrote = threading.Event(), []
    written = token_building.write_part

    def slowly(*arguments):
        wrote.append(threading.get_ident())
        halfway.set()
        time.sleep(0.05)
        return written(*arguments)

    monkeypatch.setattr(token_building, "write_part", slowly)
    out = tmp_path / "both"
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(build, corpus, out, words)
        assert halfway.wait(60)
        second = pool.submit(build, corpus, out, words)
        stores = [first.result(60), second.result(60)]
    assert len(set(wrote)) == 1
    for made in stores:
        assert made.fingerprint == store.fingerprint
