"""Denoising over keys that are kept: against a plain simulation, and where it has to be exact."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.accel.decoding import (
    Canvas,
    Confidence,
    EntropyBound,
    FixedCount,
    Regime,
    SectionDiffusion,
    Sequential,
    compose,
)
from fastloop.accel.decoding.cached import CachedDiffusion
from fastloop.accel.decoding.caches import (
    DKVDecode,
    DKVGreedy,
    DualCache,
    NoCache,
    PrefixCache,
    VicinityCache,
    WindowDiffusion,
)
from fastloop.accel.decoding.commits import (
    BlockFilter,
    Calibration,
    Credit,
    Hierarchy,
    Learned,
    Shifted,
)
from fastloop.accel.decoding.guidance import Guided
from fastloop.accel.decoding.scheduling import BlockWindow, SlidingWindow
from fastloop.accel.decoding.windows import blocks

REGIMES = [Regime.FULL, Regime.PREFIX_LM]
CACHES = [
    NoCache(), PrefixCache(), PrefixCache(2), DualCache(), DualCache(1), DKVDecode(2), DKVDecode(5),
    DKVGreedy(2), DKVGreedy(5, 3, seed=4), DKVGreedy(3, 0), WindowDiffusion(3, 6, 4),
    WindowDiffusion(2, 30, 3), VicinityCache(2, 3, 2), VicinityCache(0, 0, 0, 3),
]  # fmt: skip
WINDOWS = [BlockWindow(), SlidingWindow(4, 9, 5)]
COMMITS = [
    Confidence(0.0), Confidence(0.6), Confidence(1.1), FixedCount(3), EntropyBound(0.5),
    Sequential(), Shifted(0.5, 0.6), Credit(), Hierarchy(0.4, 0.1),
]  # fmt: skip


def decode(model, prompts, canvas, driver, debug=False):
    context = model.prefill(prompts, room=len(canvas))
    return driver.decode(model, context, canvas, continued=False, debug=debug)


class Held:
    """Keys by layer and slot in a dictionary; nothing in common with the store under test."""

    def __init__(self):
        self.pairs = {}

    def append(self, layer, keys, values):
        for i, slot in enumerate(self.queried):
            self.pairs[layer, slot] = keys[:, :, i], values[:, :, i]
        pairs = [self.pairs[layer, slot] for slot in self.seen]
        return tuple(torch.stack(part, 2) for part in zip(*pairs, strict=True))


def wanted(cache, now):
    """What a pass queries and sees, and what may be written, in sets of slots, as papers say."""
    everything, open_, region = now.everything, now.open, set(now.region)
    hull = range(now.start, max(region) + 1)

    def around(before, after):
        return {s for s in everything if hull.start - before <= s < hull.stop + after}

    match cache:
        case NoCache():
            return everything, everything, region
        case PrefixCache(delay):
            return (around(delay, 10**6) if now.since else everything), everything, region
        case DualCache(delay):
            return (around(delay, delay) if now.since else everything), everything, region
        case DKVDecode(refresh):
            if now.since <= 1 or now.since % refresh == 0:
                return everything, everything, region
            settled = everything - open_ - now.wrote[-1]
            return everything - settled, everything, region
        case DKVGreedy(refresh, neighbors, _):
            order = cache.order(max(everything) + 1 - now.length).tolist()
            slot = max(region & open_, key=lambda s: order[s - now.length])
            left = sorted((s for s in open_ if s < slot), reverse=True)
            right = sorted(s for s in open_ if s > slot)
            near = set()
            while len(near) < neighbors and left + right:
                if left:
                    near.add(left.pop(0))
                if right and len(near) < neighbors:
                    near.add(right.pop(0))
            some = {slot} | near | (now.wrote[-1] if now.wrote else set())
            return (some if now.since % refresh else everything), everything, {slot}
        case WindowDiffusion(active, buffer, refresh):
            phase, masks = now.time % refresh, sorted(open_)
            if not phase:
                return everything, everything, region
            late = set().union(*now.wrote[-phase:])
            near = set(masks[:active])
            return near | late, everything - set(masks[buffer:]), near & region
        case VicinityCache(before, after, warmup, refresh):
            fresh = now.time < warmup or not now.since or (refresh and not now.since % refresh)
            return (everything if fresh else around(before, after)), everything, region


def simulated(model, prompt, canvas, commit, cache, window, kept=True):
    """One row, slot by slot; with `kept` False all is read in each pass and only seen as said.

    Gives tokens and how many slots were read in each pass.
    """
    spec, length = model.spec, len(prompt)
    allowed = canvas.allowed.clone()
    allowed[:, model.spec.mask_id] = False
    canvas = Canvas(**{**vars(canvas), "allowed": allowed}).settled(keep=spec.stop_ids)
    ids = torch.cat([torch.tensor(prompt), canvas.tokens.masked_fill(~canvas.given, spec.mask_id)])
    held, whole = Held(), set(range(len(ids)))
    now = SimpleNamespace(length=length, time=0, since=0, start=0, wrote=[], everything=whole)
    told = None
    if spec.regime is Regime.PREFIX_LM:
        now.everything = whole - set(range(length))
        held.queried = held.seen = range(length)
        at = torch.arange(length)[None]
        told = model.run(ids[None, :length], at, torch.ones(1, 1, length) > 0, held)[0, -1]
    edges = [(a + length, b + length) for a, b in blocks(canvas)]
    if isinstance(window, SlidingWindow):
        edges = [(length, len(ids))]
    reads, total = [], 0
    for begin, end in edges:
        masks = [s for s in range(begin, end) if ids[s] == spec.mask_id]
        deciding, previous, epoch = commit.begin(len(masks)), None, None
        while masks := [s for s in range(begin, end) if ids[s] == spec.mask_id]:
            now.open = {s for s in whole if ids[s] == spec.mask_id}
            now.region, fresh = range(begin, end), previous is None
            if isinstance(window, SlidingWindow):
                within = [
                    s for s in range(masks[0], min(masks[0] + window.slots, end))
                    if sum(m <= s for m in masks) <= window.masks
                ]  # fmt: skip
                now.region = range(masks[0], within[-1] + 1)
                fresh, epoch = fresh or total // window.renew != epoch, total // window.renew
            now.since = 0 if fresh else now.since + 1
            now.start = now.region.start if fresh else previous
            previous = now.region.start
            queried, seen, writable = wanted(cache, now)
            writable = writable & now.open
            queried = queried | {s - spec.logit_shift for s in writable} & now.everything
            held.seen = sorted(seen | queried | (whole - now.everything))
            held.queried = sorted(queried if kept else now.everything)
            reads.append(len(held.queried))
            at = torch.tensor(held.queried)[None]
            mask = torch.ones(1, 1, len(held.seen)) > 0
            logits = model.run(ids[at], at, mask, held)[0]
            rows = [s - spec.logit_shift for s in range(begin, end)]
            here = torch.stack([
                logits[held.queried.index(r)] if r in held.queried
                else told if r == length - 1 and told is not None else torch.zeros_like(logits[0])
                for r in rows
            ])  # fmt: skip
            kind = canvas.kind[begin - length : end - length]
            here = here.masked_fill(~allowed[kind], -torch.inf)[None]
            free = torch.tensor([[s in writable for s in range(begin, end)]])
            here = deciding.heard(here, free)
            tokens = here.argmax(-1)
            write = deciding(here, tokens, free)[0]
            ids[begin:end] = torch.where(write, tokens[0], ids[begin:end])
            now.wrote.append({begin + i for i in write.nonzero().flatten().tolist()})
            now.time, total = now.time + 1, total + int(write.sum())
    return ids[length:].tolist(), reads


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("number", range(len(CACHES)), ids=lambda i: str(CACHES[i]))
def test_equals_the_simulation(toy, number, window):
    """Three layers: every key is as stale as it has to be, no less and no more."""
    cache = CACHES[number]
    for seed, commit in enumerate((COMMITS[number % len(COMMITS)], FixedCount(1)), number):
        model = toy.Model(REGIMES[seed % 2], seed=seed, logit_shift=seed // 2 % 2)
        canvas = toy.canvas(seed, slots=16, given=0.1)
        driver = CachedDiffusion(commit=commit, cache=cache, window=window)
        expected, reads = simulated(model, toy.prompt, canvas, commit, cache, window)
        model.calls.clear()
        decoded = decode(model, [toy.prompt], canvas, driver, debug=True)
        assert decoded.tokens[0].tolist() == expected
        assert model.calls == reads
        assert decoded.forwards["denoise"] == len(reads)
        assert decoded.host_syncs == len(reads) + 1


@pytest.mark.parametrize("cache", CACHES[1:], ids=str)
def test_caches_change_answers(toy, cache):
    """Otherwise the test above would compare one thing with itself."""
    model, canvas = toy.Model(Regime.FULL, seed=4), toy.canvas(4, slots=24, given=0.0)
    drivers = (CachedDiffusion(commit=FixedCount(1), cache=some) for some in (NoCache(), cache))
    plain, kept = (decode(model, [toy.prompt], canvas, driver).tokens for driver in drivers)
    assert not torch.equal(plain, kept)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("number", range(len(CACHES)), ids=lambda i: str(CACHES[i]))
def test_one_layer_is_exact(toy, number, window):
    """A key of the first layer depends on its own token only, so none can be stale."""
    cache = CACHES[number]
    for seed, commit in enumerate((COMMITS[-number % len(COMMITS)], FixedCount(1)), number):
        model = toy.Model(REGIMES[seed % 2], seed=seed, layers=1, logit_shift=seed // 2 % 2)
        canvas = toy.canvas(seed + 50, slots=16, given=0.1)
        driver = CachedDiffusion(commit=commit, cache=cache, window=window)
        decoded = decode(model, [toy.prompt], canvas, driver, debug=True)
        if isinstance(cache, DKVGreedy | WindowDiffusion):  # they say what may be written, too
            exact, _ = simulated(model, toy.prompt, canvas, commit, cache, window, kept=False)
        else:
            plain = CachedDiffusion(commit=commit, window=window)
            exact = decode(model, [toy.prompt], canvas, plain).tokens[0].tolist()
        assert decoded.tokens[0].tolist() == exact


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("commit", COMMITS, ids=str)
def test_nothing_kept_is_section_diffusion(toy, commit, regime):
    for seed in range(3):
        model = toy.Model(regime, seed=seed, logit_shift=seed % 2)
        canvas, prompts = toy.canvas(seed), [toy.prompt, toy.prompt[::-1]]
        plain = decode(model, prompts, canvas, SectionDiffusion(commit=commit))
        decoded = decode(model, prompts, canvas, CachedDiffusion(commit=commit), debug=True)
        assert decoded.tokens.tolist() == plain.tokens.tolist()
        assert decoded.forwards == plain.forwards
        assert decoded.exactness is plain.exactness


@pytest.mark.parametrize(
    "cache",
    [
        DKVDecode(1), WindowDiffusion(1, 1, refresh=1), VicinityCache(30, 40, 0),
        VicinityCache(0, 0, warmup=10**6), VicinityCache(0, 0, 0, refresh=1), PrefixCache(40),
        DualCache(40), WindowDiffusion(24, 24, 1),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_at_its_end_a_parameter_keeps_nothing(toy, cache, window):
    for seed, commit in enumerate(COMMITS[1:4]):
        model = toy.Model(REGIMES[seed % 2], seed=seed)
        canvas = toy.canvas(seed, slots=16)
        results = [
            decode(
                model, [toy.prompt], canvas,
                CachedDiffusion(commit=commit, cache=kind, window=window),
            ) for kind in (NoCache(), cache)
        ]  # fmt: skip
        assert results[0].tokens.tolist() == results[1].tokens.tolist()
        assert results[0].forwards == results[1].forwards


def test_vicinity_of_nothing_is_dual(toy):
    model, canvas = toy.Model(Regime.FULL), Canvas.free(24, toy.VOCAB, block_size=8)
    fed = []
    for cache in (DualCache(), VicinityCache(0, 0, warmup=0)):
        model.calls.clear()
        decode(model, [toy.prompt], canvas, CachedDiffusion(cache=cache))
        fed.append(model.calls.copy())
    assert fed[0] == fed[1]


def test_windows_at_their_ends(toy):
    """One open slot at a time is left to right; room for all is one block."""
    model, slots = toy.Model(Regime.FULL, seed=3), 20
    canvas = toy.canvas(5, slots=slots)
    whole = Canvas(**{**vars(canvas), "block": torch.zeros(slots, dtype=torch.int64)})
    for commit in COMMITS[:3]:
        narrow, wide = (
            CachedDiffusion(commit=commit, window=SlidingWindow(size, slots)) for size in (1, slots)
        )
        ordered = CachedDiffusion(commit=Sequential(), window=SlidingWindow(slots, slots))
        block = decode(model, [toy.prompt], whole, CachedDiffusion(commit=commit))
        assert decode(model, [toy.prompt], canvas, wide).tokens.tolist() == block.tokens.tolist()
        left = decode(model, [toy.prompt], canvas, ordered)
        assert decode(model, [toy.prompt], canvas, narrow).tokens.tolist() == left.tokens.tolist()
        assert left.tokens.tolist() != block.tokens.tolist()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    slots=st.integers(1, 24),
    share=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    commit=st.sampled_from(COMMITS),
    cache=st.sampled_from(CACHES),
    window=st.sampled_from(WINDOWS),
    regime=st.sampled_from(REGIMES),
    rows=st.integers(1, 3),
    stops=st.booleans(),
)
def test_any_canvas(toy, seed, slots, share, commit, cache, window, regime, rows, stops):
    """Rows do not depend on each other, what was given stands, no mask is left."""
    stop = 5 if stops else None
    model = toy.Model(regime, seed=seed % 5, logit_shift=seed % 2, stop_id=stop)
    canvas = toy.canvas(seed, slots=slots, given=share)
    if isinstance(commit, Shifted):
        rows = 1  # its passes are counted for all rows together
    driver = CachedDiffusion(commit=commit, cache=cache, window=window)
    prompts = [[seed % 21, row, 6] for row in range(rows)]
    decoded = decode(model, prompts, canvas, driver, debug=True)
    for row, prompt in enumerate(prompts):
        alone = decode(model, [prompt], canvas, driver, debug=True)
        tokens = decoded.tokens[row]
        assert tokens.tolist() == alone.tokens[0].tolist()
        values = torch.where(canvas.given, torch.full_like(tokens, -1), tokens)
        ended = ((values == 5) & stops).int().cumsum(0) > 0
        assert (tokens[canvas.given & ~ended] == canvas.tokens[canvas.given & ~ended]).all()
        assert (tokens != toy.MASK).all()
        assert canvas.allowed[canvas.kind, tokens][~canvas.given & ~ended].all()


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_rows_wait_for_each_other(toy, cache):
    """And nothing comes of it, though they take different numbers of passes."""
    model, canvas = toy.Model(Regime.FULL, seed=3), Canvas.free(20, toy.VOCAB, block_size=5)
    driver = CachedDiffusion(commit=Confidence(0.9), cache=cache)
    prompts = [[3, 1, 4], [1, 5, 9], [2, 6, 5], [8, 8, 8]]
    together = decode(model, prompts, canvas, driver, debug=True)
    alone = [decode(model, [prompt], canvas, driver) for prompt in prompts]
    assert together.tokens.tolist() == [one.tokens[0].tolist() for one in alone]
    if not isinstance(cache, DKVGreedy):  # a slot a pass
        assert len({one.forwards["denoise"] for one in alone}) > 1


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_a_row_that_stops_is_done(toy, window):
    canvas = Canvas.free(30, toy.VOCAB, block_size=5)
    driver = CachedDiffusion(cache=DualCache(), window=window)
    free = decode(toy.Model(Regime.FULL), [toy.prompt], canvas, driver).tokens[0].tolist()
    stop = free[11]
    first = free.index(stop)
    model = toy.Model(Regime.FULL, stop_id=stop)
    one = decode(model, [toy.prompt], canvas, driver, debug=True)
    assert one.tokens[0].tolist() == [*free[: first + 1], *[stop] * (29 - first)]
    plain = decode(toy.Model(Regime.FULL), [toy.prompt], canvas, driver)
    assert one.network_evaluations < plain.network_evaluations
    other = [4] * len(toy.prompt)
    alone = decode(model, [other], canvas, driver, debug=True)
    both = decode(model, [toy.prompt, other], canvas, driver, debug=True)
    assert both.tokens.tolist() == [one.tokens[0].tolist(), alone.tokens[0].tolist()]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_nothing_is_written_behind_a_stop(toy, window):
    canvas = Canvas.free(30, toy.VOCAB, block_size=5)
    driver = CachedDiffusion(commit=Sequential(), cache=DKVDecode(), window=window)
    free = decode(toy.Model(Regime.FULL), [toy.prompt], canvas, driver).tokens[0].tolist()
    for stop in set(free):
        model = toy.Model(Regime.FULL, stop_id=stop)
        decoded = decode(model, [toy.prompt], canvas, driver)
        assert decoded.forwards["denoise"] == free.index(stop) + 1


def test_prompts_filled_up_in_front(toy):
    """Slots at negative positions are neither read nor seen."""
    model, canvas = toy.Model(Regime.FULL, seed=2), toy.canvas(2)
    long, short = [3, 14, 1, 5, 9, 2, 6], [8, 2, 8]
    for cache in CACHES:
        driver = CachedDiffusion(commit=Confidence(0.6), cache=cache)
        context = model.prefill([long, [20, 19, 18, 17, *short]], room=len(canvas))
        context.position = torch.tensor([7, 3])
        both = driver.decode(model, context, canvas, debug=True)
        for row, prompt in enumerate((long, short)):
            alone = decode(model, [prompt], canvas, driver)
            assert both.tokens[row].tolist() == alone.tokens[0].tolist()


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_guided_keys_are_kept_twice(toy, cache):
    """Each half of a guided pass has keys of its own: one layer stays exact, no weight no guide."""
    canvas, prompts = toy.canvas(6, slots=16), [toy.prompt, toy.prompt[::-1]]
    driver = CachedDiffusion(commit=Confidence(0.6), cache=cache)
    for regime in REGIMES:
        model = toy.Model(regime, seed=1)
        plain = decode(model, prompts, canvas, driver)
        unguided = decode(Guided(model, 0.0), prompts, canvas, driver, debug=True)
        assert unguided.tokens.tolist() == plain.tokens.tolist()
        shallow = Guided(toy.Model(regime, seed=1, layers=1), 1.5)
        guided = decode(shallow, prompts, canvas, driver, debug=True)
        if not isinstance(cache, DKVGreedy | WindowDiffusion):
            uncached = decode(shallow, prompts, canvas, CachedDiffusion(commit=Confidence(0.6)))
            assert guided.tokens.tolist() == uncached.tokens.tolist()
            assert (
                guided.tokens.tolist()
                != decode(shallow.model, prompts, canvas, driver).tokens.tolist()
            )


def test_a_context_stays_as_it_was(toy):
    for regime in REGIMES:
        model, canvas = toy.Model(regime), toy.canvas(1)
        context = model.prefill([toy.prompt], room=len(canvas))
        length, driver = context.kv.length, CachedDiffusion(cache=DualCache())
        tokens = [driver.decode(model, context, canvas).tokens.tolist() for _ in range(2)]
        assert context.kv.length == length
        assert tokens[0] == tokens[1]


def test_nothing_to_write(toy):
    model, canvas = toy.Model(Regime.FULL), toy.canvas(1, slots=4)
    for some in (canvas.part(0, 0), Canvas(**{**vars(canvas), "given": canvas.tokens >= 0})):
        decoded = decode(model, [toy.prompt], some, CachedDiffusion())
        assert decoded.tokens.tolist() == [some.tokens.tolist()]
        assert decoded.forwards["denoise"] == 0


@pytest.mark.parametrize("regime", sorted(set(Regime) - set(REGIMES)))
def test_regimes_that_keep_exactly_are_refused(toy, regime):
    with pytest.raises(ValueError, match=f"dual_cache cannot be right on a {regime.value} model"):
        compose(toy.Model(regime), CachedDiffusion(cache=DualCache()))


def test_a_filter_for_blocks_needs_blocks(toy):
    """A sliding window shows it the whole answer, which it is not made for."""
    spec, b = toy.Model(Regime.FULL).spec, 4
    zeros = torch.zeros(b, b), torch.zeros(b), torch.zeros(b, b), torch.zeros(b)
    commit = Learned(BlockFilter(Calibration(spec.digest, b), *zeros))
    canvas = Canvas.free(12, toy.VOCAB, block_size=b)
    model = toy.Model(Regime.FULL)
    decode(model, [toy.prompt], canvas, CachedDiffusion(commit=commit, cache=DualCache()))
    model.calls.clear()
    with pytest.raises(ValueError, match="12"):
        decode(
            model, [toy.prompt], canvas, CachedDiffusion(commit=commit, window=SlidingWindow())
        )  # fmt: skip
    assert not model.calls


def test_a_policy_that_writes_nothing_is_found_out(toy):
    class Idle(Confidence):
        def __call__(self, logits, tokens, unwritten):
            return torch.zeros_like(unwritten)

    canvas = Canvas.free(6, toy.VOCAB, block_size=3)
    with pytest.raises(RuntimeError, match="open after 6 passes"):
        decode(toy.Model(Regime.FULL), [toy.prompt], canvas, CachedDiffusion(commit=Idle()))


def test_policies_that_edit_are_refused():
    class Editing(Confidence):
        edits = 2

    with pytest.raises(ValueError, match=r"dkv_decode and Editing.*SectionDiffusion"):
        CachedDiffusion(commit=Editing(), cache=DKVDecode())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PrefixCache(-1), "-1"),
        (lambda: DualCache(-2), "-2"),
        (lambda: DKVDecode(0), "0"),
        (lambda: DKVGreedy(0), "0 and 4"),
        (lambda: DKVGreedy(1, -1), "1 and -1"),
        (lambda: WindowDiffusion(0, 4), "active 0"),
        (lambda: WindowDiffusion(5, 4), "active 5, buffer 4"),
        (lambda: WindowDiffusion(refresh=0), "refresh 0"),
        (lambda: VicinityCache(warmup=-1), "-1"),
        (lambda: VicinityCache(refresh=0), "0"),
        (lambda: SlidingWindow(0), "masks 0"),
        (lambda: SlidingWindow(9, 8), "masks 9, slots 8"),
        (lambda: SlidingWindow(renew=0), "renew 0"),
    ],
)
def test_parameters_that_mean_nothing(make, said):
    with pytest.raises(ValueError, match=f"got .*{said}"):
        make()
