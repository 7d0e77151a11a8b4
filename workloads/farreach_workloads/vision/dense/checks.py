"""What must hold before a dense model trains."""

from __future__ import annotations

from farreach.errors import ConfigError
from farreach_workloads.vision.dense.config import DenseConfig
from farreach_workloads.vision.dense.pyramid import Pyramid
from farreach_workloads.vision.stochastic_depth import install


def check_backbone(pyramid: Pyramid, config: DenseConfig) -> list[str]:
    """Notes about the backbone; raises ConfigError if it cannot drop paths as it should."""
    backbone = config.backbone
    if backbone.drop_path > 0:
        if config.frozen:
            raise ConfigError("backbone.drop_path: a frozen backbone drops nothing. Leave it out.")
        try:
            install(pyramid, backbone.drop_path).remove()
        except ValueError as error:
            raise ConfigError(f"backbone.drop_path: {error}") from error
    if config.frozen and backbone.weights is None:
        return ["the frozen backbone has random weights: backbone.weights names none"]
    return []
