"""Recorded passes of Qwen2.5-VL over joined weights: what the network itself says, in float64."""

import pytest
import torch

from fastloop.accel.decoding import Canvas, Captured, Greedy, Speculative, decode, rollouts
from fastloop.accel.graph import recording
from fastloop.policies.dlm.fused import Fused
from fastloop.policies.vla.prompt import Prompt
from fastloop.policies.vla.qwen25vl import Qwen25VL

IMAGE = 93


@pytest.fixture
def model(tiny_network, tiny_spec):
    return Qwen25VL(tiny_network(seed=3, max_position_embeddings=512), tiny_spec)


@pytest.fixture
def prompt():
    """Three words, a picture of six tokens, whose positions have three coordinates, five words."""
    random = torch.Generator().manual_seed(0)
    words = torch.randint(90, (8,), generator=random)
    ids = torch.cat([words[:3], torch.full((6,), IMAGE), words[3:]])
    return Prompt(ids, torch.randn(24, 1176, generator=random), torch.tensor([[1, 4, 6]]))


@pytest.fixture
def canvas():
    random = torch.Generator().manual_seed(1)
    free = Canvas.free(37, 128, block_size=7, banned=(95, 97))
    free.given[torch.rand(37, generator=random) < 0.4] = True
    free.tokens[free.given] = torch.randint(90, (37,), generator=random)[free.given]
    return free


def passes(model, prompt):
    """Logits of passes of odd widths over a context of odd length, of a row and of branches."""
    random = torch.Generator().manual_seed(2)
    context = model.prefill([prompt], room=60)
    said = []
    for rows, new in ((1, 1), (1, 7), (1, 33), (3, 5), (3, 2)):
        if rows > len(context.position):
            context = context.fork(rows)
        ids = torch.randint(90, (rows, new), generator=random)
        window = torch.rand(1, new, new, generator=random) < 0.5
        window = (window | torch.eye(new, dtype=torch.bool)).expand(rows, -1, -1)
        before = context.visible[:, None].expand(-1, new, -1)
        said.append(
            model.forward(
                ids, positions=context.position[:, None] + torch.arange(new),
                mask=torch.cat([before, window], -1), kv=context.kv,
            )
        )  # fmt: skip
        stands = torch.arange(new) < torch.tensor([[new], [1], [new - 1]])[:rows]
        context.visible = torch.cat([context.visible, stands], 1)
        context.position = context.position + stands.sum(1)
    return said


def test_passes_say_what_the_network_says(model, prompt, fake_recorder):
    expected = passes(model, prompt)
    captured = Captured(Fused(model), fake_recorder())
    with recording():
        said = passes(captured, prompt)
    for one, other in zip(said, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    assert captured.replayed == len(expected)


def test_answers_are_those_of_the_model(model, prompt, canvas, fake_recorder):
    captured = Captured(Fused(model), fake_recorder())
    expected = decode(model, [prompt], canvas, Speculative())
    with recording():
        decoded = decode(captured, [prompt], canvas, Speculative(), debug=True)
    assert torch.equal(decoded.tokens, expected.tokens)
    how = {"seeds": range(3), "temperature": 0.7}
    expected = rollouts(model, prompt, canvas, Speculative(Greedy()), **how)
    with recording():
        decoded = rollouts(captured, prompt, canvas, Speculative(Greedy()), **how)
    assert torch.equal(decoded.tokens, expected.tokens)
    assert not captured.unrecorded


def test_nothing_in_a_pass_keeps_it_from_being_recorded(
    model, prompt, fake_recorder, without_values, monkeypatch
):
    """No value is waited for, nothing is made on the host, of rows and of branches."""
    captured, inputs = Captured(Fused(model), fake_recorder()), []
    run = captured._pass

    def watched(buffers, *given):
        said = run(buffers, *given)
        inputs.append((buffers.recorded.function, given))
        return said

    monkeypatch.setattr(captured, "_pass", watched)
    passes(captured, prompt)
    for function, given in (inputs[1], inputs[-1]):
        without_values(function, "__call__", *given)
