import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from farreach_workloads.vision.augment import MEAN, STD, evaluation_transform


def test_evaluation_looks_at_the_middle():
    image = Image.new("RGB", (20, 10), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 5, 10))  # the left quarter is black, outside of the middle
    seen = evaluation_transform(10, 1.0)(image)
    expected = (1.0 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(seen, expected[:, None, None].expand(3, 10, 10))
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    assert evaluation_transform(32, 0.875)(Image.fromarray(noise)).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("size", "ratio", "side"), [(224, 0.9, 248), (224, 0.875, 256), (64, 1, 64)]
)
def test_images_are_resized_to_as_many_pixels_as_by_timm(size, ratio, side):
    """248.9 pixels are 248, at which ResMLP's accuracies were measured."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    theirs = create_transform((3, size, size), interpolation="bicubic", crop_pct=ratio)
    ours = evaluation_transform(size, ratio)(image)
    torch.testing.assert_close(ours, theirs(image), atol=1e-5, rtol=0)
    assert theirs.transforms[0].size == side
