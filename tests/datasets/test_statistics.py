"""Statistics against NumPy's over everything at once, and those that LeRobot wrote."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fastloop.datasets import statistics
from fastloop.datasets.demonstration import Demonstration
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.statistics import QUANTILES, compute

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def demonstrations(lengths: list[int], seed: int = 0, levels: int = 256) -> list[Demonstration]:
    rng = np.random.default_rng(seed)
    return [
        Demonstration(
            {
                "state": rng.normal(size=(n, 3)).astype(np.float32),
                "image": rng.integers(0, levels, (n, 3, 4, 5), dtype=np.uint8),
            },
            rng.integers(-9, 9, (n, 2)).astype(np.float32),
        )
        for n in lengths
    ]


@given(lengths=LENGTHS, seed=st.integers(0, 99), levels=st.sampled_from([1, 2, 256]))
def test_they_are_numpys(lengths, seed, levels):
    made = demonstrations(lengths, seed, levels)
    found = compute(made)
    wholes = {
        "state": np.concatenate([d.observations["state"] for d in made]).astype(np.float64),
        "action": np.concatenate([d.actions for d in made]).astype(np.float64),
        "image": np.concatenate([d.observations["image"] for d in made]) / 255,
    }
    assert set(found) == set(wholes)
    for key, whole in wholes.items():
        rows = whole.transpose(0, 2, 3, 1).reshape(-1, 3) if key == "image" else whole
        expected = {
            "min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0),
            **{name: np.quantile(rows, share, axis=0) for name, share in QUANTILES.items()},
        }  # fmt: skip
        for name, value in expected.items():
            np.testing.assert_allclose(found[key][name].ravel(), value, rtol=1e-12, atol=1e-12)
        assert found[key]["count"].tolist() == [sum(lengths)]
        assert found[key]["mean"].shape == ((3, 1, 1) if key == "image" else rows.shape[1:])


def test_only_what_is_asked_for():
    assert set(compute(demonstrations([3]), ["state"])) == {"state", "action"}
    with pytest.raises(DatasetError, match=r"has no \['gripper'\]; it has \['image', 'state'\]"):
        compute(demonstrations([3]), ["gripper"])
    with pytest.raises(DatasetError, match="no demonstration"):
        compute([])


def test_both_files_of_lerobot(tmp_path):
    numbers = {"observation.state": {"min": [1.0, 2.0], "count": [7]}, "done": {"max": [True]}}
    (tmp_path / "stats.json").write_text(json.dumps(numbers))
    found = statistics.read(tmp_path / "stats.json")
    assert found["observation.state"]["min"].tolist() == [1, 2]
    assert found["done"]["max"].tolist() == [1]
    save_file({"observation.state/min": np.float32([1, 2])}, tmp_path / "stats.safetensors")
    found = statistics.read(tmp_path / "stats.safetensors")
    assert found["observation.state"]["min"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"a": 3}', '{"a": {"min": "x"}}', '{"a": {"min": [[1], 2]}}']
)
def test_what_are_no_statistics(text, tmp_path):
    (tmp_path / "stats.json").write_text(text)
    with pytest.raises(DatasetError, match=r"stats\.json"):
        statistics.read(tmp_path / "stats.json")


@settings(max_examples=30)
@given(data=st.binary(max_size=60), cut=st.integers(0, 80))
def test_any_bytes_are_statistics_or_a_fault(data, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stats")
    save_file({"a/min": np.float32([1, 2])}, folder / "whole.safetensors")
    whole = (folder / "whole.safetensors").read_bytes()
    contents = {"a.json": data, "b.safetensors": data, "c.safetensors": whole[:cut]}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        with suppress(DatasetError):
            assert isinstance(statistics.read(folder / name), dict)
    with pytest.raises(DatasetError, match="nowhere"):
        statistics.read(folder / "nowhere.safetensors")


def test_real_statistics(realdata):
    found = statistics.read(realdata / "lerobot_v3_datasets/pusht/meta/stats.json")
    old = statistics.read(realdata / "lerobot_v1_episodes/pusht/meta_data/stats.safetensors")
    for name in ("min", "max", "mean", "std"):
        ours, theirs = found["observation.state"][name], old["observation.state"][name]
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
