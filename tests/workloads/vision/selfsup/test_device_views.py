import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from tests.workloads.vision.selfsup.test_multicrop import PLAIN, Pictures, picture

from farreach_workloads.vision.augment import MEAN, STD
from farreach_workloads.vision.selfsup import device_views
from farreach_workloads.vision.selfsup.multicrop import REPLACED, MultiCrop
from farreach_workloads.vision.view_plans import Recipe

NOTHING = {**PLAIN, "jitter": (0.0, 0.0, 0.0, 0.0)}
PICTURES = [picture(90, 70, 0), picture(64, 96, 1), picture(40, 40, 2)]


@pytest.fixture
def large(monkeypatch):
    """Images stay as large as they are."""
    monkeypatch.setattr(device_views, "MOST_SHORT", 100)
    monkeypatch.setattr(device_views, "MOST_LONG", 100)


def levels(views):
    """Normalised views in grey levels."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (views * std + mean) * 255


def gaps(size, recipes, pictures=PICTURES, rounds=6):
    """Grey levels between the views of the device and those of the loaders."""
    kinds, count = {"some": recipes}, len(pictures)
    here, there = (MultiCrop(Pictures(*pictures), kinds, 3, on_device=on) for on in (False, True))
    found = []
    for number in range(rounds):
        rows, positions = np.arange(count), np.arange(count) + number * count
        batch = there.batch(rows, positions)
        assert {len(value) for value in batch.values()} == {count}
        views = device_views.made(batch, there.sizes)["some"]
        assert views.shape == (count, len(recipes), 3, size, size)
        found.append((levels(views) - here.batch(rows, positions)["some"]).abs())
    return torch.stack(found)


@pytest.mark.parametrize(
    ("size", "scale"), [(24, (0.3, 1.0)), (96, (0.1, 0.4)), (16, (0.9, 1.0)), (8, (0.05, 0.2))]
)
@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_what_is_cut_out_is_the_same_to_one_level(size, scale, flip, large):
    gap = gaps(size, [Recipe(size, scale, **{**NOTHING, "flip": flip})] * 3)
    assert gap.max() < 1.01
    assert gap.mean() < 0.2


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({"grey_probability": 0.5}, 1.01),
        ({"blur_probability": 0.6, "blur_radii": (0.1, 2.0)}, 1.01),
        ({"solarise_probability": 0.5}, 256),
        ({"jitter_probability": 0.7, "jitter": (0.8, 0.0, 0.0, 0.0)}, 2.01),
        ({"jitter_probability": 0.7, "jitter": (0.0, 0.8, 0.0, 0.0)}, 2.01),
        ({"jitter_probability": 0.7, "jitter": (0.0, 0.0, 0.8, 0.0)}, 4.01),
        ({"jitter_probability": 0.7, "jitter": (0.0, 0.0, 0.0, 0.4)}, 6.01),
    ],
)
def test_each_operation_is_that_of_the_loaders(changes, most, large):
    gap = gaps(32, [Recipe(32, (0.3, 1.0), **{**NOTHING, **changes})] * 3)
    assert gap.mean() < 0.25
    assert gap.max() < most


def test_all_together_are_those_of_the_loaders(large):
    gap = gaps(32, [Recipe(32, (0.3, 1.0), jitter=(0.8, 0.8, 0.8, 0.2))] * 4, rounds=12)
    assert gap.mean() < 0.25
    assert (gap > 6).float().mean() < 1e-3


def test_views_of_a_part_are_those_of_the_whole(monkeypatch):
    recipes = {"some": [Recipe(24, (0.3, 1.0))] * 2}
    views = MultiCrop(Pictures(*PICTURES), recipes, 0, on_device=True)
    batch = views.batch(np.arange(3), np.arange(3))
    whole = device_views.made(batch, views.sizes)["some"]
    monkeypatch.setattr(device_views, "FLOATS_AT_ONCE", 1)
    assert torch.equal(device_views.made(batch, views.sizes)["some"], whole)
    part = {name: value[1:] for name, value in batch.items() if name != REPLACED}
    assert torch.equal(device_views.made(part, views.sizes)["some"], whole[1:])


def test_under_autocast_views_are_as_precise():
    views = MultiCrop(Pictures(*PICTURES), {"some": [Recipe(24, (0.3, 1.0))]}, 0, on_device=True)
    batch = views.batch(np.arange(3), np.arange(3))
    outside = device_views.made(batch, views.sizes)["some"]
    with torch.autocast("cpu", torch.bfloat16):
        inside = device_views.made(batch, views.sizes)["some"]
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


def test_the_side_that_views_need_leaves_the_smallest_as_large_as_it_is_shown():
    needed = device_views.side_needed([Recipe(224, (0.3, 1.0)), Recipe(96, (0.05, 0.3))])
    area, aspect = 0.05 * needed**2, 3 / 4
    assert math.sqrt(area * aspect) == pytest.approx(96, abs=0.2)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((500, 375), (500, 375)),  # small
        ((800, 620), (800, 620)),  # a fourth larger
        ((1600, 1200), (667, 500)),
        ((1200, 1600), (500, 667)),
        ((4000, 600), (1250, 188)),  # 2.5 times as long as is needed
    ],
)
def test_large_images_are_made_smaller_and_keep_their_aspect(size, expected):
    assert device_views.bounded(Image.new("RGB", size), 500).size == expected


class Jpegs(Pictures):
    """As files, of which it is noted how large they came."""

    def _open(self, index):
        file = io.BytesIO()
        self.pictures[index].save(file, "JPEG", quality=95)
        return Image.open(file)


@pytest.mark.parametrize(
    ("needed", "size"),
    [(None, (800, 600)), (400, (800, 600)), (300, (400, 300)), (150, (200, 150)), (10, (100, 75))],
)
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(needed, size):
    image = picture(80, 60).resize((800, 600), Image.Resampling.BICUBIC)
    found = Jpegs(image).load(0, needed)
    assert found.size == size
    part = image.resize(size, Image.Resampling.BOX)
    assert np.abs(np.asarray(found, float) - np.asarray(part, float)).mean() < 2
