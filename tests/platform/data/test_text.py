import gzip
import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from farreach.data.text import Document, Piece, Tally, documents, pieces
from farreach.errors import DataError


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def in_pieces(source, most):
    return [document for piece in pieces(source, most) for document in documents(piece)]


def test_lines_of_plain_text_are_named_by_file_and_byte(tmp_path):
    file = written(tmp_path / "a.txt", "éa\nsecond\r\nlast")
    found = list(documents(file))
    assert found == [
        Document("a.txt:0", "", "éa", {}),
        Document("a.txt:4", "", "second", {}),
        Document("a.txt:12", "", "last", {}),
    ]
    assert found[0].whole == "éa"


def test_blank_texts_are_passed_over_and_counted(tmp_path):
    file = written(tmp_path / "a.txt", "one\n\n \t\u3000\r\ntwo\n")
    tally = Tally()
    assert [d.id for d in documents(file, tally)] == ["a.txt:0", "a.txt:12"]
    assert tally == Tally(documents=2, skipped=2)


def test_a_title_alone_is_a_document(tmp_path):
    lines = '{"title": "T", "text": ""}\n{"title": " ", "text": null}\n\n{"text": "b"}\n'
    found = list(documents(written(tmp_path / "a.jsonl", lines)))
    assert [d.whole for d in found] == ["T ", "b"]


def test_json_has_either_names_and_further_facts(tmp_path):
    lines = [
        {"_id": "x", "id": "other", "title": "T", "text": "a", "url": "u", "n": 3, "m": {}}
        | {"ok": True, "f": 0.5, "l": [1]},
        {"id": 7, "contents": "b"},
        {"text": "c", "title": None, "_id": None},
    ]
    file = written(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    begin = sum(len(json.dumps(line)) + 1 for line in lines[:2])
    assert list(documents(file)) == [
        Document("x", "T", "a", {"id": "other", "url": "u", "n": "3", "ok": "true", "f": "0.5"}),
        Document("7", "", "b", {}),
        Document(f"a.jsonl:{begin}", "", "c", {}),
    ]
    assert next(documents(file)).whole == "T a"


def test_packed_lines_come_in_one_piece_and_read_the_same(tmp_path):
    content = "".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(50)).encode()
    plain = written(tmp_path / "a.jsonl", content)
    packed = written(tmp_path / "b.jsonl.gz", gzip.compress(content))
    assert [d.text for d in documents(packed)] == [d.text for d in documents(plain)]
    assert [d.id for d in documents(packed)][1] == "b.jsonl.gz:19"
    assert len(pieces(packed, 10)) == 1


def test_tables_with_tabs_name_their_columns_and_may_quote(tmp_path):
    table = 'id\ttext\ttitle\turl\n1\t"say ""hi"""\tT\tu\n\n2\t"a" or "b"\t\t"\n'
    file = written(tmp_path / "a.tsv", table)
    assert list(documents(file)) == [
        Document("1", "T", 'say "hi"', {"url": "u"}),
        Document("2", "", '"a" or "b"', {"url": '"'}),
    ]
    assert in_pieces(file, 1) == list(documents(file))


def test_a_mark_of_byte_order_is_no_text(tmp_path):
    file = written(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}\n')
    assert [(d.id, d.text) for d in documents(file)] == [("a.jsonl:0", "a"), ("a.jsonl:17", "b")]


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


def test_parquet_is_cut_between_row_groups(tmp_path):
    texts = [f"text {i}" for i in range(10)] + [None]
    kinds = pa.array(["even", "odd"] * 5 + [None]).dictionary_encode()
    file = parquet(tmp_path / "a.parquet", text=texts, number=range(11), kind=kinds)
    found = list(documents(file))
    assert found[4] == Document("a.parquet:4", "", "text 4", {"number": "4", "kind": "even"})
    assert len(found) == 10
    assert [(p.begin, p.end) for p in pieces(file, 1)] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [(p.begin, p.end) for p in pieces(file)] == [(0, 4)]
    assert in_pieces(file, 1) == found


def test_parquet_takes_numbers_as_ids(tmp_path):
    file = parquet(tmp_path / "a.parquet", id=[5, 6], contents=["a", "b"], title=["A", None])
    assert list(documents(file)) == [Document("5", "A", "a", {}), Document("6", "", "b", {})]


def test_a_folder_is_read_in_the_order_of_names_at_any_depth(tmp_path):
    written(tmp_path / "b.txt", "second")
    written(tmp_path / "a" / "z.txt", "first")
    written(tmp_path / "c" / "d" / "a.TXT", "last")
    written(tmp_path / "readme.md", "no text")
    written(tmp_path / ".a.txt.tmp", "hidden")
    written(tmp_path / ".h" / "a.txt", "hidden")
    written(tmp_path / "empty.txt", "")
    found = [(d.id, d.text) for d in documents(tmp_path)]
    assert found == [("a/z.txt:0", "first"), ("b.txt:0", "second"), ("c/d/a.TXT:0", "last")]


def test_of_a_beir_folder_the_corpus_alone_is_read(tmp_path):
    written(tmp_path / "one" / "corpus.jsonl", '{"_id": "1", "title": "", "text": "a"}\n')
    written(tmp_path / "one" / "queries.jsonl", '{"_id": "q", "text": "what?"}\n')
    written(tmp_path / "one" / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq\t1\t1\n")
    assert [d.id for d in documents(tmp_path / "one")] == ["1"]
    assert [d.id for d in documents(tmp_path)] == ["1"]


def test_ids_do_not_depend_on_how_a_source_is_cut(tmp_path):
    written(tmp_path / "sub" / "a.txt", "one\ntwo\n")
    ids = [d.id for d in in_pieces(tmp_path, 1)]
    assert ids == ["sub/a.txt:0", "sub/a.txt:4"] == [d.id for d in documents(tmp_path)]


def test_pieces_are_the_same_every_time_and_can_be_pickled(tmp_path):
    file = written(tmp_path / "a.txt", "one\ntwo\nthree\n")
    found = pieces(file, 5)
    assert found == pieces(file, 5) == pickle.loads(pickle.dumps(found))
    # the 5th byte is in the second line, at whose end the first piece ends
    assert found == [Piece(file, 0, 8, "a.txt", 8), Piece(file, 8, 14, "a.txt", 6)]
    assert next(documents(Piece(file, 8, 14))).id == "a.txt:8"


@pytest.mark.parametrize("seed", range(40))
def test_every_cut_covers_every_document_once(tmp_path, seed):
    rng = np.random.default_rng(seed)
    letters = ["a", "é", "漢", "😀", " ", "\u2028", "\x85", "\x0b"]
    end = rng.choice(["\n", "\r\n"])
    lines = ["".join(rng.choice(letters, rng.integers(0, 12))) for _ in range(rng.integers(1, 30))]
    content = end.join(lines) + (end if rng.random() < 0.5 else "")
    file = written(tmp_path / "a.txt", content)
    expected = [line for line in lines if line.strip()]
    for most in (1, 2, 3, 5, 7, 16, 64, len(content.encode()), 1 << 20):
        parts = pieces(file, most)
        assert [part.begin for part in parts[1:]] == [part.end for part in parts[:-1]]
        assert (parts[0].begin, parts[-1].end) == (0, len(content.encode()))
        found = in_pieces(file, most)
        assert [d.text for d in found] == expected
        assert len({d.id for d in found}) == len(found)


def test_cutting_does_not_read_a_file_whole(tmp_path):
    file = tmp_path / "a.txt"
    with open(file, "wb") as sparse:
        sparse.write(b"first\n")
        for gigabyte in range(1, 5):
            sparse.seek(gigabyte << 30)
            sparse.write(b"x\nline\n")
    parts = pieces(file, (1 << 30) - 7)  # the line that begins at byte 6 goes on to `x`
    assert len(parts) == 5
    assert parts[0].end == (1 << 30) + 2


def broken_json(path):
    return written(path / "a.jsonl", '{"text": "a"}\n{"text": "b"\n')


def no_object(path):
    return written(path / "a.jsonl", '{"text": "a"}\n["b"]\n')


def no_text(path):
    return written(path / "a.jsonl", '{"text": "a"}\n{"body": "b", "url": "u"}\n')


def number_for_text(path):
    return written(path / "a.jsonl", '{"text": 3}\n')


def list_for_id(path):
    return written(path / "a.jsonl", '{"text": "a", "id": [1]}\n')


def half_a_character(path):
    return written(path / "a.jsonl", '{"text": "\\ud83d\\ude00"}\n{"text": "a\\ud83d"}\n')


def latin(path):
    return written(path / "a.txt", "a\nb\ncafé\n".encode("latin1"))


def cut_off(path):
    return written(path / "a.txt.gz", gzip.compress(b"text\n" * 99)[:-9])


def not_packed(path):
    return written(path / "a.txt.gz", "text\n")


def empty_file(path):
    return written(path / "a.txt", "")


def empty_folder(path):
    written(path / "a.md", "text")
    return path


def empty_packed_table(path):
    return written(path / "a.tsv.gz", gzip.compress(b""))


def blank_file(path):
    return written(path / "a.txt", " \n\n")


def unknown(path):
    return written(path / "a.pdf", "text")


def nothing(path):
    return path / "a.txt"


def no_header(path):
    return written(path / "a.tsv", "1\ttext of a passage\n")


def cells_missing(path):
    return written(path / "a.tsv", "id\ttext\n1\ta\n2\n")


def no_parquet(path):
    return written(path / "a.parquet", "text")


def no_rows(path):
    return parquet(path / "a.parquet", text=pa.array([], pa.string()))


def other_columns(path):
    return parquet(path / "a.parquet", body=["a"], n=[1])


def bytes_for_text(path):
    return parquet(path / "a.parquet", text=[b"a"])


def latin_parquet(path):
    text = pa.array(["a", "b"]).cast(pa.binary())
    text = pa.concat_arrays([text, pa.array([b"\xe9"])]).view(pa.string())
    return parquet(path / "a.parquet", text=text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken_json, r"a\.jsonl, line 2: is no JSON: .*Mend or remove the line\.$"),
        (no_object, r"a\.jsonl, line 2: is no JSON object\."),
        (no_text, r"line 2: has no key 'text' or 'contents'; it has body, url\. Rename"),
        (number_for_text, r"line 1: 'text' is 3\. Write it as a string"),
        (list_for_id, r"line 1: 'id' is \[1\]\. Write it as a string"),
        (half_a_character, r"line 2: has half a character, '\\ud83d'\. Mend or remove"),
        (latin, r"a\.txt, line 3: is not UTF-8: .* at byte 3 of the line\. Convert the file"),
        (cut_off, r"a\.txt\.gz: cannot be read: .*Fetch it again"),
        (not_packed, r"a\.txt\.gz: cannot be read: Not a gzipped file"),
        (empty_file, r"a\.txt: is empty\. Give a source with text"),
        (empty_folder, r": holds no file of text \(\.txt, \.jsonl, \.tsv, \.parquet, packed"),
        (empty_packed_table, r"a\.tsv\.gz, line 1: names no column 'text'"),
        (blank_file, r"a\.txt: holds blank documents alone\. Give"),
        (unknown, r"a\.pdf: is of no known layout\. Give a file that is named \.txt"),
        (nothing, r"a\.txt: there is nothing\. Correct the path"),
        (no_header, r"a\.tsv, line 1: names no column 'text'\. Write the names"),
        (cells_missing, r"a\.tsv, line 3: has 1 columns, the first line 2\. Write tabs"),
        (no_parquet, r"a\.parquet: is no readable Parquet file"),
        (no_rows, r"a\.parquet: is empty"),
        (other_columns, r"a\.parquet: has no column 'text'; it has body, n\. Rename"),
        (bytes_for_text, r"a\.parquet: column 'text' holds binary\. Write it as strings"),
        (latin_parquet, r"a\.parquet, rows 0 to 2: one is not UTF-8"),
    ],
)
def test_faults_are_named_with_their_place_and_how_to_mend_them(tmp_path, spoil, message):
    with pytest.raises(DataError, match=message):
        list(documents(spoil(tmp_path)))


def test_a_piece_of_blank_lines_is_no_fault(tmp_path):
    file = written(tmp_path / "a.txt", "a\n\n\nb\n")
    assert list(documents(Piece(file, 2, 4))) == []


def test_lines_are_counted_from_the_beginning_of_the_file(tmp_path):
    file = written(tmp_path / "a.jsonl", '{"text": "a"}\n' * 99 + "{\n")
    last = pieces(file, 500)[-1]
    assert last.begin > 0
    with pytest.raises(DataError, match="line 100: is no JSON"):
        list(documents(last))
