"""Whether a model keeps to what the decoding engine takes for granted: any adapter is run through.

Every check is a comparison of the model with itself: with nothing kept, alone instead of in a
batch, in another order. Numbers agree when they differ by no more than a share of the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastloop.accel.decoding import Autoregressive, Canvas, SectionDiffusion, Speculative, compose
from fastloop.accel.decoding.cached import CachedDiffusion
from fastloop.accel.decoding.driver import Driver
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.layered import LayeredModel
from fastloop.accel.decoding.model import Regime
from fastloop.policies.dlm.specimen import Specimen, square

__all__ = ["Check", "conformance", "table"]


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: of what has to hold.
        passed: whether it did.
        found: what was seen, in words.
    """

    name: str
    passed: bool
    found: str


def conformance(
    model: LayeredModel, prompts: Sequence[Any] | None = None, *, seed: int = 0
) -> list[Check]:
    """Run a model through everything that fits its regime.

    Args:
        model: in evaluation, on any device.
        prompts: two of different lengths, as `LanguageModel.prefill` takes them, such as with
            pictures; None for random token ids.
        seed: of random tokens.

    Returns:
        one line a check. A check that raises has failed and says with what; none is left out
        because of another.
    """
    subject = Specimen(model, prompts, seed)
    checks = []
    for name, check in _checks(model):
        try:
            passed, found = check(subject)
        except Exception as error:  # whatever a model does wrong is a line of the table
            passed, found = False, f"{type(error).__name__}: {error}"
        checks.append(Check(name, passed, found))
    return checks


def table(checks: Sequence[Check]) -> str:
    """The checks as lines of text."""
    width = max(len(check.name) for check in checks)
    return "\n".join(
        f"{'ok    ' if check.passed else 'FAILED'}  {check.name:<{width}}  {check.found}"
        for check in checks
    )


Outcome = tuple[bool, str]


def _checks(model: LayeredModel) -> Iterator[tuple[str, Callable[[Specimen], Outcome]]]:
    regime = model.spec.regime
    yield "special tokens are of the vocabulary", _special
    yield "logits: one row a token, finite, float32 or wider", _logits
    yield "a second prompt does not change what the first one says", _stateless
    if regime is Regime.FULL:
        yield "nothing of a prompt is kept", _nothing_kept
    else:
        yield "a prompt's last logits are those of one whole pass", _prompt
    yield "passes over what is kept equal one whole pass", _cached
    yield "prompts of different lengths do not mix", _batch
    yield "a pass that is dropped leaves nothing behind", _dropped
    yield "what a mask hides changes nothing, what it shows does", _masked
    yield "positions are those that are given", _positions
    if regime is not Regime.FULL:
        yield "branches say what their trunk would", _branches
    for driver in (Autoregressive(), SectionDiffusion(), Speculative()):
        try:
            compose(model, driver)
        except ValueError:
            continue
        yield f"{driver.name}: given slots stand, the mask id is never written", _decodes(driver)
        if isinstance(driver, Speculative):
            yield "speculation says what token by token does", _same(Autoregressive(), driver)
    if regime in CachedDiffusion.regimes:
        same = _same(SectionDiffusion(), CachedDiffusion())
        yield "keys in slots of their own give the same answer", same


def _special(subject: Specimen) -> Outcome:
    spec = subject.spec
    ids = {name: getattr(spec, name) for name in ("mask_id", "stop_ids", "null_id")}
    every = (spec.mask_id, spec.null_id, *spec.stop_ids)
    good = all(value is None or 0 <= value < spec.vocab for value in every)
    distinct = spec.mask_id not in every[1:]
    shifts = spec.logit_shift in (0, 1) and spec.block_size >= 1
    found = f"{ids} of {spec.vocab}, shift {spec.logit_shift}, blocks of {spec.block_size}"
    return good and distinct and shifts and spec.mask_id is not None, found


def _logits(subject: Specimen) -> Outcome:
    context = subject.prefill(0)
    logits = subject.answered(context, [0])
    shaped = logits.shape == (1, subject.slots, subject.spec.vocab)
    shaped &= context.logits.shape == (1, subject.spec.vocab)
    wide = all(part.dtype in (torch.float32, torch.float64) for part in (logits, context.logits))
    finite = bool(logits.isfinite().all() and context.logits.isfinite().all())
    return shaped and wide and finite, f"{tuple(logits.shape)} {logits.dtype}, finite: {finite}"


def _stateless(subject: Specimen) -> Outcome:
    first = subject.answered(subject.prefill(0), [0])
    subject.answered(subject.prefill(1), [1])
    return subject.agree(subject.answered(subject.prefill(0), [0]), first)


def _nothing_kept(subject: Specimen) -> Outcome:
    context = subject.prefill(0, 1)
    kept, prompt = context.kv.length, context.prompt
    return not kept and prompt is not None, f"{kept} slots kept, prompt {type(prompt).__name__}"


def _prompt(subject: Specimen) -> Outcome:
    found = torch.cat([subject.prefill(row).logits for row in (0, 1)])
    return subject.agree(found, torch.cat([subject.whole(row)[1] for row in (0, 1)]))


def _cached(subject: Specimen) -> Outcome:
    found = torch.cat([subject.answered(subject.prefill(row), [row]) for row in (0, 1)])
    return subject.agree(found, torch.cat([subject.whole(row)[0] for row in (0, 1)]))


def _batch(subject: Specimen) -> Outcome:
    alone = [subject.prefill(row) for row in (0, 1)]
    both = subject.prefill(0, 1)
    passed, found = subject.agree(
        torch.cat([both.logits[:, None], subject.answered(both, [0, 1])], 1),
        torch.cat(
            [
                torch.cat([context.logits[:, None], subject.answered(context, [row])], 1)
                for row, context in enumerate(alone)
            ]
        ),
    )
    lengths = [int(context.position) for context in alone]
    return passed and lengths[0] != lengths[1], f"positions {lengths}: {found}"


def _dropped(subject: Specimen) -> Outcome:
    context, other = subject.prefill(0), subject.prefill(0)
    length, n = context.kv.length, subject.slots
    masks = torch.full((1, n), subject.spec.mask_id, device=subject.device)
    subject.forward(context, masks, square(n, True, subject.device))
    grown = context.kv.length - length
    context.kv.crop(grown)
    passed, found = subject.agree(subject.answered(context, [0]), subject.answered(other, [0]))
    read = n if context.prompt is None else n + context.prompt.shape[1]
    return passed and grown == read, f"{grown} slots for {read} tokens; {found}"


def _masked(subject: Specimen) -> Outcome:
    n = subject.slots
    ids = subject.answer[:1].clone()
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % subject.spec.vocab
    positions = torch.arange(n, device=subject.device)[None]

    def run(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        kv = KVCache(subject.model.layers, n)
        return subject.model.forward(ids, positions=positions, mask=mask, kv=kv)[:, :-1]

    seen = square(n, True, subject.device)
    hidden = seen.clone()
    hidden[:, :-1, -1] = False
    same, found = subject.agree(run(changed, hidden), run(ids, hidden))
    ignored = torch.equal(run(changed, seen), run(ids, seen))
    return same and not ignored, f"hidden: {found}; seen: {'no change' if ignored else 'a change'}"


def _positions(subject: Specimen) -> Outcome:
    n, model = subject.slots, subject.model
    ids, places = subject.answer[:1], torch.arange(n, device=subject.device)[None]
    order = torch.randperm(n, generator=subject.random).to(subject.device)
    mask = square(n, True, subject.device)

    def run(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        kv = KVCache(model.layers, n)
        return model.forward(ids, positions=positions, mask=mask, kv=kv)

    straight = run(ids, places)
    moved, found = subject.agree(run(ids[:, order], places[:, order]), straight[:, order])
    ignored = torch.equal(run(ids, places.flip(1)), straight)
    return moved and not ignored, f"{found}; reversed: {'no change' if ignored else 'a change'}"


def _branches(subject: Specimen) -> Outcome:
    wanted = subject.answered(subject.prefill(0), [0]).expand(2, -1, -1)
    return subject.agree(subject.answered(subject.prefill(0).fork(2), [0, 0]), wanted)


def _canvas(subject: Specimen) -> Canvas:
    """Every third slot given."""
    free = Canvas.free(subject.slots, subject.spec.vocab, block_size=subject.blocks[0][1])
    given = torch.arange(subject.slots) % 3 == 0
    return replace(free, tokens=subject.answer[0].cpu(), given=given)


def _decoded(subject: Specimen, driver: Driver) -> torch.Tensor:
    canvas = _canvas(subject)
    return driver.decode(subject.model, subject.prefill(0), canvas, continued=False).tokens.cpu()


def _decodes(driver: Driver) -> Callable[[Specimen], Outcome]:
    def check(subject: Specimen) -> Outcome:
        canvas, tokens = _canvas(subject), _decoded(subject, driver)
        # What follows a stop id is one.
        ended = torch.isin(tokens[0], torch.tensor(subject.spec.stop_ids, dtype=torch.int64))
        stands = (tokens[0] == canvas.tokens) | ended
        kept, written = (
            bool(stands[canvas.given].all()),
            bool((tokens == subject.spec.mask_id).any()),
        )
        return kept and not written, f"given slots stand: {kept}, mask ids written: {written}"

    return check


def _same(plain: Driver, other: Driver) -> Callable[[Specimen], Outcome]:
    def check(subject: Specimen) -> Outcome:
        one, two = (_decoded(subject, driver) for driver in (plain, other))
        same, tokens = int((one == two).sum()), one.numel()
        # Where numbers are coarse, passes of other sizes may order two that are close otherwise.
        coarse = subject.dtype in (torch.bfloat16, torch.float16)
        return coarse or same == tokens, f"{same} of {tokens} tokens"

    return check
