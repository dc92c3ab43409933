"""What may be done with a checkpoint, and what its answers then equal."""

from __future__ import annotations

from fastloop.accel.decoding.answer import Answer
from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.driver import Driver
from fastloop.accel.decoding.model import LanguageModel, ModelSpec, Regime
from fastloop.accel.decoding.result import Exactness

__all__ = ["compose"]

_WHY = {
    Regime.CAUSAL: "it was never trained to fill masks at a glance",
    Regime.FULL: "keys and values change with every token, so none that were verified stay right",
    Regime.PREFIX_LM: "an answer sees all of itself, so no pass may be kept of its beginning",
    Regime.BLOCK_CAUSAL: "it keeps whole blocks that see themselves, and has no causal pass",
}


def compose(
    model: LanguageModel,
    driver: Driver,
    canvas: Canvas | None = None,
    *,
    continued: bool = False,
) -> Exactness:
    """What the answers of this driver on this model equal.

    Args:
        model: as it decodes; `Skipping`, `Pruned` and `Guided` are models, too.
        driver: a way of decoding.
        canvas: that it is to fill; None for one that is not known yet.
        continued: whether somebody goes on from the context afterwards, as branches do.

    Returns:
        what the driver says, and `Exactness.LOSSY` where part of the model is left out.

    Raises:
        ValueError: when they cannot be right together, with the reason; no pass has been made.
    """
    spec = model.spec
    if spec.regime not in driver.regimes:
        raise ValueError(
            f"{driver.name} cannot be right on a {spec.regime.value} model: "
            f"{driver.refusal or _WHY[spec.regime]}. "
            f"It takes {sorted(regime.value for regime in driver.regimes)}"
        )
    if spec.logit_shift not in (0, 1):
        raise ValueError(
            f"logits speak of their own slot (0) or the next (1), not {spec.logit_shift}"
        )
    if spec.logit_shift not in driver.shifts:
        raise ValueError(
            f"{driver.name}, as configured, needs logits that speak of the next token "
            "(logit_shift 1), this checkpoint's speak of their own"
        )
    _check_parts(spec, driver)
    if continued:
        _check_branches(spec)
    driver.check(model, canvas)
    if canvas is not None:
        Answer(spec, canvas, 1, "cpu")
    return Exactness.LOSSY if spec.skipped or spec.pruned else driver.exactness


def _check_parts(spec: ModelSpec, driver: Driver) -> None:
    """Refuse to leave out what cannot be missed."""
    if spec.skipped and not spec.native:
        raise ValueError(
            f"layers {list(spec.skipped)} cannot be skipped in every pass: a model that began as "
            "an autoregressive one has none that changes little, as those trained to fill masks "
            "from the start have; skip them in drafts, which loses nothing (SelfSpeculative)"
        )
    later = [after for after, _ in spec.pruned if after]
    if later and driver.exactness is Exactness.LOSSLESS:
        raise ValueError(
            f"{driver.name} verifies what it drafted, and after {later[0]} passes, between the "
            "two, tokens of pictures would go; prune in the prompt (passes 0)"
        )


def _check_branches(spec: ModelSpec) -> None:
    """Refuse contexts from which nobody can go on."""
    if spec.regime in (Regime.FULL, Regime.PREFIX_LM):
        raise ValueError(
            f"nothing of an answer is kept by a {spec.regime.value} model, so nothing goes on or "
            "branches from it; decode the whole canvas at once"
        )
    if spec.guided:
        raise ValueError(
            "a guided model keeps two rows for each that it answers, which do not branch; decode "
            "the whole canvas at once"
        )
    if later := [after for after, _ in spec.pruned if after]:
        raise ValueError(
            f"branches share a prompt of which part goes after {later[0]} passes: prune before "
            "they branch (passes 0)"
        )
