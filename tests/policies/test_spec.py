"""Policies and environments that do not fit are refused, with both sides named."""

import dataclasses

import pytest

from fastloop.policies.spec import (
    ActionSpec,
    EnvSpec,
    PolicySpec,
    SpecMismatchError,
    TensorSpec,
    check_specs,
)

STATE = TensorSpec((2,), low=0.0, high=512.0, names=("x", "y"), unit="pixel")
IMAGE = TensorSpec((3, 96, 96), "uint8", 0, 255)
ACTION = ActionSpec(2, "absolute_position", (0, 0), (512, 512), names=("x", "y"), unit="pixel")
POLICY = PolicySpec({"state": STATE, "image": IMAGE}, ACTION, 2, 16, 8, 10.0)
ENV = EnvSpec("Table", {"image": IMAGE, "state": STATE, "extra": STATE}, ACTION, 10.0, 300)


def policy(*, state=None, action=None, **changes):
    inputs = {"state": dataclasses.replace(STATE, **(state or {})), "image": IMAGE}
    action = dataclasses.replace(ACTION, **(action or {}))
    return dataclasses.replace(POLICY, inputs=inputs, action=action, **changes)


@pytest.mark.parametrize(
    "fits",
    [
        POLICY,
        policy(state={"low": -1.0, "high": 513.0}),
        policy(action={"low": (10, 10), "high": (500, 500)}),
        policy(state={"names": (), "unit": ""}, action={"names": (), "unit": ""}),
    ],
    ids=["the same", "reads a wider range", "acts in a narrower range", "names nothing"],
)
def test_a_policy_that_fits(fits):
    check_specs(fits, ENV)


@pytest.mark.parametrize(
    ("bad", "ours", "theirs"),
    [
        (policy(state={"shape": (3,), "names": ()}), "shape (3,)", "Table gives (2,)"),
        (policy(state={"dtype": "float64"}), "dtype float64", "Table gives float32"),
        (policy(state={"names": ("y", "x")}), "('y', 'x')", "Table names them ('x', 'y')"),
        (policy(state={"unit": "m"}), "counts in m", "Table in pixel"),
        (policy(state={"high": 96.0}), "[0.0, 96.0]", "Table gives [0.0, 512.0]"),
        (policy(state={"low": 1.0}), "[1.0, 512.0]", "Table gives [0.0, 512.0]"),
        (
            policy(action={"dim": 1, "low": (0,), "high": (1,), "names": ()}),
            "plans 1 elements",
            "Table takes 2",
        ),
        (policy(action={"kind": "delta"}), "plans delta", "Table takes absolute_position"),
        (policy(action={"low": (0, -1)}), "(0, -1)", "Table takes (0, 0)"),
        (policy(action={"high": (513, 512)}), "(513, 512)", "(512, 512)"),
        (policy(action={"names": ("y", "x")}), "('y', 'x')", "Table names them ('x', 'y')"),
        (policy(action={"unit": "m"}), "counts in m", "Table in pixel"),
        (policy(control_hz=20.0), "acts at 20.0 Hz", "Table ticks at 10.0 Hz"),
    ],
)
def test_a_difference_names_both_sides(bad, ours, theirs):
    with pytest.raises(SpecMismatchError) as caught:
        check_specs(bad, ENV, policy_name="mine")
    (line,) = str(caught.value).splitlines()[1:]
    assert "mine" in line
    assert ours in line
    assert theirs in line


def test_whole_plans_have_to_be_long_enough():
    offline = dataclasses.replace(ENV, horizon=15)  # one of 16 actions is of the past
    check_specs(POLICY, offline)
    with pytest.raises(SpecMismatchError, match="policy plans 15 actions, Table judges 20"):
        check_specs(POLICY, dataclasses.replace(offline, horizon=20))


def test_a_missing_observation_lists_what_there_is():
    with pytest.raises(SpecMismatchError, match="reads 'image'; Table offers state"):
        check_specs(POLICY, dataclasses.replace(ENV, observations={"state": STATE}))


def test_all_differences_are_told_at_once():
    bad = policy(state={"dtype": "float64"}, action={"kind": "delta"}, control_hz=20.0)
    with pytest.raises(SpecMismatchError) as caught:
        check_specs(bad, ENV)
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "state", "action", "rate",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ActionSpec(2, "delta", (0,), (1, 1)), "needs 2 bounds.*1 lows and 2 highs"),
        (lambda: ActionSpec(2, "delta", (0, 0), (1, 1), names=("x",)), "2 elements has 1 names"),
        (lambda: TensorSpec((3,), names=("x", "y")), "3 elements has 2 names"),
        (lambda: policy(n_action_steps=16), "16 action steps after 1 past ones .* horizon of 16"),
        (lambda: policy(n_obs_steps=0), "must be positive, got 0, 8 and 10.0"),
        (lambda: policy(n_action_steps=-1), "must be positive, got 2, -1"),
        (lambda: policy(control_hz=0), "must be positive"),
    ],
)
def test_a_spec_that_cannot_be(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_longest_chunk_that_fits():
    assert policy(n_action_steps=15).n_action_steps == 15
