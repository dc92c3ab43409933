"""LaViDa's vision tower: against the stock one with all layers, and lines laid out by hand."""

import pytest
import torch

from fastloop.policies.dlm.anyres import AnyRes, unpadded
from fastloop.policies.dlm.siglip import Eyes, _pooled

transformers = pytest.importorskip(
    "transformers", reason="the vision tower is that of transformers (extra vla)"
)
SIDE, WIDTH = 42, 8  # three patches a side, which become two tokens
VISION = {
    "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": 14,
}  # fmt: skip
CUT = AnyRes(SIDE, 14, ((42, 84), (84, 42), (84, 84)))


@pytest.fixture(scope="module")
def released():
    """The tower as it is released: with one layer more, and a head."""
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(**{**VISION, "num_hidden_layers": 3})
    tower = transformers.SiglipVisionModel(config).double().eval()
    for parameter in tower.parameters():
        parameter.data += torch.randn_like(parameter) * 0.3
    return tower


@pytest.fixture(scope="module")
def eyes(released):
    torch.manual_seed(1)
    eyes = Eyes(VISION, WIDTH).double().eval()
    held = {
        key.removeprefix("vision_model."): value
        for key, value in released.state_dict().items()
        if "head." not in key and "layers.2." not in key
    }
    assert held.keys() == eyes.vision_tower.state_dict().keys()
    eyes.vision_tower.load_state_dict(held)
    torch.nn.init.normal_(eyes.image_newline)
    return eyes


def frames(*sizes):
    random = torch.Generator().manual_seed(2)
    return [torch.randint(256, (3, *s), generator=random, dtype=torch.uint8) for s in sizes]


@torch.no_grad()
def test_views_and_lines(released, eyes):
    """Layer by layer less the last, projected, pooled; the whole first, then lines with ends."""
    sizes = [(42, 42), (30, 90), (90, 30), (64, 60)]
    pixels, grid = CUT.cut(frames(*sizes))
    states = released(pixel_values=pixels.double(), output_hidden_states=True).hidden_states
    projector = eyes.mm_projector
    views = torch.nn.functional.gelu(states[-2] @ projector[0].weight.T + projector[0].bias)
    views = _pooled(views @ projector[2].weight.T + projector[2].bias)
    assert views.shape[1:] == (2, 2, WIDTH)
    expected, first = [], 0
    for rows, columns, height, width in grid.tolist():
        whole = views[first]
        expected += [whole[r, c] for r in range(2) for c in range(2)]
        lines, across = unpadded(2 * rows, 2 * columns, height, width)
        for line in lines:
            for place in across:
                part = views[first + 1 + line // 2 * columns + place // 2]
                expected.append(part[line % 2, place % 2])
            expected.append(eyes.image_newline)
        first += 1 + rows * columns
    ours = eyes(pixels, grid)
    assert ours.shape == (int(CUT.tokens(grid).sum()), WIDTH)
    assert (ours - torch.stack(expected)).abs().max() < 1e-12


def test_not_what_leaves_the_last_layer(released, eyes):
    """The test above would see it if the last layer, or the last norm, were not left out."""
    states = released(
        pixel_values=torch.randn(1, 3, SIDE, SIDE).double(), output_hidden_states=True
    )
    second = states.hidden_states[-2]
    assert (second - states.hidden_states[-1]).abs().max() > 0.1
    assert (second - released.post_layernorm(second)).abs().max() > 0.1


@pytest.mark.parametrize(("side", "half"), [(27, 14), (3, 2), (4, 2)])
def test_pooling_by_hand(side, half):
    """Between the nearest patches, at the middle of each token."""
    values = torch.randn(2, side * side, 3, dtype=torch.float64)
    ours = _pooled(values)
    square = values.view(2, side, side, 3)

    def mixed(x, dim):
        parts = []
        for token in range(half):
            at = max(0.0, (token + 0.5) * side / half - 0.5)
            low = int(at)
            high = min(low + 1, side - 1)
            parts.append(x.select(dim, low) * (1 - (at - low)) + x.select(dim, high) * (at - low))
        return torch.stack(parts, dim)

    assert ours.shape == (2, half, half, 3)
    assert (ours - mixed(mixed(square, 1), 2)).abs().max() < 1e-12


def test_names_are_the_released_ones(eyes):
    names = set(eyes.state_dict())
    assert {
        "image_newline", "mm_projector.0.weight", "mm_projector.2.bias",
        "vision_tower.embeddings.patch_embedding.weight",
        "vision_tower.encoder.layers.1.self_attn.out_proj.bias",
        "vision_tower.post_layernorm.weight",
    } <= names  # fmt: skip


def test_refused():
    with pytest.raises(ValueError, match="no vision tower"):
        Eyes({**VISION, "num_attention_heads": 5}, WIDTH)
