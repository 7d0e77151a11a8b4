import json

import pytest
import timm
import torch
from torch import nn

from farreach.cli import main as cli
from farreach.errors import ConfigError
from farreach_workloads.vision import bench
from farreach_workloads.vision.backbones import FAMILIES, patchconvnet, resmlp, xcit
from farreach_workloads.vision.bench import BenchConfig, Timing

OWN = [name for family in FAMILIES for name in family.default_cfgs]

# GMAC at 224 pixels: XCiT p16, p8 (its repository), ResMLP (arXiv:2105.03404, tables 1 and 3),
# PatchConvNet (its repository).
PUBLISHED = {
    "xcit_nano_12_p16": 0.56, "xcit_nano_12_p8": 2.16,
    "xcit_tiny_12_p16": 1.24, "xcit_tiny_12_p8": 4.83,
    "xcit_tiny_24_p16": 2.34, "xcit_tiny_24_p8": 9.20,
    "xcit_small_12_p16": 4.85, "xcit_small_12_p8": 18.85,
    "xcit_small_24_p16": 9.12, "xcit_small_24_p8": 35.91,
    "xcit_medium_24_p16": 16.19, "xcit_medium_24_p8": 63.76,
    "xcit_large_24_p16": 36.02, "xcit_large_24_p8": 141.88,
    "resmlp_s12": 3.01, "resmlp_s24": 5.96, "resmlp_s36": 8.91,
    "resmlp_b24": 23.0, "resmlp_b24_p8": 100.23,
    "patchconvnet_s60": 3.98, "patchconvnet_s120": 7.49,
    "patchconvnet_b60": 15.80, "patchconvnet_b120": 29.77,
    "patchconvnet_l60": 28.04, "patchconvnet_l120": 52.85,
}  # fmt: skip


def attention_saved(name):
    """What we leave out of class attention and of the pool, in GMAC.

    XCiT's two blocks project query, key and value of all n + 1 tokens, 3 (n + 1) c², and weigh
    them, 2 (n + 1) c; ours push one query per head through key and value: 2 c² and 2 (n + 1) c h,
    and project the class row's query, c². PatchConvNet's pool projects key and value of n + 1,
    and ours c² twice and 2 (n + 1) c.
    """
    model = timm.create_model(name, num_classes=0)
    width = model.embed_dim if hasattr(model, "embed_dim") else model.num_features
    if name.startswith("xcit"):
        tokens = (224 // int(name.rpartition("_p")[2])) ** 2 + 1
        heads = model.cls_attn_blocks[0].attn.num_heads
        theirs = 3 * tokens * width**2 + 2 * tokens * width
        ours = width**2 + 2 * width**2 + 2 * tokens * width * heads
        return 2 * (theirs - ours) / 1e9
    tokens = 197
    return (2 * tokens * width**2 - 2 * width**2) / 1e9


@pytest.mark.slow
def test_multiplications_are_those_of_the_papers(monkeypatch):
    # The Gram form has fewer; the papers' tables know the plain one.
    monkeypatch.setattr(xcit, "cheaper_form", lambda *_: "late")
    for name, published in PUBLISHED.items():
        counted = bench.gmacs(name, 224)
        saved = 0.0 if name.startswith("resmlp") else attention_saved(name)
        # They are printed with two digits.
        assert counted + saved == pytest.approx(published, rel=0.004, abs=0.005), name
        assert saved < 0.04 * published


def test_the_gram_form_multiplies_less_where_there_are_many_tokens(monkeypatch):
    chosen = bench.gmacs("xcit_nano_12_p8", 224)
    monkeypatch.setattr(xcit, "cheaper_form", lambda *_: "late")
    tokens, width, dim = 784, 128, 32
    late = 4 * tokens * width**2 + 2 * tokens * width * dim
    gram = 2 * tokens * width**2 + 3 * width**3 + 2 * width**2 * dim
    saved = bench.gmacs("xcit_nano_12_p8", 224) - chosen
    assert saved == pytest.approx(12 * (late - gram) / 1e9, rel=0.02)


def test_ours_stand_beside_timms_of_the_same_weights():
    peers = {bench.peer_of(name) for name in xcit.default_cfgs}
    assert peers == set(timm.list_models("xcit_*_224"))
    pairs = {name: bench.peer_of(name) for name in resmlp.default_cfgs}
    assert pairs == {
        "resmlp_s12": "resmlp_12_224",
        "resmlp_s24": "resmlp_24_224",
        "resmlp_s36": "resmlp_36_224",
        "resmlp_b24": None,
        "resmlp_b24_p8": "resmlp_big_24_224",
    }
    assert {bench.peer_of(name) for name in patchconvnet.default_cfgs} == {None}
    assert bench.peer_of("convnext_atto") == "convnext_atto"


def test_patterns_mean_ours_before_timms():
    assert bench.names("ours") == OWN
    assert bench.names("xcit_*_12_p8") == [n for n in OWN if n.endswith("_12_p8")]
    assert "convnext_atto" in bench.names("convnext_*")
    with pytest.raises(ConfigError, match="Did you mean 'resmlp_s36'"):
        bench.names("resmlp_s3")


def test_every_line_is_a_row(capsys):
    words = ["backbone=xcit_nano_12_p16", "size=64", "batch=2", "rounds=1"]
    assert cli.main(["bench", *words, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == ["xcit_nano_12_p16_infer", "xcit_nano_12_p16_train"]
    for line in lines:
        assert line["ratio"] == pytest.approx(line["ours"] / line["peer"], rel=1e-3)
        assert line["unit"] == "images per CPU-second"
        assert line["million_parameters"] == pytest.approx(3.053, abs=0.001)
    assert lines[0]["megabytes_per_image"] == 0 < lines[1]["megabytes_per_image"]
    assert cli.main(["bench", *words, "train=false"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 3
    assert table[0].split()[0] == "backbone"
    assert cli.main(["bench", "backbone=nothing_like_it"]) == 2
    assert cli.main(["bench", "gpu=true", *words]) == (0 if torch.cuda.is_available() else 2)


def test_saved_activations_by_hand():
    """A linear layer keeps its input, a ReLU its output; parameters do not count."""
    config = BenchConfig(size=8, batch=4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 50), nn.ReLU(), nn.Linear(50, 10))
    saved = bench._saved_megabytes(model, config, torch.device("cpu"))
    assert saved == pytest.approx(4 * (192 + 50) / 1e6)


def test_accuracy_over_speed_is_drawn(tmp_path):
    rows = [
        Timing(name, "infer", 10.0 + i, None, 5.0, 1.0, 0.0)
        for i, name in enumerate(("xcit_nano_12_p16", "xcit_tiny_12_p8", "resmlp_s12", "other"))
    ]
    figure = bench.speed_accuracy(rows, BenchConfig())
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["nano_12_p16", "tiny_12_p8", "s12"]
    assert [tuple(text.xy) for text in axes.texts] == [(10.0, 69.9), (11.0, 79.7), (12.0, 76.6)]
    file = bench.draw(rows, BenchConfig(), tmp_path / "out" / "picture.png")
    assert file.stat().st_size > 10_000
    with pytest.raises(ConfigError, match="no accuracy is known of these"):
        bench.speed_accuracy(rows[3:], BenchConfig())
