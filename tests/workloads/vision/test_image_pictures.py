import numpy as np
import pytest
import torch
from PIL import Image

from farreach.figures import png
from farreach_workloads.vision import pictures

# Between two dollars matplotlib would read a formula, and none begins with `\frac` alone.
DEAR, CHEAP = r"over $100 \frac$", "under_$5"
CLASSES = [DEAR, CHEAP]
PICTURE = Image.new("RGB", (8, 8))


def found(label, score):
    return pictures.Found(
        np.array([[1, 1, 6, 6]], np.float32),
        np.array([label]),
        np.array([score], np.float32),
        np.ones((1, 8, 8), np.bool_),
    )


def predictions():
    images, logits = torch.zeros(2, 3, 8, 8), torch.eye(2)
    return pictures.predictions(images, logits, torch.tensor([0, 0]), CLASSES)


def attention():
    images, maps = torch.zeros(1, 3, 8, 8), {"pool": torch.rand(1, 2, 2, 2)}
    return pictures.attention(images, maps, [CLASSES], [f"{DEAR} 0.50, {CHEAP} 0.50"])


def label_maps():
    labels = np.array([[0, 1], [1, 0]])
    return pictures.label_maps([(PICTURE, labels, labels)], CLASSES)


def detections():
    return pictures.detections([(PICTURE, found(0, 1.0), found(0, 0.5))], CLASSES, 0.1)


def neighbours():
    return pictures.neighbours([[PICTURE, PICTURE]], [CLASSES])


@pytest.mark.parametrize("figure", [predictions, attention, label_maps, detections, neighbours])
def test_names_with_two_dollars_are_drawn_as_they_are(figure):
    assert len(png(figure())) > 1000
