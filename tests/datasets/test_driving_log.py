"""Driving logs: what they refuse, when they are equal, and what they are at other stamps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets.driving_log import DrivingLog, MapFeature, Signal, Track
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.logs import scenarionet

STEP = 500_000_000  # ns


def make_track(steps: int = 3, **changes: Any) -> Track:
    seconds = np.arange(steps) * STEP * 1e-9
    fields: dict[str, Any] = {
        "kind": "vehicle",
        "position": np.stack([4 * seconds, -seconds, 0 * seconds], axis=1),
        "heading": np.full(steps, 0.5),
        "velocity": np.tile([4.0, -1.0], (steps, 1)),
        "size": np.array([4.5, 1.9, np.nan]),
        "valid": np.ones(steps, bool),
    }
    return Track(**fields | changes)


def make_log(steps: int = 3, **changes: Any) -> DrivingLog:
    lane = MapFeature("lane", np.array([[0.0, 0, 0], [9, 0, 0]]), id="7", properties={"way": [1]})
    fields: dict[str, Any] = {
        "name": "drive",
        "source": "test",
        "frame": "a plane",
        "stamps": np.arange(steps) * STEP,
        "ego": "ego",
        "tracks": {"ego": make_track(steps), "other": make_track(steps, kind="cone")},
        "map": (lane,),
        "signals": {"7": Signal(("stop", None, "go", "go", "go")[:steps], lane="7")},
        "metadata": {"city": "PIT", "numbers": np.array([1.0, np.nan])},
    }
    return DrivingLog(**fields | changes)


LINE = np.zeros((2, 3))
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "standing stamps": ({"stamps": np.array([0, 1, 1])}, "rising"),
    "stamps in seconds": ({"stamps": np.arange(3.0)}, "int64"),
    "stamps that wrap around": ({"stamps": np.array([2**62, -(2**62) - 2, 0])}, "rising"),
    "no such ego": ({"ego": "me"}, "'me'"),
    "a track of another length": ({"tracks": {"ego": make_track(4)}}, r"\(4, 3\)"),
    "an unknown kind": ({"tracks": {"ego": make_track(kind="car")}}, "'car'"),
    "a place that is not finite": (
        {"tracks": {"ego": make_track(position=np.full((3, 3), np.nan))}}, "position"
    ),
    "a heading that is not finite": (
        {"tracks": {"ego": make_track(heading=np.full(3, np.inf))}}, "heading"
    ),
    "valid as numbers": ({"tracks": {"ego": make_track(valid=np.ones(3))}}, "bool"),
    "an unknown feature": ({"map": (MapFeature("road", LINE),)}, "'road'.*have: lane"),
    "a flat map": ({"map": (MapFeature("lane", LINE[:, :2]),)}, r"\(2, 2\)"),
    "a map without end": ({"map": (MapFeature("lane", LINE + np.inf),)}, "not finite"),
    "an outline without end": (
        {"map": (MapFeature("lane", LINE, outline=LINE + np.nan),)}, "not finite"
    ),
    "an id twice": ({"map": (MapFeature("lane", LINE, id="1"),) * 2}, "same id"),
    "a signal of another length": ({"signals": {"7": Signal(("go",))}}, "1 states for 3"),
    "an unknown signal": ({"signals": {"7": Signal(("red",) * 3)}}, "'red'.*have: unknown"),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_logs_whose_parts_do_not_agree_are_refused(what: str) -> None:
    changes, message = FAULTS[what]
    with pytest.raises(DatasetError, match=message):
        make_log(**changes)


def test_logs_are_equal_where_everything_in_them_is() -> None:
    assert make_log() == make_log()
    assert make_log() != "a log"
    lane = make_log().map[0]
    for changes in (
        {"name": "other"},
        {"stamps": np.arange(3) * STEP + 1},
        {"tracks": {"ego": make_track()}},
        {"tracks": make_log().tracks | {"other": make_track(kind="barrier")}},
        {"tracks": make_log().tracks | {"other": make_track(properties={"a": 1})}},
        {"map": (replace(lane, points=lane.points + 1e-9),)},
        {"map": (replace(lane, points=lane.points.astype(np.float32)),)},
        {"map": (replace(lane, properties={"way": [1.0]}),)},
        {"map": (replace(lane, outline=LINE),)},
        {"signals": {}},
        {"metadata": {"city": "PIT", "numbers": np.array([1.0, 2.0])}},
    ):
        assert make_log(**changes) != make_log()


def test_at_its_own_stamps_a_log_is_itself() -> None:
    log = make_log()
    assert log.at(log.stamps) == log


@settings(max_examples=30)
@given(st.lists(st.integers(0, 4 * STEP), min_size=1, max_size=8, unique=True).map(sorted))
def test_between_its_stamps_it_moves_in_a_straight_line(stamps: list[int]) -> None:
    turning = make_track(5, heading=np.array([3.0, 3.1, -3.1, -3.0, -2.9]))
    moved = make_log(5, tracks={"ego": turning}).at(np.array(stamps))
    ego, seconds = moved.tracks["ego"], np.array(stamps) * 1e-9
    np.testing.assert_allclose(ego.position[:, :2], np.outer(seconds, [4, -1]), atol=1e-12)
    unwrapped = np.interp(stamps, np.arange(5) * STEP, np.unwrap(turning.heading))
    np.testing.assert_allclose(np.cos(ego.heading - unwrapped), 1)
    np.testing.assert_allclose(ego.velocity, np.tile([4, -1], (len(stamps), 1)))
    shown = make_log(5).signals["7"].states
    assert moved.signals["7"].states == tuple(shown[stamp // STEP] for stamp in stamps)


def test_between_a_sighting_and_none_there_is_none() -> None:
    valid = np.array([True, True, False, True])
    track = make_track(4)
    gone = {
        name: np.where(valid.reshape(-1, *[1] * (getattr(track, name).ndim - 1)), values, np.nan)
        for name, values in vars(track).items()
        if name in ("position", "heading", "velocity")
    }
    log = make_log(4, tracks={"ego": replace(track, valid=valid, **gone)}, signals={"raw": [1]})
    halves = log.at(np.arange(7) * STEP // 2)
    ego = halves.tracks["ego"]
    assert ego.valid.tolist() == [True, True, True, False, False, False, True]
    assert np.isnan(ego.position[~ego.valid]).all()
    assert halves.signals == {}


@pytest.mark.parametrize("stamps", [[], [-1], [0, 2 * STEP + 1], [5, 4]])
def test_there_is_nothing_beyond_its_stamps(stamps: list[int]) -> None:
    with pytest.raises(DatasetError, match="stamps must be"):
        make_log().at(np.array(stamps, dtype=np.int64))


def test_keyframes_become_the_ten_hertz_of_scenarionet(realdata: Path) -> None:
    """Its nuScenes scenes are interpolated between every fifth row, as `at` does."""
    path = realdata / "nuscenes_mini_scenarionet" / "sd_nuscenes_v1.0-mini_scene-0061.pkl"
    (log,) = scenarionet.read(path)
    again = log.at(log.stamps[::5]).at(log.stamps)
    compared = 0
    for key, track in log.tracks.items():
        if key != log.ego:
            seen = again.tracks[key].valid
            assert (track.valid | ~seen).all()
            np.testing.assert_allclose(
                again.tracks[key].position[seen], track.position[seen], atol=1e-6
            )
            compared += seen.sum()
    assert compared > 10_000
