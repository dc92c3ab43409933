"""Answers on the grid of blocks that begins with the prompt."""

import pytest
import torch

from fastloop.accel.decoding import Canvas, ModelSpec, Regime, SectionDiffusion
from fastloop.accel.decoding.commits import Confidence
from fastloop.policies.dlm.decoder import Decoder
from fastloop.policies.dlm.grid import on_grid


def canvas(slots):
    free = Canvas.free(slots, 64, block_size=3, banned=(63,))
    free.given[1::5] = True
    return free


@pytest.mark.parametrize(("length", "lead"), [(8, 0), (10, 2), (3, 3)])
def test_blocks_go_on_from_those_of_the_prompt(length, lead):
    prompt, asked = torch.arange(length), canvas(6)
    read, started, found = on_grid(prompt, asked, 4)
    assert (read.tolist(), found) == (list(range(length - lead)), lead)
    assert started.tokens[:lead].tolist() == list(range(length - lead, length))
    assert started.given.tolist() == [True] * lead + asked.given.tolist()
    at = torch.arange(length - lead, length + 6) // 4
    assert started.block.tolist() == (at - at[0]).tolist()
    assert started.part(lead, len(started)).kind.equal(asked.kind)


def uncached(network, prompt, slots, shift):
    """Block by block with nothing kept, as SDAR and Fast-dLLM v2 do: the surest slot a pass."""
    tokens = torch.cat([prompt, torch.full((slots,), 63)])
    block = torch.arange(len(tokens)) // 4
    allowed = block[:, None] >= block
    for number in range(int(block[-1]) + 1):
        while (here := (block == number) & (tokens == 63)).any():
            # Blocks behind are not there yet; a slot sees none of them anyway.
            with torch.no_grad():
                logits = network(input_ids=tokens[None], attention_mask=allowed[None, None]).logits
            logits = logits[0].roll(shift, 0)
            logits[:, 63] = -torch.inf
            sure, best = logits.softmax(-1).max(-1)
            slot = sure.masked_fill(~here, -1).argmax()
            tokens[slot] = best[slot]
    return tokens[len(prompt) :]


@pytest.mark.parametrize("length", [8, 10, 3])
@pytest.mark.parametrize("shift", [0, 1])
def test_answers_are_those_with_nothing_kept(stock, length, shift):
    """Where the prompt ends inside of a block, that block is written with all of itself in sight.

    A slot whose logits lie in the block before is told by the pass that keeps that block, in which
    it stands as here: nothing behind a block is ever seen from it.
    """
    network = stock("Qwen3", torch.float64)
    spec = ModelSpec(Regime.BLOCK_CAUSAL, 64, 63, logit_shift=shift, block_size=4)
    model = Decoder(network, spec)
    prompt = torch.randint(63, (length,), generator=torch.Generator().manual_seed(length))
    read, started, lead = on_grid(prompt, Canvas.free(9, 64, block_size=4, banned=(63,)), 4)
    driver = SectionDiffusion(commit=Confidence(2.0))  # the surest one a pass
    context = model.prefill([read], room=len(started))
    decoded = driver.decode(model, context, started, continued=False, debug=True)
    wanted = uncached(network, prompt, 9, shift)
    assert decoded.tokens[0, lead:].tolist() == wanted.tolist()
