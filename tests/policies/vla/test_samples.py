"""Samples and batches: what stands where, and the same batch whenever a step is asked for."""

from collections import Counter

import numpy as np
import pytest
import torch

from fastloop.accel.decoding.canvas import Canvas
from fastloop.policies.vla.annotation import annotate, explanations
from fastloop.policies.vla.answer import read_tokens
from fastloop.policies.vla.canvas import build_layout, vocabulary
from fastloop.policies.vla.images import PatchConfig
from fastloop.policies.vla.masks import PADDING, PROMPT
from fastloop.policies.vla.prompt import Prompt, load_template
from fastloop.policies.vla.samples import Batches, DrivingSamples, Sample, collate
from fastloop.policies.vla.schema import load_schema
from fastloop.policies.vla.tokenizer import FileTokenizer, build_tokenizer

IMAGE, STOP = 93, 97


class TextOnly:
    """A model without pictures, as far as batches ask."""

    model = object()


def sample(words, slots, first=10):
    tokens = torch.arange(first, first + slots)
    canvas = Canvas(
        tokens=tokens, given=tokens % 3 == 0, block=tokens // 3 - first // 3 + 4,
        section=(tokens > first + 1).long(), kind=torch.zeros(slots, dtype=torch.int64),
        allowed=torch.ones(1, 128, dtype=torch.bool), sections=("a", "b"),
    )  # fmt: skip
    empty = torch.zeros(0, 1176), torch.zeros(0, 3, dtype=torch.int64)
    return Sample(Prompt(torch.arange(1, 1 + words), *empty), canvas)


def test_rows_are_padded_and_every_array_says_where():
    batch = collate([sample(2, 5, 12), sample(3, 2)], model=TextOnly, stop_id=STOP)
    assert batch["ids"].tolist() == [
        [1, 2, 12, 13, 14, 15, 16, STOP],
        [1, 2, 3, 10, 11, STOP, 0, 0],
    ]
    assert batch["block"].tolist() == [
        [PROMPT, PROMPT, 0, 0, 0, 1, 1, 2],
        [PROMPT, PROMPT, PROMPT, 0, 0, 1, PADDING, PADDING],
    ]
    assert batch["answer"].tolist() == [[2, 3, 4, 5, 6, 7], [3, 4, 5, -1, -1, -1]]
    assert batch["section"].tolist() == [[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]
    assert batch["given"].int().tolist() == [[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]
    assert batch["positions"].tolist() == [list(range(8))] * 2
    assert "pixel_values" not in batch


def test_blocks_of_one_size_begin_with_the_answer_and_end_with_it():
    batch = collate([sample(2, 6, 12), sample(3, 2)], model=TextOnly, stop_id=STOP, block_size=4)
    assert batch["block"].tolist() == [
        [PROMPT, PROMPT, 0, 0, 0, 0, 1, 1, 1],
        [PROMPT, PROMPT, PROMPT, 0, 0, 0, PADDING, PADDING, PADDING],
    ]
    assert not batch["given"].any()


def test_nothing_ends_an_answer_where_no_stop_is_told():
    batch = collate([sample(2, 3)], model=TextOnly, stop_id=None)
    assert batch["ids"].tolist() == [[1, 2, 10, 11, 12]]


def test_positions_of_pictures_are_those_of_a_row_alone(tiny_network):
    network = tiny_network()
    pixels = torch.randn(24, 1176)
    grid = torch.tensor([[1, 4, 6]])
    pictured = Prompt(torch.tensor([1, 91, *[IMAGE] * 6, 92, 2]), pixels, grid)
    one, other = Sample(pictured, sample(2, 5).canvas), sample(4, 3)
    batch = collate([other, one, one], model=network, stop_id=STOP)
    alone = collate([one], model=network, stop_id=STOP)
    assert batch["positions"].shape == (3, 3, 16)
    assert torch.equal(batch["positions"][2], alone["positions"][0])
    assert batch["positions"][0, :, :8].tolist() == [list(range(8))] * 3
    told = alone["positions"][0, :, 2:8]  # rows and columns of the picture
    assert told.tolist() == [[2] * 6, [2, 2, 2, 3, 3, 3], [2, 3, 4, 2, 3, 4]]
    assert alone["positions"][0, :, 8].tolist() == [5] * 3
    assert torch.equal(batch["pixel_values"], torch.cat([pixels, pixels]))
    assert torch.equal(batch["image_grid_thw"], torch.cat([grid, grid]))


def batches(count=7, batch_size=3, seed=0, blocks=lambda step: None):
    samples = [sample(2, 3, 10 + 3 * k) for k in range(count)]
    return Batches(samples, batch_size, seed, TextOnly, STOP, blocks)


def test_a_batch_is_a_function_of_its_step():
    one, other = batches(), batches()
    forward = [one(step)["ids"] for step in range(10)]
    backward = [other(step)["ids"] for step in reversed(range(10))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    different = [batches(seed=1)(step)["ids"] for step in range(10)]
    assert not all(torch.equal(a, b) for a, b in zip(forward, different, strict=True))


@pytest.mark.parametrize(("count", "batch_size"), [(7, 3), (2, 5), (1, 4), (6, 3)])
def test_an_epoch_visits_every_sample_once(count, batch_size):
    one = batches(count, batch_size)
    firsts = [int(row[2]) for step in range(count * 2) for row in one(step)["ids"]]
    for epoch in range(2 * batch_size):
        seen = Counter(firsts[epoch * count : (epoch + 1) * count])
        assert set(seen.values()) == {1}
        assert len(seen) == count


def test_epochs_differ_in_their_order():
    one = batches(7, 7)
    orders = {tuple(int(row[2]) for row in one(step)["ids"]) for step in range(5)}
    assert len(orders) > 1


def test_the_size_of_blocks_follows_the_step():
    one = batches(blocks=lambda step: 2 if step else None)
    assert one(0)["given"].any()
    assert one(1)["block"][0, 2:].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("words", "slots"), [(0, 3), (3, 0)])
def test_a_sample_needs_both_halves(words, slots):
    with pytest.raises(ValueError, match="needs a prompt and an answer"):
        sample(words, slots)


def test_a_recorded_moment_becomes_a_sample():
    pytest.importorskip("tokenizers")
    schema = load_schema("fast_ddrive_small")
    words = [*vocabulary(schema), *explanations()]
    layout = build_layout(schema, FileTokenizer(tokenizer_of(words)))
    states = np.zeros((16, 6), np.float32)
    states[:, 2] = 8.0
    observation = {
        "observation.ego_states": states,
        "observation.intent": np.array(1),
        "observation.neighbors": np.zeros((32, 10), np.float32),
        "observation.images.front": np.full((3, 56, 84), 128, np.uint8),
        "observation.images.side": np.full((3, 28, 28), 7, np.uint8),
    }
    future = np.stack([2.0 * np.arange(1, 21), np.zeros(20)], -1)
    samples = DrivingSamples(
        [(observation, future)] * 2, layout, load_template("short"),
        PatchConfig(min_pixels=28 * 28), ("front", "side"),
    )  # fmt: skip
    assert len(samples) == 2
    made = samples[0]
    assert made.prompt.grid.tolist() == [[1, 4, 6], [1, 2, 2]]
    told = read_tokens(layout, made.canvas.tokens)
    labels = annotate(observation, future)
    assert told.reason == ""
    assert told.values["critical_objects"] == labels["critical_objects"]
    assert told.values["explanation"] == labels["explanation"]
    assert told.values["trajectory"] == labels["trajectory"].tolist()
    null = made.canvas.tokens[list(layout.slots["explanation"])] == layout.null_id
    assert int((~null).sum()) == 19  # a word each, spelled in no bytes
    assert torch.equal(made.canvas.given, layout.canvas.given)


def tokenizer_of(texts):
    import tokenizers

    return tokenizers.Tokenizer.from_str(build_tokenizer(texts))
