"""Whole answers: one for each prompt, or several that share all but their last section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.choose import Gumbel
from fastloop.accel.decoding.compose import compose
from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.driver import Driver
from fastloop.accel.decoding.model import LanguageModel
from fastloop.accel.decoding.passes import Moment
from fastloop.accel.decoding.result import Decoded
from fastloop.accel.decoding.windows import blocks

__all__ = ["decode", "rollouts", "section_start"]


def decode(
    model: LanguageModel,
    prompts: Sequence[Any],
    canvas: Canvas,
    driver: Driver,
    *,
    debug: bool = False,
) -> Decoded:
    """Read B prompts and fill a canvas for each of them.

    Raises:
        ValueError: when the driver cannot be right on this model (`compose`).
    """
    exactness = compose(model, driver, canvas)
    context, span = _read(model, prompts, canvas)
    decoded = driver.decode(model, context, canvas, continued=False, debug=debug)
    return _with_prefill(replace(decoded, exactness=exactness), span)


def rollouts(
    model: LanguageModel,
    prompt: Any,
    canvas: Canvas,
    driver: Driver,
    *,
    seeds: Sequence[int],
    temperature: float,
    section: str | None = None,
    debug: bool = False,
) -> Decoded:
    """N = len(seeds) answers that differ from one section on (Fast-dDrive's test-time scaling).

    The prompt is read, and what comes before the section is decoded, once, by the driver as it is;
    then the context branches, and the rest is sampled for all N rows in lock step. A row does not
    depend on the others, so N rows equal N runs of one.

    Args:
        model: of a regime that keeps what was answered.
        prompt: a single one.
        canvas: of which the part before the section is decided first.
        driver: its choice is replaced for the branches.
        seeds: one for each branch.
        temperature: of the branches, 0 for the likeliest.
        section: a name of the canvas', None for its last.
        debug: see `Driver.decode`.

    Raises:
        ValueError: when the driver cannot be right on this model, or there is no such section.
    """
    if not seeds:
        raise ValueError("rollouts need at least one seed")
    start = section_start(canvas, section)
    before, behind = canvas.part(0, start), canvas.part(start, len(canvas))
    compose(model, driver, before, continued=True)
    exactness = compose(model, driver, behind, continued=True)
    context, span = _read(model, [prompt], canvas)
    head = driver.decode(model, context, before, debug=debug)
    branches = replace(driver, choice=Gumbel(temperature, tuple(seeds)))
    tail = branches.decode(model, context.fork(len(seeds)), behind, continued=False, debug=debug)
    decoded = replace(tail, forked=len(seeds), exactness=exactness).after(head)
    return _with_prefill(decoded, span)


def section_start(canvas: Canvas, section: str | None = None) -> int:
    """Where answers branch that differ in a section (None: the last), before its first value.

    At the start of the block with that value, but not before the section's own first slot.

    Raises:
        ValueError: when the canvas has no such section, or nothing is to be filled in it.
    """
    names = canvas.sections
    if section is not None and section not in names:
        raise ValueError(f"no section {section!r}; the canvas has {list(names)}")
    inside = canvas.section == (len(names) - 1 if section is None else names.index(section))
    values = (inside & ~canvas.given).nonzero().flatten().tolist()
    if not values:
        raise ValueError(f"nothing is to be filled in section {section or names[-1]!r}")
    block = next(start for start, end in blocks(canvas) if start <= values[0] < end)
    return max(block, int(inside.nonzero()[0]))


def _read(
    model: LanguageModel, prompts: Sequence[Any], canvas: Canvas
) -> tuple[Context, tuple[Moment, Moment]]:
    """The context of the prompts, and when it was begun and done."""
    start = Moment()
    context = model.prefill(prompts, room=len(canvas))
    return context, (start, Moment())


def _with_prefill(decoded: Decoded, span: tuple[Moment, Moment]) -> Decoded:
    """The pass over the prompt added to the books."""
    forwards = decoded.forwards | {"prefill": 1}
    spent = span[1].since_ms(span[0], decoded.tokens.device)
    return replace(decoded, forwards=forwards, stage_ms=decoded.stage_ms | {"prefill": spent})
