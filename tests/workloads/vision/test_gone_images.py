"""What a run has learned is of use where its images are not."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from farreach import afterwards, launch
from farreach import config as configs
from farreach.errors import DataError, UnreadableImageError
from farreach.rundir import RunDirectory
from farreach_workloads.vision import image_sets, pretrain, supervise
from farreach_workloads.vision.config import ImagesConfig


def folder_of_images(path, classes=("cat", "dog"), count=12):
    rng = np.random.default_rng(0)
    for name in classes:
        (path / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path / name / f"{number:02}.png")
    return path


def train_and_move(config, tmp_path):
    """A run, and its images in another place."""
    images = folder_of_images(tmp_path / "images")
    words = [f"data.path={images}", "training.batch=8", "training.epochs=1"]
    run = launch.train(config, words, run_dir=tmp_path / "run")
    return run, images.rename(tmp_path / "elsewhere")


@pytest.mark.slow
def test_a_classifier_is_exported_and_looks_at_other_images(tmp_path):
    run, images = train_and_move("vision/classify_clipart_debug", tmp_path)
    out = afterwards.export(run.path, tmp_path / "model", "timm")
    assert json.loads((out / "config.json").read_text())["label_names"] == ["cat", "dog"]
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    checkpoint = afterwards.find_checkpoint(run, "best")
    x = torch.randn(2, 3, 32, 32)
    found = supervise.classifier_of(run.path, checkpoint.path).seen(x, ["logits"])["logits"]
    torch.testing.assert_close(found, model(x))
    image = images / "cat" / "00.png"
    assert all(file.is_file() for file in afterwards.plot_images(run.path, image, tmp_path / "p"))
    with pytest.raises(DataError, match="images"):
        afterwards.evaluate(run.path)


@pytest.mark.slow
def test_an_encoder_is_exported_and_learns_the_labels_of_other_images(tmp_path):
    run, images = train_and_move("vision/msn_clipart_debug", tmp_path)
    out = afterwards.export(run.path, tmp_path / "encoder", "timm")
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    checkpoint = afterwards.find_checkpoint(run, "best")
    x = torch.randn(2, 3, 32, 32)
    encoder = pretrain.encoder_of(run.path, checkpoint.path)
    torch.testing.assert_close(encoder.features(x), model(x))
    settings = pretrain.FinetuneConfig(data=str(images), epochs=1, batch=8)
    config = configs.load(run.config_path).config
    assert pretrain.finetune(config, run, checkpoint, settings)


def kept(tmp_path, **arguments):
    """Configuration of images, and what is kept of them in `tmp_path`."""
    config = ImagesConfig(path=str(folder_of_images(tmp_path / "images", **arguments)))
    image_sets.keep(RunDirectory(tmp_path), config)
    return config


def test_kept_are_classes_and_counts_of_both_sets(tmp_path):
    config = kept(tmp_path)
    for known, images in zip(
        image_sets.images_known(RunDirectory(tmp_path), config),
        image_sets.images_of(config),
        strict=True,
    ):
        assert known.classes == images.classes == ["cat", "dog"]
        np.testing.assert_array_equal(np.bincount(known.labels), np.bincount(images.labels))
        with pytest.raises(UnreadableImageError, match=r"images, image 0: .* only counts it"):
            known.load(0)


def test_nothing_kept_are_the_images_themselves(tmp_path):
    config = ImagesConfig(path=str(folder_of_images(tmp_path / "images")))
    assert image_sets.images_known(RunDirectory(tmp_path), config)[0].load(0).size == (24, 24)


def test_a_run_goes_on_with_the_classes_that_it_began_with(tmp_path):
    config = kept(tmp_path)
    image_sets.keep(RunDirectory(tmp_path), config)
    other = ImagesConfig(path=str(folder_of_images(tmp_path / "more", ("cat", "dog", "owl"))))
    with pytest.raises(DataError, match=r"more: has 3 classes, and had 2 .* \(owl\)"):
        image_sets.keep(RunDirectory(tmp_path), other)


@pytest.mark.parametrize("content", ["", "{", "[]", '[{"path": "x"}, {}]'])
def test_a_damaged_file_is_named(tmp_path, content):
    config = kept(tmp_path)
    (tmp_path / "kept" / "images.json").write_text(content)
    with pytest.raises(DataError, match=r"images\.json: is damaged"):
        image_sets.images_known(RunDirectory(tmp_path), config)
