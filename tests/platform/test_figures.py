import gc
import io

import numpy as np
import pytest
from PIL import Image

from farreach.figures import new_figure, png, rendered, save


def red():
    figure = new_figure(2, 1, dpi=50)
    figure.patch.set_facecolor("red")
    axes = figure.subplots()
    axes.plot([0, 1], label="line")
    axes.legend()
    axes.set_title("title")
    return figure


@pytest.mark.parametrize(("dpi", "size"), [(None, (100, 50)), (80, (160, 80))])
def test_a_figure_becomes_a_file_of_its_size(dpi, size):
    with Image.open(io.BytesIO(png(red(), dpi))) as image:
        assert (image.format, image.size) == ("PNG", size)
        assert image.getpixel((0, 0))[:3] == (255, 0, 0)


def test_a_figure_becomes_an_array():
    picture = rendered(red())
    assert picture.shape == (90, 180, 3)
    assert picture.dtype == np.uint8
    assert picture[0, 0].tolist() == [255, 0, 0]


def test_a_file_is_written_whole(tmp_path):
    path = save(red(), tmp_path / "folder" / "a.png")
    with Image.open(path) as image:
        assert image.size == (220, 110)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize("use", [png, rendered])
def test_pixels_go_with_the_figure(use):
    """Without waiting for the collector of cycles, which may take minutes to come."""
    from matplotlib.backends.backend_agg import RendererAgg

    gc.collect()
    gc.disable()
    try:
        use(red())
        left = [one for one in gc.get_objects() if type(one) is RendererAgg]
        assert not any(hasattr(one, "_renderer") for one in left)
    finally:
        gc.enable()
