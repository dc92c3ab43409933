"""Guidance is two passes whose logits are mixed, in whatever way answers are decoded."""

import pytest
import torch

from fastloop.accel.decoding import Canvas, Gumbel, Regime, SectionDiffusion, decode
from fastloop.accel.decoding.commits import Confidence, Factor
from fastloop.accel.decoding.guidance import Guided

REGIMES = [Regime.FULL, Regime.PREFIX_LM, Regime.BLOCK_CAUSAL]


class Mixed:
    """The same by two separate models' worth of passes, one after the other."""

    def __init__(self, model, weight):
        self.model, self.spec, self.weight = model, model.spec, weight

    def prefill(self, prompts, *, room):
        context = self.model.prefill(prompts, room=room)
        self.length = len(prompts[0])
        masked = [[self.spec.mask_id] * self.length for _ in prompts]
        self.other = self.model.prefill(masked, room=room)
        context.logits = self.mix(context.logits, self.other.logits)
        return context

    def forward(self, ids, *, positions, mask, kv):
        drop = self.other.kv.length - kv.length
        self.other.kv.crop(max(0, drop))
        hidden = ids.clone()
        if self.spec.regime is Regime.FULL:
            hidden[:, : self.length] = self.spec.mask_id
        unasked = self.model.forward(hidden, positions=positions, mask=mask, kv=self.other.kv)
        asked = self.model.forward(ids, positions=positions, mask=mask, kv=kv)
        return self.mix(asked, unasked)

    def mix(self, asked, unasked):
        return unasked + (self.weight + 1) * (asked - unasked)


def driver(regime):
    return SectionDiffusion(commit=Confidence(0.4), seed=regime is Regime.BLOCK_CAUSAL)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("weight", [0.6, 2.0, -0.5])
def test_one_batch_equals_two_passes(toy, regime, weight):
    prompts = [toy.prompt, [8, 1, 3, 3, 19, 2, 0]]
    differs = 0
    for seed in range(3):
        model = toy.Model(regime, seed=seed)
        canvas = toy.canvas(seed)
        guided = decode(Guided(model, weight), prompts, canvas, driver(regime), debug=True)
        expected = decode(Mixed(model, weight), prompts, canvas, driver(regime))
        assert guided.tokens.tolist() == expected.tokens.tolist()
        assert guided.forwards == expected.forwards
        assert toy.MASK not in guided.tokens
        assert (guided.tokens[:, canvas.given] == canvas.tokens[canvas.given]).all()
        plain = decode(model, prompts, canvas, driver(regime))
        differs += not torch.equal(plain.tokens, guided.tokens)
    assert differs


@pytest.mark.parametrize("regime", REGIMES)
def test_weights_at_which_guidance_is_one_of_the_two(toy, regime):
    model, canvas = toy.Model(regime, seed=2), toy.canvas(2)
    masked = [toy.MASK] * len(toy.prompt)
    for weight, prompt in ((0.0, toy.prompt), (-1.0, masked)):
        guided = Guided(model, weight)
        context, plain = guided.prefill([toy.prompt], room=9), model.prefill([prompt], room=9)
        ids = torch.tensor([[3, toy.MASK, 7]])
        shown = ids if context.prompt is None else torch.cat([context.prompt, ids], 1)
        alone = ids if context.prompt is None else torch.cat([plain.prompt, ids], 1)
        new, seen = shown.shape[1], context.kv.length
        positions = torch.arange(len(prompt) + 3)[None, -new:]
        mask = torch.ones(1, new, seen + new, dtype=torch.bool)
        said = guided.forward(shown, positions=positions, mask=mask, kv=context.kv)
        expected = model.forward(alone, positions=positions, mask=mask, kv=plain.kv)
        torch.testing.assert_close(said[:, -3:], expected[:, -3:], rtol=0, atol=1e-12)
        torch.testing.assert_close(context.logits, plain.logits, rtol=0, atol=1e-12)
        a, b = (decode(m, [p], canvas, driver(regime)).tokens.tolist()
                for m, p in ((guided, toy.prompt), (model, prompt)))  # fmt: skip
        assert a == b


def test_rows_do_not_depend_on_each_other(toy):
    guided, canvas = (
        Guided(toy.Model(Regime.FULL, stop_id=3), 1.0),
        Canvas.free(18, 23, block_size=6),
    )
    prompts = [[row, 5, 9] for row in range(3)]
    many = SectionDiffusion(Gumbel(0.7, (1, 2, 3)), Factor(), truncate=True)
    together = decode(guided, prompts, canvas, many).tokens.tolist()
    for row, prompt in enumerate(prompts):
        one = SectionDiffusion(Gumbel(0.7, (row + 1,)), Factor(), truncate=True)
        assert decode(guided, [prompt], canvas, one).tokens[0].tolist() == together[row]


@pytest.mark.parametrize("regime", [Regime.CAUSAL, Regime.CAUSAL_CONTEXT])
def test_models_that_never_saw_a_masked_prompt_are_refused(toy, regime):
    with pytest.raises(ValueError, match="never trained"):
        Guided(toy.Model(regime), 1.0)


def test_a_null_prompt_has_to_fit(toy):
    longer = Guided(toy.Model(Regime.PREFIX_LM), 1.0, null=lambda prompt: [22] * len(prompt))
    longer.prefill([[1, 2, 3]], room=4)
    other = Guided(toy.Model(Regime.FULL), 1.0, null=lambda prompt: [5] * len(prompt))
    with pytest.raises(ValueError, match="something else"):
        other.prefill([[1, 2, 3]], room=4)


def test_part_of_a_prompt_may_be_hidden(toy):
    """The text stays, the picture goes."""
    model = toy.Model(Regime.FULL, seed=1)

    def null(prompt):
        return [22 if token >= 18 else token for token in prompt]

    canvas, prompt = toy.canvas(3), [3, 18, 19, 20, 4]
    unasked = decode(Guided(model, -1.0, null), [prompt], canvas, driver(Regime.FULL))
    expected = decode(model, [null(prompt)], canvas, driver(Regime.FULL))
    assert unasked.tokens.tolist() == expected.tokens.tolist()


def test_a_guided_model_is_another_one(toy):
    model = toy.Model(Regime.FULL)
    assert (
        len({model.spec.digest, Guided(model, 1.0).spec.digest, Guided(model, 2.0).spec.digest})
        == 3
    )
