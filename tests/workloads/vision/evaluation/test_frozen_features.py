import pytest
import torch

from farreach.errors import ConfigError
from farreach_workloads.vision.config import BackboneConfig
from farreach_workloads.vision.evaluation.classifier import Classifier
from farreach_workloads.vision.evaluation.features import Pixels, dropping
from farreach_workloads.vision.models import make_model
from farreach_workloads.vision.selfsup.encoder import Seen, make_encoder

OPTIONS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def encoder():
    """Of 16 patches, with weights large enough that each of them counts."""
    torch.manual_seed(0)
    made = make_encoder(BackboneConfig(name="vit_tiny_patch16_224", options=OPTIONS), 32).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(5.0)
    return made


@torch.no_grad()
def test_each_image_is_seen_by_patches_of_its_own(encoder):
    """Of 16 patches 0.9 are dropped, ⌊1.6⌋ = 1 is left: features are those of one of them."""
    whole = encoder.seen(IMAGES, ["raw", "normal"])
    with dropping(encoder, 0.9, seed=0):
        seen = encoder.seen(IMAGES, ["normal"])["normal"]
    alone = torch.stack([encoder([Seen(IMAGES, torch.tensor([n]))])[0] for n in range(16)], 1)
    distances = (alone - seen[:, None]).abs().amax(2)  # (6, 16)
    assert (distances.min(1).values < 1e-4).all()
    assert (distances.sort(1).values[:, 1] > 1e-2).all()
    assert len(set(distances.argmin(1).tolist())) > 1
    again = encoder.seen(IMAGES, ["raw", "normal"])
    assert all(torch.equal(again[kind], whole[kind]) for kind in whole)


@torch.no_grad()
def test_classifiers_drop_the_same_patches(encoder):
    classifier = Classifier(encoder.trunk)
    parts = []
    for one in (encoder, classifier):
        with dropping(one, 0.5, seed=7):
            parts.append(one.seen(IMAGES, ["normal"])["normal"])
    torch.testing.assert_close(*parts, atol=1e-4, rtol=1e-4)
    with dropping(encoder, 0.5, seed=8):
        assert not torch.allclose(encoder.seen(IMAGES, ["normal"])["normal"], parts[0], atol=1e-2)


@pytest.mark.parametrize("kind", ["pixels", "xcit"])
def test_other_networks_have_no_patches_to_drop(kind):
    network = Pixels()
    if kind == "xcit":
        backbone = BackboneConfig(name="xcit_nano_12_p8", options={"depth": 1})
        network = Classifier(make_model(backbone, 32, 3))
    with dropping(network, 0.0, 0):
        pass
    dropped = dropping(network, 0.3, 0)
    with pytest.raises(ConfigError, match="only a vision transformer"), dropped:
        pass
