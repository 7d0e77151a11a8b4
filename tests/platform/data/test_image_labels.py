import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from farreach.data.image_labels import as_labels
from farreach.data.images import open_images
from farreach.errors import DataError


def sets(path, train, held_out):
    image = io.BytesIO()
    Image.new("RGB", (4, 3)).save(image, "PNG")
    labels = [*train, *held_out]
    table = {
        "image": [image.getvalue()] * len(labels),
        "label": labels,
        "split": ["train"] * len(train) + ["val"] * len(held_out),
    }
    pq.write_table(pa.table(table), path / "a.parquet")
    return path / "a.parquet"


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(
    ("train", "held_out", "name"), [([0, 2], [0, 1], "1"), (["a", "c"], ["c", "b"], "b")]
)
def test_a_class_that_is_not_trained_on_is_refused(tmp_path, train, held_out, name, labelled):
    file = sets(tmp_path, train, held_out)
    with pytest.raises(
        DataError, match=rf"a\.parquet, row 3: is held out, of class '{name}'; there"
    ):
        open_images(file, labelled=labelled)


def test_most_classes_may_not_be_empty(tmp_path):
    file = sets(tmp_path, [7, 200_000], [7])
    with pytest.raises(DataError, match=r"labels up to 200000, but images of only 2 of these 2000"):
        open_images(file)
    train, _ = open_images(sets(tmp_path, [1, 3], [1]))  # half of them may be
    assert train.classes == ["0", "1", "2", "3"]
    assert train.labels.tolist() == [1, 3]


def test_negative_labels_are_named():
    with pytest.raises(DataError, match="image 2: labels are counted from 0; there is a -1"):
        as_labels("set", [0, 1, -1], "image {}".format)
