"""Losses of conversion against the same losses written pass by pass, in float64, with pictures."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.passes import Passes, bidirectional, causal
from fastloop.accel.decoding.windows import blocks
from fastloop.policies.vla.conversion import (
    Objective,
    annealed_block_size,
    autoregressive_loss,
    block_diffusion_loss,
    doubled_pass,
)
from fastloop.policies.vla.masks import PADDING
from fastloop.policies.vla.noise import complementary, masking_probability
from fastloop.policies.vla.prompt import Prompt
from fastloop.policies.vla.qwen25vl import Qwen25VL
from fastloop.policies.vla.samples import Sample, collate

IMAGE, STOP, MASK, VOCAB = 93, 97, 95, 128
OBJECTIVE = Objective(
    noise=((1.0, 2.0), (2.0, 1.0)), weights=(1.5, 3.0), draft_weight=0.7, causal_weight=0.4
)
BLOCK = [0, 0, 0, 0, 1, 1, 1, 2, 2]
SECTION = [0, 0, 0, 0, 1, 1, 1, 1, 1]
GIVEN = [True, False, False, True, True, False, False, True, False]


def canvas(seed, slots=9):
    random = torch.Generator().manual_seed(seed)
    return Canvas(
        tokens=torch.randint(0, 90, (slots,), generator=random),
        given=torch.tensor(GIVEN[:slots]), block=torch.tensor(BLOCK[:slots]),
        section=torch.tensor(SECTION[:slots]), kind=torch.zeros(slots, dtype=torch.int64),
        allowed=torch.ones(1, VOCAB, dtype=torch.bool), sections=("sees", "plans"),
    )  # fmt: skip


def prompt(seed, words, grids=()):
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 90, (words,), generator=random)
    pictures = [torch.tensor([91] + t * h * w // 4 * [IMAGE] + [92]) for t, h, w in grids]
    grid = torch.tensor(grids, dtype=torch.int64).reshape(-1, 3)
    pixels = torch.randn(int(grid.prod(1).sum()), 1176, generator=random)
    return Prompt(torch.cat([ids[:2], *pictures, ids[2:]]), pixels, grid)


SAMPLES = [
    Sample(prompt(1, 7, [(1, 4, 6)]), canvas(1)),
    Sample(prompt(2, 4, [(1, 2, 2), (1, 4, 4)]), canvas(2)),
    Sample(prompt(3, 9), canvas(3, slots=6)),
]


@pytest.fixture(scope="module")
def network(tiny_network):
    return tiny_network()


def logits_alone(network, sample, ids, mask):
    """Logits (S, V) of one sample without padding, its pictures placed by transformers."""
    row = ids[None]
    if not hasattr(network, "get_image_features"):
        return network(input_ids=row, attention_mask=mask[None, None]).logits[0]
    positions, _ = network.model.get_rope_index(
        row, mm_token_type_ids=(row == IMAGE).int(),
        image_grid_thw=sample.prompt.grid if len(sample.prompt.grid) else None,
    )  # fmt: skip
    pictures = {}
    if len(sample.prompt.grid):
        pictures = {"pixel_values": sample.prompt.pixels, "image_grid_thw": sample.prompt.grid}
    return network(
        input_ids=row, attention_mask=mask[None, None], position_ids=positions, **pictures
    ).logits[0]


def pass_by_pass(network, samples, batch, objective, generator, *, shift=1):
    """The loss as its definition says: each block of each copy in a pass of its own."""
    answer = batch["answer"]
    real, at = answer >= 0, answer.clamp(min=0)
    tokens = batch["ids"].gather(1, at)
    block = torch.where(real, batch["block"].gather(1, at), PADDING)
    p = masking_probability(
        block, batch["section"], objective.noise, generator=generator, eps=objective.eps
    )
    masked = complementary(
        p, free=real & ~batch["given"], always=tokens == STOP, generator=generator
    )
    total = torch.zeros((), dtype=torch.float64)
    for row, sample in enumerate(samples):
        first = len(sample.prompt.ids)
        count = int(real[row].sum())
        ids = torch.cat([sample.prompt.ids, tokens[row, :count]])
        below = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        clean = logits_alone(network, sample, ids, below)
        told = cross_entropy(clean[first - 1 : -1], ids[first:], reduction="sum")
        total = total + objective.causal_weight * told
        for copy in range(2):
            for b in block[row, :count].unique():
                slots = [k for k in range(count) if block[row, k] == b]
                inside = torch.zeros(len(ids), dtype=torch.bool)
                inside[[first + k for k in slots]] = True
                noisy = ids.clone()
                for k in slots:
                    if masked[copy, row, k]:
                        noisy[first + k] = MASK
                stop = first + slots[-1] + 1
                mask = (below | (inside[:, None] & inside))[:stop, :stop]
                drafts = logits_alone(network, sample, noisy[:stop], mask)
                for k in slots[shift:]:
                    if masked[copy, row, k]:
                        error = cross_entropy(drafts[first + k - shift], tokens[row, k])
                        weight = objective.weights[int(batch["section"][row, k])]
                        total = total + objective.draft_weight * weight * error
    return total / real.sum()


@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("shift", [1, 0])
def test_one_pass_is_all_passes_with_gradients(network, tiny_spec, assert_alike, block_size, shift):
    batch = collate(SAMPLES, model=network, stop_id=STOP, block_size=block_size)
    spec = replace(tiny_spec, logit_shift=shift)
    loss = block_diffusion_loss(
        network, batch, spec, OBJECTIVE, generator=torch.Generator().manual_seed(5)
    )
    expected = pass_by_pass(
        network, SAMPLES, batch, OBJECTIVE, torch.Generator().manual_seed(5), shift=shift
    )
    assert_alike(network, loss, expected)


@torch.no_grad()
def test_the_doubled_pass_is_what_the_decoder_sees_from_its_cache(network, tiny_spec):
    """Each block is drafted at a glance, dropped, then read causally and kept."""
    sample = SAMPLES[1]
    batch = collate([sample], model=network, stop_id=None)
    masked = ~batch["given"][None]
    drafted, read = doubled_pass(network, batch, masked, MASK)
    model = Qwen25VL(network, tiny_spec)
    first, tokens = len(sample.prompt.ids), sample.canvas.tokens[None]
    context = model.prefill([sample.prompt], room=len(sample.canvas))
    passes = Passes(model, context)

    def same(logits, hidden):
        torch.testing.assert_close(logits, network.lm_head(hidden), rtol=0, atol=1e-10)

    same(context.logits, read[:, first - 1])
    for start, stop in blocks(sample.canvas):
        count = stop - start
        noisy = torch.where(masked[0], MASK, tokens)[:, start:stop]
        same(passes.run("draft", noisy, bidirectional(count, "cpu")), drafted[0, :, start:stop])
        passes.drop(count)
        logits = passes.run("keep", tokens[:, start:stop], causal(count, "cpu"))
        same(logits, read[:, first + start : first + stop])
        passes.keep(count, count, torch.tensor([count]))


@torch.no_grad()
def test_autoregressive_loss_is_the_models_own(network):
    batch = collate(SAMPLES, model=network, stop_id=STOP)
    count, total = 0, 0.0
    for sample in SAMPLES:
        ids = torch.cat([sample.prompt.ids, sample.canvas.tokens, torch.tensor([STOP])])
        below = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        labels = ids[len(sample.prompt.ids) :]
        told = logits_alone(network, sample, ids, below)[len(sample.prompt.ids) - 1 : -1]
        total += float(cross_entropy(told, labels, reduction="sum"))
        count += len(labels)
    assert float(autoregressive_loss(network, batch)) == pytest.approx(total / count, rel=1e-11)


@torch.no_grad()
def test_the_causal_half_is_the_autoregressive_loss(network, tiny_spec):
    batch = collate(SAMPLES, model=network, stop_id=STOP)
    only = replace(OBJECTIVE, draft_weight=0.0, causal_weight=1.0)
    both = block_diffusion_loss(network, batch, tiny_spec, only, generator=torch.Generator())
    assert float(both) == pytest.approx(float(autoregressive_loss(network, batch)), rel=1e-12)


@torch.no_grad()
def test_padding_and_company_change_nothing(network, tiny_spec):
    """Without noise to draw (everything masked) a batch is the weighted mean of its rows."""
    everything = replace(OBJECTIVE, eps=1.0)

    def loss(samples):
        batch = collate(samples, model=network, stop_id=STOP)
        value = block_diffusion_loss(
            network, batch, tiny_spec, everything, generator=torch.Generator()
        )
        return float(value), int((batch["answer"] >= 0).sum())

    alone = [loss([sample]) for sample in SAMPLES]
    together, count = loss(SAMPLES)
    assert count == sum(n for _, n in alone)
    assert together == pytest.approx(sum(v * n for v, n in alone) / count, rel=1e-11)


@torch.no_grad()
def test_pictures_matter(network, tiny_spec):
    batch = collate(SAMPLES[:1], model=network, stop_id=STOP)
    losses = [
        float(block_diffusion_loss(network, b, tiny_spec, OBJECTIVE, generator=torch.Generator()))
        for b in (batch, batch | {"pixel_values": batch["pixel_values"] + 1})
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


def test_a_text_only_model_is_trained_too(tiny_spec):
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attn_implementation="sdpa",
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(config).double()
    samples = [SAMPLES[2], Sample(prompt(4, 5), canvas(4))]
    batch = collate(samples, model=model, stop_id=STOP)
    assert batch["positions"].shape == batch["ids"].shape
    random = torch.Generator()
    loss = block_diffusion_loss(model, batch, tiny_spec, OBJECTIVE, generator=random.manual_seed(2))
    expected = pass_by_pass(model, samples, batch, OBJECTIVE, random.manual_seed(2))
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)


def test_blocks_grow_by_doubling_each_for_as_long():
    sizes = [annealed_block_size(k / 100, 32) for k in range(101)]
    assert sizes == [2] * 20 + [4] * 20 + [8] * 20 + [16] * 20 + [32] * 21
    assert [annealed_block_size(u, 8) for u in (0, 0.3, 0.34, 0.66, 0.67, 1)] == [2, 2, 4, 4, 8, 8]
    assert annealed_block_size(0.5, 2) == 2


@pytest.mark.parametrize("largest", [0, 1, 3, 24, -4])
def test_blocks_grow_to_a_power_of_two(largest):
    with pytest.raises(ValueError, match="power of two from 2 on"):
        annealed_block_size(0.0, largest)
