"""The stage that makes a model see all of its answer: mask, loss, what the decoder sees."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.model import ModelSpec, Regime
from fastloop.accel.decoding.passes import Passes, bidirectional
from fastloop.policies.vla.conversion import Objective, prefix_lm_loss, prefixed_pass
from fastloop.policies.vla.decoding import DecodingConfig, build_model
from fastloop.policies.vla.masks import prefixed
from fastloop.policies.vla.noise import complementary, masking_probability
from fastloop.policies.vla.prompt import Prompt
from fastloop.policies.vla.qwen25vl import Qwen25VL
from fastloop.policies.vla.samples import Sample, collate
from fastloop.policies.vla.training import StageConfig, stop_behind

IMAGE, STOP, MASK, VOCAB = 93, 97, 95, 128
OBJECTIVE = Objective(weights=(1.5, 3.0))
SECTION = [0, 0, 0, 0, 1, 1, 1, 1, 1]
GIVEN = [False, False, False, True, True, False, False, True, False]


def sample(seed, words, grids=(), slots=9):
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 90, (words,), generator=random)
    pictures = [torch.tensor([91] + t * h * w // 4 * [IMAGE] + [92]) for t, h, w in grids]
    grid = torch.tensor(grids, dtype=torch.int64).reshape(-1, 3)
    pixels = torch.randn(int(grid.prod(1).sum()), 1176, generator=random)
    canvas = Canvas(
        tokens=torch.randint(0, 90, (slots,), generator=random),
        given=torch.tensor(GIVEN[:slots]), block=torch.arange(slots) // 3,
        section=torch.tensor(SECTION[:slots]), kind=torch.zeros(slots, dtype=torch.int64),
        allowed=torch.ones(1, VOCAB, dtype=torch.bool), sections=("sees", "plans"),
    )  # fmt: skip
    return Sample(Prompt(torch.cat([ids[:2], *pictures, ids[2:]]), pixels, grid), canvas)


SAMPLES = [
    sample(1, 7, [(1, 4, 6)]),
    sample(2, 4, [(1, 2, 2), (1, 4, 4)]),
    sample(3, 9, slots=6),
]


@pytest.fixture(scope="module")
def network(tiny_network):
    return tiny_network()


@pytest.fixture
def spec(tiny_spec):
    return replace(tiny_spec, regime=Regime.PREFIX_LM)


def logits_alone(network, one, ids):
    """Logits (S, V) of one sample, placed and masked as transformers is told here."""
    prompt, row = one.prompt, ids[None]
    positions, _ = network.model.get_rope_index(
        row, mm_token_type_ids=(row == IMAGE).int(),
        image_grid_thw=prompt.grid if len(prompt.grid) else None,
    )  # fmt: skip
    pictures = {}
    if len(prompt.grid):
        pictures = {"pixel_values": prompt.pixels, "image_grid_thw": prompt.grid}
    mask = torch.ones(len(ids), len(ids), dtype=torch.bool)
    mask[: len(prompt.ids), len(prompt.ids) :] = False
    return network(
        input_ids=row, attention_mask=mask[None, None], position_ids=positions, **pictures
    ).logits[0]


def pass_by_pass(network, batch, generator, *, shift):
    """The loss as its definition says: each copy of each sample in a pass of its own."""
    free = torch.zeros_like(batch["given"])
    level = torch.zeros_like(batch["section"])
    p = masking_probability(level, level, ((1.0, 1.0),), generator=generator, eps=OBJECTIVE.eps)
    assert (p == p[:, :1]).all(), "one level for all of an answer"
    for row, one in enumerate(SAMPLES):
        free[row, : len(one.canvas)] = ~one.canvas.given
    masked = complementary(p, free=free, always=torch.zeros_like(free), generator=generator)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, one in enumerate(SAMPLES):
        first, slots = len(one.prompt.ids), len(one.canvas)
        count += slots
        for copy in range(2):
            hidden = masked[copy, row, :slots]
            ids = torch.cat([one.prompt.ids, one.canvas.tokens.masked_fill(hidden, MASK)])
            logits = logits_alone(network, one, ids)
            for slot in hidden.nonzero().flatten().tolist():
                error = cross_entropy(logits[first + slot - shift], one.canvas.tokens[slot])
                total = total + OBJECTIVE.weights[SECTION[slot]] * error
    return total / count


@pytest.mark.parametrize("shift", [1, 0])
def test_one_pass_is_all_passes_with_gradients(network, spec, assert_alike, shift):
    batch = collate(SAMPLES, model=network, stop_id=None)
    seeds = [torch.Generator().manual_seed(5) for _ in range(2)]
    told = replace(spec, logit_shift=shift)
    loss = prefix_lm_loss(network, batch, told, OBJECTIVE, generator=seeds[0])
    expected = pass_by_pass(network, batch, seeds[1], shift=shift)
    assert_alike(network, loss, expected)


@torch.no_grad()
def test_the_pass_is_what_the_decoder_sees_behind_prompts_of_several_lengths(network, spec):
    batch = collate(SAMPLES[:2], model=network, stop_id=None)
    masked = (~batch["given"])[None]
    drafted, read = prefixed_pass(network, batch, masked, MASK)
    model = Qwen25VL(network, spec)
    prompts = [one.prompt for one in SAMPLES[:2]]
    tokens = torch.stack([one.canvas.tokens for one in SAMPLES[:2]])
    passes = Passes(model, model.prefill(prompts, room=9))
    last = torch.tensor([len(prompt.ids) - 1 for prompt in prompts])
    torch.testing.assert_close(
        passes.context.logits, network.lm_head(read[torch.arange(2), last]), rtol=0, atol=1e-10
    )
    noisy = torch.where(masked[0], MASK, tokens)
    logits = passes.run("denoise", noisy, bidirectional(9, "cpu"))
    torch.testing.assert_close(logits, network.lm_head(drafted[0]), rtol=0, atol=1e-10)


@torch.no_grad()
def test_guidance_is_away_from_a_prompt_that_asks_and_shows_nothing(network, spec):
    model = Qwen25VL(network, spec)
    guided = build_model(DecodingConfig(driver="denoise", guidance=0.5), model)
    prompt = SAMPLES[0].prompt
    pictures = prompt.ids == IMAGE
    nothing = Prompt(torch.where(pictures, IMAGE, MASK), 0 * prompt.pixels, prompt.grid)
    asked, unasked = (model.prefill([one], room=9) for one in (prompt, nothing))
    context = guided.prefill([prompt], room=9)
    expected = asked.logits + 0.5 * (asked.logits - unasked.logits)
    torch.testing.assert_close(context.logits, expected, rtol=0, atol=1e-10)
    assert torch.equal(context.position, asked.position)


def test_who_sees_whom():
    answer = torch.tensor([[True, True, False]])
    prompt = torch.tensor([[True, True, False]])
    expected = [
        # first copy, second copy, prompt
        "110 000 110",
        "110 000 110",
        "111 000 110",
        "000 110 110",
        "000 110 110",
        "000 111 110",
        "000 000 110",
        "000 000 110",
        "000 000 111",
    ]
    told = [[c == "1" for c in row.replace(" ", "")] for row in expected]
    assert prefixed(answer, prompt, copies=2)[0].tolist() == told


def test_no_end_stands_behind_an_answer_that_is_seen_as_a_whole(spec):
    assert stop_behind(spec, StageConfig(stage="prefix_lm")) is None
    assert stop_behind(spec, StageConfig()) == STOP


def test_a_model_that_would_lose_its_pictures_is_refused(network):
    with pytest.raises(ValueError, match="regime full keeps no prompt"):
        Qwen25VL(network, ModelSpec(Regime.FULL, vocab=VOCAB, mask_id=MASK))
