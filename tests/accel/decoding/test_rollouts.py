"""Branches: decided once, then sampled abreast, each as if it were alone."""

from dataclasses import replace

import pytest
import torch

from fastloop.accel.decoding import (
    Autoregressive,
    Canvas,
    Confidence,
    Exactness,
    Greedy,
    Gumbel,
    Regime,
    SectionDiffusion,
    Speculative,
    compose,
    decode,
    replay,
    rollouts,
)
from fastloop.accel.decoding.rollouts import section_start

DRIVERS = [
    Autoregressive(),
    Autoregressive(jump_forward=True),
    Speculative(),
    Speculative(window=6),
]


@pytest.mark.parametrize("driver", [*DRIVERS, SectionDiffusion()], ids=lambda d: d.name)
def test_branches_equal_runs_of_their_own(toy, driver):
    model, canvas = toy.Model(), toy.canvas(6, slots=40)
    seeds, temperature = (7, 8, 9, 10), 1.0

    def run(seeds):
        return rollouts(
            model, toy.prompt, canvas, driver, seeds=seeds, temperature=temperature, debug=True
        )

    together = run(seeds)
    alone = [run((seed,)) for seed in seeds]
    assert together.tokens.tolist() == [one.tokens[0].tolist() for one in alone]
    assert len({tuple(row) for row in together.tokens.tolist()}) > 2
    start = section_start(canvas)
    assert len({tuple(row[:start]) for row in together.tokens.tolist()}) == 1
    assert together.report().forked == 4
    assert together.values == canvas.values
    assert together.forwards["prefill"] == 1
    after_the_prompt = model.calls[: together.network_evaluations - 1]  # those of the first run
    assert together.tokens_fed == sum(after_the_prompt)


@pytest.mark.parametrize("window", [None, 6])
def test_one_row_drafts_for_all_branches(toy, window):
    model, canvas = toy.Model(), toy.canvas(6, slots=40)
    seen, forward = [], model.forward

    def counted(ids, *, positions, mask, kv):
        seen.append((len(ids), bool(((ids == toy.MASK) & (positions >= 0)).any())))
        return forward(ids, positions=positions, mask=mask, kv=kv)

    model.forward = counted
    driver = Speculative(window=window)
    decoded = rollouts(model, toy.prompt, canvas, driver, seeds=range(5), temperature=1.0)
    masked = [rows for rows, masks in seen if masks]
    assert set(masked) == {1}
    assert len(masked) <= decoded.forwards["draft"]
    assert {rows for rows, _ in seen} == {1, 5}


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: f"{d}"[:40])
def test_branches_sample_as_token_by_token(toy, driver):
    """The head is greedy, the rest is constrained sampling under the same noise."""
    model, canvas = toy.Model(seed=2), toy.canvas(6, slots=40)
    start, seeds = section_start(canvas), (3, 4, 5)
    decoded = rollouts(model, toy.prompt, canvas, driver, seeds=seeds, temperature=0.8)
    head = toy.reference(model, toy.prompt, canvas.part(0, start)).tolist()
    for row, seed in enumerate(seeds):
        tail = toy.reference(model, toy.prompt + head, canvas.part(start, 40), Gumbel(0.8, (seed,)))
        assert decoded.tokens[row].tolist() == head + tail.tolist()


@pytest.mark.parametrize("driver", [*DRIVERS, SectionDiffusion()], ids=lambda d: f"{d}"[:40])
def test_branches_from_the_first_slot_on(toy, driver):
    """Nothing is decided before they branch."""
    model, canvas = toy.Model(), Canvas.free(20, toy.VOCAB, block_size=8)
    decoded = rollouts(model, toy.prompt, canvas, driver, seeds=(1, 2), temperature=1.0)
    for row, seed in enumerate((1, 2)):
        alone = decode(model, [toy.prompt], canvas, replace(driver, choice=Gumbel(1.0, (seed,))))
        assert torch.equal(decoded.tokens[row], alone.tokens[0])


@pytest.mark.parametrize("driver", [*DRIVERS, SectionDiffusion()], ids=lambda d: f"{d}"[:40])
def test_one_cold_branch_is_the_plain_answer(toy, driver):
    model, canvas = toy.Model(), toy.canvas(6, slots=40)
    if isinstance(driver, SectionDiffusion):  # whose blocks must not be cut
        canvas = replace(canvas, block=canvas.block + canvas.section)
    one = rollouts(model, toy.prompt, canvas, driver, seeds=(1,), temperature=0.0)
    plain = decode(model, [toy.prompt], canvas, driver)
    assert one.tokens.tolist() == plain.tokens.tolist()


@pytest.mark.parametrize("regime", [Regime.BLOCK_CAUSAL, Regime.CAUSAL_CONTEXT])
def test_branches_can_be_played_again(toy, regime):
    """The step maps of what was shared and of what was not are one map of all blocks."""
    model, canvas = toy.Model(regime, seed=4), toy.canvas(6, slots=40)
    canvas = replace(canvas, block=canvas.block + canvas.section)  # no block is cut
    driver = SectionDiffusion(commit=Confidence(0.4))
    decoded = rollouts(model, toy.prompt, canvas, driver, seeds=(1, 2), temperature=0.0)
    plain = decode(model, [toy.prompt], canvas, driver)
    assert torch.equal(decoded.step_map, plain.step_map.expand(2, -1))
    assert torch.equal(decoded.written, plain.written.expand(2, -1))
    told = replay(model, [toy.prompt], canvas, plain)
    again = replay(model, [toy.prompt] * 2, canvas, decoded)
    torch.testing.assert_close(again, told.expand(2, -1, -1), rtol=0, atol=1e-12)
    assert decoded.after(replace(plain, step_map=None, written=None)).step_map is None


def test_the_base_is_left_as_it_was(toy):
    model, canvas = toy.Model(), toy.canvas(2, slots=30)
    context = model.prefill([toy.prompt], room=60)
    Speculative().decode(model, context, canvas)
    before = [part.clone() for part in (*context.kv.read(1), context.visible, context.logits)]
    branches = context.fork(3)
    Speculative(Gumbel(2.0, (1, 2, 3))).decode(model, branches, canvas, debug=True)
    after = [*context.kv.read(1), context.visible, context.logits]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert context.kv.length == len(toy.prompt) + 30
    assert branches.kv.length > context.kv.length + 30  # rows were not abreast
    again = Speculative().decode(model, context, canvas, debug=True)
    fresh = model.prefill([toy.prompt], room=60)
    Speculative().decode(model, fresh, canvas)
    assert torch.equal(again.tokens, Speculative().decode(model, fresh, canvas).tokens)


def test_memory_of_branches(toy):
    """The prefix once, and each branch its own slots."""
    model, canvas = toy.Model(), toy.canvas(6, slots=40)
    start, rows = section_start(canvas), 5
    one_slot = 2 * 8 * model.layers * model.kv_heads * model.width
    decoded = rollouts(
        model, toy.prompt, canvas, Autoregressive(), seeds=range(rows), temperature=1.0
    )
    shared = len(toy.prompt) + start
    read = 40 - start - 1  # nobody reads on from the last token
    assert decoded.kv_bytes == one_slot * (shared + rows * read)


def test_memory_of_the_row_that_drafts(toy):
    model, canvas = toy.Model(), toy.canvas(2, slots=30)
    one_slot = 2 * 8 * model.layers * model.kv_heads * model.width
    branches = model.prefill([toy.prompt], room=60).fork(3)
    decoded = Speculative(Gumbel(2.0, (1, 2, 3))).decode(model, branches, canvas)
    drafted, rest = divmod(decoded.kv_bytes - branches.kv.bytes, one_slot)
    assert rest == 0
    assert 0 < drafted <= 30
    alone = model.prefill([toy.prompt], room=60)
    assert Speculative().decode(model, alone, canvas).kv_bytes == alone.kv.bytes


def test_where_branches_begin(toy):
    canvas = toy.canvas(6, slots=40)
    given = torch.zeros(40, dtype=torch.bool)
    given[18:26] = True
    block = torch.tensor([0] * 10 + [1] * 13 + [2] * 17)
    parts = (canvas.section, canvas.kind, canvas.allowed, canvas.sections)
    late = type(canvas)(canvas.tokens, given, block, *parts)
    assert section_start(late) == 23
    early = type(canvas)(canvas.tokens, given, block.clamp(max=1), *parts)
    assert section_start(early) == section_start(early, "section 1") == 20
    assert section_start(late, "section 0") == 0
    with pytest.raises(ValueError, match=r"no section 'x'; the canvas has \['section 0'"):
        section_start(late, "x")
    with pytest.raises(ValueError, match="nothing is to be filled in section 'section 1'"):
        section_start(type(canvas)(canvas.tokens, given | True, block, *parts))


@pytest.mark.parametrize("regime", Regime)
def test_what_composes(toy, regime):
    model = toy.Model(regime)
    causal = regime in (Regime.CAUSAL, Regime.CAUSAL_CONTEXT)
    for driver in DRIVERS:
        if causal:
            assert compose(model, driver) is Exactness.LOSSLESS
        else:
            with pytest.raises(ValueError, match=f"cannot be right on a {regime.value} model"):
                compose(model, driver)
            with pytest.raises(ValueError, match="cannot be right"):
                decode(toy.Model(regime), [toy.prompt], toy.canvas(1), driver)
    if regime is Regime.CAUSAL:
        with pytest.raises(ValueError, match="never trained to fill masks"):
            compose(model, SectionDiffusion())
    else:
        assert compose(model, SectionDiffusion()) is Exactness.EXACT_KV
    if regime in (Regime.FULL, Regime.PREFIX_LM):
        with pytest.raises(ValueError, match="nothing of an answer is kept"):
            rollouts(
                toy.Model(regime), toy.prompt, toy.canvas(1), SectionDiffusion(),
                seeds=(1,), temperature=1.0,
            )  # fmt: skip


def test_logits_that_speak_of_their_own_slot_verify_nothing(toy):
    model = toy.Model(logit_shift=0)
    with pytest.raises(ValueError, match="logit_shift 1"):
        compose(model, Speculative())
    with pytest.raises(ValueError, match="logit_shift 1"):
        compose(model, SectionDiffusion(seed=True))
    with pytest.raises(ValueError, match="not 2"):
        compose(toy.Model(logit_shift=2), Autoregressive())


def test_bad_orders_are_refused(toy):
    with pytest.raises(ValueError, match="at least one seed"):
        rollouts(toy.Model(), toy.prompt, toy.canvas(1), Speculative(), seeds=(), temperature=1.0)
    with pytest.raises(ValueError, match="at least one slot"):
        Speculative(Greedy(), window=0)


def test_a_slot_kept_from_another_token_is_seen(toy):
    """The check that every other test runs under."""
    model, canvas = toy.Model(), toy.canvas(2)
    context = model.prefill([toy.prompt], room=len(canvas))
    run = model.forward

    def altered(ids, **rest):
        logits = run(ids, **rest)
        if context.kv.written is not None and context.kv.length == 12:
            context.kv.written[:, 9] += 1
        return logits

    model.forward = altered
    with pytest.raises(RuntimeError, match="row 0: keys and values were kept of tokens"):
        Autoregressive().decode(model, context, canvas, debug=True)
