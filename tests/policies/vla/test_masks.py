"""Masks of training: who sees whom, and that one doubled pass is all passes of a decoder."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.policies.vla.masks import PADDING, PROMPT, causal, doubled, doubled_parts


def test_each_pair_by_its_rule():
    noisy = torch.tensor([[0, 0, 1, PADDING]])
    clean = torch.tensor([[PROMPT, 0, 0, 1, PADDING]])
    mask = doubled(noisy, clean, copies=2)[0]
    expected = [
        # first copy, second copy, clean
        "1100 0000 10000",
        "1100 0000 10000",
        "0010 0000 11100",
        "0001 0000 11110",
        "0000 1100 10000",
        "0000 1100 10000",
        "0000 0010 11100",
        "0000 0001 11110",
        "0000 0000 10000",
        "0000 0000 11000",
        "0000 0000 11100",
        "0000 0000 11110",
        "0000 0000 11111",
    ]
    told = [[c == "1" for c in row.replace(" ", "")] for row in expected]
    assert mask.tolist() == told


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 3),
    st.integers(1, 3),
)  # fmt: skip
def test_no_query_is_blind_and_padding_is_seen_by_padding_only(sizes, prompt, padding, copies):
    answer = [b for b, size in enumerate(sizes) for _ in range(size)]
    noisy = torch.tensor([answer + [PADDING] * padding])
    clean = torch.tensor([[PROMPT] * prompt + answer + [PADDING] * padding])
    mask = doubled(noisy, clean, copies=copies)[0]
    outside = torch.ones_like(mask)
    for rows, columns in doubled_parts(noisy.shape[1], copies):
        for seen in columns:
            assert outside[rows, seen].all(), "once"
            outside[rows, seen] = False
    assert not mask[outside].any()
    of = torch.cat([noisy[0].repeat(copies), clean[0]])
    assert mask.diagonal().all()
    assert not mask[of != PADDING][:, of == PADDING].any()
    half = copies * noisy.shape[1]
    assert not mask[half:, :half].any()
    assert torch.equal(mask[half:, half:], causal(clean.shape[1]))


def hidden(network, ids, mask, positions):
    return network.model.language_model(
        inputs_embeds=network.get_input_embeddings()(ids), attention_mask=mask[:, None],
        position_ids=positions.expand(3, 1, -1), use_cache=False,
    ).last_hidden_state  # fmt: skip


@pytest.fixture
def row(tiny_network):
    """A network, a row with three vision tokens in its prompt, its blocks, a noisy answer."""
    network = tiny_network()
    torch.manual_seed(3)
    ids = torch.randint(0, 90, (1, 18))
    block = torch.tensor([[PROMPT] * 8 + [0] * 3 + [1] * 4 + [2] * 3])
    vision = torch.zeros(18, dtype=torch.bool)
    vision[2:5] = True
    noisy = ids.clone()
    noisy[0, [9, 12, 13, 17]] = 95
    return network, ids, block, vision, noisy


@torch.no_grad()
def test_one_doubled_pass_is_every_draft_pass_and_the_causal_pass(row):
    network, ids, block, _, noisy = row
    places = torch.arange(18)
    answer = places[8:]
    together = hidden(
        network, torch.cat([noisy[:, answer], ids], 1), doubled(block[:, answer], block),
        torch.cat([answer, places]),
    )  # fmt: skip
    alone = hidden(network, ids, causal(18)[None], places)
    torch.testing.assert_close(together[:, 10:], alone, rtol=0, atol=1e-12)
    for b in range(3):
        inside = block[0] == b
        stop = int(inside.nonzero().max()) + 1
        drafted = torch.where(inside, noisy, ids)[:, :stop]
        mask = (causal(18) | (inside[:, None] & inside))[None, :stop, :stop]
        one = hidden(network, drafted, mask, places[:stop])
        where = inside[answer].nonzero().flatten()
        torch.testing.assert_close(together[:, where], one[:, inside[:stop]], rtol=0, atol=1e-12)


@torch.no_grad()
def test_what_is_left_out_of_the_noisy_part_changes_nothing_else(row):
    network, ids, block, vision, noisy = row
    places = torch.arange(18)

    def run(kept, copies=1):
        rows = [noisy[:, kept]] * copies + [ids]
        half = len(kept) * copies
        both = hidden(
            network, torch.cat(rows, 1), doubled(block[:, kept], block, copies=copies),
            torch.cat([kept] * copies + [places]),
        )  # fmt: skip
        return both[:, :half], both[:, half:]

    whole, clean = run(places)
    text = places[~vision]
    for kept in (text, places[8:]):
        part, same = run(kept)
        torch.testing.assert_close(same, clean, rtol=0, atol=1e-12)
        answer = kept >= 8
        torch.testing.assert_close(part[:, answer], whole[:, kept[answer]], rtol=0, atol=1e-12)
    first, second = run(places[8:], copies=2)[0].chunk(2, 1)
    torch.testing.assert_close(first, whole[:, 8:], rtol=0, atol=1e-12)
    torch.testing.assert_close(second, first, rtol=0, atol=1e-12)
    sliced = hidden(  # positions of a noisy part are a gather: counted through, they are wrong
        network, torch.cat([noisy[:, text], ids], 1), doubled(block[:, text], block),
        torch.cat([places[: len(text)], places]),
    )  # fmt: skip
    assert (sliced[:, text.shape[0] - 10 : text.shape[0]] - whole[:, 8:]).abs().max() > 1e-3
