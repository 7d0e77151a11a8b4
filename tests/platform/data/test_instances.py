import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from farreach.data.instances import open_instances
from farreach.errors import DataError

HEIGHT, WIDTH = 20, 30


def coco(path, spoil=None):
    """Two categories whose ids do not begin at 0, in each form that COCO has masks in."""
    disc = np.zeros((HEIGHT, WIDTH), np.uint8)
    disc[5:12, 8:20] = 1
    packed = rle.encode(np.asfortranarray(disc))
    runs = [5 * 1 + 2, 3, HEIGHT * WIDTH - 10]
    for part in ("train2017", "val2017"):
        (path / part).mkdir(parents=True)
        (path / "annotations").mkdir(exist_ok=True)
        for number in (7, 3):
            Image.new("RGB", (WIDTH, HEIGHT), (number, 0, 0)).save(path / part / f"{number}.png")
        content = {
            "images": [
                {"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in (7, 3)
            ],
            "categories": [{"id": 18, "name": "dog"}, {"id": 5, "name": "cat"}],
            "annotations": [
                {
                    "id": 1, "image_id": 7, "category_id": 18, "bbox": [2, 3, 10, 6], "iscrowd": 0,
                    "area": 30, "segmentation": [[2, 3, 12, 3, 12, 9], [2, 5, 4, 5, 4, 9]],
                },
                {
                    "id": 2, "image_id": 7, "category_id": 5, "bbox": [0, 7, 1, 3], "iscrowd": 1,
                    "area": 3, "segmentation": {"counts": runs, "size": [HEIGHT, WIDTH]},
                },
                {
                    "id": 3, "image_id": 3, "category_id": 5, "bbox": [8, 5, 12, 7], "iscrowd": 0,
                    "area": 84,
                    "segmentation": {"counts": packed["counts"].decode(), "size": packed["size"]},
                },
                {
                    "id": 4, "image_id": 3, "category_id": 5, "bbox": [8, 5, 0, 7], "iscrowd": 0,
                    "area": 0, "segmentation": [[8, 5, 8, 9, 8, 12]],
                },
            ],
        }  # fmt: skip
        if spoil is not None:
            spoil(content, path / part)
        (path / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return path


def test_every_form_of_mask_is_read_as_pycocotools_reads_it(tmp_path):
    train, held_out = open_instances(coco(tmp_path))
    assert train.classes == held_out.classes == ["cat", "dog"]
    assert len(train) == 2
    truth = COCO(str(tmp_path / "annotations" / "instances_train2017.json"))
    assert train.image(1).getpixel((0, 0)) == (7, 0, 0)
    second = train.instances(1)  # image 7: ids are in order
    assert second.labels.tolist() == [1, 0]
    assert second.crowd.tolist() == [False, True]
    assert second.boxes.tolist() == [[2, 3, 12, 9], [0, 7, 1, 10]]
    for mask, number in zip(second.masks, (1, 2), strict=True):
        expected = truth.annToMask(truth.anns[number])
        np.testing.assert_array_equal(mask, expected.astype(bool))
        assert mask.any()
    first = train.instances(0)  # without the object that has no area
    assert len(first) == 1
    assert first.masks[0].sum() == 84


def no_image(content, folder):
    (folder / "3.png").unlink()


def no_category(content, folder):
    content["annotations"][2]["category_id"] = 6


def no_box(content, folder):
    del content["annotations"][0]["bbox"]


def other_size(content, folder):
    content["images"][1]["width"] = 31
    content["annotations"][2]["segmentation"]["size"][1] = 31


def no_height(content, folder):
    del content["images"][0]["height"]


def half_a_box(content, folder):
    content["annotations"][0]["bbox"] = [1, 2]


def segmented(value):
    """The second annotation, of id 2, has another segmentation."""

    def spoil(content, folder):
        content["annotations"][1]["segmentation"] = value

    return spoil


def nothing(content, folder):
    content["annotations"] = []


def new_category(content, folder):
    if folder.name == "val2017":
        content["categories"].append({"id": 90, "name": "horse"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_image, r"train2017/3\.png: is missing, as are 0 other"),
        (no_category, r"annotation 2 is of category 6, which is not named"),
        (no_box, r"annotation 0 has no 'bbox'"),
        (half_a_box, r"annotation 0 has the box \[1, 2\]; left, top, width and height"),
        (no_height, r"image 0 has no 'height'"),
        (other_size, r"3\.png: is \(30, 20\) pixels large, but .*json says \(31, 20\)"),
        (nothing, r"instances_train2017\.json: has no annotations"),
        (new_category, r"has the category 'horse', of which none is trained on"),
    ],
)
def test_faults_are_named(tmp_path, spoil, message):
    coco(tmp_path, spoil)
    with pytest.raises(DataError, match=message):
        open_instances(tmp_path)[0].image(0)


@pytest.mark.parametrize("value", [[], None, {}, "", [[]], [[2, 3, 12, 9]], ...])
def test_an_object_without_a_mask_fills_its_box(tmp_path, value):
    def spoil(content, folder):
        annotation = content["annotations"][0]
        annotation["bbox"] = [2.5, 3, 28, 5.2]  # beyond the right edge
        annotation["segmentation"] = value
        if value is ...:
            del annotation["segmentation"]

    train, _ = open_instances(coco(tmp_path, spoil))
    rows, columns = np.nonzero(train.instances(1).masks[0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 8, 2, WIDTH - 1)
    assert len(rows) == 6 * (WIDTH - 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[2, 3, 12, 3, 12]], "a polygon is no list of pairs of numbers"),
        ([2, 3, 12, 3, 12, 9], "a polygon is no list of pairs of numbers"),
        ([["2", 3, 12, 3, 12, 9]], "a polygon is no list of pairs of numbers"),
        (7, "it is neither a list of polygons nor runs"),
        ({"size": [HEIGHT, WIDTH]}, "it is neither a list of polygons nor runs"),
        ({"counts": [0, 600], "size": [WIDTH, HEIGHT]}, r"its size is \[30, 20\], of the image"),
        ({"counts": [0, 599], "size": [HEIGHT, WIDTH]}, "its runs do not add up to 600 pixels"),
    ],
)
def test_a_segmentation_that_is_none_is_refused_with_its_id(tmp_path, value, message):
    coco(tmp_path, segmented(value))
    expected = rf"train2017\.json: the annotation with id 2 has a segmentation .*: {message}"
    with pytest.raises(DataError, match=expected):
        open_instances(tmp_path)


def test_packed_runs_that_cannot_be_decoded_are_refused_with_their_id(tmp_path):
    coco(tmp_path, segmented({"counts": "Zoo", "size": [HEIGHT, WIDTH]}))
    with pytest.raises(DataError, match="the annotation with id 2 has a segmentation that is none"):
        open_instances(tmp_path)[0].instances(1)


def test_another_layout_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"no annotations/instances_train….*COCO's layout"):
        open_instances(tmp_path)
