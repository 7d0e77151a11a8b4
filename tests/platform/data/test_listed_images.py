import json

import pytest
from PIL import Image

from farreach.data.images import open_images
from farreach.errors import DataError

CATEGORIES = [{"id": 7, "name": "Aix sponsa"}, {"id": 2, "name": "Bufo bufo"}]
# part → (id, file, category) of each image
IMAGES = {
    "train2018": [(12, "Aves/7/b.jpg", 7), (11, "Amphibia/2/a.jpg", 2), (13, "Aves/7/c.jpg", 7)],
    "val2018": [(21, "Aves/7/d.jpg", 7)],
}


def inaturalist(path, spoil=None):
    for part, images in IMAGES.items():
        for number, name, _ in images:
            file = path / "train_val2018" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 3), (number, number, number)).save(file)
        content = {
            "images": [{"id": n, "file_name": f"train_val2018/{name}"} for n, name, _ in images],
            "annotations": [{"id": n, "image_id": n, "category_id": c} for n, _, c in images],
            "categories": CATEGORIES,
        }
        if spoil is not None:
            spoil(content, path / "train_val2018")
        (path / f"{part}.json").write_text(json.dumps(content))
    (path / "train2018_locations.json").write_text(json.dumps([{"id": 11, "lat": 1.0}]))
    (path / "test2018.json").write_text(json.dumps({"images": [], "categories": []}))
    return path


@pytest.mark.parametrize("labelled", [True, False])
def test_images_and_classes_are_those_that_are_listed(tmp_path, labelled):
    train, held_out = open_images(inaturalist(tmp_path), labelled=labelled)
    assert train.classes == held_out.classes == ["Bufo bufo", "Aix sponsa"]
    assert train.labels.tolist() == [0, 1, 1]
    assert held_out.labels.tolist() == [1]
    assert train.name(0).endswith("train_val2018/Amphibia/2/a.jpg")
    assert train.load(2).getpixel((0, 0)) == (13, 13, 13)


def no_image(content, folder):
    (folder / "Aves/7/c.jpg").unlink(missing_ok=True)


def no_class(content, folder):
    del content["annotations"][0]


def two_classes(content, folder):
    content["annotations"].append({"image_id": 12, "category_id": 2})


def no_category(content, folder):
    content["annotations"][0]["category_id"] = 3


def no_name(content, folder):
    del content["images"][0]["file_name"]


def same_names(content, folder):
    content["categories"] = [{"id": 7, "name": "x"}, {"id": 2, "name": "x"}]


def other_categories(content, folder):
    if len(content["images"]) == 1:
        content["categories"] = [{"id": 7, "name": "Anas acuta"}]


def not_trained_on(content, folder):
    if len(content["images"]) > 1:
        for annotation in content["annotations"]:
            annotation["category_id"] = 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_image, r"Aves/7/c\.jpg: is missing, as are 0 other images that .*train2018\.json"),
        (no_class, r"train2018\.json: image 12 is of 0 categories"),
        (two_classes, r"train2018\.json: image 12 is of 2 categories"),
        (no_category, r"train2018\.json: category 3 is not named"),
        (no_name, r"train2018\.json: entry 0 of images lacks one of id, file_name"),
        (same_names, r"train2018\.json: has two categories 'x'"),
        (other_categories, r"val2018\.json: has the category 'Anas acuta', of which none"),
        (not_trained_on, r"Aves/7/d\.jpg: is held out, of class 'Aix sponsa'; there is no such"),
    ],
)
def test_faults_are_named(tmp_path, spoil, message):
    with pytest.raises(DataError, match=message):
        open_images(inaturalist(tmp_path, spoil))


def test_a_file_that_is_cut_off_is_named(tmp_path):
    file = inaturalist(tmp_path) / "train2018.json"
    file.write_text(file.read_text()[:-5])
    with pytest.raises(DataError, match=r"train2018\.json: is no readable JSON file"):
        open_images(tmp_path)


def test_other_json_files_do_not_matter(tmp_path):
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 3)).save(tmp_path / part / name / "0.png")
        (tmp_path / f"{part}.json").write_text('{"annotations"')
    assert open_images(tmp_path)[0].classes == ["a", "b"]
