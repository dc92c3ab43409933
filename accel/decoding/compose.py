"""What may be done with a checkpoint, and what its answers then equal."""

from __future__ import annotations

from fastloop.accel.decoding.driver import Driver
from fastloop.accel.decoding.model import ModelSpec, Regime
from fastloop.accel.decoding.result import Exactness

__all__ = ["compose"]

_WHY = {
    Regime.CAUSAL: "it was never trained to fill masks at a glance",
    Regime.FULL: "keys and values change with every token, so none that were verified stay right",
    Regime.PREFIX_LM: "an answer sees all of itself, so no pass may be kept of its beginning",
    Regime.BLOCK_CAUSAL: "it keeps whole blocks that see themselves, and has no causal pass",
}


def compose(spec: ModelSpec, driver: Driver, *, continued: bool = False) -> Exactness:
    """What the answers of this driver on this model equal.

    Args:
        spec: of the model.
        driver: a way of decoding.
        continued: whether somebody goes on from the context afterwards, as branches do.

    Raises:
        ValueError: when the two cannot be right together, with the reason.
    """
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
    if continued and spec.regime in (Regime.FULL, Regime.PREFIX_LM):
        raise ValueError(
            f"nothing of an answer is kept by a {spec.regime.value} model, so nothing goes on or "
            "branches from it; decode the whole canvas at once"
        )
    return driver.exactness
