"""The Rater Feedback Score: Waymo's numbers, whatever the layout of the ratings."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.scores.rfs import rater_feedback_score, trust_region_thresholds

AHEAD = np.arange(1, 21) / 4  # s


def arc(speed, turn, n=20):
    """n points at 4 Hz of a vehicle whose path bends by `turn` m/s^2."""
    t = np.arange(1, n + 1) / 4
    return np.stack([speed * t, turn * t * t / 2], axis=-1)


def score(proposals, raters, labels, speed, **options):
    """One frame; `proposals` (I, 20, 2) of equal weight unless `probs` says otherwise."""
    probs = options.pop("probs", np.full(len(proposals), 1 / len(proposals)))
    result = rater_feedback_score(
        np.asarray(proposals)[None], probs[None], [raters], [labels], np.array([speed]), **options
    )
    return result["rater_feedback_score"][0], result["is_fully_within_trust_region"][0].tolist()


def obvious(proposals, probs, raters, labels, speed, P=3):
    """The rules one number at a time, for one frame of float64."""
    chosen = [min(p, len(raters) - 1) for p in range(P)]
    scale = min(max(0.5 + 0.5 * (speed - 1.4) / (11 - 1.4), 0.5), 1.0)
    worth = []
    for proposal in proposals:
        best, beside = {11: 0.0, 19: 0.0}, False
        for p in chosen:
            points = [list(map(float, q)) for q in raters[p][:20]]
            points += [points[-1]] * (20 - len(points))
            direction, distances = (1.0, 0.0), {}
            before = (0.0, 0.0)
            for k, point in enumerate(points):
                step = (point[0] - before[0], point[1] - before[1])
                if step[0] * step[0] + step[1] * step[1] > 0:
                    direction = step
                before = point
                if k in best:
                    length = np.sqrt(direction[0] * direction[0] + direction[1] * direction[1])
                    ux, uy = direction[0] / length, direction[1] / length
                    ex, ey = proposal[k][0] - point[0], proposal[k][1] - point[1]
                    base = 1.0 if k == 11 else 1.8
                    distances[k] = max(
                        abs(ux * ex + uy * ey) / (scale * (base * 4)),
                        abs(-uy * ex + ux * ey) / (scale * (base * 1)),
                    )
                    faded = labels[p] * 0.1 ** np.float64(max(distances[k] - 1, 0))
                    best[k] = max(best[k], faded)
            beside |= all(d <= 1 for d in distances.values())
        earned = (best[11] + best[19]) / 2
        worth.append(earned if beside else max(4.0, earned))
    return np.sum(np.array(worth) * probs)


# Computed once with rater_feedback_utils.py of waymo-open-dataset on these inputs.
GOLDEN = [
    # name, proposals, raters, labels, speed, probs, score, inside
    ("ragged", [arc(6.5, 0.3)], [arc(6, 0, 21), arc(6.1, 0.4, 17), arc(3, -1, 12)], [2, 9, 1], 6.2,
     None, 7.459444592634314, [False]),
    ("outside, above the floor", [arc(8, 0.9)], [arc(8, 0.7), arc(2, 0)], [9, 3], 7.8,
     None, 5.3538492165529, [False]),
    ("inside a low score: no floor", [arc(8, 0)], [arc(8, 0.02), arc(2, 1)], [1, 10], 8.0,
     None, 1.0, [True]),
    ("stationary", [arc(0.1, 0), arc(0.8, 0), arc(0, 0.1)], [arc(0, 0)], [8], 0.0,
     None, 6.418193189905029, [True, False, False]),
    ("stops on the way", [arc(2.1, 0.3)], [np.minimum(arc(5, 0.5), [9.5, 2.1])], [9], 5.0,
     None, 4.500996935495661, [False]),
    ("the fourth rater is not heard", [arc(10, 0)],
     [arc(9.2, 0.1), arc(5, 2), arc(7, -1), arc(10, 0)], [9.5, 4, 6, 10], 5,
     None, 7.890289476835912, [False]),
    ("weighted", [arc(5, k / 8) for k in range(6)], [arc(5, 0), arc(5.2, 0.5), arc(4.5, 0.7)],
     [4, 9.5, 6], 5.1, [0.3, 0.1, 0.05, 0.25, 0.2, 0.1],
     6.6945881231792495, [True, False, False, True, True, False]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("proposals", "raters", "labels", "speed", "probs", "expected", "expected_inside"),
    [case[1:] for case in GOLDEN],
    ids=[case[0] for case in GOLDEN],
)
def test_golden_values(proposals, raters, labels, speed, probs, expected, expected_inside):
    options = {"probs": np.array(probs)} if probs else {}
    value, inside = score(proposals, raters, np.array(labels, float), speed, **options)
    assert inside == expected_inside
    # The power of an array differs in the last bit from processor to processor.
    np.testing.assert_array_max_ulp(value, np.float64(expected), maxulp=2)


@st.composite
def rated_frames(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    frames = []
    for _ in range(draw(st.integers(1, 3))):
        speed = rng.uniform(0, 14)
        raters = []
        for _ in range(rng.integers(1, 6)):
            steps = rng.normal([speed / 4, 0], [0.5, 0.2], (rng.choice([1, 7, 11, 12, 20, 21]), 2))
            steps[rng.random(len(steps)) < rng.choice([0, 0.5, 1])] = 0  # stands still for a while
            raters.append(np.cumsum(steps, axis=0))
        proposals = []
        for _ in range(rng.integers(1, 10)):
            near = raters[rng.integers(len(raters))]
            near = np.concatenate([near, np.repeat(near[-1:], 20, axis=0)])[:20]
            proposals.append(near + AHEAD[:, None] * rng.normal(0, rng.choice([0.01, 0.3, 2]), 2))
        frames.append((np.array(proposals), raters, rng.uniform(0, 10, len(raters)), speed))
    fewest = min(len(frame[0]) for frame in frames)
    proposals = np.array([frame[0][:fewest] for frame in frames])
    probs = rng.dirichlet(np.ones(fewest), len(frames))
    return (proposals, probs, *(list(column) for column in list(zip(*frames, strict=True))[1:]))


@given(rated_frames())
@settings(max_examples=60)
def test_equals_the_rules_one_number_at_a_time(case):
    proposals, probs, raters, labels, speed = case
    before = copy.deepcopy(case)
    result = rater_feedback_score(*case[:4], np.array(speed))
    expected = [obvious(*frame) for frame in zip(*case, strict=True)]
    np.testing.assert_allclose(result["rater_feedback_score"], expected, rtol=1e-14)
    for given_, kept in zip(case, before, strict=True):
        np.testing.assert_equal(given_, kept)  # inputs are not modified
    listed = rater_feedback_score(
        proposals.tolist(),
        probs.tolist(),
        [[points.tolist() for points in frame] for frame in raters],
        [label.tolist() for label in labels],
        speed,
    )
    np.testing.assert_equal(listed, result)


def test_the_best_rater_is_chosen_at_each_instant_but_the_region_is_of_one():
    early, late = arc(10, 0), arc(10, 0)
    early[12:] += [0, 50]  # only its first 3 s fit
    late[:12] += [0, 50]  # only its last 2 s fit
    value, inside = score([arc(10, 0)], [early, late], [8, 6], 12)
    assert (value, inside) == (7, [False])
    assert score([arc(10, 0)], [early, late], [3, 2], 12) == (4, [False])
    assert score([arc(10, 0)], [arc(10, 0)], [3], 12) == (3, [True])


def test_the_border_of_a_trust_region_is_inside():
    rater = np.zeros((20, 2))  # stands still, so that differences are exact
    for direction, at_3s, at_5s in (([0, 1], 1.0, 1.8), ([1, 0], 4.0, 7.2)):
        proposal = rater.copy()
        proposal[[11, 19]] += np.outer([at_3s, at_5s], direction)
        assert score([proposal], [rater], [2.0], 12.0) == (2.0, [True])


def test_half_the_trust_region_at_walking_speed():
    lateral, longitudinal = trust_region_thresholds(np.array([0, 1.4, 6.2, 11, 30]))
    np.testing.assert_allclose(lateral[:, 0], [0.5, 0.5, 0.75, 1, 1])
    np.testing.assert_allclose(lateral[:, 1], [0.9, 0.9, 1.35, 1.8, 1.8])
    np.testing.assert_array_equal(longitudinal, 4 * lateral)


def test_one_threshold_beyond_leaves_a_tenth():
    beside = arc(12, 0) + np.array([0, 2.0])  # 2.0 at 3 s, 1.11 at 5 s
    value, inside = score([beside], [arc(12, 0)], [10], 12, minimum_score_outside_trust_region=0)
    assert inside == [False]
    assert value == pytest.approx((10 * 0.1 + 10 * 0.1 ** (2 / 1.8 - 1)) / 2)


def test_trust_regions_to_draw():
    parked = np.concatenate([arc(0, 2, 12), np.repeat([[0, 9.0]], 8, axis=0)])
    result = rater_feedback_score(
        [[arc(8, 0)]], [[1]], [[arc(8, 0), parked, 0 * parked]], [[1, 2, 3]], [12.0],
        output_trust_region_visualization=True,
    )  # fmt: skip
    np.testing.assert_allclose(result["trust_region_center_x"][0], [[24, 40], [0, 0], [0, 0]])
    np.testing.assert_allclose(result["trust_region_center_y"][0], [[0, 0], [9, 9], [0, 0]])
    np.testing.assert_allclose(result["trust_region_angle"][0], [[0, 0], [90, 90], [0, 0]])
    np.testing.assert_allclose(result["trust_region_width"], [[8, 14.4]])
    np.testing.assert_allclose(result["trust_region_height"], [[2, 3.6]])


def test_float32_stays_float32_as_in_the_original():
    case = ([[arc(6, 0.3)]], [[1]], [[arc(6, 0), arc(5, 0.1, 12)]], [[7, 9]], [6.1])
    rough = [np.float32(case[0]), np.float32(case[1]), None, np.float32(case[3])]
    rough[2] = [[np.float32(points) for points in case[2][0]]]
    exact = rater_feedback_score(*case)
    single = rater_feedback_score(*rough, np.float32(case[4]))
    assert single["rater_specified_trajectories"].dtype == np.float32
    assert single["rater_feedback_score"] == pytest.approx(exact["rater_feedback_score"], abs=1e-5)


def test_raters_and_labels_are_returned_as_used():
    result = rater_feedback_score([[arc(6, 0)]], [[1]], [[arc(6, 0, 21), arc(5, 0, 12)]],
                                  [[7, 9]], [6.1])  # fmt: skip
    used = result["rater_specified_trajectories"]
    assert used.shape == (1, 3, 20, 2)
    np.testing.assert_array_equal(used[0, 0], arc(6, 0, 21)[:20])
    np.testing.assert_array_equal(used[0, 1, 11:], np.repeat([[15.0, 0]], 9, axis=0))
    np.testing.assert_array_equal(used[0, 2], used[0, 1])
    assert result["rater_feedback_labels"].tolist() == [[7, 9, 9]]


def test_no_frames_have_no_scores():
    result = rater_feedback_score(np.zeros((0, 1, 20, 2)), np.zeros((0, 1)), [], [], np.zeros(0))
    assert result["rater_feedback_score"].shape == (0,)


def broken(**changes):
    whole = {
        "inference_trajectories": [[arc(6, 0)]],
        "inference_probs": [[1]],
        "rater_specified_trajectories": [[arc(6, 0), arc(5, 0)]],
        "rater_feedback_labels": [[7, 9]],
        "init_speed": [6],
    }
    return whole | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inference_trajectories": [[arc(6, 0, 19)]]}, r"expected \(B, I, 20, 2\)"),
        ({"inference_trajectories": [arc(6, 0)]}, r"expected \(B, I, 20, 2\)"),
        ({"inference_trajectories": [[arc(np.nan, 0)]]}, "inference_trajectories hold nan"),
        ({"inference_probs": [[0.5, 0.5]]}, r"expected \(1, 1\)"),
        ({"inference_probs": [[np.inf]]}, "inference_probs hold nan or inf"),
        ({"init_speed": [6, 7]}, r"expected \(1,\)"),
        ({"init_speed": [np.nan]}, "init_speed hold nan"),
        ({"init_speed": ["fast"]}, "init_speed are no numbers"),
        ({"rater_specified_trajectories": []}, "trajectories of 0 frames"),
        ({"rater_specified_trajectories": [[]]}, "frame 0: 0 rated trajectories"),
        ({"rater_specified_trajectories": [[]], "rater_feedback_labels": [[]]}, "one or more"),
        ({"rater_feedback_labels": [[7]]}, "2 rated trajectories with labels"),
        ({"rater_feedback_labels": [[7, 11]]}, "scores of 0 to 10"),
        ({"rater_feedback_labels": [[-1, -1]]}, "nobody rated"),
        ({"rater_feedback_labels": [[7, np.nan]]}, "frame 0: labels hold nan"),
        ({"rater_specified_trajectories": [[arc(6, 0), np.zeros((0, 2))]]}, "trajectory 1 has sha"),
        ({"rater_specified_trajectories": [[arc(6, 0), np.zeros((9, 3))]]}, r"\(9, 3\)"),
        ({"rater_specified_trajectories": [[arc(6, 0), [[0, 0], [1]]]]}, "no numbers of one shape"),
        ({"rater_specified_trajectories": [[arc(6, 0), arc(np.inf, 0)]]}, "trajectory 1 hold nan"),
        ({"length_seconds": 4, "inference_trajectories": [[arc(6, 0, 16)]]}, "looks at 5 s"),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with np.errstate(invalid="ignore"), pytest.raises(DatasetError, match=message):
        rater_feedback_score(**broken(**changes))
