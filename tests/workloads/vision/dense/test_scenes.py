import numpy as np
import pytest
from PIL import Image

from farreach.data.images import open_images
from farreach.errors import DataError
from farreach_workloads.vision.dense.scenes import (
    LEAST_VISIBLE,
    SHIPPED_FILE,
    SceneInstances,
    SceneLabelMaps,
    open_scenes,
)


def scenes(**settings):
    return open_scenes(**{"cut_outs": None, "grounds": None, "side": 64, "most": 3} | settings)


def test_a_scene_is_the_same_whenever_it_is_asked_for():
    first, again = scenes()[0], scenes()[0]
    for index in (0, 7):
        (image, objects), (same, equal) = first.compose(index), again.compose(index)
        assert image.tobytes() == same.tobytes()
        np.testing.assert_array_equal(objects.masks, equal.masks)
    assert first.compose(0)[0].tobytes() != first.compose(1)[0].tobytes()
    assert first.compose(0)[0].tobytes() != scenes()[1].compose(0)[0].tobytes()


def test_objects_lie_over_one_another_and_in_their_boxes():
    train, _ = scenes(most=5)
    counts, hidden = [], 0
    for index in range(200):
        image, objects = train.compose(index)
        assert image.size == (64, 64)
        assert objects.masks.sum(0).max() <= 1
        for box, mask in zip(objects.boxes, objects.masks, strict=True):
            rows, columns = np.nonzero(mask)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == edges
        counts.append(len(objects))
        hidden += int(objects.crowd.sum())
    assert set(counts) <= {1, 2, 3, 4, 5}
    assert len(set(counts)) > 3
    assert hidden > 0, "of so many some must be almost covered"
    assert 0 < LEAST_VISIBLE < 1


def test_classes_of_pixels_are_those_of_the_objects_above_the_ground():
    train, _ = scenes()
    maps, instances = SceneLabelMaps(train, 5), SceneInstances(train, 5)
    assert maps.classes == ["ground", *instances.classes]
    for index in range(5):
        image, classes = maps.load(index)
        objects = instances.instances(index)
        assert image.tobytes() == instances.image(index).tobytes()
        expected = ((objects.labels[:, None, None] + 1) * objects.masks).sum(0)
        np.testing.assert_array_equal(classes, expected)


def test_shipped_cut_outs_are_held_out_by_the_name_without_its_digits():
    train, held_out = open_images(SHIPPED_FILE)
    assert (len(train) + len(held_out), len(train.classes)) == (500, 10)
    found = train.load_cut_out(0)
    assert found.mode == "RGBA"
    assert found.getchannel("A").getextrema()[0] == 0


def test_photos_lie_below_and_every_third_is_held_out(tmp_path):
    for number in range(6):
        value = 40 * number
        Image.new("RGB", (90, 70), (value, value, value)).save(tmp_path / f"{number}.png")
    seen = []
    for part in scenes(grounds=str(tmp_path), most=1):
        seen.append(set())
        for index in range(40):
            image, objects = part.compose(index)
            pixels = np.asarray(image)[~objects.masks.any(0)]
            values, counts = np.unique(pixels[:, 0], return_counts=True)
            seen[-1].add(int(values[counts.argmax()]))
    assert seen == [{0, 40, 120, 160}, {80, 200}]


def test_faults_are_named(tmp_path):
    with pytest.raises(DataError, match="holds 0 photos"):
        scenes(grounds=str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(12):
            Image.new("RGB", (9, 9)).save(tmp_path / name / f"{number:02}.png")
    with pytest.raises(DataError, match=r"a/00\.png: has no clear ground"):
        scenes(cut_outs=str(tmp_path))


def test_pixels_have_no_more_classes_than_can_be_told_apart(tmp_path):
    """Of a byte per pixel, 0 is the ground and 255 says that there is no class."""
    clear = Image.new("RGBA", (9, 9))
    clear.paste((200, 10, 10, 255), (2, 2, 7, 7))
    for number in range(255):
        for part in ("train", "val"):
            folder = tmp_path / part / f"class-{number:03}"
            folder.mkdir(parents=True)
            clear.save(folder / "0.png")
    train, _ = scenes(cut_outs=str(tmp_path))
    with pytest.raises(DataError, match="has 255 classes; of pixels 254 can be told apart"):
        SceneLabelMaps(train, 5)
    (tmp_path / "train/class-254/0.png").unlink()
    (tmp_path / "val/class-254/0.png").unlink()
    train, _ = scenes(cut_outs=str(tmp_path), most=1)
    maps = SceneLabelMaps(train, 2000)
    last = next(i for i in range(2000) if 253 in train.compose(i)[1].labels)
    assert np.unique(maps.load(last)[1]).tolist() == [0, 254]
