"""A small network says which slots are right."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.commits.commit import Commit, confidence, leading
from fastloop.accel.decoding.model import ModelSpec
from fastloop.accel.decoding.windows import blocks

__all__ = ["BlockFilter", "Calibration", "Learned", "certainty", "check_blocks"]


@dataclass(frozen=True)
class Calibration:
    """What a filter was made with; it means nothing to other models or blocks.

    Attributes:
        digest: `ModelSpec.digest` of the model.
        block_size: b, slots of a block.
        examples: passes over a block that it was fitted to.
        precision: of the slots that it would write at 0.9 in passes that it was not fitted to, the
            share that is right; nan where it would write none.
    """

    digest: str
    block_size: int
    examples: int = 0
    precision: float = float("nan")


@dataclass(frozen=True, eq=False)
class BlockFilter:
    """Two layers, from the confidences of b slots to whether each is right (Learn2PD's filter).

    Attributes:
        calibration: what it is for.
        hidden_weight, hidden_bias: (H, b) and (H,) float32, behind which negative values are 0.
        weight, bias: (b, H) and (b,) float32.

    Raises:
        ValueError: when shapes do not fit.
    """

    calibration: Calibration
    hidden_weight: torch.Tensor
    hidden_bias: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def __post_init__(self) -> None:
        slots, width = self.calibration.block_size, len(self.hidden_bias)
        expected = {
            "hidden_weight": (width, slots), "hidden_bias": (width,),
            "weight": (slots, width), "bias": (slots,),
        }  # fmt: skip
        for name, shape in expected.items():
            given = getattr(self, name)
            if tuple(given.shape) != shape or given.dtype != torch.float32:
                raise ValueError(
                    f"{name} of a filter for blocks of {slots} is float32 {shape}, got "
                    f"{given.dtype} {tuple(given.shape)}"
                )

    def __call__(self, certain: torch.Tensor) -> torch.Tensor:
        """Log-odds (B, b) float32 that slots are right, from what `certainty` gives."""
        hidden = certain.float() @ self.hidden_weight.to(certain.device).T
        hidden = (hidden + self.hidden_bias.to(certain.device)).relu()
        return hidden @ self.weight.to(certain.device).T + self.bias.to(certain.device)


@dataclass(frozen=True)
class Learned(Commit):
    """All slots of which a filter is sure enough that they are right, else the most confident one.

    Learn2PD (Bao et al. 2025). The filter sees the confidences of a whole block at once; what is
    written already, or given, counts as certain (its authors show it what the model says there),
    and so does what a shorter block has not, such as the last of a section.

    Attributes:
        filter: made for this model and block size.
        threshold: probability that a slot is right.
    """

    filter: BlockFilter
    threshold: float = 0.9

    def __call__(
        self, logits: torch.Tensor, tokens: torch.Tensor, unwritten: torch.Tensor
    ) -> torch.Tensor:
        """See `Commit`."""
        sure = confidence(logits, tokens, unwritten)
        certain = certainty(sure, self.filter.calibration.block_size)
        right = self.filter(certain)[:, : sure.shape[1]].sigmoid() >= self.threshold
        return (leading(sure, 1) | right) & unwritten

    def passes(self, values: int) -> int | None:
        """It depends."""
        return None

    def check(self, spec: ModelSpec, canvas: Canvas) -> None:
        """See `Commit`.

        Raises:
            ValueError: for another model than that of the calibration, or blocks of other sizes.
        """
        made_for = self.filter.calibration
        if spec.digest != made_for.digest:
            raise ValueError(
                f"this filter is of the model {made_for.digest!r}, not of {spec.digest!r}: the "
                "confidences of one say nothing about those of another; fit one to this model"
            )
        check_blocks(canvas, made_for.block_size)


def check_blocks(canvas: Canvas, block_size: int) -> None:
    """Refuse a canvas whose largest block has not so many slots.

    Raises:
        ValueError: with the size that it has.
    """
    largest = max((end - start for start, end in blocks(canvas)), default=block_size)
    if largest != block_size:
        raise ValueError(
            f"this filter is for blocks of {block_size} slots, the largest of the canvas has "
            f"{largest}; fit one to these, or cut the canvas otherwise"
        )


def certainty(confidence: torch.Tensor, block_size: int) -> torch.Tensor:
    """What a filter sees: confidences (B, Q) of open slots, 1 in all others (which hold -1) and in
    those behind a block that has fewer than b; (B, b)."""
    certain = torch.where(confidence < 0, 1.0, confidence)
    missing = block_size - confidence.shape[1]
    return torch.nn.functional.pad(certain, (0, missing), value=1.0)
