"""Labels of recorded moments: what is told, what is never claimed, and left as right."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastloop.policies.vla.annotation import (
    FLAGS,
    LATERAL,
    LONGITUDINAL,
    annotate,
    critical_objects,
    explanations,
    meta_behavior,
)
from fastloop.policies.vla.schema import Schema, load_schema

TIMES = 0.25 * np.arange(1, 21)
STRAIGHT = np.stack([10 * TIMES, 0 * TIMES], -1)
VEHICLE, PEDESTRIAN, CYCLIST, OTHER = range(4)
WORDS = set(re.findall(r"[a-z]+", " ".join(explanations()).lower()))


def neighbor(x, y, kind=VEHICLE, heading=0.0, speed=0.0, length=4.5, width=1.9):
    cosine, sine = np.cos(heading), np.sin(heading)
    return [x, y, cosine, sine, speed * cosine, speed * sine, length, width, kind, 1]


def table(*rows):
    seen = np.zeros((32, 10), np.float32)
    seen[: len(rows)] = np.array(rows, np.float32).reshape(-1, 10)
    return seen


def observation(*rows, speed=10.0, intent=1):
    states = np.zeros((16, 6), np.float32)
    states[-1, 2] = speed
    return {
        "observation.ego_states": states,
        "observation.neighbors": table(*rows),
        "observation.intent": np.array(intent),
    }


def arc(speed, rate):
    """At constant speed (m/s) and turn rate (rad/s)."""
    angle = rate * TIMES
    return speed / rate * np.stack([np.sin(angle), 1 - np.cos(angle)], -1)


def shifted(speed, aside):
    """A change of lane: aside (m) along half a cosine."""
    return np.stack([speed * TIMES, aside * (1 - np.cos(np.pi * TIMES / 5)) / 2], -1)


def flags(*rows, future=STRAIGHT):
    return {name for name, there in critical_objects(table(*rows), future).items() if there}


def test_nothing_is_claimed_of_an_empty_road():
    assert flags() == set()
    assert tuple(critical_objects(table(), STRAIGHT)) == FLAGS


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (neighbor(20, 8), {"nearby_vehicle"}),
        (neighbor(20, 8, PEDESTRIAN), {"pedestrian"}),
        (neighbor(20, -8, CYCLIST), {"cyclist"}),
        (neighbor(20, 8, OTHER), set()),
        (neighbor(20, 2, OTHER), {"road_hazard"}),
        (neighbor(31, 8), set()),
        (neighbor(28, 8), {"nearby_vehicle"}),
        (neighbor(-15, 0, speed=20.0), set()),  # comes from behind, where nothing looks
        (neighbor(-5, 8), set()),
        (neighbor(45, 0), {"conflicting_vehicle"}),  # stands where the plan goes
        (neighbor(60, 0), set()),
        (neighbor(25, 0, speed=10.0), {"nearby_vehicle"}),  # leads at the same speed
        (neighbor(25, 0, speed=5.0), {"nearby_vehicle", "conflicting_vehicle"}),
        (neighbor(10, 3.5, speed=10.0), {"nearby_vehicle"}),  # beside, in the next lane
        (neighbor(40, 30, heading=-np.pi / 2, speed=8.0), {"conflicting_vehicle"}),  # crosses
        (neighbor(40, 30, heading=np.pi / 2, speed=8.0), set()),
        (neighbor(40, 3.5, heading=np.pi, speed=10.0), set()),  # comes the other way
        (neighbor(40, 0, PEDESTRIAN), set()),
    ],
)
def test_flags(row, told):
    assert flags(row) == told


def test_absent_neighbors_say_nothing():
    row = neighbor(20, 0)
    row[9] = 0
    assert flags(row) == set()


def test_a_long_vehicle_across_the_way_reaches_farther():
    truck = {"length": 16.0, "width": 2.5}
    assert "conflicting_vehicle" in flags(neighbor(20, 8, heading=np.pi / 2, **truck))
    assert "conflicting_vehicle" not in flags(neighbor(20, 8, heading=0.0, **truck))


@pytest.mark.parametrize(
    ("future", "word"),
    [
        (STRAIGHT, "keep speed"),
        (STRAIGHT * 1.1, "keep speed"),
        (STRAIGHT * 1.2, "accelerate"),
        (STRAIGHT * 0.8, "decelerate"),
        (STRAIGHT * 0.04, "stop"),
        (STRAIGHT * 0.06, "decelerate"),
    ],
)
def test_longitudinal(future, word):
    assert meta_behavior(10.0, 1, future)["longitudinal"] == word


def test_standing_still_is_stop_and_straight():
    told = meta_behavior(0.0, 1, np.zeros((20, 2)))
    assert told == {"longitudinal": "stop", "lateral": "go straight"}


@pytest.mark.parametrize(
    ("future", "intent", "word"),
    [
        (STRAIGHT, 1, "go straight"),
        (arc(8, 0.2), 2, "turn left"),
        (arc(8, -0.2), 3, "turn right"),
        (arc(8, 0.2), 0, "turn left"),
        (arc(8, 0.2), 1, "follow lane"),
        (arc(15, 0.03), 1, "follow lane"),  # 5.6 m aside, all of it the curve's
        (arc(15, 0.01), 1, "go straight"),
        (shifted(12, 3.5), 1, "change lane left"),
        (shifted(12, -3.5), 1, "change lane right"),
        (shifted(12, 1.2), 1, "go straight"),
        (arc(5, 0.9), 2, "turn left"),  # past half a turn round
    ],
)
def test_lateral(future, intent, word):
    assert meta_behavior(10.0, intent, future)["lateral"] == word


def test_annotation_of_a_moment():
    told = annotate(observation(neighbor(20, 8)), STRAIGHT)
    assert told["explanation"] == (
        "Nearby vehicle ahead. Speed 10 m/s, route straight: keep speed, go straight."
    )
    assert told["trajectory"].tolist() == [[10, 0], [20, 0], [30, 0], [40, 0], [50, 0]]
    assert annotate(observation(), STRAIGHT)["explanation"].startswith("Nothing critical ahead.")


def test_every_label_can_be_written():
    schema: Schema = load_schema("fast_ddrive_small")
    fields = dict(schema.fields())
    told = annotate(observation(), STRAIGHT)
    assert list(told) == [section.name for section in schema.sections]
    assert tuple(schema.sections[0].fields) == FLAGS
    assert set(LONGITUDINAL) <= set(fields["future_meta_behavior.longitudinal"].words)
    assert set(LATERAL) <= set(fields["future_meta_behavior.lateral"].words)


@pytest.mark.parametrize("future", [STRAIGHT[:19], STRAIGHT[:, :1], STRAIGHT * np.nan])
def test_a_future_of_another_shape_is_refused(future):
    with pytest.raises(ValueError, match=r"\(20, 2\) finite meters at 4 Hz"):
        annotate(observation(), future)


numbers = st.floats(-60, 60, width=32).map(lambda x: round(x, 3))
rows = st.tuples(
    numbers, numbers, st.floats(-3.1, 3.1), st.floats(0, 20), st.sampled_from(range(4))
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(rows, max_size=6),
    arrays(np.float64, (20, 2), elements=st.floats(-1, 1)),
    st.sampled_from([(1, 1), (2, 3), (3, 2), (0, 0)]),
)
def test_left_and_right_are_treated_alike(others, noise, intents):
    future = np.cumsum(noise * [1.5, 0.6] + [1.5, 0.0], 0)
    here = [neighbor(x, y, k, heading=h, speed=v) for x, y, h, v, k in others]
    there = [neighbor(x, -y, k, heading=-h, speed=v) for x, y, h, v, k in others]
    one = annotate(observation(*here, intent=intents[0]), future)
    other = annotate(observation(*there, intent=intents[1]), future * [1, -1])
    swap = str.maketrans({"<": ">", ">": "<"})

    def mirrored(text):
        marked = text.replace("left", "<").replace("right", ">")
        return marked.translate(swap).replace("<", "left").replace(">", "right")

    assert set(re.findall(r"[a-z]+", one["explanation"].lower())) <= WORDS
    assert one["future_meta_behavior"]["longitudinal"] in LONGITUDINAL
    assert one["future_meta_behavior"]["lateral"] in LATERAL
    assert one["critical_objects"] == other["critical_objects"]
    assert mirrored(one["explanation"]) == other["explanation"]
    assert {k: mirrored(v) for k, v in one["future_meta_behavior"].items()} == other[
        "future_meta_behavior"
    ]
    assert np.array_equal(one["trajectory"] * [1, -1], other["trajectory"])
