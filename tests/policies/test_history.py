"""The window that a policy plans from."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.policies.history import EpisodeHistory, History


def episode(ticks, length=4, offset=0):
    made = EpisodeHistory(length)
    for tick in range(ticks):
        made.observe({"state": np.array([offset + tick, 0.5], np.float32)})
        made.acted(torch.tensor([float(offset + tick)]))
    return made


@pytest.mark.parametrize(
    ("ticks", "window"), [(1, [0, 0, 0]), (2, [0, 0, 1]), (3, [0, 1, 2]), (9, [6, 7, 8])]
)
def test_the_first_frame_is_repeated_until_there_are_enough(ticks, window):
    history = History.stack([episode(ticks)], [2, 1, 0])
    assert history["state"][0, :, 0].tolist() == window
    assert history.ticks.tolist() == [ticks - 1]
    assert history.ticks.dtype == torch.int64


def test_a_batch_of_episodes_at_different_ticks():
    history = History.stack([episode(5), episode(1, offset=100)], [1, 0])
    assert len(history) == 2
    assert history["state"].shape == (2, 2, 2)
    assert history["state"][:, :, 0].tolist() == [[3, 4], [100, 100]]
    assert history.ticks.tolist() == [4, 0]
    assert [len(row) for row in history.actions] == [4, 1]
    assert torch.cat(history.actions[0]).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.float32, np.int64])
def test_an_observation_keeps_its_type(dtype):
    made = EpisodeHistory(2)
    made.observe({"image": np.ones((3, 2, 2), dtype)})
    assert History.stack([made], [1, 0])["image"].numpy().dtype == dtype


@pytest.mark.parametrize("wrap", [lambda x: x, torch.from_numpy], ids=["numpy", "torch"])
def test_a_simulator_that_reuses_its_array_does_not_change_the_past(wrap):
    array = np.zeros(2, np.float32)
    made = EpisodeHistory(3)
    for tick in range(3):
        array[:] = tick
        made.observe({"state": wrap(array)})
    assert History.stack([made], [2, 1, 0])["state"][0, :, 0].tolist() == [0, 1, 2]


def test_an_array_that_cannot_be_written_is_taken_without_a_warning(recwarn):
    array = np.zeros(2, np.float32)
    array.flags.writeable = False
    EpisodeHistory(1).observe({"state": array})
    assert not recwarn.list


def test_what_is_derived_from_a_frame_leaves_with_it():
    made = episode(1)
    first = History.stack([made], [1, 0]).frames[0]
    assert first[0] is first[1], (
        "the repeated frame is one frame, so its embedding is computed once"
    )
    first[1].memo["embedding"] = "of frame 0"
    made.observe({"state": np.zeros(2, np.float32)})
    assert [frame.memo for frame in History.stack([made], [1, 0]).frames[0]] == [
        {"embedding": "of frame 0"},
        {},
    ]
    made.observe({"state": np.zeros(2, np.float32)})
    assert [frame.memo for frame in History.stack([made], [1, 0]).frames[0]] == [{}, {}]


def test_no_more_is_kept_than_asked():
    made = episode(10, length=4)
    assert len(made.frames) == len(made.actions) == 4
    assert made.tick == 9


def test_an_episode_without_an_observation_is_refused():
    with pytest.raises(ValueError, match="before its first observation"):
        History.stack([episode(1), EpisodeHistory(2)], [1, 0])


def test_a_missing_observation_lists_what_there_is():
    with pytest.raises(KeyError, match=r"no observation 'image' .* holds state"):
        History.stack([episode(1)], [0])["image"]


@given(ticks=st.integers(1, 12), lags=st.lists(st.integers(1, 8), unique=True, max_size=4))
def test_frames_lie_as_many_ticks_back_as_asked_for(ticks, lags):
    lags = [*sorted(lags, reverse=True), 0]
    history = History.stack([episode(ticks, length=9)], lags)
    seen = history["state"][0, :, 0].tolist()
    assert seen == [max(ticks - 1 - lag, 0) for lag in lags]


def test_a_history_that_forgets_too_soon_is_refused():
    with pytest.raises(ValueError, match="4 ticks back was asked for; the history keeps 4 frames"):
        History.stack([episode(2)], [4, 0])


def test_what_was_executed_a_number_of_ticks_ago():
    made = episode(0, length=8)
    for tick in range(6):
        made.observe({"state": np.zeros(2, np.float32)})
        if tick < 5:
            made.acted(
                torch.tensor([float(tick), -1.0]), overridden=torch.tensor([False, tick == 3])
            )
    done = History.stack([made, episode(1)], [0]).executed([6, 5, 2, 1], 2)
    assert done.known.tolist() == [[False, True, True, True], [False, False, False, True]]
    assert done.actions[0, :, 0].tolist() == [0, 0, 3, 4]
    assert done.overridden[0].tolist() == [[False, False]] * 2 + [[False, True], [False, False]]
    assert not done.overridden[1].any()


def test_the_plan_under_way_begins_when_it_was_made():
    made = episode(2)
    made.observe({"state": np.zeros(2, np.float32)})
    made.planned(torch.ones(4, 1), late=2)
    underway, none = History.stack([made, episode(1)], [0]).underway
    assert (underway.tick, none) == (0, None)
    assert torch.equal(underway.actions, torch.ones(4, 1))


def test_a_tensor_that_nobody_writes_to_need_not_be_copied():
    episode, seen = EpisodeHistory(2), torch.zeros(3)
    episode.observe({"key": seen}, copy=False)
    assert episode.frames[0].values["key"] is seen
