"""A benchmark small enough to see through: drive on at the speed of the last step."""

import numpy as np
import pytest

from fastloop.datasets.benchmark import Metric, Moment, Shape
from fastloop.datasets.errors import DatasetError
from fastloop.score import pieces
from fastloop.score.pieces import Job


class Straight:
    """Sample k moves at k m/s; its truth is to go on so. Samples in `damaged` cannot be read."""

    name, steps, hz, frame = "straight lines", 4, 2.0, "the rear axle"

    def __init__(self, samples=10, damaged=(), unscorable=()):
        self.inputs = {
            "observation.ego_states": ((3, 6), "float32"),
            "observation.intent": ((), "int64"),
        }
        self.conditions = {"set": "all", "observation.intent": "comes from the future"}
        self.keys = [f"sample-{k}" for k in range(samples)]
        self.damaged, self.unscorable = set(damaged), set(unscorable)
        self.faults = []
        self.observed = []

    def speed(self, key):
        return float(key.rpartition("-")[2])

    def truth(self, key):
        times = np.arange(1, self.steps + 1) / self.hz
        return np.stack([self.speed(key) * times, 0 * times], axis=1)

    def observe(self, key, wanted):
        self.observed.append(key)
        if key in self.damaged:
            raise DatasetError(f"{key} is torn")
        states = np.zeros((3, 6), np.float32)
        states[:, 0] = self.speed(key) / self.hz * np.arange(-2, 1)
        states[:, 2] = self.speed(key)
        every = {"observation.ego_states": states, "observation.intent": np.int64(1)}
        return {name: np.asarray(every[name]) for name in wanted}

    def score(self, keys, plans):
        if bad := self.unscorable & set(keys):
            raise DatasetError(f"no truth for {sorted(bad)}")
        truth = np.stack([self.truth(key) for key in keys])
        l2 = np.linalg.norm(plans - truth, axis=-1)
        return {"l2_1s": l2[:, 1], "l2_2s": l2[:, 3], "steps": l2}

    def metrics(self, keys, columns):
        return {
            name: Metric(columns[name].mean(), "m", len(keys), 0.0, 9.0)
            for name in ("l2_1s", "l2_2s")
        }

    def worst(self, keys, columns):
        return np.argsort(-columns["l2_2s"], kind="stable")

    def moment(self, key):
        box = np.array([[5.0, 1.0], [9.0, 1.0], [9.0, 3.0], [5.0, 3.0]])
        return Moment(f"<{key}>", [Shape("agent", box, area=True)], self.truth(key))


@pytest.fixture
def straight():
    """The class, to make one with."""
    return Straight


@pytest.fixture
def job(monkeypatch):
    """Makes the job of a benchmark that is handed over as it is."""

    def make(benchmark, policy=None, batch=4):
        monkeypatch.setattr(pieces, "open_benchmark", lambda dataset: benchmark)
        return Job({}, policy, batch, seed=0)

    return make
