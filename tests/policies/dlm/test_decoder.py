"""Stock decoders: logits of the stock class under the mask of each regime, and prompts."""

import pytest
import torch

from fastloop.accel.decoding import Canvas, KVCache, ModelSpec, Regime, SectionDiffusion
from fastloop.policies.dlm.decoder import Decoder

FAMILIES = ("Llama", "Qwen2", "Qwen3")
KEEPING = [regime for regime in Regime if regime is not Regime.FULL]


def spec(regime, shift=0, block_size=4):
    return ModelSpec(regime, 64, 63, stop_id=None, logit_shift=shift, block_size=block_size)


def ids(*shape, seed=0):
    return torch.randint(63, shape, generator=torch.Generator().manual_seed(seed))


def allowed(regime, prompt, total, answer_blocks=()):
    """(S, S): what slots of a prompt and of an answer see, slot by slot."""
    mask = torch.zeros(total, total, dtype=torch.bool)
    for query in range(total):
        for key in range(total):
            if regime is Regime.FULL:
                seen = True
            elif regime is Regime.PREFIX_LM:
                seen = key < prompt or query >= prompt
            elif regime is Regime.BLOCK_CAUSAL:
                seen = query // 4 >= key // 4
            else:
                seen = query >= key
            for start, end in answer_blocks:  # being denoised
                seen |= start <= query < end and start <= key < end
            mask[query, key] = seen
    return mask


def told(network, tokens, mask):
    with torch.no_grad():
        return network(input_ids=tokens, attention_mask=mask.expand(len(tokens), 1, -1, -1)).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("regime", Regime)
def test_logits_are_those_of_the_stock_class(stock, family, regime):
    """A prompt of two blocks, kept; one block kept behind it, one more denoised."""
    network, tokens = stock(family), ids(2, 16)
    model = Decoder(network, spec(regime))
    wanted = told(network, tokens, allowed(regime, 8, 16, [(12, 16)]))
    kv, places = KVCache(3, 16), torch.arange(16).expand(2, -1)

    def run(start, end, window):
        mask = torch.cat([torch.ones(1, end - start, start, dtype=torch.bool), window], -1)
        return model.forward(tokens[:, start:end], positions=places[:, start:end], mask=mask, kv=kv)

    whole = torch.ones(1, 4, 4, dtype=torch.bool)
    if regime is Regime.FULL:
        found, first = run(0, 16, torch.ones(1, 16, 16, dtype=torch.bool)), 0
    else:
        context = model.prefill(list(tokens[:, :8]), room=8)
        assert context.position.tolist() == [8, 8]
        torch.testing.assert_close(context.logits, wanted[:, 7], atol=1e-5, rtol=0)
        kv, first = context.kv, 8
        if regime is Regime.PREFIX_LM:
            found = run(8, 16, torch.ones(1, 8, 8, dtype=torch.bool))
        else:
            keeping = whole if regime is Regime.BLOCK_CAUSAL else whole.tril()
            found = torch.cat([run(8, 12, keeping), run(12, 16, whole)], 1)
    torch.testing.assert_close(found, wanted[:, first:], atol=1e-5, rtol=0)
    assert wanted.std() > 0.3  # else everything is close to everything


def test_regimes_differ(stock):
    """So that the test above tells one from another."""
    network, tokens = stock("Llama"), ids(1, 12)
    last = [told(network, tokens, allowed(regime, 8, 12))[0, 7] for regime in list(Regime)[:4]]
    for i, one in enumerate(last):
        assert all((one - other).abs().max() > 1e-2 for other in last[:i])


@pytest.mark.parametrize("regime", KEEPING)
def test_prompts_of_different_lengths(stock, regime):
    model = Decoder(stock("Qwen3"), spec(regime))
    prompts = [ids(3, seed=1), ids(9, seed=2), ids(8, seed=3)]
    together = model.prefill(prompts, room=4)
    assert together.position.tolist() == [3, 9, 8]
    assert together.visible.sum(1).tolist() == [3, 9, 8]
    for row, prompt in enumerate(prompts):
        alone = model.prefill([prompt.tolist()], room=4)
        torch.testing.assert_close(together.logits[row], alone.logits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_full_model_reads_prompts_of_different_lengths_in_each_pass(stock, shift):
    model = Decoder(stock("Llama", torch.float64), spec(Regime.FULL, shift))
    canvas = Canvas.free(6, 64, block_size=3, banned=(63,))
    prompts = [ids(3, seed=1), ids(9, seed=2)]
    context = model.prefill(prompts, room=6)
    assert (context.kv.length, context.prompt.shape) == (0, (2, 9))
    together = SectionDiffusion().decode(model, context, canvas, continued=False).tokens
    for row, prompt in enumerate(prompts):
        alone = model.prefill([prompt], room=6)
        tokens = SectionDiffusion().decode(model, alone, canvas, continued=False).tokens
        assert torch.equal(tokens[0], together[row])


def test_nothing_to_read_before_the_first_block(stock):
    model = Decoder(stock("Qwen3"), spec(Regime.BLOCK_CAUSAL))
    context = model.prefill([[], []], room=4)
    assert (context.kv.length, context.position.tolist(), context.prompt) == (0, [0, 0], None)
    assert context.logits.shape == (2, 64)


def test_the_dtype_of_logits(stock):
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        model = Decoder(stock("Qwen2", dtype), spec(Regime.CAUSAL))
        assert model.prefill([[1, 2]], room=1).logits.dtype == wide


@pytest.mark.parametrize(
    ("prompts", "room", "told"),
    [
        ([], 1, "no prompt to read"),
        ([[1, 2], []], 1, r"prompt 1 is of shape \(0,\)"),
        ([[[1, 2]]], 1, r"prompt 0 is of shape \(1, 2\)"),
        ([[1, 64]], 1, "from 1 to 64; expected token ids from 0 to 63"),
        ([[1, -1]], 1, "expected token ids"),
        ([[1.5, 2.0]], 1, "float32"),
        ([[1] * 250], 7, "250 tokens and an answer of 7 is to follow; the model reads 256"),
    ],
)
@pytest.mark.parametrize("regime", [Regime.FULL, Regime.BLOCK_CAUSAL])
def test_bad_prompts(stock, regime, prompts, room, told):
    with pytest.raises(ValueError, match=told):
        Decoder(stock("Qwen2"), spec(regime)).prefill(prompts, room=room)


def test_a_full_model_has_no_reading(stock):
    with pytest.raises(ValueError, match="keeps nothing of a prompt"):
        Decoder(stock("Llama"), spec(Regime.FULL)).read([[1, 2]])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mask_id": 64}, "mask_id 64 is not of a vocabulary of 64 tokens"),
        ({"stop_id": 70}, "stop_id 70"),
        ({"vocab": 65}, "the network has 64 tokens, the spec says 65"),
    ],
)
def test_a_spec_of_another_vocabulary(stock, changes, told):
    said = {"vocab": 64, "mask_id": 63} | changes
    with pytest.raises(ValueError, match=told):
        Decoder(stock("Llama"), ModelSpec(Regime.FULL, **said))


def test_sliding_windows_are_refused(stock):
    network = stock("Qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    with pytest.raises(ValueError, match=r"sliding_attention.*use_sliding_window to false"):
        Decoder(network, spec(Regime.FULL))
