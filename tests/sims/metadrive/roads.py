"""Small drives on a straight road, made by hand."""

import pickle

import numpy as np

from fastloop.datasets.driving_log import DrivingLog, MapFeature, Track
from fastloop.datasets.logs.scenarionet_writer import to_scenario

STEPS = 60


def going(x, y, speed, *, kind="vehicle", size=(4.5, 1.9, 1.6), steps=STEPS):
    """Along x at a steady speed, m/s."""
    times = np.arange(steps) * 0.1
    position = np.stack([x + speed * times, np.full(steps, float(y)), np.zeros(steps)], axis=1)
    velocity = np.stack([np.full(steps, float(speed)), np.zeros(steps)], axis=1)
    heading = np.zeros(steps)
    return Track(kind, position, heading, velocity, np.array(size), np.ones(steps, bool))


def straight(name="straight", *, offset=(400.0, -300.0), **changes):
    """A road of two lanes; the ego goes 8 m/s, with a car 40 m ahead, one beside, and a walker."""
    tracks = {
        "ego": going(0, 0, 8),
        "ahead": going(40, 0, 8),
        "beside": going(15, 3.5, 6),
        "walker": going(20, 9, 1, kind="pedestrian", size=(0.6, 0.6, 1.8)),
        "cone": going(30, -4, 0, kind="cone", size=(0.4, 0.4, 0.8)),
    }
    lanes = []
    for index, y in enumerate((0.0, 3.5)):
        line = np.stack([np.arange(-50, 300, 5.0), np.full(70, y), np.zeros(70)], axis=1)
        outline = np.concatenate([line - [0, 1.75, 0], line[::-1] - [0, -1.75, 0]])
        lanes.append(MapFeature("lane", line, id=f"lane{index}", outline=outline))
    log = {
        "name": name,
        "source": "made",
        "frame": "plane",
        "stamps": np.arange(STEPS) * 10**8,
        "ego": "ego",
        "tracks": tracks,
        "map": tuple(lanes),
        **changes,
    }
    return moved(DrivingLog(**log), offset)


def moved(log, offset):
    """The same in another frame."""
    shift = np.array([*offset, 0.0])
    tracks = {
        key: Track(t.kind, t.position + shift, t.heading, t.velocity, t.size, t.valid)
        for key, t in log.tracks.items()
    }
    features = tuple(
        MapFeature(f.kind, f.points + shift, id=f.id, outline=f.outline + shift) for f in log.map
    )
    return DrivingLog(
        log.name, log.source, log.frame, log.stamps, log.ego, tracks, features, {}, log.metadata
    )


def write(folder, *logs):
    """As ScenarioNet's files."""
    for log in logs:
        with open(folder / f"sd_{log.name}.pkl", "wb") as file:
            pickle.dump(to_scenario(log), file)
    return folder
