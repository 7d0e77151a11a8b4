import sys
from pathlib import Path

import pytest
import torch

from farreach.learn.place import Place

sys.path.insert(0, str(Path(__file__).parent))
from joined import as_joined, trained

CASES = {
    "msn": ("vision/msn_clipart_debug", []),
    "msn, masks of each image": ("vision/msn_clipart_debug", ["method.mask_sharing=sample"]),
    "pmsn": (
        "vision/pmsn_clipart_debug", ["method.sinkhorn=prior", "method.weight=1"],
    ),
    "swav": ("vision/swav_clipart_debug", ["method.queue=24", "method.queue_after_epochs=0"]),
    "dino": ("vision/dino_clipart_debug", []),
    "simclr": ("vision/simclr_clipart_debug", []),
    "vicreg": ("vision/vicreg_clipart_debug", []),
    "mae": ("vision/mae_clipart_debug", []),
}  # fmt: skip


def check_that_they_agree(one, other):
    assert other["losses"] == pytest.approx(one["losses"], rel=2e-5)
    assert other["used"] == one["used"]
    names = [name for name, gradient in one["gradients"].items() if gradient is not None]
    assert names == [n for n, gradient in other["gradients"].items() if gradient is not None]
    # All together: shifts that normalisation takes out have rounding errors for gradients.
    theirs, ours = (torch.cat([r["gradients"][n].flatten() for n in names]) for r in (other, one))
    assert float((theirs - ours).norm() / ours.norm()) < 1e-5
    for mine, yours in zip(one["networks"], other["networks"], strict=True):
        for name, value in mine.items():
            if "running" in name and yours:  # of split weights the first worker alone has all
                torch.testing.assert_close(yours[name], value, atol=5e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_workers_are_as_one(tmp_path, case):
    name, words = CASES[case]
    words = [*words, "training.batch=16"]
    one = trained(Place(), name, words)
    for other in as_joined(2, tmp_path, name, words, sharded=False):
        check_that_they_agree(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["msn", "swav", "dino"])
def test_two_workers_with_split_weights_are_as_one(tmp_path, case):
    name, words = CASES[case]
    words = [*words, "training.batch=16"]
    one = trained(Place(), name, words)
    for other in as_joined(2, tmp_path, name, words, sharded=True):
        check_that_they_agree(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["msn, masks of each image", "swav", "dino", "mae"])
def test_three_workers_with_unequal_shares_are_as_one(tmp_path, case):
    name, words = CASES[case]
    words = [*[word for word in words if "queue" not in word], "training.batch=16"]
    one = trained(Place(), name, words)
    for other in as_joined(3, tmp_path, name, words, sharded=False):
        check_that_they_agree(one, other)
