"""Write a nuScenes root of invented drives: all 13 tables, of any size, in seconds.

Run as a script it measures how long a root of the size of val takes to load and to score:

    python tests/datasets/nuscenes/synthetic.py [SCENES]
"""

import json
import sys
import tempfile
import time
from hashlib import md5
from pathlib import Path

import numpy as np

CATEGORIES = (
    "animal", "human.pedestrian.adult", "human.pedestrian.child", "movable_object.barrier",
    "movable_object.trafficcone", "vehicle.bicycle", "vehicle.bus.rigid", "vehicle.car",
    "vehicle.emergency.police", "vehicle.truck",
)  # fmt: skip
LOCATIONS = (
    "boston-seaport", "singapore-onenorth", "singapore-queenstown", "singapore-hollandvillage",
)  # fmt: skip
TABLES = (
    "attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample",
    "sample_annotation", "sample_data", "scene", "sensor", "visibility",
)  # fmt: skip
LIDAR = ([0.943713, 0.0, 1.84023], [0.5**0.5, 0.0, 0.0, -(0.5**0.5)])
CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT")


def token(*parts):
    return md5("/".join(map(str, parts)).encode()).hexdigest()


def yaw_quaternion(yaw):
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def chain(names):
    """prev and next of each: the empty string at the ends."""
    return list(zip(["", *names[:-1]], [*names[1:], ""], strict=True))


def drive(rng, steps):
    """Position (steps, 2) and yaw (steps,) of a vehicle that turns and brakes, at 2 Hz."""
    speed = np.clip(np.cumsum(rng.normal(0, 0.6, steps)) + rng.uniform(0, 9), 0, None)
    yaw = rng.uniform(-3, 3) + np.cumsum(np.cumsum(rng.normal(0, 0.01, steps)))
    step = 0.5 * speed[:, None] * np.stack([np.cos(yaw), np.sin(yaw)], -1)
    return rng.uniform(300, 1500, 2) + np.cumsum(step, 0), yaw


def write_root(
    root, scenes=3, boxes=6, version="v1.0-mini", names=None, lengths=None, seed=0, cameras=False
):
    """Write the tables; `names` and `lengths` of the scenes are free.

    An instance lives through a random part of its scene; some have no lidar points, some are hardly
    visible.
    """
    rng = np.random.default_rng(seed)
    names = names or [f"scene-{i + 1:04d}" for i in range(scenes)]
    lengths = lengths or [12] * len(names)
    table = {name: [] for name in TABLES}
    channels = ("LIDAR_TOP", *(CAMERAS if cameras else ()))
    for channel in channels:
        camera = channel.startswith("CAM")
        table["sensor"].append(
            {
                "token": token(channel),
                "channel": channel,
                "modality": "camera" if camera else "lidar",
            }
        )
        table["calibrated_sensor"].append(
            {
                "token": token("calibrated", channel),
                "sensor_token": token(channel),
                "translation": [1.7, 0.1, 1.5] if camera else LIDAR[0],
                "rotation": [0.5, -0.5, 0.5, -0.5] if camera else LIDAR[1],
                "camera_intrinsic": [[1266.0, 0, 800], [0, 1266, 450], [0, 0, 1]] if camera else [],
            }
        )
    for i, name in enumerate(CATEGORIES):
        table["category"].append(
            {"token": token(name), "name": name, "description": "", "index": i}
        )
    for level, words in enumerate(("v0-40", "v40-60", "v60-80", "v80-100"), 1):
        table["visibility"].append({"token": str(level), "level": words, "description": ""})
    for i, location in enumerate(LOCATIONS):
        table["map"].append(
            {
                "token": token("map", i),
                "log_tokens": [token("log", n) for n in names[i::4]],
                "category": "semantic_prior",
                "filename": f"maps/{location}.png",
            }
        )
    for i, (name, steps) in enumerate(zip(names, lengths, strict=True)):
        table["log"].append(
            {
                "token": token("log", name),
                "logfile": name,
                "vehicle": "n015",
                "date_captured": "2018-07-24",
                "location": LOCATIONS[i % 4],
            }
        )
        samples = [token(name, k) for k in range(steps)]
        stamps = [1_533_151_603_547_590 + 10**9 * i + 500_000 * k for k in range(steps)]
        table["scene"].append(
            {
                "token": token(name),
                "log_token": token("log", name),
                "nbr_samples": steps,
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "name": name,
                "description": "invented, with a } , { in it",
            }
        )
        where, heading = drive(rng, steps)
        for k, (prev, following) in enumerate(chain(samples)):
            table["sample"].append(
                {
                    "token": samples[k],
                    "timestamp": stamps[k],
                    "prev": prev,
                    "next": following,
                    "scene_token": token(name),
                }
            )
        for channel in channels:
            data = [token(channel, sample) for sample in samples]
            camera = channel.startswith("CAM")
            for k, (prev, following) in enumerate(chain(data)):
                table["ego_pose"].append(
                    {
                        "token": data[k],
                        "timestamp": stamps[k],
                        "rotation": yaw_quaternion(heading[k]),
                        "translation": [*map(float, where[k]), 0.0],
                    }
                )
                suffix = "jpg" if camera else "pcd.bin"
                table["sample_data"].append(
                    {
                        "token": data[k],
                        "sample_token": samples[k],
                        "ego_pose_token": data[k],
                        "calibrated_sensor_token": token("calibrated", channel),
                        "timestamp": stamps[k],
                        "fileformat": "jpg" if camera else "pcd",
                        "is_key_frame": True,
                        "height": 900 if camera else 0,
                        "width": 1600 if camera else 0,
                        "filename": f"samples/{channel}/{name}_{k:03d}.{suffix}",
                        "prev": prev,
                        "next": following,
                    }
                )
        for j in range(boxes):
            # Each lives through two thirds of the scene on average.
            first, last = (
                int(rng.integers(0, steps // 3 + 1)),
                int(rng.integers(2 * steps // 3, steps)),
            )
            life = range(first, last + 1)
            kind = int(rng.integers(len(CATEGORIES)))
            instance = token(name, "instance", j)
            boxes_of = [token(instance, k) for k in life]
            middle = where[(first + last) // 2] + rng.normal(0, 14, 2)
            yaw = rng.uniform(-np.pi, np.pi)
            speed = rng.choice([0.0, rng.uniform(1, 9)])
            size = [0.6, 0.7, 1.7] if "human" in CATEGORIES[kind] else [1.9, 4.6, 1.7]
            table["instance"].append(
                {
                    "token": instance,
                    "category_token": token(CATEGORIES[kind]),
                    "nbr_annotations": len(boxes_of),
                    "first_annotation_token": boxes_of[0],
                    "last_annotation_token": boxes_of[-1],
                }
            )
            for k, (prev, following) in zip(life, chain(boxes_of), strict=True):
                ahead = 0.5 * speed * (k - (first + last) / 2)
                center = middle + ahead * np.array([np.cos(yaw), np.sin(yaw)])
                table["sample_annotation"].append(
                    {
                        "token": token(instance, k),
                        "sample_token": samples[k],
                        "instance_token": instance,
                        "visibility_token": str(int(rng.integers(1, 5))),
                        "attribute_tokens": [],
                        "translation": [*map(float, center), 0.8],
                        "size": size,
                        "rotation": yaw_quaternion(yaw),
                        "prev": prev,
                        "next": following,
                        "num_lidar_pts": int(rng.integers(0, 9)),
                        "num_radar_pts": 0,
                    }
                )
    root = Path(root)
    (root / version).mkdir(parents=True, exist_ok=True)
    for name, rows in table.items():
        (root / version / f"{name}.json").write_text(json.dumps(rows, indent=0))
    (root / "maps").mkdir(exist_ok=True)
    return root


def measure(scenes):
    """Print the seconds of processor time that a root of the size of val takes."""
    from fastloop.datasets.nuscenes.benchmark import NuScenesPlanning

    with tempfile.TemporaryDirectory() as folder:
        numbers = [f"scene-{i + 1:04d}" for i in range(scenes)]
        lengths = [41 if i < round(scenes * 19 / 150) else 40 for i in range(scenes)]
        root = write_root(folder, boxes=46, names=numbers, lengths=lengths)
        size = (root / "v1.0-mini" / "sample_annotation.json").stat().st_size
        print(f"{sum(lengths)} samples; sample_annotation.json has {size / 1e6:.0f} MB")
        wall, busy = time.perf_counter(), time.process_time()

        def lap(what):
            nonlocal wall, busy
            now, used = time.perf_counter(), time.process_time()
            print(f"{what}: {used - busy:.2f} s of processor time, {now - wall:.2f} s")
            wall, busy = now, used

        benchmark = NuScenesPlanning(root, version="v1.0-mini")
        lap("load")
        states = [
            benchmark.observe(key, ["observation.ego_states"])["observation.ego_states"][-1]
            for key in benchmark.keys
        ]
        plans = np.stack(states)[:, None, 2:4] * 0.5 * np.arange(1, 7)[:, None]
        lap("plan")
        columns = benchmark.score(benchmark.keys, plans)
        lap("score")
        metrics = benchmark.metrics(benchmark.keys, columns)
        lap("metrics")
    for name, metric in metrics.items():
        print(name, metric)


if __name__ == "__main__":
    measure(int(sys.argv[1]) if len(sys.argv) > 1 else 150)
