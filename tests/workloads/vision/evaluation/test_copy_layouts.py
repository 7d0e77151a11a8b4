import numpy as np
import pytest
from PIL import Image

from farreach.errors import DataError
from farreach_workloads.vision.evaluation.copy_layouts import copydays, disc21


def put(*files):
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(file)


def copydays_files(path, prefix=""):
    put(*(path / f"{prefix}original" / f"{own}00.jpg" for own in (2000, 2001, 2003)))
    put(*(path / f"{prefix}strong" / name for name in ("200001.jpg", "200302.jpg", "200301.jpg")))


@pytest.mark.parametrize("prefix", ["", "copydays_"])
def test_copies_of_copydays_are_searched_for_among_originals_and_distractors(tmp_path, prefix):
    copydays_files(tmp_path / "copydays", prefix)
    put(tmp_path / "others" / "a" / "x.png", tmp_path / "others" / "y.png")
    put(tmp_path / "training" / "z.png")
    found = copydays(
        tmp_path / "copydays", distractors=tmp_path / "others", training=tmp_path / "training"
    )
    names = [found.references.name(row).rpartition("/")[2] for row in range(5)]
    assert names == ["200000.jpg", "200100.jpg", "200300.jpg", "x.png", "y.png"]
    assert [found.queries.name(row)[-10:-4] for row in range(3)] == ["200001", "200301", "200302"]
    expected = np.zeros((3, 5), bool)
    expected[[0, 1, 2], [0, 2, 2]] = True
    np.testing.assert_array_equal(found.relevant, expected)
    assert found.training.name(0).endswith("z.png")
    assert found.references.load(0).size == (4, 4)


@pytest.mark.parametrize("folder", ["crops/50", "copydays_crop/crops/50"])
def test_other_blocks_of_copydays(tmp_path, folder):
    copydays_files(tmp_path)
    put(tmp_path / folder / "200100.jpg", tmp_path / folder / "200300.jpg")
    found = copydays(tmp_path, "crops/50")
    assert found.pairs.tolist() == [[0, 1], [1, 2]]
    assert found.training is None


def test_faults_of_copydays_are_named(tmp_path):
    copydays_files(tmp_path)
    with pytest.raises(DataError, match="has no folder jpegqual/5 or copydays_jpegqual/5"):
        copydays(tmp_path, "jpegqual/5")
    put(tmp_path / "strong" / "200401.jpg")
    with pytest.raises(DataError, match=r"200401\.jpg: its original 200400 is missing"):
        copydays(tmp_path)
    put(tmp_path / "original" / "200401.jpg")
    with pytest.raises(DataError, match=r"200401\.jpg: is no original"):
        copydays(tmp_path)
    put(tmp_path / "original" / "copy.jpg")
    (tmp_path / "original" / "200401.jpg").unlink()
    with pytest.raises(DataError, match=r"copy\.jpg: is not named by six digits"):
        copydays(tmp_path)


def disc_files(path, queries="queries"):
    put(*(path / "references" / f"R{number}.jpg" for number in range(4)))
    put(*(path / queries / f"Q{number}.jpg" for number in range(4)))


def test_disc21_with_queries_that_are_no_copies(tmp_path):
    """Q3 is not in the table, which has distractors: it does not count."""
    disc_files(tmp_path, "dev_queries")
    put(tmp_path / "training" / "T0.jpg")
    (tmp_path / "truth.csv").write_text("query_id,reference_id\nQ2,R1\nQ1,\nQ0,R3\nQ0,R0\n")
    found = disc21(tmp_path)
    assert [found.queries.name(row)[-6:] for row in range(3)] == ["Q0.jpg", "Q1.jpg", "Q2.jpg"]
    assert found.pairs.tolist() == [[0, 0], [0, 3], [2, 1]]
    assert found.relevant.sum(1).tolist() == [2, 0, 1]
    assert (len(found.references), len(found.training)) == (4, 1)


def test_disc21_without_names_of_columns_and_without_distractors(tmp_path):
    disc_files(tmp_path)
    disc_files(tmp_path, "final_queries")
    (tmp_path / "a.csv").write_text("Q2,R1\n")
    (tmp_path / "b.csv").write_text("Q3,R0\n")
    with pytest.raises(DataError, match=r"holds 2 tables"):
        disc21(tmp_path)
    found = disc21(tmp_path, tmp_path / "b.csv", "final_queries")
    assert "final_queries" in found.queries.name(0)
    assert found.pairs.tolist() == [[3, 0]]
    assert found.relevant.shape == (4, 4)
    assert found.training is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query_id,reference_id\nQ9,R0\n", r"query Q9 and the reference R0, not both"),
        ("Q0,R9\n", r"query Q0 and the reference R9, not both"),
        ("Q9,\nQ0,R0\n", r"query Q9 and the reference \(none\), not both"),
        ("query_id,reference_id\nQ0,\n", "gives no query a reference"),
        ("query_id,reference_id,score\nQ0,R0,1\n", "has the line 'query_id,reference_id,score'"),
    ],
)
def test_faults_of_disc21s_table_are_named(tmp_path, text, message):
    disc_files(tmp_path)
    (tmp_path / "truth.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        disc21(tmp_path)


def test_missing_folders_and_names_twice_in_disc21_are_named(tmp_path):
    with pytest.raises(DataError, match="has no folder references or refs or reference_images"):
        disc21(tmp_path)
    disc_files(tmp_path)
    put(tmp_path / "references" / "part" / "R1.jpg")
    (tmp_path / "truth.csv").write_text("Q0,R0\n")
    with pytest.raises(DataError, match=r"R1\.jpg: there is another image of that name"):
        disc21(tmp_path)
