import numpy as np
import pytest
from PIL import Image

from farreach.errors import DataError
from farreach_workloads.vision.evaluation.layouts import (
    FileImages,
    check_files,
    class_numbers,
    first_folder,
    images_below,
    numbers_of,
    read_csv,
    read_json,
    sorted_positions,
    texts_of,
)


@pytest.fixture
def gradient(tmp_path):
    """Red is the column, green the row."""
    columns, rows = np.meshgrid(np.arange(20), np.arange(10))
    pixels = np.stack([columns, rows, 0 * rows], 2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "gradient.png")
    return tmp_path / "gradient.png"


def test_a_box_is_cut_out_and_part_of_the_name(gradient):
    boxes = np.array([[3, 2, 7, 9], [0, 0, 20, 10]])
    images = FileImages(gradient.parent, [gradient] * 2, boxes=boxes)
    found = np.asarray(images.load(0))
    assert found.shape == (7, 4, 3)
    assert found[0, 0].tolist() == [3, 2, 0]
    assert found[-1, -1].tolist() == [6, 8, 0]
    assert images.name(0) == f"{gradient}, box [3, 2, 7, 9]"
    assert images.fingerprint() != images.subset(np.array([1, 0])).fingerprint()


def test_a_border_is_cut_off(gradient):
    found = np.asarray(FileImages(gradient.parent, [gradient], border=2).load(0))
    assert found.shape == (6, 16, 3)
    assert found[0, 0].tolist() == [2, 2, 0]
    assert found[-1, -1].tolist() == [17, 7, 0]


def test_some_of_the_files_keep_their_labels_boxes_and_border(gradient):
    labels = np.array([2, 0, 1])
    boxes = np.array([[0, 0, 1, 1], [1, 1, 3, 2], [5, 5, 9, 9]])
    images = FileImages(gradient.parent, [gradient] * 3, labels, ["a", "b", "c"], boxes)
    some = images.subset(np.array([2, 1]))
    assert (some.labels.tolist(), some.classes, len(some)) == ([1, 0], ["a", "b", "c"], 2)
    assert [some.load(row).size for row in (0, 1)] == [(4, 4), (2, 1)]
    bordered = FileImages(gradient.parent, [gradient] * 3, border=1).subset(np.array([0]))
    assert bordered.load(0).size == (18, 8)


def test_a_broken_image_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    images = FileImages(tmp_path, [tmp_path / "a.png"], boxes=np.array([[0, 0, 1, 1]]))
    with pytest.raises(DataError, match=r"a\.png, box .*: is no image that can be read"):
        images.load(0)


def test_images_are_found_anywhere_below_a_folder(tmp_path, gradient):
    (tmp_path / "b" / "c").mkdir(parents=True)
    gradient.rename(tmp_path / "b" / "c" / "x.PNG")
    (tmp_path / "b" / "notes.txt").write_text("")
    assert images_below(tmp_path) == [tmp_path / "b" / "c" / "x.PNG"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no images"):
        images_below(tmp_path / "empty")
    with pytest.raises(DataError, match="absent: is no folder"):
        images_below(tmp_path / "absent")
    assert first_folder(tmp_path, ["absent", "empty", "b"]) == tmp_path / "empty"
    with pytest.raises(DataError, match="has no folder d or e"):
        first_folder(tmp_path, ["d", "e"])


def test_files_that_a_table_names_must_exist(tmp_path, gradient):
    check_files([gradient], tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"q\.png: is missing, as are 1 others of 3 that .*t\.csv"):
        check_files([gradient, tmp_path / "q.png", tmp_path / "r.png"], tmp_path / "t.csv")


def test_columns_of_a_table(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text('\ufeffname,age\n" ann ",3.5\n"b,c",N/A\nd,\n', encoding="utf-8")
    rows = read_csv(file, ["age", "name"])
    assert texts_of(rows, "name").tolist() == ["ann", "b,c", "d"]
    np.testing.assert_array_equal(numbers_of(file, rows, "age"), [3.5, np.nan, np.nan])
    with pytest.raises(DataError, match=r"t\.csv, row 1: name is 'ann', which is no number"):
        numbers_of(file, rows, "name")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,sex\na,b\n", "has no column 'age'; it has path, sex. Needed are path, age."),
        ("", "has no column 'path'"),
        ("path,age\n", "has no rows"),
        ("path,age\na,1\nb\n", "row 2: has not as many cells as there are columns"),
        ("path,age\na,1,2\n", "row 1: has not as many cells as there are columns"),
    ],
)
def test_faults_of_a_table_are_named(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_csv(tmp_path / "t.csv", ["path", "age"])


def test_a_table_or_json_that_is_missing_or_of_another_kind_is_named(tmp_path):
    with pytest.raises(DataError, match=r"t\.csv: is no table that can be read"):
        read_csv(tmp_path / "t.csv", [])
    with pytest.raises(DataError, match=r"t\.json: is no JSON that can be read"):
        read_json(tmp_path / "t.json", list)
    (tmp_path / "t.json").write_text("{}")
    assert read_json(tmp_path / "t.json", dict) == {}
    with pytest.raises(DataError, match="holds a dict, not a list"):
        read_json(tmp_path / "t.json", list)


def test_places_in_the_alphabet_are_numbers_of_classes():
    """By the alphabet: ant is 2, bee is 0, cow is 1."""
    assert sorted_positions(["bee", "cow", "ant"]).tolist() == [2, 0, 1]


@pytest.mark.parametrize("wrong", [3, -1, 1.0, "1", True, None])
def test_what_is_no_number_of_a_class_is_refused(wrong):
    assert class_numbers([0, 2], 3, "here") == [0, 2]
    with pytest.raises(DataError, match=r"here: .* is none of the 3 classes"):
        class_numbers([0, wrong], 3, "here")
