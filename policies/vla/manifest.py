"""What a folder of a vision-language model says beyond its network: ``fastloop.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fastloop.accel.decoding.model import Regime
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.checkpoints.files import read_json

__all__ = ["CONVERTED", "MANIFEST", "STOCK", "Manifest", "read_manifest"]

MANIFEST = "fastloop.json"
STOCK, CONVERTED = "qwen2_5_vl", "fast_dllm_qwen2_5_vl"
# |<MASK>|, <|NULL|> and <|im_end|> of Qwen2.5's vocabulary, of which this is the least size.
QWEN_VOCABULARY, QWEN_MASK, QWEN_NULL, QWEN_STOP = 151_936, 151665, 151666, 151645


@dataclass(frozen=True)
class Manifest:
    """What ``fastloop.json`` says.

    Attributes:
        regime: what attends to what, a value of `Regime`.
        block_size: of a block as trained.
        mask_id, null_id: of `ModelSpec`.
        stop_id: what ends an answer, or several that do.
        schema: of the answer: the name of one that comes along, or a ``.yaml`` in the folder; None
            for a model that was not taught any.
        prompt: name of its template.
        cameras: in the order in which it was shown them, without ``observation.images.``.
        min_pixels, max_pixels: of a picture.
        image_size: width and height of the only pictures that it was shown; None for any.
        training: what is known of the training run.
    """

    regime: str
    block_size: int
    mask_id: int
    null_id: int | None = None
    stop_id: int | tuple[int, ...] | None = None
    schema: str | None = None
    prompt: str | None = None
    cameras: tuple[str, ...] = ("front_left", "front", "front_right")
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    image_size: tuple[int, int] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.regime not in list(Regime):
            raise ValueError(f"unknown regime {self.regime!r}; have: {', '.join(Regime)}")
        counts = {name: getattr(self, name) for name in ("block_size", "min_pixels", "max_pixels")}
        ids = [("mask_id", self.mask_id), *(("stop_id", stop) for stop in self.stop_ids)]
        if self.null_id is not None:
            ids.append(("null_id", self.null_id))
        for name, value in [*counts.items(), *ids]:
            least = 1 if name in counts else 0
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number from {least} up, got {value!r}")
        named = all(isinstance(camera, str) and camera for camera in self.cameras)
        if not isinstance(self.cameras, tuple) or not named:
            raise ValueError(f"cameras must be a list of names, got {self.cameras!r}")
        size = (1, 1) if self.image_size is None else self.image_size
        sides = isinstance(size, tuple) and all(isinstance(s, int) and s > 0 for s in size)
        if not sides or len(size) != 2:
            raise ValueError(f"image_size must be width and height, got {size!r}")
        if self.schema is not None and Path(self.schema).name != self.schema:
            raise ValueError(f"schema must be a name or a file of the folder, got {self.schema!r}")

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """All that end an answer."""
        if self.stop_id is None:
            return ()
        return self.stop_id if isinstance(self.stop_id, tuple) else (self.stop_id,)


def read_manifest(
    folder: Path,
    described: Mapping[str, Any],
    vocabulary: int,
    *,
    released: Mapping[str, Any] | None = None,
) -> Manifest:
    """What ``fastloop.json`` says, and where it says nothing what the configuration gives away.

    Args:
        folder: of the model.
        described: its ``config.json``.
        vocabulary: V.
        released: what is known of the model as others released it; None for Qwen2.5-VL's family.

    Raises:
        CheckpointError: for a value that cannot be, and where nothing says the regime or the mask.
    """
    path = folder / MANIFEST
    said = read_json(path) if path.exists() else {}
    known = [f.name for f in fields(Manifest)]
    if unknown := set(said) - set(known):
        raise CheckpointError(f"{path}: unknown {sorted(unknown)}; have: {', '.join(known)}")
    if released is None:
        released = _released(described, vocabulary)
    told = {**released, **said}
    missing = [name for name in ("regime", "mask_id") if name not in told]
    if missing:
        raise CheckpointError(
            f"{folder} does not say {' and '.join(missing)}, and its configuration (a vocabulary "
            f"of {vocabulary}, use_block_causal_mask = "
            f"{_find(described, 'use_block_causal_mask')}) gives no reason to guess: put it into "
            f'{MANIFEST}, such as {{"regime": "causal_context", "mask_id": 151665}}'
        )
    for name in ("cameras", "image_size", "stop_id"):
        if isinstance(told.get(name), list):
            told[name] = tuple(told[name])
    try:
        manifest = Manifest(**{"block_size": 32, **told})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    ids = [("mask_id", manifest.mask_id), ("null_id", manifest.null_id or 0)]
    for name, token in (*ids, *(("stop_id", stop) for stop in manifest.stop_ids)):
        if token >= vocabulary:
            raise CheckpointError(
                f"{folder}: {name} {token} is not of a vocabulary of {vocabulary}: say which is in "
                f"{MANIFEST}"
            )
    return manifest


def _released(described: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """What is known of models that others released."""
    told: dict[str, Any] = {}
    if vocabulary >= QWEN_VOCABULARY:
        told = {"mask_id": QWEN_MASK, "null_id": QWEN_NULL, "stop_id": QWEN_STOP}
    if (block_size := _find(described, "bd_size")) is not None:
        told["block_size"] = block_size
    names = " ".join(map(str, described.get("architectures") or ()))
    causal_context = _find(described, "use_block_causal_mask") in (True, None)
    if described["model_type"] == STOCK:
        told["regime"] = Regime.CAUSAL.value
    elif causal_context or "dVLM" in names or "dDrive" in names:
        told["regime"] = Regime.CAUSAL_CONTEXT.value
    if "dDrive" in names:
        told |= {"schema": "fast_ddrive", "prompt": "fast_ddrive"}
        told |= {"min_pixels": 200704, "max_pixels": 200704}
    return told


def _find(described: Mapping[str, Any], name: str) -> Any:
    """A field that may stand in the configuration or in its part on text."""
    text = described.get("text_config")
    return described.get(name, text.get(name) if isinstance(text, dict) else None)
