import pickle

import numpy as np
import pytest

from farreach.data.text import Document
from farreach.errors import DataError
from farreach.index import parts
from farreach.index import vectors as vectors_module
from farreach.index.vectors import Vectors, finish, is_part_done, write_part


def documents(*ids, **meta):
    return [Document(name, f"T {name}", f"about {name}", meta) for name in ids]


def drawn(count, width=4, dtype=np.float32):
    return np.random.default_rng(count).standard_normal((count, width)).astype(dtype)


@pytest.fixture
def folder(tmp_path):
    """Parts of 3, 0 and 2 documents, the second half in half precision."""
    write_part(tmp_path, 0, drawn(3), documents("a", "b", "c", lang="de"))
    write_part(tmp_path, 1, drawn(0), [])
    write_part(tmp_path, 2, drawn(2, dtype=np.float16), documents("d", "é", year="2020"))
    finish(tmp_path, parts=3, model="m1", normalised=False)
    return tmp_path


def test_rows_run_over_parts_and_come_back_as_they_were_written(folder):
    vectors = Vectors.open(folder)
    every = np.concatenate([drawn(3), drawn(2, dtype=np.float16).astype(np.float32)])
    assert (vectors.count, vectors.width, vectors.model, vectors.normalised) == (5, 4, "m1", False)
    np.testing.assert_array_equal(vectors.at(np.array([4, 0, 4, 2])), every[[4, 0, 4, 2]])
    assert vectors.ids(np.array([4, 0, 3])) == ["é", "a", "d"]
    found = vectors.documents(np.array([3, 1]))
    assert found == [
        Document("d", "T d", "about d", {"year": "2020"}),
        Document("b", "T b", "about b", {"lang": "de"}),
    ]
    assert vectors.longest == pytest.approx(np.linalg.norm(every, axis=1).max())


def test_blocks_cover_any_range_in_order(folder):
    vectors = Vectors.open(folder)
    every = vectors.at(np.arange(5))
    for begin, end in ((0, 5), (1, 4), (2, 3), (3, 5)):
        blocks = list(vectors.blocks(2, begin, end))
        np.testing.assert_array_equal(np.concatenate([b for _, b in blocks]), every[begin:end])
        assert all(len(block) <= 2 and block.dtype == np.float32 for _, block in blocks)
        for pieces in (blocks, vectors.pieces(begin, end)):
            firsts = np.cumsum([begin, *(len(piece) for _, piece in pieces)])[:-1]
            assert [first for first, _ in pieces] == firsts.tolist()


def test_documents_are_found_by_id(folder):
    vectors = Vectors.open(folder)
    assert [vectors.row_of(name) for name in ("a", "é", "nobody")] == [0, 4, None]
    places, rows = vectors.find(["c", "nobody", "a"])
    assert (places.tolist(), rows.tolist()) == ([0, 2], [2, 0])


def test_metadata_come_as_columns_with_nulls_where_a_document_has_none(folder):
    vectors = Vectors.open(folder)
    assert vectors.columns == ["id", "title", "text", "lang", "year"]
    assert vectors.column("lang").to_pylist() == ["de", "de", "de", None, None]
    with pytest.raises(DataError, match=r"nothing called 'yeer'. Did you mean 'year'\?"):
        vectors.column("yeer")


def test_vectors_travel_between_processes(folder):
    copy = pickle.loads(pickle.dumps(Vectors.open(folder)))
    assert copy.ids(np.array([2])) == ["c"]


@pytest.mark.parametrize("row", [-1, 5])
def test_a_row_that_is_not_there_is_an_error_and_never_another_document(folder, row):
    vectors = Vectors.open(folder)
    for method in (vectors.ids, vectors.at, vectors.documents):
        with pytest.raises(DataError, match=rf"there is no (row|point) {row}; \1s are 0 to 4"):
            method(np.array([0, row]))


def test_reading_a_document_in_the_middle_of_a_large_part_gives_that_one(tmp_path):
    names = [f"n{i}" for i in range(3000)]
    write_part(tmp_path, 0, drawn(3000), documents(*names))
    vectors = finish(tmp_path, parts=1, model="m", normalised=False)
    rows = np.array([2999, 0, 127, 128, 2048])
    assert [d.id for d in vectors.documents(rows)] == [names[row] for row in rows]


def test_documents_are_the_same_with_any_groups_and_however_few_of_them_are_kept(
    tmp_path, monkeypatch
):
    names = [f"d{number}" for number in range(40)]
    for number, together in enumerate((7, 1000)):  # as other versions may have written them
        monkeypatch.setattr(parts, "ROWS_TOGETHER", together)
        own = names[20 * number : 20 * number + 20]
        write_part(tmp_path, number, drawn(20), documents(*own))
    finish(tmp_path, parts=2, model="m", normalised=False)
    rows = np.random.default_rng(0).integers(0, 40, 200)
    for kept in (0, 1500, 1 << 20):
        monkeypatch.setattr(vectors_module, "KEPT_BYTES", kept)
        vectors = Vectors.open(tmp_path)
        for begin in range(0, 200, 5):
            found = vectors.documents(rows[begin : begin + 5])
            assert [one.id for one in found] == [names[row] for row in rows[begin : begin + 5]]
            held = sum(group.nbytes for group in vectors._groups.values())
            assert held == vectors._kept_bytes
            assert held <= kept or len(vectors._groups) == 1
    assert len(vectors._groups) == 4


def test_a_part_is_done_when_both_files_are_there_and_may_be_written_again(tmp_path):
    assert not is_part_done(tmp_path, 0)
    write_part(tmp_path, 0, drawn(2), documents("a", "b"))
    assert is_part_done(tmp_path, 0)
    write_part(tmp_path, 0, drawn(1), documents("z"))
    assert finish(tmp_path, parts=1, model="m", normalised=False).ids(np.arange(1)) == ["z"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "manifest.json",
        "part-00000.npy",
        "part-00000.parquet",
    ]
    (tmp_path / "part-00000.parquet").unlink()
    assert not is_part_done(tmp_path, 0)


def test_ids_that_occur_twice_are_named(tmp_path):
    write_part(tmp_path, 0, drawn(2), documents("a", "b"))
    write_part(tmp_path, 1, drawn(3), documents("b", "c", "a"))
    with pytest.raises(DataError, match="2 ids belong to several documents: 'a', 'b'"):
        finish(tmp_path, parts=2, model="m", normalised=False)
    with pytest.raises(DataError, match=r"has no manifest.json"):
        Vectors.open(tmp_path)


@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        (drawn(2), "abc", "2 vectors do not fit 3 documents"),
        (drawn(2)[0], "ab", "of shape .4,."),
        (drawn(2).astype(np.float64), "ab", "vectors are float64"),
        (np.array([[0.0, 1.0], [np.nan, 0.0]], np.float32), "ab", "1 vectors are not .* 'b'"),
        (np.array([[np.inf]], np.float16), "a", "not finite"),
    ],
)
def test_vectors_that_cannot_be_right_are_refused(tmp_path, vectors, ids, message):
    with pytest.raises(DataError, match=message):
        write_part(tmp_path, 0, vectors, documents(*ids))


def test_metadata_cannot_take_the_name_of_a_field(tmp_path):
    with pytest.raises(DataError, match="metadata cannot be called 'title'"):
        write_part(tmp_path, 0, drawn(1), documents("a", title="x"))


def test_a_folder_without_documents_or_with_a_part_missing_is_refused(tmp_path):
    write_part(tmp_path, 0, drawn(0), [])
    with pytest.raises(DataError, match="holds no document at all"):
        finish(tmp_path, parts=1, model="m", normalised=False)
    with pytest.raises(DataError, match="part-00001: is missing or incomplete"):
        finish(tmp_path, parts=2, model="m", normalised=False)


def test_parts_of_different_width_are_refused(tmp_path):
    write_part(tmp_path, 0, drawn(1), documents("a"))
    write_part(tmp_path, 1, drawn(1, width=5), documents("b"))
    with pytest.raises(
        DataError, match="part-00001: has vectors of 5 numbers, and part-00000 of 4"
    ):
        finish(tmp_path, parts=2, model="m", normalised=False)


def test_a_truncated_file_is_named(folder):
    file = folder / "part-00000.npy"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"part-00000\.npy: is damaged, or no file of vectors"):
        Vectors.open(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"vectors": 99}'])
def test_a_manifest_that_says_something_else_is_refused(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest.json: .* again"):
        Vectors.open(folder)
