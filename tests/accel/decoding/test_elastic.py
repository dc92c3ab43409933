"""What is kept until attention drifts: exact where nothing can be stale, else as in plain loops."""

from dataclasses import dataclass

import pytest
import torch

from fastloop.accel.decoding import (
    Canvas,
    Confidence,
    FixedCount,
    Regime,
    SectionDiffusion,
    Sequential,
    decode,
)
from fastloop.accel.decoding.commits import Commit
from fastloop.accel.decoding.drift import Drifting
from fastloop.accel.decoding.elastic import Elastic
from fastloop.accel.decoding.pruning import Pruned

COMMITS = [Confidence(0.0), Confidence(0.25), Confidence(0.9), FixedCount(2), Sequential()]
GAMMAS = [-2.0, 0.5, 0.9, 0.999, 2.0]


@dataclass(frozen=True)
class First(Commit):
    """A policy that sees the first open slots only, in plain loops."""

    policy: Commit
    count: int

    def __call__(self, logits, tokens, unwritten):
        first = torch.zeros_like(unwritten)
        for row, open_slots in enumerate(unwritten):
            first[row, open_slots.nonzero().flatten()[: self.count]] = True
        return self.policy(logits, tokens, first)

    def passes(self, values):
        return None


def whole(toy, seed, slots=18):
    """A canvas of one block."""
    canvas = toy.canvas(seed, slots=slots, given=0.2)
    block = torch.zeros_like(canvas.block)
    return Canvas(
        canvas.tokens, canvas.given, block, canvas.section, canvas.kind, canvas.allowed,
        canvas.sections,
    )  # fmt: skip


def baseline(commit, window):
    return SectionDiffusion(commit=First(commit, window))


REGIMES = [Regime.FULL, Regime.PREFIX_LM]


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("gamma", [-2.0, 0.9, 2.0])
@pytest.mark.parametrize("window", [1, 4, 16])
def test_one_layer_is_exact(toy, gamma, window, regime):
    for shift in (0, 1):
        model = toy.Model(regime, seed=window, layers=1, logit_shift=shift)
        prompts, canvas = [toy.prompt, toy.prompt[::-1]], whole(toy, shift, slots=12)
        for commit in COMMITS[1:3]:
            expected = decode(model, prompts, canvas, baseline(commit, window))
            driver = Elastic(commit=commit, gamma=gamma, window=window)
            decoded = decode(model, prompts, canvas, driver, debug=True)
            assert torch.equal(decoded.tokens, expected.tokens)
            assert decoded.forwards == expected.forwards


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("commit", COMMITS, ids=str)
@pytest.mark.parametrize("window", [1, 4, 16])
def test_all_read_anew_is_nothing_kept(toy, window, commit, regime):
    prompts = [toy.prompt, toy.prompt[::-1]]
    for shift, canvas in enumerate((whole(toy, 0, slots=12), toy.canvas(1, slots=12))):
        model = toy.Model(regime, seed=window, logit_shift=shift)
        expected = decode(model, prompts, canvas, baseline(commit, window))
        driver = Elastic(commit=commit, gamma=0.3, window=window, refresh=1)
        decoded = decode(model, prompts, canvas, driver, debug=True)
        assert torch.equal(decoded.tokens, expected.tokens)
        assert decoded.forwards == expected.forwards


def elastic_loops(model, ids, window, gamma, prompt=None, told=None):
    """One row, in plain loops over layers and slots; gives the tokens and layer-tokens.

    Writes the first open slot in each pass, over a vocabulary without the mask. A prompt's keys and
    values (one pair a layer) may go before, and the token that it says comes first.
    """
    ids, n = ids.clone(), len(ids)
    state, previous, work = None, None, 0
    ahead = prompt[0][0].shape[1] if prompt else 0

    def rotated(slots):
        return model.rotary(torch.tensor(slots)[None] + ahead)

    def behind(index, part, which):
        return torch.cat([prompt[index][which], part], 1) if prompt else part

    def weights(index, q, k):  # (H, Q, D), (Hk, N, D)
        keys = behind(index, k, 0).repeat_interleave(2, 0)
        return (q @ keys.transpose(-1, -2)).softmax(-1)

    while (ids == 22).any():
        open_slots = (ids == 22).nonzero().flatten().tolist()
        first = open_slots[:window]
        if state is None:
            asked, reset = list(range(n)), -1
            state = [{} for _ in range(model.layers)]
            for layer in state:
                layer["x"] = torch.zeros(n, 24, dtype=torch.float64)
        else:
            changed = (ids != previous).nonzero().flatten().tolist()
            before = [slot - 1 for slot in first if model.spec.logit_shift and slot]
            asked = sorted({*first, *changed, *before, *(layer["t"] for layer in state)})
            reset = model.layers
        rows = asked
        h = model.embed(ids[rows])[None]
        for index, layer in enumerate(state):
            if index == reset and len(rows) < n:
                layer["x"][rows] = h[0]
                h, rows = layer["x"][None], list(range(n))
            layer["x"] = layer["x"].clone()
            layer["x"][rows] = h[0]
            q, k, v = (part[0] for part in model.project(index, h, rotated(rows)))
            if "q" not in layer:
                layer.update(q=q, k=k, v=v)
            else:
                old = weights(index, layer["q"][:, [layer["t"]]], layer["k"])
                for name, part in (("q", q), ("k", k), ("v", v)):
                    layer[name] = layer[name].clone()
                    layer[name][:, rows] = part
                new = weights(index, layer["q"][:, [layer["t"]]], layer["k"])
                cosine = (old * new).sum(-1) / (old.norm(dim=-1) * new.norm(dim=-1))
                if index < reset and cosine.mean() < gamma:
                    reset = index + 1
            received = weights(index, layer["q"][:, first], layer["k"]).sum((0, 1))[ahead:]
            received[ids == 22] = -1
            layer["t"] = int(received.argmax())
            values = behind(index, layer["v"], 1).repeat_interleave(2, 0)
            mixed = weights(index, q, layer["k"]) @ values
            h = model.finish(index, h, mixed[None])
            work += len(rows)
        previous = ids.clone()
        speaks = first[0] - model.spec.logit_shift
        said = told if speaks < 0 else model.head(h)[0, rows.index(speaks)]
        ids[first[0]] = said[:22].argmax()
    return ids, work


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("window", [1, 4])
def test_what_is_stale_is_that_of_plain_loops(toy, gamma, window):
    differs, work = False, []
    for seed in range(3):
        model = toy.Model(Regime.FULL, seed=seed, logit_shift=seed % 2)
        canvas = Canvas.free(14, toy.VOCAB, block_size=14, banned=(toy.MASK,))
        driver = Elastic(commit=Sequential(), gamma=gamma, window=window)
        dense = decode(model, [toy.prompt], canvas, baseline(Sequential(), window))
        ids = torch.cat([torch.tensor(toy.prompt), torch.full((14,), toy.MASK)])
        expected, expected_work = elastic_loops(model, ids, window, gamma)
        decoded = decode(model, [toy.prompt], canvas, driver, debug=True)
        assert torch.equal(decoded.tokens[0], expected[len(toy.prompt) :])
        reader = Drifting(model, gamma, window, None)
        context = model.prefill([toy.prompt], room=14)
        context.kv.crop = lambda slots: None
        SectionDiffusion(commit=First(Sequential(), window)).decode(reader, context, canvas)
        assert reader.layer_tokens == expected_work
        work.append(expected_work)
        differs |= not torch.equal(decoded.tokens, dense.tokens)
    whole_work = 14 * 3 * (14 + len(toy.prompt))
    assert all(count < whole_work for count in work)
    assert differs  # so that the loops have something to say, for gamma above 1 too


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("window", [1, 4])
def test_what_is_stale_behind_an_exact_prompt_is_that_of_plain_loops(toy, gamma, window):
    differs, most = False, 0
    for seed in range(3):
        model = toy.Model(Regime.PREFIX_LM, seed=seed, logit_shift=seed % 2)
        canvas = Canvas.free(14, toy.VOCAB, block_size=14, banned=(toy.MASK,))
        context = model.prefill([toy.prompt], room=14)
        kept = [[part[0] for part in context.kv.read(layer)] for layer in range(model.layers)]
        ids = torch.full((14,), toy.MASK)
        expected, work = elastic_loops(model, ids, window, gamma, kept, context.logits[0])
        driver = Elastic(commit=Sequential(), gamma=gamma, window=window)
        decoded = decode(model, [toy.prompt], canvas, driver, debug=True)
        assert torch.equal(decoded.tokens[0], expected)
        assert decoded.tokens_fed == round(work / model.layers)
        dense = decode(model, [toy.prompt], canvas, baseline(Sequential(), window))
        differs |= not torch.equal(decoded.tokens, dense.tokens)
        most = max(most, decoded.tokens_fed)
    assert differs
    assert most < 14 * 14


def test_drift_reads_more(toy):
    model, canvas = toy.Model(Regime.FULL, seed=2), whole(toy, 2)
    work = {}
    for gamma in (0.0, 0.9, 2.0):
        reader = Drifting(model, gamma, 4, None)
        context = model.prefill([toy.prompt], room=len(canvas))
        context.kv.crop = lambda slots: None
        SectionDiffusion(commit=First(Sequential(), 4)).decode(reader, context, canvas)
        passes = canvas.values
        work[gamma] = reader.layer_tokens
        if gamma == 0.0:
            assert reader.host_syncs == passes - 1  # only how many tokens are asked for
    assert work[0.0] < work[0.9] < work[2.0] < passes * 3 * (len(canvas) + len(toy.prompt))


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
def test_rows_do_not_depend_on_each_other(toy, gamma, regime):
    for seed in range(2):
        model, canvas = toy.Model(regime, seed=seed), whole(toy, seed)
        prompts = [toy.prompt, toy.prompt[::-1], [4] * len(toy.prompt)]
        driver = Elastic(commit=Sequential(), gamma=gamma, window=3)
        together = decode(model, prompts, canvas, driver).tokens
        for prompt, tokens in zip(prompts, together, strict=True):
            assert torch.equal(decode(model, [prompt], canvas, driver).tokens[0], tokens)


def test_books(toy):
    model, canvas = toy.Model(Regime.FULL), whole(toy, 0)
    decoded = decode(model, [toy.prompt], canvas, Elastic(commit=Sequential()))
    width = 24 + (model.heads + 2 * model.kv_heads) * model.width
    assert decoded.kv_bytes == 3 * (len(canvas) + len(toy.prompt)) * width * 8
    assert decoded.name == "elastic_cache"
    assert decoded.forwards["denoise"] == canvas.values


def test_refusals(toy):
    for options in ({"window": 0}, {"refresh": 0}):
        with pytest.raises(ValueError, match="1 or more"):
            Elastic(**options)
    for options in ({"seed": True}, {"truncate": True}):
        with pytest.raises(ValueError, match="leave seed and truncate"):
            Elastic(**options)
    for regime in (Regime.CAUSAL_CONTEXT, Regime.BLOCK_CAUSAL):
        with pytest.raises(ValueError, match="elastic_cache cannot be right"):
            decode(toy.Model(regime), [toy.prompt], toy.canvas(0), Elastic())
    pruned = Pruned(toy.Model(Regime.PREFIX_LM), layer=1, keep=())
    context = pruned.prefill([toy.prompt], room=24)
    with pytest.raises(ValueError, match="Pruned is not passed through"):
        Elastic().decode(pruned, context, toy.canvas(0))
