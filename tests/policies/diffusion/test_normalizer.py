"""The normalizer: what it maps where, what it saves, what it refuses to load."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastloop.policies.diffusion.normalizer import LinearNormalizer

STATE = "observation.state"


class Model(nn.Module):
    def __init__(self, normalizer):
        super().__init__()
        self.normalizer = normalizer


def fitted():
    normalizer = LinearNormalizer()
    torch.manual_seed(0)
    normalizer.fit({STATE: torch.rand(7, 5, 3) * 512, "action": torch.rand(7, 5, 2)})
    normalizer.set_image("observation.images.top")
    return normalizer


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-1e3, 1e3, width=32), st.floats(2**-6, 1e3, width=32)),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["limits", "gaussian"]),
)
def test_round_trip_and_range(columns, mode):
    low = torch.tensor([c[0] for c in columns])
    span = torch.tensor([c[1] for c in columns])
    x = low + span * torch.linspace(0, 1, 20)[:, None]
    normalizer = LinearNormalizer()
    normalizer.fit({"x": x}, mode=mode)
    y = normalizer.normalize("x", x)
    slack = 1e-5 * (1 + float((low.abs() / span).max()))
    torch.testing.assert_close(normalizer.unnormalize("x", y), x, rtol=1e-4, atol=1e-3)
    if mode == "limits":
        assert y.amin() >= -1 - slack
        assert y.amax() <= 1 + slack
        assert y.amax() - y.amin() > 1.9
    else:
        assert y.mean(0).abs().max() < 10 * slack
        torch.testing.assert_close(y.std(0), torch.ones(len(low)), rtol=1e-2, atol=10 * slack)


@pytest.mark.parametrize("mode", ["limits", "gaussian"])
def test_constant_elements_become_zero_and_come_back(mode):
    x = torch.tensor([[3.0, 0.0], [3.0, 1.0]])
    normalizer = LinearNormalizer()
    normalizer.fit({"x": x}, mode=mode)
    y = normalizer.normalize("x", x)
    assert y[:, 0].tolist() == [0, 0]
    torch.testing.assert_close(normalizer.unnormalize("x", y), x)


def test_published_keys_under_a_parent():
    keys = set(Model(fitted()).state_dict())
    for field in (STATE, "action"):
        for name in (
            "scale",
            "offset",
            *(f"input_stats.{s}" for s in ("min", "max", "mean", "std")),
        ):
            assert f"normalizer.params_dict.{field}.{name}" in keys
    assert "normalizer.params_dict.observation.images.top.scale" in keys


def test_save_and_load_are_inverse():
    source = Model(fitted())
    target = Model(LinearNormalizer({"action": 2, STATE: 3}))
    target.load_state_dict(source.state_dict())
    assert set(target.normalizer.fields) == set(source.normalizer.fields)
    x = torch.rand(4, 2, 3)
    assert torch.equal(target.normalizer.normalize(STATE, x), source.normalizer.normalize(STATE, x))
    stats = source.normalizer.stats(STATE)
    assert all(torch.equal(target.normalizer.stats(STATE)[name], stats[name]) for name in stats)


def test_a_loaded_normalizer_does_not_share_memory_with_its_source():
    state = fitted().state_dict()
    normalizer = LinearNormalizer()
    normalizer.load_state_dict(state)
    before = normalizer.normalize("action", torch.ones(2))
    state["params_dict.action.scale"].zero_()
    assert torch.equal(normalizer.normalize("action", torch.ones(2)), before)


def test_moves_and_copies_with_its_module():
    model = Model(fitted())
    double = copy.deepcopy(model).double()
    assert double.normalizer.normalize(STATE, torch.rand(3).double()).dtype == torch.float64
    assert model.state_dict()[f"normalizer.params_dict.{STATE}.scale"].dtype == torch.float32
    assert not list(model.parameters())


def test_image_range_and_identity():
    normalizer = fitted()
    pixels = torch.tensor([[0.0, 0.5, 1.0]])
    assert normalizer.normalize("observation.images.top", pixels).tolist() == [[-1, 0, 1]]
    normalizer.set_identity("rotation", 6)
    x = torch.rand(2, 6)
    assert torch.equal(normalizer.normalize("rotation", x), x)


def broken(key, value):
    state = Model(fitted()).state_dict()
    if value is None:
        del state[key]
    else:
        state[key] = value
    return state


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scale", None, "no scale"),
        ("offset", None, "no offset"),
        ("scale", torch.tensor([1.0, 0.0]), "scale has a 0"),
        ("scale", torch.tensor([1.0, float("nan")]), "not finite"),
        ("offset", torch.tensor([1.0, float("inf")]), "not finite"),
        ("offset", torch.ones(3), r"shape \(3,\)"),
        ("scale", torch.ones(2, 1), r"shape \(2, 1\)"),
        ("input_stats.min", torch.ones(1), r"shape \(1,\)"),
        ("input_stats.median", torch.ones(2), "unexpected normalizer key"),
    ],
)
def test_broken_numbers_are_refused(name, value, message):
    model = Model(LinearNormalizer())
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(broken(f"normalizer.params_dict.action.{name}", value))


def test_a_checkpoint_without_a_normalizer_is_refused():
    with pytest.raises(ValueError, match=r"no normalizer: no key starts with 'normalizer.params"):
        Model(LinearNormalizer()).load_state_dict({})


def test_a_checkpoint_of_other_widths_is_refused_and_changes_nothing():
    state = Model(fitted()).state_dict()
    model = Model(LinearNormalizer({"action": 7}))
    with pytest.raises(ValueError, match="2 elements for field 'action', the policy has 7"):
        model.load_state_dict(state)
    assert model.normalizer.fields == ("action",)
    with pytest.raises(ValueError, match="no field 'gripper'; it has"):
        Model(LinearNormalizer({"gripper": 1})).load_state_dict(state)


def test_bad_use_is_refused():
    normalizer = fitted()
    with pytest.raises(ValueError, match=r"no field 'reward'; it has observation\.state, action"):
        normalizer.normalize("reward", torch.ones(1))
    with pytest.raises(ValueError, match="has 2 elements, got 3"):
        normalizer.unnormalize("action", torch.ones(4, 3))
    with pytest.raises(ValueError, match="limits, gaussian"):
        normalizer.fit({"x": torch.ones(2, 1)}, mode="minmax")
    with pytest.raises(ValueError, match="at least two samples"):
        normalizer.fit({"x": torch.ones(1, 1)})
    with pytest.raises(ValueError, match="not finite"):
        normalizer.fit({"x": torch.tensor([[1.0], [float("nan")]])})
