"""The settings of the paper's runs, as it and its scripts have them (arXiv:2112.09118)."""

import pytest

from farreach import config as configs
from farreach_workloads.retrieval.presets import PRESETS, differences

MOCO = {
    "contrast.kind": "moco",
    "contrast.temperature": 0.05,
    "contrast.queue": 131_072,
    "contrast.momentum": 0.9995,
    "contrast.key_dropout": True,  # the condition that should have switched it off is inverted
    "contrast.masked": False,
    "contrast.label_smoothing": 0.0,
    "contrast.ahead": 0,
    "contrast.sharded": False,
    "spans.kind": "crop",
    "spans.chunk": 256,
    "spans.ratio": (0.05, 0.5),
    "spans.augmentation": "delete",
    "spans.probability": 0.1,
    "spans.respect_documents": False,
    "mix.alpha": 0.0,
    "mix.replacement": True,
    "data.normalised": False,
    "encoder.width": 768,
    "encoder.depth": 12,
    "encoder.heads": 12,
    "encoder.hidden": 3072,
    "encoder.positions": 512,
    "encoder.dropout": 0.1,
    "encoder.pooling": "average",
    "encoder.normalised": False,
    "optimizer.kind": "adamw",
    "optimizer.betas": (0.9, 0.98),
    "optimizer.epsilon": 1e-6,
    "optimizer.weight_decay": 0.01,
    "training.batch": 2048,
    "training.epochs": 500,
    "training.epoch_updates": 1000,
    "training.lr": 5e-5,
    "training.warmup_epochs": 20,
    "training.warmup_lr": 0.0,
    "training.min_lr": 0.0,
    "training.schedule": "warmup_linear",
    "training.max_grad_norm": None,
    "training.precision": "float32",
}
OTHERS = {
    "contriever": {},
    "mcontriever": {
        "contrast.queue": 32_768,
        "contrast.momentum": 0.999,
        "spans.ratio": (0.1, 0.5),
        "spans.augmentation": "none",
        "data.normalised": True,
        "training.batch": 4096,
    },
    "ablation": {"spans.augmentation": "none", "training.epochs": 200},
}


@pytest.mark.parametrize("name", OTHERS)
def test_presets_are_the_runs_of_the_paper(name):
    found = configs.flat(PRESETS[name].model_dump())
    expected = MOCO | OTHERS[name]
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("name", OTHERS)
def test_shipped_configurations_differ_in_nothing(name):
    config = configs.load(configs.find(f"retrieval/{name}")).config
    assert config.preset == name
    assert differences(config) == []
