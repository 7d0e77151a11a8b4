"""What must hold before a dense model trains."""

from __future__ import annotations

from farreach.errors import ConfigError
from farreach_workloads.vision.dense.config import DenseConfig
from farreach_workloads.vision.dense.pyramid import Pyramid
from farreach_workloads.vision.stochastic_depth import install


def check_depth(pyramid: Pyramid, config: DenseConfig) -> None:
    """Raises ConfigError if the backbone cannot drop paths as it should."""
    if config.backbone.drop_path > 0:
        try:
            install(pyramid, config.backbone.drop_path).remove()
        except ValueError as error:
            raise ConfigError(f"backbone.drop_path: {error}") from error
