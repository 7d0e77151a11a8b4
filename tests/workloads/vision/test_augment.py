import numpy as np
import torch
from PIL import Image

from farreach_workloads.vision.augment import MEAN, STD, evaluation_transform


def test_evaluation_looks_at_the_middle():
    image = Image.new("RGB", (20, 10), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 5, 10))  # the left quarter is black, outside of the middle
    seen = evaluation_transform(10, 1.0)(image)
    expected = (1.0 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(seen, expected[:, None, None].expand(3, 10, 10))
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    assert evaluation_transform(32, 0.875)(Image.fromarray(noise)).shape == (3, 32, 32)
