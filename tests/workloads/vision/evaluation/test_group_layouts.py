import numpy as np
import pytest
from PIL import Image

from farreach.errors import DataError
from farreach_workloads.vision.evaluation.group_layouts import (
    casual_conversations,
    dollar_street,
    miap,
    table_of,
    utk_face,
)
from farreach_workloads.vision.evaluation.grouped import household_mean, skin_tones


def put(*files, size=(4, 4)):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(file)


def test_any_table_of_images(tmp_path):
    put(tmp_path / "a.png", tmp_path / "sub" / "b.png")
    (tmp_path / "t.csv").write_text(
        f"tone,path,weight\n03,a.png,1.5\ndark,{tmp_path}/sub/b.png,unknown\n"
    )
    found = table_of(tmp_path / "t.csv", numbers=["weight"])
    assert [found.images.name(row) for row in (0, 1)] == [
        str(tmp_path / "a.png"),
        str(tmp_path / "sub" / "b.png"),
    ]
    assert found.columns["tone"].tolist() == ["03", "dark"]
    np.testing.assert_array_equal(found.columns["weight"], [1.5, np.nan])
    assert set(found.columns) == {"tone", "weight"}
    assert found.accepted is None
    with pytest.raises(DataError, match="has no column 'place'"):
        table_of(tmp_path / "t.csv", needed=["place"])
    with pytest.raises(DataError, match="row 2: tone is 'dark', which is no number"):
        table_of(tmp_path / "t.csv", numbers=["tone"])
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: is missing, as are 0 others of 2"):
        table_of(tmp_path / "t.csv")


def test_face_crops_of_casual_conversations(tmp_path):
    put(tmp_path / "1.jpg", tmp_path / "2.jpg")
    (tmp_path / "t.csv").write_text(
        "path,age,gender,skin_tone,subject\n1.jpg,31,Female,5,7\n2.jpg,N/A,Other,,8\n"
    )
    found = casual_conversations(tmp_path / "t.csv")
    np.testing.assert_array_equal(found.columns["age"], [31, np.nan])
    assert found.columns["gender"].tolist() == ["female", "other"]
    assert skin_tones(found.columns["skin_tone"]).tolist() == ["darker", "unknown"]
    assert found.columns["subject"].tolist() == ["7", "8"]
    (tmp_path / "t.csv").write_text("path,age,gender\n1.jpg,31,Female\n")
    with pytest.raises(DataError, match="has no column 'skin_tone'"):
        casual_conversations(tmp_path / "t.csv")


DOLLAR_STREET_COLUMNS = (
    "id,country.name,country.id,region.id,type,imageRelPath,topics,place,income,"
    "imagenet_synonyms,imagenet_sysnet_id"
)


def dollar_street_files(path):
    put(path / "assets" / "1" / "1.jpg", path / "assets" / "2" / "2.jpg")
    row = '1,Rwanda,rw,af,image,assets/1/1.jpg,"[""roof""]",home-a,45.5,"[""tile roof""]",[2]'
    (path / "images_v2_imagenet_train.csv").write_text(f"{DOLLAR_STREET_COLUMNS}\n{row}\n")
    row = '2,Italy,it,eu,image,assets/2/2.jpg,"[""bed""]",home-b,2000,"[""x"",""y""]","[0, 1]"'
    (path / "images_v2_imagenet_test.csv").write_text(f"{DOLLAR_STREET_COLUMNS}\n{row}\n")


def test_households_of_dollar_street_and_the_classes_of_their_things(tmp_path):
    """By the alphabet n1, n2, n3 are 0, 1, 2; the classifier has them as 1, 2, 0."""
    dollar_street_files(tmp_path)
    found = dollar_street(tmp_path, ["n3", "n1", "n2"])
    assert found.columns["household"].tolist() == ["home-a", "home-b"]
    assert found.columns["country"].tolist() == ["Rwanda", "Italy"]
    assert found.columns["region"].tolist() == ["af", "eu"]
    assert found.columns["income"].tolist() == [45.5, 2000]
    assert found.accepted == [{0}, {1, 2}]
    assert found.images.name(1).endswith("assets/2/2.jpg")
    means = household_mean(
        np.array([True, False]), found.columns["household"], found.columns["region"]
    )
    assert (means["af"].value, means["eu"].value) == (1, 0)
    alone = dollar_street(tmp_path, tables=["images_v2_imagenet_test.csv"])
    assert (len(alone.images), alone.accepted) == (1, None)


def test_faults_of_dollar_street_are_named(tmp_path):
    dollar_street_files(tmp_path)
    with pytest.raises(DataError, match=r"train\.csv, row 1, imagenet_sysnet_id: 2 is none of"):
        dollar_street(tmp_path, ["n1", "n2"])
    table = tmp_path / "images_v2_imagenet_train.csv"
    table.write_text(table.read_text().replace("[2]", "tile"))
    with pytest.raises(DataError, match="imagenet_sysnet_id: is 'tile', not a list such as"):
        dollar_street(tmp_path, ["n1", "n2", "n3"])
    table.write_text(table.read_text().replace("place", "house"))
    with pytest.raises(DataError, match=r"has no column 'place'.*Needed are imageRelPath, income"):
        dollar_street(tmp_path)
    with pytest.raises(DataError, match=r"images_v2\.csv: is no table that can be read"):
        dollar_street(tmp_path, tables=["images_v2.csv"])


def test_ages_genders_and_races_from_the_names_of_utkface(tmp_path):
    put(tmp_path / "part1" / "100_1_4_20170112213303693.jpg")
    put(tmp_path / "part1" / "7_0_2_20170112213303000.jpg.chip.jpg")
    found = utk_face(tmp_path)
    assert found.columns["age"].tolist() == [100, 7]
    assert found.columns["gender"].tolist() == ["female", "male"]
    assert found.columns["race"].tolist() == ["other", "asian"]
    put(tmp_path / "part1" / "61_1_20170109142408075.jpg", tmp_path / "part1" / "9_2_0_1.jpg")
    with pytest.raises(DataError, match=r"2 of 4 images .*: 61_1_20170109142408075\.jpg, 9_2_0_1"):
        utk_face(tmp_path)


MIAP_COLUMNS = (
    "ImageID,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,"
    "IsDepictionOf,IsInsideOf,GenderPresentation,AgePresentation"
)


def miap_files(path, *rows):
    put(path / "images" / "a.jpg", size=(400, 200))
    put(path / "images" / "b.jpg", size=(100, 300))
    (path / "boxes.csv").write_text("\n".join([MIAP_COLUMNS, *rows]) + "\n")
    return path / "boxes.csv", path / "images"


def test_large_boxes_of_persons_are_cut_out(tmp_path):
    """Of 400 x 200 pixels 0.1 to 0.5 and 0 to 0.75 are 40 to 200 and 0 to 150."""
    found = miap(
        *miap_files(
            tmp_path,
            "a,/m/01g317,1,0.1,0.5,0,0.75,1,0,0,0,0,Predominantly Feminine,Young",
            "a,/m/01g317,1,0.1,0.3,0,0.75,0,0,0,0,0,Predominantly Feminine,Older",
            "b,/m/01g317,1,0,1,0.5,1,0,0,1,0,0,Unknown,Unknown",
            "b,/m/01g317,1,0,1,0.1,0.43,0,0,1,0,0,Predominantly Masculine,Middle",
        )
    )
    assert found.images.boxes.tolist() == [[40, 0, 200, 150], [0, 150, 100, 300]]
    assert [found.images.load(row).size for row in (0, 1)] == [(160, 150), (100, 150)]
    assert found.columns["gender"].tolist() == ["female", "unknown"]
    assert found.columns["age"].tolist() == ["young", "unknown"]
    assert found.columns["IsGroupOf"].tolist() == ["0", "1"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,x,1,0,0.1,0,1,0,0,0,0,0,Unknown,Young", "no box is 100 pixels high and wide"),
        ("a,x,1,0,120,0,90,0,0,0,0,0,Unknown,Young", r"row 1: a box is \[0\.0, 0\.0, 120\.0"),
        ("a,x,1,0,1,0,,0,0,0,0,0,Unknown,Young", "row 1: a box is .*nan"),
        ("a,x,1,0,1,0,1,0,0,0,0,0,Woman,Young", "GenderPresentation is 'woman', none of"),
        ("c,x,1,0,1,0,1,0,0,0,0,0,Unknown,Young", r"c\.jpg: is missing"),
    ],
)
def test_faults_of_boxes_are_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        miap(*miap_files(tmp_path, row))


def test_a_broken_image_with_boxes_is_named(tmp_path):
    table, images = miap_files(tmp_path, "a,x,1,0,1,0,1,0,0,0,0,0,Unknown,Young")
    (images / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.jpg: is no image that can be read"):
        miap(table, images)
    table.write_text("ImageID,XMin\na,0\n")
    with pytest.raises(DataError, match="has no column 'YMin'"):
        miap(table, images)
