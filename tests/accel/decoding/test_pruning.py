"""Tokens of pictures that go are those that a mask would hide, and nothing else changes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.accel.decoding import (
    Confidence,
    Regime,
    SectionDiffusion,
    Sequential,
    Speculative,
    decode,
    rollouts,
)
from fastloop.accel.decoding.pruning import Pruned
from fastloop.accel.decoding.slots import SlotStore

KEEPING = [regime for regime in Regime if regime not in (Regime.FULL, Regime.CAUSAL)]
# Tokens from 18 on are of pictures.
PROMPTS = [
    [3, 18, 19, 20, 21, 18, 19, 2, 6, 9],
    [20, 20, 18, 19, 4, 1, 21, 19, 18, 21],  # the last is of a picture, but speaks of what follows
    [1, 2, 18, 19, 5, 20, 7, 8, 18, 9],
]


def driver(threshold=0.3):
    return SectionDiffusion(commit=Confidence(threshold))


def hiding(toy, layer, keep, **settings):
    """A model that keeps all and hides by masks, one row of a batch at a time."""

    class Hiding(toy.Model):
        def prefill(self, prompts, *, room):
            self.passes, self.left = 0, list(keep)
            self.pictures = [
                [i for i, token in enumerate(prompt[:-1]) if token >= 18] for prompt in prompts
            ]
            self.gone = [set() for _ in prompts]
            self.pending = None
            return super().prefill(prompts, room=room)

        def drop(self, weights):
            """Weights (B, H, Q, S) of the queries that ask."""
            share = self.left.pop(0)[1]
            for row, pictures in enumerate(self.pictures):
                score = weights[row].mean(0).sum(0)
                alive = [slot for slot in pictures if slot not in self.gone[row]]
                alive.sort(key=lambda slot: -float(score[slot]))
                self.gone[row].update(alive[math.ceil(share * len(pictures) - 1e-9) :])

        def run(self, ids, positions, mask, kv):
            prefilling = kv.length == 0
            self.passes += not prefilling
            if not prefilling and self.pending is not None:
                self.drop(self.pending)
                self.pending = None
            h, rotary = self.embed(ids), self.rotary(positions)
            mask = mask.expand(len(ids), -1, -1).clone()
            due = self.left and self.left[0][0] == self.passes
            rank = layer - 1 if layer else self.layers // 2
            for index in range(self.layers):
                if index == layer:
                    full = mask.clone()
                    for row, gone in enumerate(self.gone):
                        mask[row][:, sorted(gone)] = False
                    # What is gone is never looked at again: it may see what it likes.
                    nothing = ~mask.any(-1)
                    mask[nothing] = full[nothing]
                q, k, v = self.project(index, h, rotary)
                k, v = kv.append(index, k, v)
                k, v = (part.repeat_interleave(2, 1) for part in (k, v))
                score = (q @ k.transpose(-1, -2)).masked_fill(~mask[:, None], -torch.inf)
                weights = score.softmax(-1)
                h = self.finish(index, h, weights @ v)
                if due and index == rank:
                    if prefilling:
                        self.drop(weights[:, :, -1:])
                    else:
                        asking = ids == toy.MASK
                        asking = asking | ~asking.any(1, keepdim=True)
                        self.pending = weights * asking[:, None, :, None]
            return self.head(h)

    return Hiding(**settings)


def watched(model):
    """The logits of every pass, as they come."""
    said, forward = [], model.forward

    def spied(*args, **kwargs):
        said.append(forward(*args, **kwargs))
        return said[-1]

    model.forward = spied
    return said


def check_same(toy, regime, layer, keep, seed, commit, prompts=PROMPTS, layers=3):
    canvas = toy.canvas(seed, slots=12)
    settings = {"regime": regime, "seed": seed, "layers": layers}
    twin = hiding(toy, layer, keep, **settings)
    pruned = Pruned(toy.Model(**settings), layer=layer, keep=keep)
    expected_said, said = watched(twin), watched(pruned)
    expected = decode(twin, prompts, canvas, SectionDiffusion(commit=commit))
    decoded = decode(pruned, prompts, canvas, SectionDiffusion(commit=commit), debug=True)
    assert torch.equal(decoded.tokens, expected.tokens)
    assert decoded.forwards == expected.forwards
    for a, b in zip(said, expected_said, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    return twin, decoded, expected


SCHEDULES = [
    (1, ((0, 0.0),)), (2, ((0, 0.0),)), (1, ((0, 0.5),)), (2, ((0, 0.34),)),
    (0, ((1, 0.5),)), (0, ((2, 0.0),)), (1, ((3, 0.3),)), (3, ((0, 0.0),)),
    (0, ((1, 0.7), (3, 0.4), (4, 0.1))), (2, ((0, 0.8), (2, 0.4))),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "keep"), SCHEDULES)
@pytest.mark.parametrize("regime", KEEPING)
def test_gone_equals_hidden(toy, regime, layer, keep):
    twin, decoded, expected = check_same(toy, regime, layer, keep, 1, Sequential())
    assert any(twin.gone)  # the schedule has come to its end, and something went
    assert not twin.left
    if layer < 3:
        assert decoded.kv_bytes < expected.kv_bytes
    else:
        assert decoded.kv_bytes == expected.kv_bytes


@given(
    st.sampled_from(KEEPING), st.integers(0, 2), st.integers(0, 100),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 20)), min_size=1, max_size=3),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_gone_equals_hidden_whatever_the_schedule(toy, regime, layer, seed, points):
    passes = sorted({after for after, _ in points})
    shares = sorted((share / 20 for _, share in points), reverse=True)
    keep = tuple((after, share) for after, share in zip(passes, shares, strict=False))
    if layer == 0:
        keep = tuple((after, share) for after, share in keep if after)
    check_same(toy, regime, layer, keep, seed, Sequential())


@pytest.mark.parametrize(
    ("layer", "keep"),
    [(3, ((0, 0.0),)), (1, ((0, 1.0),)), (0, ((2, 1.0),)), (0, ((1000, 0.0),)), (2, ())],
)
@pytest.mark.parametrize("regime", KEEPING)
def test_what_prunes_nothing_is_the_model(toy, regime, layer, keep):
    for seed in range(2):
        model, canvas = toy.Model(regime, seed=seed), toy.canvas(seed, slots=16)
        pruned = Pruned(toy.Model(regime, seed=seed), layer=layer, keep=keep)
        expected_said, said = watched(model), watched(pruned)
        expected = decode(model, PROMPTS, canvas, driver())
        decoded = decode(pruned, PROMPTS, canvas, driver(), debug=True)
        assert torch.equal(decoded.tokens, expected.tokens)
        for a, b in zip(said, expected_said, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_withdrawn_pictures_are_computed_in_early_layers_only(toy):
    model = toy.Model(Regime.PREFIX_LM)
    widths, project = [], model.project

    def spied(layer, hidden, rotary):
        widths.append((layer, hidden.shape[1]))
        return project(layer, hidden, rotary)

    model.project = spied
    Pruned(model, layer=1, keep=((0, 0.0),)).prefill(PROMPTS[:1], room=8)
    assert widths == [(0, 10), (1, 4), (2, 4)]


def test_rows_do_not_depend_on_each_other(toy):
    canvas = toy.canvas(5, slots=12)
    for layer, keep in ((1, ((0, 0.5),)), (0, ((1, 0.6), (3, 0.2)))):
        pruned = Pruned(toy.Model(Regime.PREFIX_LM, seed=5), layer=layer, keep=keep)
        commit = SectionDiffusion(commit=Sequential())  # all rows take as many passes
        together = decode(pruned, PROMPTS, canvas, commit).tokens
        for prompt, tokens in zip(PROMPTS, together, strict=True):
            assert torch.equal(decode(pruned, [prompt], canvas, commit).tokens[0], tokens)


def test_pruned_before_it_branches(toy):
    canvas = toy.canvas(4)
    settings = {"seeds": range(3), "temperature": 0.7, "debug": True}
    for driver in (Speculative(), SectionDiffusion()):
        twin = hiding(toy, 1, [(0, 0.5)])
        pruned = Pruned(toy.Model(), layer=1, keep=((0, 0.5),))
        decoded = rollouts(pruned, PROMPTS[0], canvas, driver, **settings)
        run = twin.run

        def widened(ids, positions, mask, kv, run=run, twin=twin):
            twin.gone = twin.gone[:1] * len(ids)
            return run(ids, positions, mask, kv)

        twin.run = widened
        expected = rollouts(twin, PROMPTS[0], canvas, driver, **settings)
        assert torch.equal(decoded.tokens, expected.tokens)
        assert len({tuple(row) for row in decoded.tokens.tolist()}) > 1
    late = Pruned(toy.Model(), keep=((100, 0.5),))
    with pytest.raises(ValueError, match="prune before they branch"):
        rollouts(late, PROMPTS[0], canvas, SectionDiffusion(), seeds=[1, 2], temperature=1.0)


def test_lossless_drivers_agree_about_the_pruned_model(toy):
    canvas = toy.canvas(6)
    model = Pruned(toy.Model(seed=6), layer=2, keep=((0, 0.25),))
    decoded = decode(model, PROMPTS, canvas, Speculative(), debug=True)
    expected = decode(model, PROMPTS, canvas, Speculative(window=1), debug=True)
    assert torch.equal(decoded.tokens, expected.tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 4, "keep": ()}, "not of 0 to 3"),
        ({"layer": 0, "keep": ((0, 0.5),)}, "leave pictures out"),
        ({"layer": 1, "keep": ((2, 0.5), (1, 0.4))}, "passes rise"),
        ({"layer": 1, "keep": ((1, 0.5), (1, 0.4))}, "passes rise"),
        ({"layer": 1, "keep": ((1, 0.2), (2, 0.4))}, "shares fall"),
        ({"layer": 1, "keep": ((-1, 0.2),)}, "0 or more"),
        ({"layer": 1, "keep": ((1, 1.2),)}, "from 0 to 1"),
        ({"layer": 1, "keep": ((1, math.nan),)}, "from 0 to 1"),
    ],
)
def test_schedules_that_are_none(toy, options, message):
    with pytest.raises(ValueError, match=message):
        Pruned(toy.Model(), **options)


def test_models_and_caches_that_do_not_fit(toy):
    with pytest.raises(ValueError, match="keeps no prompt"):
        Pruned(toy.Model(Regime.FULL), layer=1, keep=((0, 0.5),))
    model, canvas = toy.Model(Regime.PREFIX_LM), toy.canvas(0)
    pruned = Pruned(model, layer=1, keep=((0, 0.5),))
    context = model.prefill([toy.prompt], room=len(canvas))
    with pytest.raises(ValueError, match="prefill with the model"):
        driver().decode(pruned, context, canvas)
    context = pruned.prefill([toy.prompt], room=len(canvas))
    context.kv = SlotStore(context.kv, 4)
    with pytest.raises(ValueError, match="choose a driver"):
        driver().decode(pruned, context, canvas)
