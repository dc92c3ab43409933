"""Training windows against windows cut by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastloop.datasets.demonstration import LazyFrames
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.windows import Batches, Windows

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=5)


def demonstrations(lengths, dtype=np.float32):
    """Frames and actions that say their episode and tick: 100 e + t, and minus that."""
    made = []
    for episode, length in enumerate(lengths):
        value = (100 * episode + np.arange(length))[:, None].astype(dtype)
        made.append(SimpleNamespace(observations={"state": value}, actions=-value))
    return made


def cut(lengths, n_obs_steps=2, horizon=4):
    return Windows.of(demonstrations(lengths), ["state"], n_obs_steps=n_obs_steps, horizon=horizon)


@pytest.mark.parametrize(
    ("tick", "seen", "done"),
    [
        (0, [0, 0, 0], [0, 0, 0, 1, 2]),
        (1, [0, 0, 1], [0, 0, 1, 2, 3]),
        (2, [0, 1, 2], [0, 1, 2, 3, 3]),
        (3, [1, 2, 3], [1, 2, 3, 3, 3]),
        (4, [100, 100, 100], [100, 100, 100, 101, 101]),
        (5, [100, 100, 101], [100, 100, 101, 101, 101]),
    ],
)
def test_ends_are_padded_with_what_is_nearest(tick, seen, done):
    sample = cut([4, 2], n_obs_steps=3, horizon=5).gather(torch.tensor([tick]))
    assert sample["state"][0, :, 0].tolist() == seen
    assert (-sample["action"][0, :, 0]).tolist() == done


def test_frames_and_past_actions_lie_lags_apart_and_the_future_tick_by_tick():
    windows = Windows.of(
        demonstrations([30]), ["state"], n_obs_steps=3, horizon=6, lags=(20, 10, 0)
    )
    sample = windows.gather(torch.tensor([25, 14]))
    assert sample["state"][:, :, 0].tolist() == [[5, 15, 25], [0, 4, 14]]
    assert (-sample["action"][:, :, 0]).tolist() == [
        [5, 15, 25, 26, 27, 28],
        [0, 4, 14, 15, 16, 17],
    ]


@given(lengths=LENGTHS, n_obs_steps=st.integers(1, 4), horizon=st.integers(1, 9))
def test_every_window_is_the_one_cut_by_hand(lengths, n_obs_steps, horizon):
    windows = cut(lengths, n_obs_steps, horizon)
    samples = windows.gather(torch.arange(len(windows)))
    tick = 0
    for episode, length in enumerate(lengths):
        for t in range(length):
            past = [max(t - i, 0) for i in reversed(range(n_obs_steps))]
            chunk = [min(max(t - n_obs_steps + 1 + i, 0), length - 1) for i in range(horizon)]
            assert samples["state"][tick, :, 0].tolist() == [100 * episode + i for i in past]
            assert samples["action"][tick, :, 0].tolist() == [-100 * episode - i for i in chunk]
            assert samples["action"][tick, n_obs_steps - 1 :, 0].tolist()[0:1] in (
                [], [-100 * episode - t],
            )  # fmt: skip
            tick += 1
    assert tick == len(windows)


@given(lengths=LENGTHS, batch_size=st.integers(1, 12), seed=st.integers(0, 3))
def test_every_tick_once_an_epoch(lengths, batch_size, seed):
    windows = cut(lengths)
    total, epochs = len(windows), 3
    steps = -(-epochs * total // batch_size)
    batches = [windows.batch(step, batch_size, seed)["state"][:, -1, 0] for step in range(steps)]
    assert all(len(batch) == batch_size for batch in batches)
    visited = torch.cat(batches).tolist()
    every = sorted(windows.observations["state"][:, 0].tolist())
    for epoch in range(epochs):
        assert sorted(visited[epoch * total : (epoch + 1) * total]) == every


def test_the_order_is_drawn_from_seed_and_epoch():
    windows = cut([50])

    def order(step, seed):
        return windows.batch(step, 50, seed)["state"][:, -1, 0].tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(step, seed)) for step in range(3) for seed in range(3)}) == 9


def test_networks_get_single_precision_and_images_stay_bytes():
    frames = np.zeros((4, 3, 8, 8), np.uint8)
    frames.flags.writeable = False
    windows = Windows(
        {"state": np.zeros((4, 2)), "image": frames}, np.zeros((4, 2), np.int64), [4],
        n_obs_steps=2, horizon=3,
    )  # fmt: skip
    batch = windows.batch(0, 2, 0)
    assert batch["state"].dtype == batch["action"].dtype == torch.float32
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].shape == (2, 2, 3, 8, 8)


@pytest.mark.parametrize("relative", [None, "state"])
def test_chunks_are_the_actions_of_all_samples(relative):
    windows = cut([4, 2, 5])
    samples = windows.gather(torch.arange(11))
    expected = samples["action"] - (samples["state"][:, -1:] if relative else 0)
    assert torch.equal(windows.chunks(relative), expected)


@pytest.mark.parametrize("ends", [[], [3], [5, 4], [0, 4], [-1, 4], [2, 2, 4], [4, 2]])
def test_ends_that_are_none_are_refused(ends):
    with pytest.raises(ValueError, match="must rise from above 0 to the number of actions 4"):
        Windows({}, np.zeros((4, 1)), ends, n_obs_steps=1, horizon=2)


def test_frames_and_actions_must_match():
    with pytest.raises(ValueError, match="state has 3 frames for 4 actions"):
        Windows({"state": np.zeros((3, 1))}, np.zeros((4, 1)), [4], n_obs_steps=1, horizon=2)


def test_a_missing_observation_lists_what_there_is():
    with pytest.raises(ValueError, match=r"lacks the observations \['image'\]; it has \['state'\]"):
        Windows.of(demonstrations([3]), ["state", "image"], n_obs_steps=1, horizon=2)
    with pytest.raises(ValueError, match="no demonstration"):
        Windows.of([], ["state"], n_obs_steps=1, horizon=2)


class Stored(LazyFrames):
    """Frames that could be in a file; those above `whole` are damaged."""

    def __init__(self, frames, whole=10**6):
        super().__init__(frames.shape, frames.dtype)
        self.frames = frames
        self.whole = whole

    def read(self, places):
        if places[-1] >= self.whole:
            raise DatasetError("frame 3 is damaged")
        return self.frames[places]


def stored(lengths, whole=10**6):
    made = demonstrations(lengths)
    for one in made:
        state = one.observations["state"]
        one.observations["image"] = Stored((state % 256).astype(np.uint8), whole)
        one.observations["numbers"] = Stored(state)
    return Windows.of(made, ["state", "image", "numbers"], n_obs_steps=3, horizon=4)


@given(lengths=LENGTHS, data=st.data())
def test_frames_in_files_are_cut_like_those_in_memory(lengths, data):
    windows = stored(lengths)
    assert windows.lazy
    assert not cut(lengths).lazy
    ticks = data.draw(st.lists(st.integers(0, len(windows) - 1), max_size=9))
    samples = windows.gather(torch.tensor(ticks, dtype=torch.int64))
    assert torch.equal(samples["image"], samples["state"] % 256)
    assert samples["image"].dtype == torch.uint8
    assert samples["image"].shape == (len(ticks), 3, 1)
    assert torch.equal(samples["numbers"], samples["state"])
    assert isinstance(windows.observations["numbers"], torch.Tensor)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(num_workers):
    windows = stored([9, 4, 7])
    batches = Batches(windows, 8, 5, num_workers=num_workers)
    torch.manual_seed(3)
    expected_noise = torch.rand(1)
    torch.manual_seed(3)
    for step in (0, 1, 2, 3, 40, 41, 2):
        batch = batches(step)
        for key, value in windows.batch(step, 8, 5).items():
            assert torch.equal(batch[key], value)
    assert torch.equal(torch.rand(1), expected_noise)  # dropout draws what it would have drawn


def test_two_trainings_take_turns(capfd):
    windows = stored([9, 4, 7])
    first, second = (Batches(windows, 4, seed, num_workers=1) for seed in (0, 1))
    for step in range(3):
        for seed, batches in enumerate((first, second)):
            found, expected = batches(step), windows.batch(step, 4, seed)
            assert torch.equal(found["image"], expected["image"])
    first.stop()
    second.stop()
    assert capfd.readouterr().err == ""


def test_a_fault_in_a_worker_is_a_fault_here():
    with pytest.raises(DatasetError, match="frame 3 is damaged"):
        Batches(stored([9], whole=3), 9, 0, num_workers=1)(0)


def test_strides():
    made = demonstrations([8])
    windows = Windows.of(made, ["state"], n_obs_steps=2, horizon=4, stride=3)
    sample = windows.gather(torch.tensor([4]))
    assert sample["state"][0, :, 0].tolist() == [1, 4]
    assert (-sample["action"][0, :, 0]).tolist() == [1, 4, 7, 7]


def test_demonstrations_without_actions_or_of_different_shape_are_refused():
    made = demonstrations([3, 2])
    made[1].observations["state"] = np.zeros((2, 5), np.float32)
    with pytest.raises(ValueError, match=r"state differs in shape between demonstrations"):
        Windows.of(made, ["state"], n_obs_steps=1, horizon=2)
    seen = SimpleNamespace(observations={}, actions=np.zeros((4, 0), np.float32))
    with pytest.raises(ValueError, match="no actions, so there is nothing to imitate"):
        Windows.of([seen], [], n_obs_steps=1, horizon=2)
