"""Which observation encoder a policy has."""

from __future__ import annotations

from collections.abc import Mapping

from fastloop.policies.diffusion.state import StateConfig, StateEncoder
from fastloop.policies.diffusion.vision import ObservationEncoder, VisionConfig
from fastloop.policies.spec import TensorSpec

__all__ = ["build_encoder"]


def build_encoder(
    inputs: Mapping[str, TensorSpec],
    n_obs_steps: int,
    *,
    vision: VisionConfig | None = None,
    state: StateConfig | None = None,
) -> ObservationEncoder | StateEncoder | None:
    """The encoder of `vision` or of `state`; None where observations are only normalized.

    Raises:
        ValueError: when both are asked for, or one does not fit the inputs.
    """
    if vision and state:
        raise ValueError("a policy has a vision encoder or a state encoder, not both")
    if vision:
        return ObservationEncoder(inputs, vision)
    return StateEncoder(inputs, n_obs_steps, state) if state else None
