import pytest
import torch
from torch.nn import functional as F

from farreach_workloads.vision.dense.heads import AuxiliaryHead, FpnHead, UperHead

WIDTHS, WIDTH, CLASSES = [8, 16, 24, 32], 12, 5


def maps(side=8, batch=2):
    torch.manual_seed(0)
    return [torch.randn(batch, w, side >> i, side >> i) for i, w in enumerate(WIDTHS)]


def count(module):
    return sum(p.numel() for p in module.parameters())


def convolved(before, after, kernel):
    """Without bias, with batch normalisation."""
    return before * after * kernel**2 + 2 * after


def test_semantic_fpn_has_the_layers_of_its_paper():
    # Laterals and outputs with bias; 1, 1, 2 and 3 convolutions to 128 channels; a classifier.
    laterals = sum(w * WIDTH + WIDTH for w in WIDTHS)
    outputs = 4 * (WIDTH * WIDTH * 9 + WIDTH)
    scales = 4 * convolved(WIDTH, 128, 3) + (0 + 0 + 1 + 2) * convolved(128, 128, 3)
    head = FpnHead(WIDTHS, WIDTH, CLASSES)
    assert count(head) == laterals + outputs + scales + 128 * CLASSES + CLASSES
    assert head(maps()).shape == (2, CLASSES, 8, 8)


def test_upernet_has_the_layers_of_its_paper():
    pools = 4 * convolved(WIDTHS[-1], WIDTH, 1)
    bottleneck = convolved(WIDTHS[-1] + 4 * WIDTH, WIDTH, 3)
    laterals = sum(convolved(w, WIDTH, 1) for w in WIDTHS[:-1])
    outputs = 3 * convolved(WIDTH, WIDTH, 3)
    fusion = convolved(4 * WIDTH, WIDTH, 3)
    head = UperHead(WIDTHS, WIDTH, CLASSES)
    expected = pools + bottleneck + laterals + outputs + fusion + WIDTH * CLASSES + CLASSES
    assert count(head) == expected
    assert head(maps()).shape == (2, CLASSES, 8, 8)
    second = AuxiliaryHead(WIDTHS, CLASSES)
    assert count(second) == convolved(WIDTHS[2], 256, 3) + 256 * CLASSES + CLASSES
    assert second(maps()).shape == (2, CLASSES, 2, 2)


@pytest.mark.parametrize("make", [FpnHead, UperHead])
def test_every_level_counts(make):
    head = make(WIDTHS, WIDTH, CLASSES).eval()
    whole = head(maps())
    for level in range(4):
        changed = maps()
        changed[level] = changed[level] + 1.0
        assert float((head(changed) - whole).detach().abs().max()) > 1e-4, level


def test_coarser_levels_are_added_to_finer_ones():
    """With one channel and weights of one, by hand."""
    head = FpnHead([1] * 4, 1, 1).eval()
    with torch.no_grad():
        for convolution in head.laterals:
            convolution.weight.fill_(1.0)
            convolution.bias.zero_()
    levels = [torch.full((1, 1, 8 >> i, 8 >> i), 10.0**i) for i in range(4)]
    seen = []
    head.outputs[0].register_forward_hook(lambda m, inputs, o: seen.append(inputs[0]))
    head(levels)
    torch.testing.assert_close(seen[0], torch.full((1, 1, 8, 8), 1111.0))


def test_pools_of_upernet_see_the_whole_map():
    head = UperHead(WIDTHS, WIDTH, CLASSES).eval()
    coarse = torch.randn(1, WIDTHS[-1], 6, 6)
    for pool, bins in zip(head.pools, (1, 2, 3, 6), strict=True):
        pooled = pool[0](coarse)
        torch.testing.assert_close(pooled, F.avg_pool2d(coarse, 6 // bins))
