"""The column types that LeRobot's v3.0 writer gives its tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from fastloop.datasets.demonstration import Demonstration, is_image
from fastloop.datasets.lerobot.info import Feature
from fastloop.datasets.statistics import QUANTILES
from fastloop.extras import require

__all__ = ["data", "described", "episodes", "features", "images", "numbers", "tasks"]

COUNTERS = {
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
    "task_index": "int64",
}  # fmt: skip


def features(first: Demonstration, use_videos: bool) -> dict[str, Feature]:
    """The features of a dataset, from its first demonstration, in LeRobot's order."""
    found: dict[str, Feature] = {}
    for key, frames in first.observations.items():
        if "/" in key:
            raise ValueError(f"{key!r} cannot be the name of a feature: it holds a /")
        pictures = "video" if use_videos else "image"
        dtype = pictures if is_image(frames) else str(frames.dtype)
        found[key] = Feature(dtype, tuple(frames.shape[1:]) or (1,))
    if first.actions.shape[1]:
        found["action"] = Feature("float32", first.actions.shape[1:])
    if first.rewards is not None:
        found["next.reward"] = Feature("float32", (1,))
    found |= {name: Feature("bool", (1,)) for name in ("next.done", "next.success")}
    return found | {name: Feature(dtype, (1,)) for name, dtype in COUNTERS.items()}


def described(feature: Feature, fps: float) -> dict[str, Any]:
    """A feature's entry in ``info.json``."""
    if feature.is_image:
        shape = [*feature.shape[1:], feature.shape[0]]
        return {"dtype": feature.dtype, "shape": shape, "names": ["height", "width", "channels"]}
    return {"dtype": feature.dtype, "shape": list(feature.shape), "names": None}


def data(columns: Mapping[str, Feature]) -> Any:
    """The schema of ``data``: vectors have a fixed size, a shape of (1,) is a scalar."""
    pa = require("pyarrow", extra="data")
    facts = {"info": {"features": {key: _hugging_face(one) for key, one in columns.items()}}}
    fields = [(key, _type(feature)) for key, feature in columns.items()]
    return pa.schema(fields, metadata={"huggingface": json.dumps(facts)})


def numbers(values: NDArray[Any], kind: Any) -> Any:
    """Numbers (N, ...) as a column of type `kind`."""
    pa = require("pyarrow", extra="data")
    if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)):
        return pa.array(values.reshape(-1), kind)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)
    return pa.array(values.tolist(), kind)


def images(pictures: Iterable[bytes], key: str) -> Any:
    """PNG files as a column of images."""
    pa = require("pyarrow", extra="data")
    rows = [{"bytes": data, "path": f"{key}-{i:06d}.png"} for i, data in enumerate(pictures)]
    return pa.array(rows, _type(Feature("image", ())))


def tasks(numbered: Mapping[str, int]) -> Any:
    """The table of tasks, whose texts are the index that pandas gives a frame."""
    pa = require("pyarrow", extra="data")
    index = "__index_level_0__"
    plain = {"metadata": None, "name": "task_index", "field_name": "task_index"}
    facts = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": [
            plain | {"pandas_type": "int64", "numpy_type": "int64"},
            plain | {"name": None, "field_name": index, "pandas_type": "unicode",
                     "numpy_type": "object"},
        ],
        "pandas_version": "2.0.0",
    }  # fmt: skip
    fields = [("task_index", pa.int64()), (index, pa.large_string())]
    return pa.table(
        [list(numbered.values()), list(numbered)],
        schema=pa.schema(fields, metadata={"pandas": json.dumps(facts)}),
    )


def episodes(rows: list[dict[str, Any]], columns: Mapping[str, Feature]) -> Any:
    """The table of episodes, with the statistics of each."""
    pa = require("pyarrow", extra="data")
    fields = [(name, _episode_type(name)) for name in rows[0] if not name.startswith("stats/")]
    at = len(fields) - 2  # before the place of the table itself
    fields[at:at] = [
        (f"stats/{key}/{name}", _statistic_type(name, feature))
        for key, feature in columns.items()
        for name in ("min", "max", "mean", "std", "count", *QUANTILES)
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def _type(feature: Feature) -> Any:
    pa = require("pyarrow", extra="data")
    if feature.dtype == "image":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kind = pa.from_numpy_dtype(feature.dtype)
    if feature.shape == (1,):
        return kind
    if len(feature.shape) == 1:
        return pa.list_(kind, feature.shape[0])
    for _ in feature.shape:
        kind = pa.list_(kind)
    return kind


def _hugging_face(feature: Feature) -> dict[str, Any]:
    """What Hugging Face's ``datasets`` calls it."""
    if feature.dtype == "image":
        return {"_type": "Image"}
    value = {"dtype": feature.dtype, "_type": "Value"}
    if feature.shape == (1,):
        return value
    if len(feature.shape) == 1:
        return {"feature": value, "length": feature.shape[0], "_type": "List"}
    array = f"Array{len(feature.shape)}D"
    return {"shape": list(feature.shape), "dtype": feature.dtype, "_type": array}


def _episode_type(name: str) -> Any:
    pa = require("pyarrow", extra="data")
    if name == "tasks":
        return pa.list_(pa.string())
    return pa.float64() if name.endswith("_timestamp") else pa.int64()


def _statistic_type(name: str, feature: Feature) -> Any:
    pa = require("pyarrow", extra="data")
    if name == "count":
        return pa.list_(pa.int64())
    kind = pa.float64()
    if name in ("min", "max") and feature.dtype in ("bool", "int64"):
        kind = pa.from_numpy_dtype(feature.dtype)
    for _ in feature.shape:
        kind = pa.list_(kind)
    return kind
