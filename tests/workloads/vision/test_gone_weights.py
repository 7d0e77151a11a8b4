"""What a run has learned is of use without the files that it began with."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from farreach import afterwards, launch
from farreach import config as configs
from farreach.errors import ConfigError
from farreach_workloads.vision import pretrain, supervise
from farreach_workloads.vision.config import BackboneConfig
from farreach_workloads.vision.models import make_model

XCIT = BackboneConfig(name="xcit_nano_12_p8", options={"depth": 2})
VIT = BackboneConfig(
    name="vit_tiny_patch16_224",
    options={"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
)


def train(run_dir, config, backbone, *settings, size=32, classes=0):
    """A run that begins with a file of weights; the file is gone when it is done."""
    file = run_dir.with_suffix(".safetensors")
    save_file(make_model(backbone, size, classes).state_dict(), file)
    words = [f"backbone.weights={file}", *(word.format(file) for word in settings)]
    run = launch.train(config, words, run_dir=run_dir)
    file.unlink()
    return run


@pytest.mark.slow
def test_a_classifier_without_its_teacher_and_start(tmp_path):
    teacher = "objective.teacher={{name: xcit_nano_12_p8, options: {{depth: 2}}, weights: {}}}"
    debug = "vision/classify_clipart_debug"
    run = train(tmp_path / "run", debug, XCIT, teacher, "training.epochs=0.05", classes=22)
    found = afterwards.evaluate(run.path)
    assert 0 <= found["evaluation/top1"] <= 1
    assert len(afterwards.plot(run.path)) == 2
    out = afterwards.export(run.path, tmp_path / "model", "timm")
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    checkpoint = afterwards.find_checkpoint(run, "best")
    classifier = supervise.classifier_of(run.path, checkpoint.path)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(classifier.seen(x, ["logits"])["logits"], model(x))
    with pytest.raises(ConfigError, match=r"backbone\.weights: there is no file"):
        supervise.classifier_of(run.path, None)  # how the run began, nobody knows any more


@pytest.mark.slow
def test_a_pretrained_encoder_without_its_start(tmp_path):
    run = train(tmp_path / "run", "vision/msn_clipart_debug", VIT)
    found = afterwards.evaluate(run.path)
    assert 0 <= found["evaluation/knn_top1"] <= 1
    assert afterwards.plot(run.path, "neighbours")
    out = afterwards.export(run.path, tmp_path / "encoder", "timm")
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    checkpoint = afterwards.find_checkpoint(run, "best")
    encoder = pretrain.encoder_of(run.path, checkpoint.path)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder.features(x), model(x))
    config = configs.load(run.config_path).config
    settings = pretrain.FinetuneConfig(epochs=0.02, batch=8)
    assert pretrain.finetune(config, run, checkpoint, settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "score"),
    [
        ("vision/segment_scenes_debug", "evaluation/mean_iou"),
        ("vision/detect_scenes_debug", "evaluation/box_ap"),
    ],
)
def test_dense_predictions_without_the_frozen_backbone_s_file(tmp_path, config, score):
    backbone = BackboneConfig(name="xcit_nano_12_p8", options={"depth": 3})
    run = train(tmp_path / "run", config, backbone, "frozen=true")
    assert score in afterwards.evaluate(run.path)
    assert afterwards.plot(run.path)
