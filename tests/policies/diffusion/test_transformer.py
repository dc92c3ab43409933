"""The transformer against a by-hand forward over its state dict, and its published keys."""

import math

import pytest
import torch

from fastloop.policies.diffusion.transformer import (
    TransformerForDiffusion,
    causal_mask,
    memory_mask,
)

FORMS = {
    "mlp": {"cond_dim": 5, "n_obs_steps": 2},
    "mlp causal": {"cond_dim": 5, "n_obs_steps": 3, "causal_attn": True},
    "mlp, observed at every action": {"cond_dim": 5, "causal_attn": True},
    "mlp unconditional": {"causal_attn": True},
    "encoder": {"cond_dim": 5, "n_obs_steps": 2, "n_cond_layers": 2},
    "encoder causal": {"cond_dim": 5, "n_obs_steps": 3, "n_cond_layers": 1, "causal_attn": True},
    "time as token": {"time_as_cond": False},
    "time as token causal": {"time_as_cond": False, "causal_attn": True},
}
T, HEADS, WIDTH = 7, 4, 32


def build(form, **changes):
    torch.manual_seed(0)
    arch = {"n_layer": 2, "n_head": HEADS, "n_emb": WIDTH, **form, **changes}
    net = TransformerForDiffusion(3, 2, T, **arch).eval().double()
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return net


def by_hand(weights, sample, timestep, cond, form):
    """The published forward pass with nothing but matrix products, exp and means."""

    def linear(x, key):
        return x @ weights[f"{key}.weight"].T + weights[f"{key}.bias"]

    def norm(x, key):
        centered = x - x.mean(-1, keepdim=True)
        scale = ((centered**2).mean(-1, keepdim=True) + 1e-5) ** -0.5
        return centered * scale * weights[f"{key}.weight"] + weights[f"{key}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    def attention(queries, memory, key, allowed):
        size = WIDTH // HEADS
        projection, bias = weights[f"{key}.in_proj_weight"], weights[f"{key}.in_proj_bias"]
        merged = []
        for head in range(HEADS):
            q, k, v = (
                x @ projection[rows].T + bias[rows]
                for x, rows in (
                    (source, slice(part * WIDTH + head * size, part * WIDTH + (head + 1) * size))
                    for part, source in enumerate((queries, memory, memory))
                )
            )
            scores = (q @ k.transpose(1, 2) / math.sqrt(size)).masked_fill(~allowed, -math.inf)
            likely = torch.exp(scores - scores.amax(-1, keepdim=True))
            merged.append(likely / likely.sum(-1, keepdim=True) @ v)
        return linear(torch.cat(merged, -1), f"{key}.out_proj")

    def layer(x, key, allowed, memory=None, sees=None):
        normed = norm(x, f"{key}.norm1")
        x = x + attention(normed, normed, f"{key}.self_attn", allowed)
        if memory is not None:
            x = x + attention(norm(x, f"{key}.norm2"), memory, f"{key}.multihead_attn", sees)
        last = "norm2" if memory is None else "norm3"
        hidden = gelu(linear(norm(x, f"{key}.{last}"), f"{key}.linear1"))
        return x + linear(hidden, f"{key}.linear2")

    half = WIDTH // 2
    # In float32 from the exponent on, as the published weights were trained; later differs by 1e-6.
    frequencies = torch.exp(torch.arange(half) * -(math.log(10_000) / (half - 1)))
    angles = torch.as_tensor(timestep).float().expand(len(sample))[:, None] * frequencies
    time = torch.cat([angles.sin(), angles.cos()], -1)[:, None].double()
    tokens, causal = linear(sample, "input_emb"), form.get("causal_attn", False)

    if not form.get("time_as_cond", True):
        x = torch.cat([time, tokens], 1) + weights["pos_emb"][:, : T + 1]
        row, column = torch.arange(T + 1)[:, None], torch.arange(T + 1)[None]
        allowed = (column <= row) | (not causal)
        for i in range(2):
            x = layer(x, f"encoder.layers.{i}", allowed)
        return linear(norm(x[:, 1:], "ln_f"), "head")

    memory = time
    if "cond_dim" in form:
        memory = torch.cat([time, linear(cond, "cond_obs_emb")], 1)
    memory = memory + weights["cond_pos_emb"]
    count = memory.shape[1]
    if form.get("n_cond_layers"):
        for i in range(form["n_cond_layers"]):
            memory = layer(memory, f"encoder.layers.{i}", torch.ones(count, count).bool())
    else:
        hidden = linear(memory, "encoder.0")
        memory = linear(hidden * torch.tanh(torch.log1p(torch.exp(hidden))), "encoder.2")
    row = torch.arange(T)[:, None]
    allowed = (torch.arange(T)[None] <= row) | (not causal)
    sees = (torch.arange(count)[None] - 1 <= row) | (not causal or "cond_dim" not in form)
    x = tokens + weights["pos_emb"][:, :T]
    for i in range(2):
        x = layer(x, f"decoder.layers.{i}", allowed, memory, sees)
    return linear(norm(x, "ln_f"), "head")


def inputs(form, batch=3):
    sample = torch.randn(batch, T, 3, dtype=torch.float64)
    steps = form.get("n_obs_steps") or T
    return sample, torch.randn(batch, steps, 5, dtype=torch.float64) if "cond_dim" in form else None


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@torch.no_grad()
def test_forward_equals_the_by_hand_reference(form):
    net = build(form)
    sample, cond = inputs(form)
    for timestep in (0, 37, 99, torch.tensor([0, 50, 99]), torch.tensor([0.25, 1.0, 73.5])):
        expected = by_hand(net.state_dict(), sample, timestep, cond, form)
        output = net(sample, timestep, cond)
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
        assert expected.std() > 0.1


@torch.no_grad()
def test_single_precision_is_as_close_as_it_can_be():
    form = FORMS["mlp causal"]
    net = build(form)
    sample, cond = inputs(form)
    expected = net(sample, 42, cond)
    output = net.float()(sample.float(), 42, cond.float())
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-5)


def test_published_keys_and_shapes():
    """Of the released low-dimensional PushT policy."""
    net = TransformerForDiffusion(
        2, 2, 16, 2, cond_dim=20, n_layer=8, n_head=4, n_emb=256, causal_attn=True
    )
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert len(shapes) == 161
    E = 256
    layer = {
        "self_attn.in_proj_weight": (3 * E, E), "self_attn.in_proj_bias": (3 * E,),
        "self_attn.out_proj.weight": (E, E), "self_attn.out_proj.bias": (E,),
        "multihead_attn.in_proj_weight": (3 * E, E), "multihead_attn.in_proj_bias": (3 * E,),
        "multihead_attn.out_proj.weight": (E, E), "multihead_attn.out_proj.bias": (E,),
        "linear1.weight": (4 * E, E), "linear1.bias": (4 * E,),
        "linear2.weight": (E, 4 * E), "linear2.bias": (E,),
        "norm1.weight": (E,), "norm1.bias": (E,), "norm2.weight": (E,), "norm2.bias": (E,),
        "norm3.weight": (E,), "norm3.bias": (E,),
    }  # fmt: skip
    layers = {f"decoder.layers.{i}.{key}": shape for i in range(8) for key, shape in layer.items()}
    expected = layers | {
        "pos_emb": (1, 16, E), "cond_pos_emb": (1, 3, E), "_dummy_variable": (0,),
        "mask": (16, 16), "memory_mask": (16, 3),
        "input_emb.weight": (E, 2), "input_emb.bias": (E,),
        "cond_obs_emb.weight": (E, 20), "cond_obs_emb.bias": (E,),
        "encoder.0.weight": (4 * E, E), "encoder.0.bias": (4 * E,),
        "encoder.2.weight": (E, 4 * E), "encoder.2.bias": (E,),
        "ln_f.weight": (E,), "ln_f.bias": (E,), "head.weight": (2, E), "head.bias": (2,),
    }  # fmt: skip
    assert shapes == expected


@pytest.mark.parametrize(
    ("form", "there", "absent"),
    [
        ("mlp", {"encoder.0.weight", "decoder.layers.1.norm3.bias"}, {"mask", "memory_mask"}),
        ("mlp unconditional", {"mask", "cond_pos_emb"}, {"cond_obs_emb.weight", "memory_mask"}),
        ("encoder", {"encoder.layers.1.linear1.weight"}, {"encoder.0.weight"}),
        ("time as token", {"encoder.layers.1.norm2.weight"}, {"cond_pos_emb", "memory_mask"}),
    ],
)
def test_keys_of_the_forms(form, there, absent):
    keys = set(build(FORMS[form]).state_dict())
    assert there <= keys
    assert not absent & keys
    assert any(key.startswith("decoder.") for key in keys) == (form != "time as token")


def test_masks():
    inf = math.inf
    assert causal_mask(3).tolist() == [[0, -inf, -inf], [0, 0, -inf], [0, 0, 0]]
    # Columns are time and three observations: action t sees time and observations up to t.
    assert memory_mask(3, 4).tolist() == [[0, 0, -inf, -inf], [0, 0, 0, -inf], [0, 0, 0, 0]]


@torch.no_grad()
def test_a_causal_network_does_not_look_ahead():
    net = build(FORMS["mlp causal"])
    sample, cond = inputs(FORMS["mlp causal"])
    before = net(sample, 5, cond)
    sample[:, 4:] += 1
    later = net(sample, 5, cond)
    assert torch.equal(before[:, :4], later[:, :4])
    assert (before[:, 4:] - later[:, 4:]).abs().amin((0, 2)).min() > 1e-6
    cond[:, 2] += 1
    seen = net(sample, 5, cond)
    assert torch.equal(later[:, :2], seen[:, :2])
    assert (later[:, 2:] - seen[:, 2:]).abs().amax() > 1e-6


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_parameter_groups_hold_every_parameter_once(form):
    net = build(form)
    decayed, rest = net.parameter_groups(0.25)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.25, 0.0)
    held = [id(p) for group in (decayed, rest) for p in group["params"]]
    assert len(held) == len(set(held))
    names = {id(p): name for name, p in net.named_parameters() if p.numel()}
    assert set(held) == set(names)
    for group, wanted in ((decayed, True), (rest, False)):
        for parameter in group["params"]:
            name = names[id(parameter)]
            matrix = name.endswith("weight") and "norm" not in name and "ln_f" not in name
            assert matrix == wanted, name


def test_observations_need_time_as_condition():
    with pytest.raises(ValueError, match="only when time_as_cond is true"):
        TransformerForDiffusion(2, 2, 8, cond_dim=3, n_emb=8, n_head=2, time_as_cond=False)


def test_dropout_is_off_in_evaluation_and_on_in_training():
    net = build(FORMS["mlp"], p_drop_emb=0.5, p_drop_attn=0.5)
    sample, cond = inputs(FORMS["mlp"])
    assert torch.equal(net(sample, 1, cond), net(sample, 1, cond))
    net.train()
    assert not torch.equal(net(sample, 1, cond), net(sample, 1, cond))
