import random

import numpy as np
import pytest
import torch
from PIL import Image

from farreach_workloads.vision.augment import (
    MEAN,
    STD,
    OneOfThree,
    evaluation_transform,
    training_transform,
)
from farreach_workloads.vision.config import AugmentConfig


def picture(width=40, height=30):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_every_operation_of_rand_augment_works():
    transform = training_transform(AugmentConfig(kind="rand", magnitude=10, magnitude_std=1.0), 24)
    for seed in range(300):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        assert torch.isfinite(transform(picture())).all()


@pytest.mark.parametrize("kind", ["simple", "three", "rand"])
@pytest.mark.parametrize("crop", ["resized", "padded"])
def test_views_have_the_size_and_follow_from_the_seed(kind, crop):
    transform = training_transform(AugmentConfig(kind=kind, crop=crop), 24)

    def view(seed):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        return transform(picture())

    assert view(0).shape == (3, 24, 24)
    assert view(0).dtype == torch.float32
    assert torch.equal(view(0), view(0))
    assert not torch.equal(view(0), view(1))


def test_one_of_three_is_grey_solarised_or_blurred_a_third_each():
    image = picture()
    original = np.asarray(image).astype(int)
    random.seed(0)
    kinds = {"grey": 0, "solarised": 0, "blurred": 0}
    for _ in range(600):
        changed = np.asarray(OneOfThree()(image)).astype(int)
        if (changed == changed[..., :1]).all():
            kinds["grey"] += 1
        elif (changed == np.where(original < 128, original, 255 - original)).all():
            kinds["solarised"] += 1
        else:
            kinds["blurred"] += 1
    assert all(abs(count - 200) < 60 for count in kinds.values())


def test_evaluation_looks_at_the_middle():
    image = Image.new("RGB", (20, 10), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 5, 10))  # the left quarter is black, outside of the middle
    seen = evaluation_transform(10, 1.0)(image)
    expected = (1.0 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(seen, expected[:, None, None].expand(3, 10, 10))
    assert evaluation_transform(32, 0.875)(picture()).shape == (3, 32, 32)


def test_erasing_fills_a_box_with_noise():
    transform = training_transform(AugmentConfig(erasing=1.0, color_jitter=0.0), 32)
    torch.manual_seed(0)
    view = transform(Image.new("RGB", (40, 40), (255, 255, 255)))
    white = (1.0 - torch.tensor(MEAN)) / torch.tensor(STD)
    erased = ((view - white[:, None, None]).abs() > 1e-4).any(0)
    rows, columns = torch.nonzero(erased, as_tuple=True)
    area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert 0 < int(erased.sum()) == int(area) < 32 * 32
    assert len(view[:, erased].unique()) > 0.9 * 3 * int(area)
