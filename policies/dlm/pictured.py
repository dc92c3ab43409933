"""Decoders that are shown pictures: embeddings in the places that prompts keep for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastloop.accel.decoding.layered import Reading
from fastloop.accel.decoding.model import ModelSpec, Regime
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.dlm.decoder import Decoder, reading
from fastloop.policies.vla.images import Pictures
from fastloop.policies.vla.prompt import Prompt

__all__ = ["Pictured", "fill"]


class Pictured(Decoder):
    """A `Decoder` whose prompts are `Prompt`; positions count every token, those of pictures too.

    Args:
        network, spec: as of `Decoder`; of a regime that keeps the prompt.
        eyes: a module: what ``pictures.cut`` makes, pixels and grid, to embeddings (tokens of all
            pictures, E).
        pictures: how they are cut, and how many tokens each becomes.
        place: the id that stands in a prompt for a token of a picture; may be negative.

    Raises:
        ValueError: for a spec of another regime, and as `Decoder`.
    """

    def __init__(
        self, network: Any, spec: ModelSpec, *, eyes: nn.Module, pictures: Pictures, place: int
    ) -> None:
        if spec.regime is Regime.FULL:
            raise ValueError("a model of regime full keeps no prompt, pictures would be lost")
        super().__init__(network, spec)
        self.eyes = eyes.to(self.device, network.dtype).eval()
        self.pictures, self.place = pictures, place

    @torch.no_grad()
    def read(self, prompts: Sequence[Prompt | Any]) -> Reading:
        """See `LayeredModel.read`; pictures of all rows in one pass.

        Args:
            prompts: B of `Prompt`, or of (P,) token ids where there is no picture.

        Raises:
            ValueError: for no prompt, one without a token or with one that is not of the
                vocabulary, or one that keeps another number of places than its pictures take up.
        """
        shown = [prompt for prompt in prompts if isinstance(prompt, Prompt) and len(prompt.grid)]
        text = [torch.as_tensor(p.ids if isinstance(p, Prompt) else p) for p in prompts]
        visual = [ids == self.place for ids in text]
        for row, prompt in enumerate(prompts):
            grid: Any = prompt.grid if isinstance(prompt, Prompt) else ()
            held = int(visual[row].sum())
            taken = int(self.pictures.tokens(grid).sum()) if len(grid) else 0
            if held != taken:
                raise ValueError(
                    f"prompt {row} holds {held} picture tokens, its {len(grid)} pictures take up "
                    f"{taken}"
                )
        # Any token will do where a picture is.
        ids = self._ids([row.masked_fill(at, 0) for row, at in zip(text, visual, strict=True)])
        visual = [at.to(self.device) for at in visual]
        hidden = [self.embed(row) for row in ids]
        if shown:
            pixels = torch.cat([prompt.pixels for prompt in shown]).to(self.device)
            seen = self.eyes(pixels, torch.cat([prompt.grid for prompt in shown]))
            parts = seen.to(hidden[0].dtype).split([int(at.sum()) for at in visual])
            for embedded, at, part in zip(hidden, visual, parts, strict=True):
                embedded[at] = part
        return reading(self.spec, ids, hidden, visual)


def fill(eyes: nn.Module, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Put weights into a module, each of which has its place.

    Raises:
        CheckpointError: for weights that are missing, left over or of another shape.
    """
    try:
        eyes.load_state_dict(weights)
    except RuntimeError as error:  # names them all
        raise CheckpointError(f"{folder}: its vision tower cannot be filled: {error}") from error
