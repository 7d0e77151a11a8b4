import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from farreach.errors import DataError
from farreach_workloads.vision.evaluation import rendered
from farreach_workloads.vision.evaluation.arrangements import FIELD_OF_VIEW, LIMITS
from farreach_workloads.vision.evaluation.rendered import (
    RenderedImages,
    Scene,
    SceneRenderer,
    compose,
    open_rendered,
    render,
)

SCENES = 240
SIDE = 64


@pytest.fixture(scope="module")
def renderer():
    try:
        made = SceneRenderer(SIDE)
    except DataError as error:
        pytest.skip(f"no OpenGL: {error}")
    yield made
    made.close()


@pytest.fixture(scope="module")
def file(renderer, tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes") / "scenes.parquet"
    render(path, SCENES, SIDE, seed=5)
    return path


def test_counts_and_distances_are_equally_frequent_in_both_parts(file):
    for task, classes in (("count", 8), ("distance", 6)):
        train, held_out = open_rendered(file, task)
        assert np.bincount(train.labels).tolist() == [192 / classes] * classes
        assert np.bincount(held_out.labels).tolist() == [48 / classes] * classes
        assert len(train.classes) == classes
    counts, distances = (RenderedImages(file, task).labels for task in ("count", "distance"))
    pairs, times = np.unique(np.stack([counts, distances]), axis=1, return_counts=True)
    assert (pairs.shape[1], set(times.tolist())) == (48, {5})


def test_labels_are_those_of_the_scenes(file, renderer):
    images = RenderedImages(file, "distance")
    for index in (0, 77, 239):
        scene, picture = compose(renderer, SIDE, 5, index)
        assert images.counts[index] == len(scene.solids)
        assert images.distances[index] == scene.distance
        low, high = LIMITS[images.labels[index]], LIMITS[images.labels[index] + 1]
        assert low < scene.distance <= high
        np.testing.assert_array_equal(np.asarray(images.load(index)), picture)


def test_scenes_are_the_same_again_and_others_with_another_seed(file, renderer):
    again = file.with_name("again.parquet")
    render(again, SCENES, SIDE, seed=5)
    assert again.read_bytes() == file.read_bytes()
    assert sorted(path.name for path in file.parent.iterdir()) == [again.name, file.name]
    (_, first), (_, other) = (compose(renderer, SIDE, seed, 0) for seed in (5, 6))
    assert (first != other).any()


def test_every_solid_is_seen(renderer):
    for index in range(48):
        scene, _ = compose(renderer, SIDE, 0, index)
        seen = renderer.visible()
        assert seen[: len(scene.solids)].min() >= SIDE**2 / 400
        assert (seen[len(scene.solids) :] == 0).all()


def test_solids_are_seen_where_a_pinhole_camera_shows_them(renderer):
    """Each solid alone: the middle of what differs from the bare plane is its centre's image."""
    focal = SIDE / 2 / np.tan(FIELD_OF_VIEW / 2)
    for index in range(8):
        scene, _ = compose(renderer, SIDE, 1, index)
        bare = renderer.draw(alone(scene, []))
        for row in range(len(scene.solids)):
            picture = renderer.draw(alone(scene, [row]))
            assert renderer.visible()[0] == renderer.visible().sum() > 0
            rows, columns = np.nonzero((picture != bare).any(2))
            offset = scene.solids.positions[row] - scene.camera.position
            right, up, depth = scene.camera.axes @ offset
            assert columns.min() > 0
            assert columns.max() < SIDE - 1
            middle = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
            expected = SIDE / 2 + focal * right / depth, SIDE / 2 - focal * up / depth
            np.testing.assert_allclose(middle, expected, atol=1.0)


def alone(scene, rows):
    return Scene(scene.camera, scene.solids.select(rows), scene.colors[rows], scene.light)


def test_another_process_reads_the_same(file):
    part = open_rendered(file, "count")[1].subset(np.array([3, 1]))
    copy = pickle.loads(pickle.dumps(part))
    assert len(pickle.dumps(part)) < 10_000
    assert copy.labels.tolist() == part.labels.tolist()
    assert copy.load(1).tobytes() == part.load(1).tobytes()
    assert copy.name(0) == f"{file}, row 195"


def test_faults_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="scenes: is 239; 240 are the fewest"):
        render(tmp_path / "a.parquet", 239)
    with pytest.raises(DataError, match=r"a\.parquet: is no readable Parquet file"):
        open_rendered(tmp_path / "a.parquet", "count")
    pq.write_table(pa.table({"image": [b""], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has 1 rows and the columns image, label; image, count"):
        open_rendered(tmp_path / "a.parquet", "count")
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(DataError, match=r"OpenGL cannot be used .* set MUJOCO_GL to egl or osmesa"):
        render(tmp_path / "b.parquet", 240)
    assert not (tmp_path / "b.parquet").exists()


@pytest.mark.usefixtures("renderer")
def test_pictures_that_are_too_small_are_refused(monkeypatch):
    monkeypatch.setattr(rendered, "TRIES", 30)
    small = SceneRenderer(1)
    try:
        with pytest.raises(DataError, match=r"scene 0: in 30 .* or more than 1 pixels"):
            compose(small, 1, 0, 0)
    finally:
        small.close()
