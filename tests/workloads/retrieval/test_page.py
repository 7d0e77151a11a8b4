import _thread
import base64
import contextlib
import hashlib
import json
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from page_index import ask, found, made, without_words

from farreach.errors import ConfigError
from farreach_workloads.retrieval import page


@pytest.fixture(scope="module")
def searcher(tmp_path_factory):
    return made(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def address(searcher):
    with page.served(searcher) as address:
        yield address


class Blocks(HTMLParser):
    """What is in elements of style and script, and all attributes."""

    def __init__(self, text):
        super().__init__()
        self.inside, self.blocks, self.attributes, self.text = None, {}, [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        self.attributes += attributes

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside in ("style", "script"):
            assert self.inside not in self.blocks
            self.blocks[self.inside] = data
        self.text += data


def test_the_page_needs_nothing_from_elsewhere_and_lets_nothing_else_run(address):
    status, headers, body = ask(address, "/")
    blocks = Blocks(body.decode())
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(
        part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";")
    )
    for tag in ("style", "script"):
        digest = hashlib.sha256(blocks.blocks[tag].encode()).digest()
        assert policy[f"{tag}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    links = {value for name, value in blocks.attributes if name in ("src", "href", "action")}
    assert all(link.startswith("data:") for link in links)
    assert not any(name.startswith("on") or name == "style" for name, _ in blocks.attributes)
    assert "small <index>" in blocks.text  # escaped, else it would be an element
    assert "6 documents" in blocks.text
    assert "id, title, text, section" in blocks.text


def test_three_columns_are_what_three_searches_find(address, searcher):
    status, answer = found(address, q="Disk folder", k="3")
    assert status == 200
    assert [column["mode"] for column in answer["columns"]] == ["dense", "lexical", "hybrid"]
    assert (answer["documents"], answer["k"], answer["where"]) == (6, 3, None)
    assert 0 < answer["seconds"] < 30
    for column in answer["columns"]:
        expected = searcher.search(["Disk folder"], 3, mode=column["mode"])[0]
        assert [hit["id"] for hit in column["hits"]] == [hit.id for hit in expected]
        assert [hit["score"] for hit in column["hits"]] == [hit.score for hit in expected]
    lexical = answer["columns"][1]["hits"]
    assert {hit["id"] for hit in lexical} == {"mount", "umount", "fdisk"}
    assert lexical[0]["id"] == "mount"  # the only one with both words
    assert lexical[0]["meta"] == {"section": "admin"}


class ByLength:
    """Judges documents by how short they are."""

    def scores(self, query, documents):
        return -np.array([len(document) for document in documents], np.float32)


def test_a_reranker_has_a_column_of_its_own(searcher):
    searcher.judge = ByLength()
    try:
        with page.served(searcher) as address:
            columns = found(address, q="Disk folder", k="2")[1]["columns"]
        expected = searcher.search(["Disk folder"], 2)[0]
    finally:
        searcher.judge = None
    assert [column["mode"] for column in columns] == [*page.COLUMNS, "reranked"]
    texts = {
        hit.id: f"{hit.title} {hit.snippet}".strip() for hit in searcher.search(["disk"], 6)[0]
    }
    shortest = sorted(texts, key=lambda name: len(texts[name]))[:2]
    assert [hit["id"] for hit in columns[3]["hits"]] == [hit.id for hit in expected] == shortest
    hybrid = searcher.search(["Disk folder"], 2, mode="hybrid")[0]
    assert [hit["score"] for hit in columns[2]["hits"]] == [hit.score for hit in hybrid]


def test_every_second_part_is_a_word_of_the_query(address):
    hits = found(address, q="disk")[1]["columns"][1]["hits"]
    parts = {hit["id"]: hit["parts"]["snippet"] for hit in hits}
    assert parts["fdisk"] == ["cut a ", "Disk", " into parts, a ", "disk", " at a time"]
    assert parts["mount"] == ["attach the file system of a ", "disk", " to a folder"]
    assert all(hit["parts"]["title"] == [hit["title"]] for hit in hits)


def test_a_filter_leaves_what_fits(address):
    answer = found(address, q="disk", where="section = 'sound'")[1]
    dense, lexical, hybrid = ({hit["id"] for hit in part["hits"]} for part in answer["columns"])
    assert dense == hybrid == {"sox", "evil"}
    assert lexical == set()


def test_more_than_there_are_is_all(address):
    answer = found(address, q="disk", k="100")[1]
    assert answer["k"] == len(answer["columns"][0]["hits"]) == 6


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/search", "q: is missing"),
        ("/search?q=%20", "q: is missing"),
        ("/search?q=a&q=b", "q: is there 2 times"),
        ("/search?q=a&mode=dense", "mode: is unknown"),
        ("/search?q=%ff", "UTF-8"),
        ("/search?" + "&".join(f"a{number}=1" for number in range(9)), "address: "),
        (f"/search?q={'a' * 2001}", "q: has 2,001 characters"),
        (f"/search?q=a&where={'a' * 1001}", "where: has 1,001 characters"),
        ("/search?q=a&k=0", "k=0: "),
        ("/search?q=a&k=101", "k=101: "),
        ("/search?q=a&k=-1", "k=-1: "),
        ("/search?q=a&k=1e3", "k=1e3: "),
        ("/search?q=a&k=%D9%A3", "k=٣: "),
        ("/search?q=a&where=section+is+'sound'", "section"),
    ],
)
def test_a_wrong_request_is_answered_with_what_is_wrong(address, path, named):
    status, headers, body = ask(address, path)
    assert (status, headers["Content-Type"]) == (400, "application/json; charset=utf-8")
    message = json.loads(body)["error"]
    assert named in message
    assert message.endswith(".")


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/page.html", "GET", 404),
        ("/search/", "GET", 404),
        ("/../page.py", "GET", 404),
        ("/%2e%2e/page.py", "GET", 404),
        ("/favicon.ico", "GET", 404),
        ("/", "POST", 501),
        ("/" + "a" * 70000, "GET", 414),
    ],
)
def test_nothing_else_is_there(address, path, method, status):
    answered, headers, body = ask(address, path, method)
    assert answered == status
    assert json.loads(body)["error"]
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_only_a_name_of_this_machine_is_answered(address):
    port = urlsplit(address).port
    for name in ("localhost", "127.0.0.1:1", f"127.0.0.1:{port}", "[::1]", "LOCALHOST:80"):
        assert ask(address, "/search?q=disk", Host=name)[0] == 200
    for name in ("elsewhere.example", f"127.0.0.1.elsewhere.example:{port}", "[::1", ""):
        assert ask(address, "/search?q=disk", Host=name)[0] == 403


def test_an_index_without_words_has_one_column(searcher):
    columns = page.answer(without_words(searcher), page.Request("disk"))["columns"]
    assert len(columns[0]["hits"]) == 6
    assert columns[1]["hits"] is None
    assert columns[2]["hits"] is None


def test_a_search_that_breaks_is_told_of_and_the_next_one_works(
    address, searcher, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        patch.setattr(searcher, "compared", lambda *_, **__: 1 / 0)
        status, answer = found(address, q="disk")
    assert (status, answer["error"]) == (
        500,
        "The search failed: ZeroDivisionError: division by zero",
    )
    assert found(address, q="disk")[0] == 200
    told, deadline = "", time.monotonic() + 10
    while "ZeroDivisionError" not in told:  # the client has its answer before
        assert time.monotonic() < deadline
        told += capsys.readouterr().err
        time.sleep(0.01)
    time.sleep(0.1)
    capsys.readouterr()


def test_a_client_that_goes_away_is_not_told_of(address, capsys):
    with socket.create_connection(("127.0.0.1", urlsplit(address).port)) as client:
        client.sendall(b"GET /search?q=disk HTTP/1.1\r\n")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # resets
    assert found(address, q="disk")[0] == 200
    assert capsys.readouterr().err == ""


def test_many_can_search_at_once(address):
    words = ["disk", "sound", "folder", "hostile"] * 4
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda word: found(address, q=word), words))
    for word, (status, answer) in zip(words, answers, strict=True):
        assert (status, answer["query"]) == (200, word)
        assert all(word in hit["matched"] for hit in answer["columns"][1]["hits"])


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def interruptible():
    """As in a terminal: a shell in the background has Ctrl-C ignored, and so has what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_it_serves_until_ctrl_c(searcher, capsys):
    port, seen = free_port(), []

    def interrupt():
        for _ in range(500):
            with contextlib.suppress(OSError):
                seen.append(ask(f"http://127.0.0.1:{port}/", "/")[0])
                break
            time.sleep(0.02)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    page.serve(searcher, port)
    thread.join()
    assert seen == [200]
    assert f"http://127.0.0.1:{port}/" in capsys.readouterr().out


@pytest.mark.parametrize(("port", "host"), [(None, "127.0.0.1"), (65536, "127.0.0.1")])
def test_an_address_that_cannot_be_had_is_named(searcher, address, port, host):
    port = port or urlsplit(address).port
    with pytest.raises(ConfigError, match=f"{host}:{port}: cannot be listened at"):
        page.serve(searcher, port, host)
