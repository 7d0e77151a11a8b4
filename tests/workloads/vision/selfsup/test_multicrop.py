from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from farreach.data.images import ImageSet
from farreach_workloads.vision.augment import MEAN, STD
from farreach_workloads.vision.selfsup.multicrop import MultiCrop
from farreach_workloads.vision.view_pixels import (
    brightness,
    contrast,
    finished,
    hue,
    luma,
    normalised,
    resized_crop,
    saturation,
)
from farreach_workloads.vision.view_plans import (
    TRIES,
    Recipe,
    blur_taps,
    crop_box,
    plan_views,
)

PLAIN = {"flip": 0, "jitter_probability": 0, "grey_probability": 0, "blur_probability": 0}


def picture(width=90, height=70, seed=0):
    """Smooth colours, more saturated than those of photos, with noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    return Image.fromarray((smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8))


class Pictures(ImageSet):
    def __init__(self, *pictures):
        super().__init__(Path("pictures"), np.zeros(len(pictures), np.int64), ["all"])
        self.pictures = pictures

    def name(self, index):
        return str(index)

    def _open(self, index):
        return self.pictures[index]


def tensor(image):
    """(3, height, width) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def gap(ours, image):
    return (ours.double() - tensor(image).double()).abs()


def coloured(operation, image, factor):
    """By one operation alone."""
    x = tensor(image).float().flatten(1)[None]
    changed = operation(x, torch.tensor([factor]).view(1, 1, 1))
    return changed.view(3, image.height, image.width)


def made(image, seed=0, **changes):
    """A square picture as it is, after the operations that a recipe asks for."""
    recipe = Recipe(image.width, (1.0, 1.0), **{**PLAIN, **changes})
    numbers = np.random.default_rng(seed).random((1, 1, 14))
    return finished([tensor(image)], plan_views([recipe], numbers), image.width)[0]


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0, 1.3, 1.8])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (brightness, reference.adjust_brightness),
        (contrast, reference.adjust_contrast),
        (saturation, reference.adjust_saturation),
    ],
)
def test_colours_are_pils_before_they_are_cut_to_whole_numbers(ours, theirs, factor):
    """PIL also rounds luma, by half a level at most."""
    image = picture()
    limit = 1 + 0.5 * abs(factor - 1) if ours is saturation else 1
    assert float(gap(coloured(ours, image, factor), theirs(image, factor)).max()) < limit + 1e-3


@pytest.mark.parametrize("turns", [-0.5, -0.2, -0.03, 0.0, 0.1, 0.2, 0.4, 0.5])
def test_hue_is_hsvs(turns):
    image = picture()
    ours = coloured(hue, image, turns)
    exact = 255 * reference.adjust_hue(tensor(image).double() / 255, turns)
    torch.testing.assert_close(ours.double(), exact, atol=1e-3, rtol=0)
    rounded = gap(ours, reference.adjust_hue(image, turns))
    assert float(rounded.mean()) < 1.5  # PIL alone, without any turn, differs by 1
    assert float(rounded.max()) < 15


def test_hue_of_grey_black_and_pure_colours():
    colours = torch.tensor([[90, 90, 90], [0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 200.0]])
    third = torch.full((1, 1, 1), 1 / 3)
    expected = colours[None].roll(1, 2).transpose(1, 2)
    torch.testing.assert_close(hue(colours.t()[None], third), expected, atol=1e-3, rtol=0)


def test_grey_is_pils_luma():
    image = picture(48, 48)
    expected = image.convert("L").convert("RGB")
    assert int(gap(made(image, grey_probability=1), expected).max()) <= 1
    assert (
        float(gap(luma(tensor(image).float().flatten(1)[None])[0].view(1, 48, 48), expected).max())
        < 0.52
    )


@pytest.mark.parametrize("radius", [0.1, 0.2, 0.3, 0.6, 1.0, 1.4, 1.45, 2.0])
def test_blur_is_pils(radius):
    """Pillow cuts to whole numbers at six passes, each of which extends the borders anew."""
    image = picture(64, 64)
    ours = made(image, blur_probability=1, blur_radii=(radius, radius))
    difference = gap(ours, image.filter(ImageFilter.GaussianBlur(radius)))
    assert float(difference.mean()) < 0.9
    assert float(difference[:, 6:-6, 6:-6].max()) <= 3
    assert float(difference.max()) <= 4


def test_blurs_weights_have_the_gaussians_variance():
    radii = np.array([0.6, 1.0, 2.0, 3.0])
    taps = blur_taps(radii).astype(float)
    np.testing.assert_allclose(taps[:, 0] + 2 * taps[:, 1:].sum(1), 1, atol=1e-6)
    squares = np.arange(taps.shape[1]) ** 2
    np.testing.assert_allclose((2 * taps * squares).sum(1), radii**2, rtol=0.03)


def test_flip_and_solarise_are_exact():
    image = picture(40, 40)
    assert torch.equal(made(image), tensor(image))
    assert torch.equal(made(image, flip=1), tensor(ImageOps.mirror(image)))
    assert torch.equal(made(image, solarise_probability=1), tensor(ImageOps.solarize(image, 128)))


def test_operations_follow_one_another_as_in_torchvision():
    """In the order that was drawn, and each on what the one before left."""
    operations = [
        reference.adjust_brightness,
        reference.adjust_contrast,
        reference.adjust_saturation,
        reference.adjust_hue,
    ]
    images = [picture(32, 32, seed) for seed in range(40)]
    recipe = Recipe(
        32,
        (1.0, 1.0),
        jitter=(0.8, 0.8, 0.8, 0.2),
        jitter_probability=1.0,
        solarise_probability=0.3,
    )
    plan = plan_views([recipe], np.random.default_rng(0).random((40, 1, 14)))
    assert len({tuple(order) for order in plan.order}) > 12
    differences = []
    for i, view in enumerate(finished([tensor(image) for image in images], plan, 32)):
        image = images[i]
        for number in plan.order[i]:
            image = operations[number](image, float(plan.factors[i, number]))
        if plan.grey[i]:
            image = image.convert("L").convert("RGB")
        if plan.reach[i] or plan.solarised[i]:
            continue
        differences.append(gap(view, ImageOps.mirror(image) if plan.flipped[i] else image))
    assert len(differences) > 8
    assert float(torch.stack(differences).mean()) < 2
    assert float(torch.stack(differences).quantile(0.99)) <= 10


@pytest.mark.parametrize(
    "box", [(0, 0, 70, 90), (3, 10, 40, 51), (20, 5, 48, 48), (60, 80, 10, 9), (9, 89, 3, 1)]
)
@pytest.mark.parametrize("size", [24, 48])
def test_crop_is_pils(box, size):
    image = picture()
    top, left, height, width = box
    cropped = image.crop((left, top, left + width, top + height))
    expected = cropped.resize((size, size), Image.Resampling.BILINEAR)
    ours = resized_crop(torch.from_numpy(np.array(image)), box, size)
    assert ours.dtype == torch.uint8
    assert float(gap(ours, expected).max()) <= 1


def boxes(height, width, scale, count, seed=0):
    numbers = np.random.default_rng(seed).random((count, 2 * TRIES + 2)).tolist()
    return np.array([crop_box(height, width, scale, row) for row in numbers])


def test_crops_are_distributed_as_torchvisions():
    height, width, scale = 300, 400, (0.2, 0.9)
    ours = boxes(height, width, scale, 4000)
    torch.manual_seed(0)
    blank = torch.empty(1, height, width)
    transform = v2.RandomResizedCrop(8, scale=scale)
    drawn = [transform.make_params([blank]) for _ in range(4000)]
    theirs = np.array([[d["top"], d["left"], d["height"], d["width"]] for d in drawn])
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        levels = np.quantile(ours, share, axis=0), np.quantile(theirs, share, axis=0)
        np.testing.assert_allclose(*levels, atol=12)
    areas = ours[:, 2] * ours[:, 3] / (height * width)
    assert 0.195 < areas.min() < 0.21
    assert 0.88 < areas.max() < 0.905
    aspects = ours[:, 3] / ours[:, 2]
    assert 0.74 < aspects.min() < 0.77
    assert 1.30 < aspects.max() < 1.35
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    assert (ours[:, :2] >= 0).all()


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (100, 10, (43, 0, 13, 10)),  # too slim: 10 / (3 / 4) high, the middle
        (10, 100, (0, 43, 10, 13)),  # too wide
        (9, 1, (4, 0, 1, 1)),
        (1, 1, (0, 0, 1, 1)),
    ],
)
def test_the_middle_is_shown_where_no_try_fits(height, width, expected):
    assert [tuple(box) for box in boxes(height, width, (1.0, 1.0), 3)] == [expected] * 3


def test_probabilities_are_kept():
    recipe = Recipe(
        16,
        (0.1, 1.0),
        flip=0.4,
        jitter=(0.3, 1.5, 0.0, 0.1),
        jitter_probability=0.7,
        grey_probability=0.3,
        blur_probability=0.6,
        blur_radii=(0.8, 2.0),
        solarise_probability=0.2,
    )
    count = 8000
    plan = plan_views([recipe], np.random.default_rng(0).random((count, 1, 14)))
    observed = [plan.flipped, plan.jittered, plan.grey, plan.reach > 0, plan.solarised]
    shares = [float(flags.mean()) for flags in observed]
    np.testing.assert_allclose(shares, [0.4, 0.7, 0.3, 0.6, 0.2], atol=0.02)
    assert (np.sort(plan.order, 1) == np.arange(4)).all()
    for turn in range(4):
        np.testing.assert_allclose(np.bincount(plan.order[:, turn]) / count, 0.25, atol=0.02)
    least, most = plan.factors.min(0), plan.factors.max(0)
    np.testing.assert_allclose(least, [0.7, 0.0, 1.0, -0.1], atol=0.01)
    np.testing.assert_allclose(most, [1.3, 2.5, 1.0, 0.1], atol=0.01)
    # Independent of one another.
    for first, second in ((0, 1), (1, 2), (2, 3), (3, 4)):
        both = float((observed[first] & observed[second]).mean())
        assert both == pytest.approx(shares[first] * shares[second], abs=0.02)


IMAGES = Pictures(*(picture(60 + 7 * seed, 90 - 5 * seed, seed) for seed in range(6)))
LARGE, SMALL = Recipe(33, (0.3, 1.0), solarise_probability=0.2), Recipe(20, (0.05, 0.3))
KINDS = {"target": [LARGE], "random": [LARGE] * 2, "focal": [SMALL] * 5}


def test_batches_have_a_tensor_for_each_kind():
    batch = MultiCrop(IMAGES, KINDS, seed=0).batch(np.array([4, 1, 1]), np.array([7, 8, 9]))
    assert batch.pop("replaced").tolist() == [False] * 3
    assert {kind: tuple(views.shape) for kind, views in batch.items()} == {
        "target": (3, 1, 3, 33, 33),
        "random": (3, 2, 3, 33, 33),
        "focal": (3, 5, 3, 20, 20),
    }
    assert all(views.dtype == torch.uint8 for views in batch.values())
    assert all(views.is_contiguous() for views in batch.values())
    assert len(MultiCrop(IMAGES, KINDS, seed=0)) == 6


def test_a_view_follows_from_seed_position_kind_and_number_alone():
    rows, positions = np.arange(6), np.arange(100, 106)
    data = MultiCrop(IMAGES, KINDS, seed=0)
    together = data.batch(rows, positions)
    reverse = data.batch(rows[::-1].copy(), positions[::-1].copy())
    for kind, views in together.items():
        assert torch.equal(reverse[kind], views.flip(0))
        for i in range(6):
            alone = data.batch(rows[i : i + 1], positions[i : i + 1])
            assert torch.equal(alone[kind][0], views[i])
    fewer = MultiCrop(IMAGES, {"focal": [SMALL] * 2}, seed=0).batch(rows, positions)
    assert torch.equal(fewer["focal"], together["focal"][:, :2])


def test_views_differ_between_seeds_positions_kinds_and_numbers():
    row, position = np.array([2]), np.array([5])
    views = MultiCrop(IMAGES, KINDS, seed=0).batch(row, position)
    shown = [*views["random"][0], views["target"][0, 0]]
    shown.append(MultiCrop(IMAGES, KINDS, seed=1).batch(row, position)["target"][0, 0])
    shown.append(MultiCrop(IMAGES, KINDS, seed=0).batch(row, position + 1)["target"][0, 0])
    for i, view in enumerate(shown):
        assert not any(torch.equal(view, other) for other in shown[:i])


def test_views_of_one_kind_may_be_made_in_different_ways():
    """DINO's first large view is always blurred, its second seldom, but solarised."""
    recipes = [
        Recipe(24, (0.4, 1.0), **{**PLAIN, "blur_probability": 1.0}),
        Recipe(24, (0.4, 1.0), **{**PLAIN, "solarise_probability": 1.0}),
    ]
    dark = Pictures(*[Image.fromarray(np.full((30, 30, 3), 200, np.uint8))] * 4)
    views = MultiCrop(dark, {"large": recipes}, seed=0).batch(np.arange(4), np.arange(4))["large"]
    assert (views[:, 0] == 200).all()
    assert (views[:, 1] == 55).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (5, 5)])
def test_tiny_images_are_enlarged(size):
    images = Pictures(Image.new("RGB", size, (250, 100, 20)))
    recipe = Recipe(16, (0.05, 1.0), **PLAIN)
    views = MultiCrop(images, {"all": [recipe] * 4}, seed=0).batch(np.zeros(9, int), np.arange(9))
    expected = torch.tensor([250, 100, 20], dtype=torch.uint8)[:, None, None]
    assert (views["all"] == expected).all()
    MultiCrop(images, KINDS, seed=0).batch(np.zeros(9, int), np.arange(9))


def test_recipes_of_one_kind_have_one_size():
    with pytest.raises(ValueError, match=r"'large' has \[20, 33\]"):
        MultiCrop(IMAGES, {"large": [LARGE, SMALL]}, seed=0)
    with pytest.raises(ValueError, match="'none'"):
        MultiCrop(IMAGES, {"none": []}, seed=0)


def test_normalised_is_torchvisions():
    views = torch.randint(0, 256, (2, 4, 3, 5, 5), dtype=torch.uint8)
    expected = v2.functional.normalize(views.float() / 255, MEAN, STD)
    torch.testing.assert_close(normalised(views), expected, atol=2e-6, rtol=0)
