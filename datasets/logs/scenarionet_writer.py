"""A log as ScenarioNet's ScenarioDescription, for MetaDrive to replay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastloop.datasets.driving_log import DrivingLog, MapFeature, Signal, Track
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.logs.scenarionet import (
    FEATURES,
    OWN,
    OWN_TYPE,
    RESERVED,
    SIZE,
    TRACKS,
    UNNAMED,
    defaults_of,
    is_default,
)

__all__ = ["to_scenario"]

TRACK_TYPES = {kind: word for word, kind in TRACKS.items()}
# Boxes of road users whose size is not known, for the simulator needs one: length, width, height.
SIZES = {"vehicle": (4.5, 1.9, 1.6), "pedestrian": (0.7, 0.7, 1.7), "cyclist": (1.8, 0.7, 1.7)}
FEATURE_TYPES = {kind: word for word, kind in reversed(FEATURES.items())}
POLYGONS = ("ROAD_EDGE_SIDEWALK", "CROSSWALK")  # of which MetaDrive insists on a polygon


def to_scenario(log: DrivingLog, *, ego: str | None = None) -> dict[str, Any]:
    """The ScenarioDescription of a log, which `scenarionet.read` turns into an equal log.

    MetaDrive steps one row in 0.1 s, whatever the stamps say: bring a log to 10 Hz first
    (`DrivingLog.at`). It spawns the ego as it is at the first stamp. What it insists on and the log
    does not know is filled in and marked: sizes of road users and stop points of lights in
    ``assumed``, velocities, written as 0, in ``velocity_known``.

    Args:
        log: any log.
        ego: key of the track to stand for the vehicle that recorded; by default the log's own.

    Returns:
        plain dicts, lists, words, numbers and arrays: pickle it as ``sd_<name>.pkl``.

    Raises:
        DatasetError: where the log has no ego and none is named.
    """
    ego = log.ego if ego is None else ego
    if ego not in log.tracks:
        raise DatasetError(
            f"{log.name} has no ego called {ego!r}; to_scenario(log, ego=...) takes one of its "
            f"tracks: {', '.join(list(log.tracks)[:20])}"
        )
    lights = {k: v for k, v in log.signals.items() if isinstance(v, Signal)}
    others = {k: v for k, v in log.signals.items() if k not in lights}
    defaults = defaults_of(log.name)
    hidden = {
        key: value
        for key, value in log.metadata.items()
        if key in RESERVED or is_default(key, value, defaults)
    }
    metadata = {
        **defaults,
        **_plain(log.metadata),
        "dataset": log.source,
        "sdc_id": ego,
        "ts": (log.stamps - log.stamps[:1]) * 1e-9,
        OWN: {
            "frame": log.frame,
            "start_ns": int(log.stamps[0]) if len(log) else 0,
            "signals": _plain(others),
            "metadata": _plain(hidden),
        },
    }
    return {
        "id": log.name,
        "version": metadata.pop("version"),
        "length": len(log),
        "metadata": metadata,
        "tracks": {key: _write_track(key, track) for key, track in log.tracks.items()},
        "dynamic_map_states": _write_lights(log, lights),
        "map_features": {
            feature.id or f"{UNNAMED}{index}": _write_feature(feature)
            for index, feature in enumerate(log.map)
        },
    }


def _write_track(key: str, track: Track) -> dict[str, Any]:
    steps, valid = len(track.valid), track.valid
    properties = _plain(track.properties)
    word = properties.pop("metadrive_type", TRACK_TYPES.get(track.kind, "OTHER"))
    known = np.isfinite(track.velocity).all(axis=1) & valid
    state = {
        **properties.pop("state", {}),
        **({} if (known == valid).all() else {"velocity_known": known.astype(np.float64)}),
        "position": np.where(valid[:, None], track.position, 0.0),
        "heading": np.where(valid, track.heading, 0.0),
        "velocity": np.where(known[:, None], track.velocity, 0.0),
        "valid": valid.astype(np.float64),
    }
    assumed = []
    for name, size, usual in zip(SIZE, track.size, SIZES.get(track.kind, (1, 1, 1)), strict=True):
        if np.isnan(size):
            assumed.append(name)
        state[name] = valid * (usual if np.isnan(size) else size)
    return {
        "type": word,
        "state": state,
        "metadata": {
            **properties, "type": track.category, "object_id": key, "track_length": steps,
            **({"assumed": assumed} if assumed else {}),
        },
    }  # fmt: skip


def _write_feature(feature: MapFeature) -> dict[str, Any]:
    word = feature.category
    if FEATURES.get(word, "other") != feature.kind or not word or word.startswith(OWN_TYPE):
        word = FEATURE_TYPES.get(feature.kind, OWN_TYPE + feature.kind.upper())
    if (word in POLYGONS and not feature.area) or (feature.kind == "lane" and feature.area):
        word = OWN_TYPE + feature.kind.upper()
    written = {**_plain(feature.properties), "type": word}
    if word != feature.category:
        written["category"] = feature.category
    outline = feature.points if feature.area else feature.outline
    if outline is not None:
        written["polygon"] = outline[:, :2].copy()
        if outline[:, 2].any():
            written["polygon_z"] = outline[:, 2].copy()
    if feature.kind == "stop_sign" and len(feature.points) == 1 and not feature.area:
        written["position"] = feature.points[0].copy()
    elif not feature.area:
        written["polyline"] = feature.points.copy()
    return written


def _write_lights(log: DrivingLog, lights: Mapping[str, Signal]) -> dict[str, Any]:
    lanes = {feature.id: feature for feature in log.map if feature.kind == "lane"}
    written: dict[str, Any] = {}
    for key, light in lights.items():
        # MetaDrive looks a light up by its lane, and one lane has one light.
        name = light.lane if light.lane and light.lane not in written else key
        metadata = {
            **_plain(light.properties), "type": "TRAFFIC_LIGHT", "object_id": name,
            "track_length": len(log), "signal_id": key,
        }  # fmt: skip
        position = light.position
        if position is None:
            metadata["assumed"] = ["stop_point"]
            lane = lanes.get(light.lane)
            position = np.zeros(3) if lane is None or not len(lane.points) else lane.points[0]
        written[name] = {
            "type": "TRAFFIC_LIGHT",
            "state": {"object_state": [s and f"LANE_STATE_{s.upper()}" for s in light.states]},
            "lane": light.lane,
            "stop_point": position.copy(),
            "metadata": metadata,
        }
    return written


def _plain(value: Any) -> Any:
    """A copy of plain values, for a scenario may hold Python's own types and arrays only."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    if isinstance(value, np.generic):
        return value.item()
    return value.copy() if isinstance(value, np.ndarray) else value
