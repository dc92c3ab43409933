"""Frames of drives and the plans that were made at them, as they are and mirrored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastloop.datasets.demonstration import Demonstration
from fastloop.datasets.plans import Plans, mirrored

EGO, INTENT = "observation.ego_states", "observation.intent"
NEIGHBORS, MAP, ROUTE = "observation.neighbors", "observation.map", "observation.route"
SHAPES = {EGO: (4, 6), INTENT: (), NEIGHBORS: (3, 10), MAP: (2, 5, 6), ROUTE: (6, 2)}
T = 3


def drives(lengths=(4, 1, 2), dtype=np.float32):
    random = np.random.default_rng(0)
    made = []
    for n in lengths:
        seen = {key: random.normal(size=(n, *shape)).astype(dtype) for key, shape in SHAPES.items()}
        seen[INTENT] = random.integers(0, 4, n)
        plans = random.normal(size=(n, 1 + 2 * T)).astype(np.float32)
        plans[:, 0] = 0
        made.append(Demonstration(seen, plans))
    return made


def test_a_sample_is_a_frame_and_its_own_plan():
    made = drives()
    plans = Plans.cut(made, list(SHAPES))
    assert len(plans) == 7
    sample = plans.gather(torch.tensor([5, 0, 4]))
    for row, (drive, frame) in enumerate([(2, 0), (0, 0), (1, 0)]):
        demonstration = made[drive]
        for key, shape in SHAPES.items():
            assert sample[key].shape == (3, 1, *shape)
            np.testing.assert_array_equal(
                sample[key][row, 0], demonstration.observations[key][frame]
            )
        expected = demonstration.actions[frame, 1:].reshape(T, 2)
        np.testing.assert_array_equal(sample["action"][row], expected)
    everything = plans.gather(torch.arange(7))["action"]
    assert torch.equal(plans.chunks(), everything)


def test_a_mirrored_frame_is_the_other_way_round():
    plans = Plans.cut(drives(), list(SHAPES), mirror=True)
    assert len(plans) == 14
    plain, other = plans.gather(torch.arange(7)), plans.gather(torch.arange(7, 14))
    both = plans.gather(torch.tensor([2, 9]))
    for key in plain:
        assert torch.equal(both[key], torch.stack([plain[key][2], other[key][2]])), key
    np.testing.assert_array_equal(other["action"], plain["action"] * torch.tensor([1.0, -1.0]))
    assert torch.equal(plans.chunks(), torch.cat([plain["action"], other["action"]]))
    back = mirrored(other)
    for key in plain:
        assert torch.equal(back[key], plain[key]), key


def test_mirrored_scenes_are_true_to_geometry():
    """Headings, velocities and turns agree with places that were mirrored point by point."""
    angle = torch.tensor(0.7)
    rows = torch.tensor([[3.0, 2.0, angle.cos(), angle.sin(), 5.0, 1.0, 4.5, 2.0, 1.0, 1.0]])
    turned = mirrored({NEIGHBORS: rows, INTENT: torch.tensor([0, 1, 2, 3])})
    expected = [3.0, -2.0, (-angle).cos(), (-angle).sin(), 5.0, -1.0, 4.5, 2.0, 1.0, 1.0]
    torch.testing.assert_close(turned[NEIGHBORS], torch.tensor([expected]))
    assert turned[INTENT].tolist() == [0, 1, 3, 2]
    ego = mirrored({EGO: torch.tensor([[1.0, 2, 3, 4, 5, 6]])})[EGO]
    assert ego.tolist() == [[1, -2, 3, -4, 5, -6]]
    point = mirrored({MAP: torch.tensor([[1.0, 2, 0.6, 0.8, 1, 1]])})[MAP]
    torch.testing.assert_close(point, torch.tensor([[1.0, -2, 0.6, -0.8, 1, 1]]))


def test_every_epoch_sees_every_frame_both_ways_once():
    plans = Plans.cut(drives(), [EGO], mirror=True)
    seen = torch.cat([plans.batch(step, 7, seed=3)["action"] for step in range(2)])
    rows = {tuple(row.tolist()) for row in seen.flatten(1)}
    assert rows == {tuple(row.tolist()) for row in plans.chunks().flatten(1)}
    assert len(rows) == 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plans: plans + 0.1, "an age of 0"),
        (lambda plans: plans[:, 1:], "6 elements are no plans"),
        (lambda plans: plans[:, :1], "1 elements are no plans"),
    ],
)
def test_actions_that_are_no_fresh_plans_are_refused(change, message):
    made = [Demonstration(d.observations, change(d.actions)) for d in drives()]
    with pytest.raises(ValueError, match=message):
        Plans.cut(made, [EGO])


def test_what_cannot_be_mirrored_is_refused():
    made = drives()
    for drive in made:
        drive.observations["observation.images.front"] = np.zeros((len(drive), 3, 4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"not .*images\.front"):
        Plans.cut(made, [EGO, "observation.images.front"], mirror=True)


def test_half_precision_stays_half_in_memory():
    plans = Plans.cut(drives(dtype=np.float16), list(SHAPES))
    assert plans.observations[MAP].dtype == torch.float16
    assert plans.observations[INTENT].dtype == torch.int64
    sample = plans.gather(torch.arange(7))
    assert sample[MAP].dtype == torch.float32
    assert torch.equal(sample[MAP][:, 0].half(), plans.observations[MAP])
