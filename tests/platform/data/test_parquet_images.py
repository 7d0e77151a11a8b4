import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from farreach.data import parquet_images
from farreach.data.images import ParquetImages, open_images
from farreach.errors import DataError

ROWS = 12


def encoded(value):
    data = io.BytesIO()
    Image.new("RGB", (4, 3), (value, 0, 0)).save(data, "PNG")
    return data.getvalue()


def parquet(file, structs=False, rows=ROWS, group=4, **columns):
    images = [encoded(value) for value in range(rows)]
    column = [{"bytes": image, "path": None} for image in images] if structs else images
    columns = {"label": [value % 2 for value in range(rows)]} | columns
    pq.write_table(pa.table({"image": column, **columns}), file, row_group_size=group)
    return file


@pytest.fixture
def decodings(monkeypatch):
    """The groups that are decoded, in order."""
    found = []
    images = parquet_images._Table.images

    def counted(table, group):
        found.append(group)
        return images(table, group)

    monkeypatch.setattr(parquet_images._Table, "images", counted)
    return found


def reds(images, rows):
    return [images.load(row).getpixel((0, 0))[0] for row in rows]


@pytest.mark.parametrize("structs", [False, True])
def test_a_small_set_is_decoded_once(tmp_path, decodings, structs):
    images = ParquetImages([parquet(tmp_path / "a.parquet", structs)])
    rows = [7, 0, 11, 3, 4, 7, 8]
    assert reds(images, rows) == rows
    assert decodings == [0, 1, 2]


@pytest.mark.parametrize("structs", [False, True])
def test_of_a_large_set_the_groups_used_last_are_kept(tmp_path, decodings, monkeypatch, structs):
    file = parquet(tmp_path / "a.parquet", structs)
    one = ParquetImages([file])._images_of(0).nbytes
    decodings.clear()
    monkeypatch.setattr(parquet_images, "MOST_BYTES", 0)
    monkeypatch.setattr(parquet_images, "KEPT_BYTES", 5 * one // 2)  # two of them
    images = ParquetImages([file])
    assert decodings == []
    rows = [0, 5, 3, 9, 1, 4]  # groups 0, 1, 0, 2, 0, 1: the third pushes out 1
    assert reds(images, rows) == rows
    assert decodings == [0, 1, 2, 1]


def test_a_group_larger_than_what_is_kept_is_kept_alone(tmp_path, decodings, monkeypatch):
    monkeypatch.setattr(parquet_images, "MOST_BYTES", 0)
    monkeypatch.setattr(parquet_images, "KEPT_BYTES", 0)
    images = ParquetImages([parquet(tmp_path / "a.parquet")])
    assert reds(images, [0, 1, 4, 5, 0]) == [0, 1, 4, 5, 0]
    assert decodings == [0, 1, 0]


@pytest.mark.parametrize("structs", [False, True])
def test_pieces_of_a_group_are_never_joined(tmp_path, monkeypatch, structs):
    # Joined, more than 2 GiB overflow Arrow's offsets.
    monkeypatch.setattr(parquet_images, "PIECE_ROWS", 3)
    images = ParquetImages([parquet(tmp_path / "a.parquet", structs, group=8)])
    assert [len(piece) for piece in images._images_of(0).chunks] == [3, 3, 2]
    assert [len(piece) for piece in images._images_of(1).chunks] == [3, 1]
    assert reds(images, range(ROWS)) == list(range(ROWS))


def test_pieces_have_few_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_images, "PIECE_BYTES", 1)
    images = ParquetImages([parquet(tmp_path / "a.parquet")])
    assert images._images_of(0).num_chunks == 4


def test_large_groups_of_a_large_set_are_warned_of(tmp_path, monkeypatch, capsys):
    file = parquet(tmp_path / "a.parquet", split=["train"] * 11 + ["val"])
    monkeypatch.setattr(parquet_images, "MOST_BYTES", 0)
    open_images(file)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(parquet_images, "SLOW_GROUP_BYTES", 0)
    open_images(file)
    assert "a.parquet: is too large for memory" in capsys.readouterr().err


def test_another_process_opens_the_files_once(tmp_path, decodings):
    files = [parquet(tmp_path / f"{name}.parquet") for name in "ab"]
    images = ParquetImages(files)
    parts = [pickle.dumps(images.subset(np.arange(begin, begin + 12))) for begin in (0, 12)]
    decodings.clear()
    first, last = (pickle.loads(part) for part in parts)
    assert first._whole is last._whole
    assert decodings == []  # of what it is not asked for
    assert reds(last, [3, 2]) == [3, 2]
    assert decodings == [0]
    parquet(files[0], group=2)  # written anew
    assert pickle.loads(pickle.dumps(images))._group_begins.tolist()[:3] == [0, 2, 4]


def test_files_may_have_labels_of_different_width(tmp_path):
    parquet(tmp_path / "a.parquet", label=pa.array([0, 1] * 6, pa.int32()))
    parquet(tmp_path / "b.parquet", label=pa.array([1, 2] * 6, pa.int64()))
    images = ParquetImages(sorted(tmp_path.iterdir()))
    assert images.labels.tolist() == [0, 1] * 6 + [1, 2] * 6
    assert reds(images, [13]) == [1]
    assert images.name(13) == f"{tmp_path / 'b.parquet'}, row 1"


def test_a_file_may_have_no_rows(tmp_path):
    schema = pq.read_schema(parquet(tmp_path / "a.parquet"))
    pq.write_table(schema.empty_table(), tmp_path / "b.parquet")
    parquet(tmp_path / "c.parquet")
    images = ParquetImages(sorted(tmp_path.iterdir()))
    assert reds(images, [11, 12, 17]) == [11, 0, 5]
    assert images.name(12) == f"{tmp_path / 'c.parquet'}, row 0"


def test_files_with_numbers_and_with_names_are_refused(tmp_path):
    parquet(tmp_path / "a.parquet")
    parquet(tmp_path / "b.parquet", label=["x"] * ROWS)
    with pytest.raises(DataError, match=r"b\.parquet: its labels are no whole numbers, as those"):
        ParquetImages(sorted(tmp_path.iterdir()))


@pytest.mark.parametrize("labels", [[0, 1, None], ["x", "y", None], [0.0, 1.0, float("nan")]])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_row_without_a_label_is_named(tmp_path, labels, labelled):
    parquet(tmp_path / "a.parquet", rows=3, label=[labels[0]] * 3)
    parquet(tmp_path / "b.parquet", rows=3, label=pa.array(labels, from_pandas=False))
    with pytest.raises(DataError, match=r"b\.parquet, row 2: has no label"):
        ParquetImages(sorted(tmp_path.iterdir()), labelled=labelled)


@pytest.mark.parametrize("label", [{}, {"label": pa.nulls(ROWS, pa.int64())}])
def test_where_no_labels_are_needed_all_may_be_missing(tmp_path, label):
    file = tmp_path / "a.parquet"
    columns = {"image": [encoded(value) for value in range(ROWS)], **label}
    pq.write_table(pa.table(columns), file)
    train, held_out = open_images(file, labelled=False)
    assert train.classes == held_out.classes == ["unlabelled"]
    assert (len(train), len(held_out)) == (11, 1)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1, 2]], r"column 'image' holds list"),
        (["a.png"], r"column 'image' holds string\. Encode the images"),
        ([{"path": "a.png"}], r"column 'image' holds struct"),
    ],
)
def test_a_column_of_anything_else_is_refused(tmp_path, column, message):
    pq.write_table(pa.table({"image": column, "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        open_images(tmp_path / "a.parquet")


def test_images_may_be_missing_one_by_one(tmp_path):
    column = [None, encoded(1)]
    pq.write_table(pa.table({"image": column, "label": [0, 0]}), tmp_path / "a.parquet")
    images = ParquetImages([tmp_path / "a.parquet"])
    with pytest.raises(DataError, match=r"a\.parquet, row 0: .*there are no bytes"):
        images.load(0)
    assert reds(images, [1]) == [1]


def test_a_group_that_is_damaged_is_named(tmp_path, monkeypatch):
    file = parquet(tmp_path / "a.parquet")
    content = bytearray(file.read_bytes())
    content[4:64] = bytes(60)  # the first page
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: is no readable Parquet file"):
        ParquetImages([file])
    monkeypatch.setattr(parquet_images, "MOST_BYTES", 0)
    images = ParquetImages([file])
    with pytest.raises(DataError, match=r"a\.parquet, row 1: is no image that can be read"):
        images.load(1)
    assert reds(images, [5]) == [5]
