"""Fixtures that all tests share."""

import os
import shutil
import tempfile

import pytest
import torch

# The first optimiser loads torch's compiler and its native library, which takes seconds and has
# crashed when Ray's threads were running; load it before anything else starts.
import torch._dynamo

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_local():
    """One small local Ray for the whole test run."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    from farreach import runtime

    # A private folder with a short name: paths of unix sockets are limited to 107 characters.
    folder = tempfile.mkdtemp(prefix="fr", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=300 * 2**20,
        runtime_env=runtime.local_runtime_env(),
        _temp_dir=folder,
    )
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
