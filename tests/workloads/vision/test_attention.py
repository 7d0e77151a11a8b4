import timm
import torch
from torch import nn

from farreach_workloads.vision import attention
from farreach_workloads.vision.attention import by_class, maps_of


def vit(**options):
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", depth=2, img_size=(48, 64), num_classes=5, **options
    ).eval()


def of_last_block(model, x, monkey_rows):
    """The weights that timm's own unfused attention computes, by its dropout's input."""
    seen = []
    layer = model.blocks[-1].attn
    layer.fused_attn = False
    layer.attn_drop = nn.Identity()
    layer.attn_drop.register_forward_hook(lambda m, inputs, o: seen.append(inputs[0]))
    with torch.no_grad():
        model(x)
    return monkey_rows(seen[0]).unflatten(2, (3, 4))


def test_a_vision_transformer_shows_what_its_class_token_looks_at():
    model, x = vit(), torch.randn(2, 3, 48, 64)
    maps = maps_of(model, x)["last_block"]
    assert maps.shape == (2, 3, 3, 4)
    expected = of_last_block(model, x, lambda weights: weights[:, :, 0, 1:])
    torch.testing.assert_close(maps, expected)


def test_without_a_class_token_it_is_the_mean_over_patches():
    model, x = vit(class_token=False, global_pool="avg", qk_norm=True), torch.randn(1, 3, 48, 64)
    maps = maps_of(model, x)["last_block"]
    expected = of_last_block(model, x, lambda weights: weights.mean(2))
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(1, 3))


def test_a_model_that_cannot_say_has_no_maps_and_no_picture():
    model = timm.create_model("convnext_atto", num_classes=2).eval()
    x = torch.randn(1, 3, 32, 32)
    assert maps_of(model, x) == {}
    assert attention.draw(model, x, torch.zeros(1, 2), ["a", "b"]) is None


def test_of_a_map_per_class_those_of_the_best_classes_are_chosen():
    pool = torch.arange(5.0)[None, :, None, None].expand(2, 5, 2, 2)
    logits = torch.tensor([[0.0, 9.0, 8.0, 1.0, 7.0], [5.0, 0.0, 0.0, 6.0, 7.0]])
    chosen, names = by_class({"pool": pool}, logits, list("abcde"))
    assert names == [["b", "c", "e"], ["e", "d", "a"]]
    assert chosen["pool"][:, :, 0, 0].tolist() == [[1, 2, 4], [4, 3, 0]]
    maps = {"pool": pool[:, :1]}
    assert by_class(maps, logits, list("abcde")) == (maps, [])
