"""What a configuration may name."""

import numpy as np
import pytest

from fastloop.sims.config import SimConfig
from fastloop.sims.targets import build
from fastloop.sims.toy import PointMass


def test_a_target_is_built_with_its_arguments():
    sim = build({"_target_": "fastloop.sims.toy.PointMass", "max_steps": 7}, "sim")
    assert isinstance(sim, PointMass)
    assert sim.env_spec.max_steps == 7


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "thing: _target_ must name something inside fastloop, got 'nothing'"),
        ({"_target_": "os.system", "command": "true"}, "inside fastloop, got 'os.system'"),
        ({"_target_": "fastloopy.evil"}, "inside fastloop"),
        ({"_target_": "fastloop.sims.nowhere.X"}, "thing: there is no fastloop.sims.nowhere.X"),
        ({"_target_": "fastloop.sims.toy.Nobody"}, "thing: there is no fastloop.sims.toy.Nobody"),
        (
            {"_target_": "fastloop.sims.toy.PointMass", "speed": 3},
            r"PointMass does not take \['speed'\]: .*unexpected keyword argument 'speed'",
        ),
    ],
)
def test_a_target_that_cannot_be_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build(config, "thing")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"max_steps": "ten"}, "sim.max_steps is int, got 'ten', a str"),
        ({"max_steps": True}, "sim.max_steps is int, got True"),
        ({"max_steps": -3}, "control_hz and max_steps must be positive, got .* and -3"),
    ],
)
def test_a_setting_of_another_type_is_named(setting, told):
    with pytest.raises(ValueError, match=told):
        build({"_target_": "fastloop.sims.toy.PointMass", **setting}, "sim")


def takes(one: list[str], two: float | None = None):
    return one, two


def test_types_that_are_no_scalars_are_left_to_who_reads_them(monkeypatch):
    monkeypatch.setattr("fastloop.sims.targets.find", lambda config, what: takes)
    assert build({"_target_": "x", "one": ("a",), "two": 3}, "sim") == (("a",), 3)
    assert build({"_target_": "x", "one": [], "two": None}, "sim") == ([], None)
    for number in (np.float32(2), np.int64(2)):
        assert build({"_target_": "x", "one": [], "two": number}, "sim") == ([], 2)
    with pytest.raises(ValueError, match=r"sim.two is float or null, got 'x', a str"):
        build({"_target_": "x", "one": [], "two": "x"}, "sim")


def test_an_error_inside_the_target_is_its_own():
    """Not reported as an argument that the target does not take."""
    with pytest.raises(TypeError):
        build({"_target_": "fastloop.sims.toy.PointMass", "max_steps": 5, "faults": 3}, "sim")


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("fastloop.sims.toy.PointMass", {"speed": 3}, "does not take"),
        ("fastloop.sims.toy.PointMassExpert", {}, "is no simulator"),
        ("fastloop.nowhere.Sim", {}, "there is no simulator fastloop.nowhere.Sim"),
    ],
)
def test_a_simulator_that_cannot_be_is_refused(target, arguments, message):
    with pytest.raises(ValueError, match=message):
        SimConfig(target, arguments).build()
