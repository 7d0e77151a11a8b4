import pytest
import timm
import torch
from safetensors.torch import save_file

from farreach import launch
from farreach.errors import ConfigError
from farreach_workloads.vision.config import BackboneConfig
from farreach_workloads.vision.models import make_model

# Models with two heads, one for what a teacher says, and one class token for each.
DISTILLED = {"deit_tiny_distilled_patch16_224": ("head", "head_dist")}
SMALL = {"depth": 1, "embed_dim": 24, "num_heads": 2}


@pytest.mark.parametrize(("name", "heads"), DISTILLED.items())
@pytest.mark.parametrize("classes", [5, 0])
def test_weights_of_a_distilled_model_load_without_its_two_heads(tmp_path, name, heads, classes):
    file = tmp_path / "own.safetensors"
    torch.manual_seed(1)
    learned = timm.create_model(name, img_size=32, num_classes=3, **SMALL)
    save_file(learned.state_dict(), file)
    backbone = BackboneConfig(name=name, options=SMALL, weights=str(file))
    found = make_model(backbone, 32, classes).state_dict()
    for key, value in learned.state_dict().items():
        if key.partition(".")[0] not in heads:
            assert torch.equal(found[key], value)
    assert {key for key in found if key.startswith("head")} == (
        {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")} if classes else set()
    )


@pytest.mark.parametrize(("name", "heads"), DISTILLED.items())
def test_a_distilled_teacher_must_have_both_heads(tmp_path, name, heads):
    file = tmp_path / "own.safetensors"
    state = timm.create_model(name, img_size=32, num_classes=3, **SMALL).state_dict()
    backbone = BackboneConfig(name=name, options=SMALL, weights=str(file))
    save_file(state, file)
    make_model(backbone, 32, 3, keep_head=True)
    save_file({k: v for k, v in state.items() if not k.startswith(f"{heads[1]}.")}, file)
    with pytest.raises(ConfigError, match="has no head of 3 classes"):
        make_model(backbone, 32, 3, keep_head=True)


@pytest.mark.parametrize(("learned", "is_new"), [(3, True), (22, False)])
def test_a_head_that_begins_at_random_is_said(tmp_path, learned, is_new):
    file = tmp_path / "own.safetensors"
    model = timm.create_model("xcit_nano_12_p8", depth=2, num_classes=learned)
    save_file(model.state_dict(), file)
    notes = launch.check("vision/classify_clipart_debug", [f"backbone.weights={file}"])
    said = f"{file} has no head of 22 classes: the head begins at random"
    assert (said in notes) == is_new
    assert "4,235 images to train on" in notes[0]
