"""Requests as clients may write them, and what is refused."""

import numpy as np
import pytest

from fastloop.deploy.server.codec import pack, unpack
from fastloop.deploy.server.protocol import RequestError, describe, read_request

STATE, TOP = "observation.state", "observation.images.top"


@pytest.fixture
def spec(echo):
    return echo(images=True).spec


def message(**ours):
    told = {STATE: np.zeros(2), TOP: np.zeros((3, 4, 5), np.uint8)}
    return told | ({"fastloop": ours} if ours else {})


@pytest.mark.parametrize(
    "given",
    [
        {"observation.state": [1.0, 2], "observation.images.top": "image"},
        {"observation/state": (1, 2), "observation/images/top": "image", "prompt": "go"},
        {"observation": {"state": [1, 2], "images": {"top": "image"}}},
        {"observation.state": np.float64([1, 2]), "observation.images.top": "last"},
    ],
)
def test_observations_come_flat_or_nested_and_images_either_way_round(spec, given):
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8)
    pictures = {"image": image, "last": np.moveaxis(image, 0, -1)}

    def filled(value):
        if isinstance(value, dict):
            return {key: filled(item) for key, item in value.items()}
        return pictures.get(value, value) if isinstance(value, str) else value

    request = read_request(unpack(pack(filled(given))), spec)
    np.testing.assert_array_equal(request.observation[TOP], image)
    assert request.observation[STATE].tolist() == [1, 2]
    assert request.observation[STATE].dtype == np.float32


def test_a_window_with_channels_last_is_turned_frame_by_frame(spec):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), np.uint8)
    told = {STATE: np.zeros((2, 2)), TOP: np.moveaxis(images, 1, -1), "fastloop": {"window": True}}
    np.testing.assert_array_equal(read_request(told, spec).observation[TOP], images)


def test_clients_call_things_by_other_names(spec):
    names = {STATE: "joints/now"}
    told = {"joints": {"now": np.ones(2)}, TOP: np.zeros((3, 4, 5), np.uint8)}
    assert read_request(told, spec, names).observation[STATE].tolist() == [1, 1]
    assert describe(spec, "p", names)["fastloop"]["inputs"][STATE]["called"] == "joints/now"


def test_what_is_under_fastloop_is_read(spec):
    executed = np.ones((2, 3))
    request = read_request(
        message(reset=True, tick=7, key=[1, 2, 3], deadline_ms=20, executed=executed, late=1), spec
    )
    assert (request.reset, request.tick, request.key, request.late) == (True, 7, (1, 2, 3), 1)
    assert request.deadline_s == pytest.approx(0.02)
    np.testing.assert_array_equal(request.executed, executed)


def test_a_reset_needs_no_observation(spec):
    assert read_request({"fastloop": {"reset": True}}, spec).observation is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([1], "is a map of observations"),
        ({}, "the policy reads 'observation.state'"),
        ({"fastloop": {"reset": False}}, "the policy reads 'observation.state'"),
        (message() | {"fastloop": 3}, "'fastloop' is a map"),
        (message(resett=True), "unknown fields .*resett"),
        (message(reset=1), "reset is true or false"),
        (message(tick=-1), "tick is at least 0"),
        (message(tick=True), "tick is a whole number"),
        (message(tick=2**40), "tick is at least 0 and below"),
        (message(tick=1, window=True), "either tick or window"),
        (message(window=True), r"\(2, 2\), the request holds \(2,\)"),
        (message(key=[1, 2]), "key is three numbers"),
        (message(key=[1, 2, -3]), "key is at least 0"),
        (message(deadline_ms=0), "deadline_ms is a finite number above 0"),
        (message(deadline_ms=float("nan")), "deadline_ms"),
        (message(deadline_ms="soon"), "deadline_ms"),
        (message(executed=np.zeros(3)), r"executed is an array \(n, 3\)"),
        (message(executed=[[0, 0, 0]]), r"executed is an array \(n, 3\)"),
        (message(executed=np.full((1, 3), np.nan)), "executed: not all are finite"),
        (message(executed=np.full((1, 3), 1e300)), "executed: not all are finite"),
        (message(late=-1), "late"),
        (message() | {STATE: np.zeros(3)}, r"the policy reads \(2,\), the request holds \(3,\)"),
        (message() | {STATE: np.float32([1, np.nan])}, "observation.state: not all .* finite"),
        (message() | {STATE: np.float64([1, 1e300])}, "not all numbers are finite float32"),
        (message() | {STATE: "text"}, "the policy reads"),
        (message() | {STATE: ["a", "b"]}, "float32, the request holds str"),
        (message() | {STATE: [[1], [2, 3]]}, "observation.state: "),
        (message() | {TOP: np.zeros((3, 4, 5), np.float32)}, "uint8, the request holds float32"),
        (message() | {TOP: np.zeros((3, 5, 4), np.uint8)}, "the policy reads"),
        ({b"observation.state": np.zeros(2)}, "go by texts"),
        ({"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}, "nest at most"),
    ],
)
def test_a_bad_request_is_refused_with_the_reason(spec, given, reason):
    with pytest.raises(RequestError, match=reason):
        read_request(given, spec)
