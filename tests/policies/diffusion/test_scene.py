"""What a scene encoder sees, what it must not see, and what it refuses."""

import dataclasses

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fastloop.policies.diffusion.encoders import build_encoder
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.scene import SceneConfig, SceneEncoder, _Layer
from fastloop.policies.diffusion.state import StateConfig
from fastloop.policies.spec import TensorSpec

EGO, INTENT = "observation.ego_states", "observation.intent"
NEIGHBORS, MAP, ROUTE = "observation.neighbors", "observation.map", "observation.route"
INPUTS = {
    EGO: TensorSpec((16, 6)),
    INTENT: TensorSpec((), "int64", 0, 3),
    NEIGHBORS: TensorSpec((9, 10)),
    MAP: TensorSpec((8, 20, 6)),
    ROUTE: TensorSpec((30, 2)),
}
SMALL = SceneConfig(width=16, layers=2, heads=2, tokens=3, neighbors=7, polylines=6)
THERE = 5  # neighbors and pieces


def scenes(batch=4, seed=0):
    """Scenes (B, 1, ...) with 5 neighbors and 5 pieces, float64."""
    random = torch.Generator().manual_seed(seed)
    seen = {
        key: 4 * torch.randn(batch, 1, *spec.shape, generator=random, dtype=torch.float64)
        for key, spec in INPUTS.items()
    }
    seen[INTENT] = torch.randint(4, (batch, 1), generator=random)
    seen[NEIGHBORS][..., 8] = torch.randint(4, (batch, 1, 9), generator=random).double()
    seen[NEIGHBORS][..., 9] = 1
    seen[MAP][..., 4] = torch.randint(2, (batch, 1, 8, 1), generator=random).double()
    seen[MAP][..., 5] = 1
    for key in (NEIGHBORS, MAP):
        seen[key][:, :, THERE:] = 0
    return seen


def encoder(inputs=tuple(INPUTS), **changes):
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, **changes)
    return SceneEncoder({key: INPUTS[key] for key in inputs}, 1, config).double()


def tokens(of, seen):
    return of(seen, LinearNormalizer())


def changed(seen, key, place, by=1.0):
    """The scenes with some numbers of one observation moved."""
    other = {k: v.clone() for k, v in seen.items()}
    other[key][:, :, place] += by
    return other


@pytest.mark.parametrize("key", [NEIGHBORS, MAP])
def test_rows_that_are_not_there_change_nothing(key):
    made, seen = encoder(), scenes()
    plain = tokens(made, seen)
    noise = {k: v.clone() for k, v in seen.items()}
    noise[key][:, :, THERE:, ..., :-1] = torch.randn_like(noise[key][:, :, THERE:, ..., :-1])
    torch.testing.assert_close(tokens(made, noise), plain)
    torch.testing.assert_close(tokens(made, seen | {key: seen[key][:, :, :THERE]}), plain)


def test_an_empty_road_is_a_scene():
    seen = scenes()
    for key in (NEIGHBORS, MAP, ROUTE):
        seen[key].zero_()
    assert tokens(encoder(), seen).isfinite().all()


@pytest.mark.parametrize("key", [NEIGHBORS, MAP])
def test_the_order_of_rows_has_no_meaning(key):
    made, seen = encoder(), scenes()
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        tokens(made, seen | {key: seen[key][:, :, order]}), tokens(made, seen)
    )


@pytest.mark.parametrize(
    ("key", "place"),
    [
        (EGO, (0, 0)), (EGO, (15, 3)), (EGO, (15, 5)), (INTENT, None), (ROUTE, (29, 1)),
        *((NEIGHBORS, (4, column)) for column in range(9)), (MAP, (4, 7, 0)), (MAP, (4, 7, 4)),
    ],
)  # fmt: skip
def test_whatever_is_there_reaches_every_token(key, place):
    made, seen = encoder(), scenes(32)
    other = {k: v.clone() for k, v in seen.items()}
    if place is None:
        other[key] = (other[key] + 1) % 4
    elif place == (4, 8):
        other[key][:, :, 4, 8] = (other[key][:, :, 4, 8] + 1) % 4
    else:
        other[key][(slice(None), slice(None), *place)] += 3
    moved = (tokens(made, other) - tokens(made, seen)).abs().amax(dim=(0, 2))
    assert (moved > 1e-6).all()


def test_what_is_beyond_the_configuration_is_not_read():
    seen = scenes()
    few = encoder(history=1, neighbors=2, polylines=3)
    plain = tokens(few, seen)
    for key, place in ((EGO, slice(0, 15)), (NEIGHBORS, slice(2, 5)), (MAP, slice(3, 5))):
        torch.testing.assert_close(tokens(few, changed(seen, key, place)), plain)
    for key, place in ((EGO, 15), (NEIGHBORS, 1), (MAP, 2)):
        assert (tokens(few, changed(seen, key, place)) - plain).abs().max() > 1e-6, key


@pytest.mark.parametrize(
    "inputs",
    [
        (EGO,), (EGO, INTENT), (NEIGHBORS, EGO), (EGO, MAP), (ROUTE, EGO, INTENT),
        (EGO, NEIGHBORS, MAP),
    ],
)  # fmt: skip
def test_inputs_that_the_policy_lacks_are_not_needed(inputs):
    seen = scenes()
    made = encoder(inputs)
    out = tokens(made, {key: seen[key] for key in inputs})
    assert out.shape == (4, made.tokens, made.width) == (4, 3, 16)
    assert tokens(made, seen).equal(out)


def test_the_gradient_reaches_every_weight():
    made = encoder()
    weights = torch.randn(4, 3, 16, dtype=torch.float64)
    (tokens(made, scenes()) * weights).sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_attention_is_torchs():
    torch.manual_seed(0)
    layer = _Layer(16, 2).double()
    x, memory = torch.randn(3, 4, 16).double(), torch.randn(3, 7, 16).double()
    there = torch.rand(3, 7) < 0.6
    there[:, 0] = True
    mask = torch.zeros(3, 7).double().masked_fill(~there, -torch.inf)
    h = layer.norm1(x)
    q = layer.query(h).view(3, 4, 2, 8).transpose(1, 2)
    k, v = (p.reshape(3, 7, 2, 8).transpose(1, 2) for p in layer.key_value(memory).chunk(2, -1))
    heads = scaled_dot_product_attention(q, k, v, attn_mask=there[:, None, None])
    after = x + layer.out(heads.transpose(1, 2).reshape(3, 4, 16))
    wide = torch.nn.functional.gelu(layer.wide(layer.norm2(after)))
    torch.testing.assert_close(layer(x, memory, mask=mask), after + layer.narrow(wide))


def test_half_precision_is_close():
    made, seen = encoder(), scenes()
    exact = tokens(made, seen)
    single = {k: v.float() if v.is_floating_point() else v for k, v in seen.items()}
    with torch.autocast("cpu", torch.bfloat16):
        rough = tokens(made.float(), single)
    torch.testing.assert_close(rough.double(), exact, atol=0.15, rtol=0)


@pytest.mark.parametrize(
    ("inputs", "n_obs_steps", "changes", "message"),
    [
        ({}, 2, {}, "reads 1 observation, not 2"),
        ({EGO: None}, 1, {}, "reads observation.ego_states and any of"),
        ({"observation.state": TensorSpec((3,))}, 1, {}, "not observation.ego_states, "),
        ({MAP: TensorSpec((8, 20, 5))}, 1, {}, r"map has shape \(8, 20, 5\)"),
        ({ROUTE: TensorSpec((60,))}, 1, {}, r"route has shape \(60,\)"),
        ({NEIGHBORS: TensorSpec((0, 10))}, 1, {}, r"neighbors has shape \(0, 10\)"),
        ({}, 1, {"heads": 3}, "multiple of twice the heads"),
        ({}, 1, {"polylines": 0}, "must be 1 or more"),
    ],
)
def test_what_it_cannot_read_is_refused(inputs, n_obs_steps, changes, message):
    given = {key: spec for key, spec in (INPUTS | inputs).items() if spec}
    with pytest.raises(ValueError, match=message):
        build_encoder(given, n_obs_steps, scene=dataclasses.replace(SMALL, **changes))


def test_a_policy_has_one_encoder():
    with pytest.raises(ValueError, match="not both: state and scene"):
        build_encoder(INPUTS, 1, state=StateConfig(), scene=SMALL)
