"""Which observation encoder a policy has."""

from __future__ import annotations

from collections.abc import Mapping

from fastloop.policies.diffusion.clip import ClipConfig, ClipEncoder
from fastloop.policies.diffusion.scene import SceneConfig, SceneEncoder
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
    scene: SceneConfig | None = None,
    clip: ClipConfig | None = None,
) -> ObservationEncoder | StateEncoder | SceneEncoder | ClipEncoder | None:
    """The encoder of `vision`, `state`, `scene` or `clip`; None where observations are only
    normalized.

    Raises:
        ValueError: when several are asked for, or one does not fit the inputs.
    """
    asked = {"vision": vision, "state": state, "scene": scene, "CLIP": clip}
    if len(given := [name for name, config in asked.items() if config]) > 1:
        raise ValueError(f"a policy has one encoder, not both: {' and '.join(given)}")
    if clip:
        return ClipEncoder(inputs, clip)
    if vision:
        return ObservationEncoder(inputs, vision)
    if scene:
        return SceneEncoder(inputs, n_obs_steps, scene)
    return StateEncoder(inputs, n_obs_steps, state) if state else None
