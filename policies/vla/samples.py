"""Training samples of a vision-language policy, and the batch of each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from fastloop.accel.decoding.canvas import Canvas
from fastloop.policies.epochs import rows_of_step
from fastloop.policies.vla.annotation import annotate
from fastloop.policies.vla.canvas import Layout
from fastloop.policies.vla.images import PatchConfig
from fastloop.policies.vla.masks import PADDING, PROMPT
from fastloop.policies.vla.prompt import Prompt, Template, build_prompt
from fastloop.policies.vla.writing import write

__all__ = ["Batches", "DrivingSamples", "Sample", "Samples", "collate"]


@dataclass(frozen=True)
class Sample:
    """A question and what should be answered.

    Attributes:
        prompt: ids and pictures.
        canvas: the answer, every slot filled; `given` says what is scaffold.
    """

    prompt: Prompt
    canvas: Canvas

    def __post_init__(self) -> None:
        if not len(self.prompt.ids) or not len(self.canvas):
            raise ValueError(
                f"a sample needs a prompt and an answer, got {len(self.prompt.ids)} and "
                f"{len(self.canvas)} tokens"
            )


@dataclass(frozen=True)
class DrivingSamples:
    """Recorded moments as samples: a sequence that encodes pictures and answer when asked.

    Attributes:
        moments: of each, the observation as `fastloop.policies.vla.annotation.annotate` reads it,
            with ``observation.images.<camera>`` (3, H, W) uint8, and the (20, 2) way then driven.
        layout: of the answer.
        template: of the question.
        patches: how the model cuts pictures.
        cameras: in the order in which the model shall know them.
    """

    moments: Sequence[tuple[Mapping[str, NDArray[Any]], NDArray[Any]]]
    layout: Layout
    template: Template
    patches: PatchConfig
    cameras: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.moments)

    def __getitem__(self, index: int) -> Sample:
        observation, future = self.moments[index]
        prompt = build_prompt(
            self.template,
            self.layout.tokenizer,
            self.patches,
            frames=[torch.as_tensor(observation[f"observation.images.{c}"]) for c in self.cameras],
            states=torch.as_tensor(observation["observation.ego_states"]),
            intent=int(observation["observation.intent"]),
        )
        answer = write(self.layout, annotate(observation, future)).tokens
        return Sample(prompt, replace(self.layout.canvas, tokens=answer))


class Samples(Protocol):
    """What `Batches` takes: a sequence, or anything with a length and items."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Batches:
    """The batch of each step, see `rows_of_step`.

    Samples are taken when they are needed, so a sequence that encodes its pictures then needs no
    memory for them.

    Attributes:
        samples: see `Sample`.
        batch_size, seed: as above.
        model, stop_id: see `collate`.
        blocks: size of the blocks of a step that ignores the canvas's own; None keeps those.
    """

    samples: Samples
    batch_size: int
    seed: int
    model: Any
    stop_id: int | None
    blocks: Callable[[int], int | None]

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        """The batch of a step."""
        rows = rows_of_step(step, self.batch_size, samples=len(self.samples), seed=self.seed)
        chosen = [self.samples[row] for row in rows.tolist()]
        return collate(chosen, model=self.model, stop_id=self.stop_id, block_size=self.blocks(step))


def collate(
    samples: Sequence[Sample], *, model: Any, stop_id: int | None, block_size: int | None = None
) -> dict[str, torch.Tensor]:
    """Samples as the batch that `fastloop.policies.vla.conversion` describes, on the CPU.

    The stop token is added to every answer. Where the canvas says what a block is, it is a block of
    its own, so that the last one is drafted among the slots that the decoder will show it.

    Args:
        samples: B of them.
        model: of transformers; one with pictures says where they stand (its M-RoPE).
        stop_id: ends an answer; None adds nothing.
        block_size: cut all of the answer into blocks of this size, the last one at its end, and
            take nothing as given; None for blocks and scaffold of the canvas.
    """
    rows = [_row(sample, stop_id, block_size) for sample in samples]
    fill = {"ids": 0, "block": PADDING, "answer": -1, "section": 0, "given": False}
    batch = {
        key: pad_sequence([row[key] for row in rows], batch_first=True, padding_value=value)
        for key, value in fill.items()
    }
    batch["positions"] = _positions(model, batch, [sample.prompt for sample in samples])
    if any(len(sample.prompt.grid) for sample in samples):
        batch["pixel_values"] = torch.cat([sample.prompt.pixels for sample in samples])
        batch["image_grid_thw"] = torch.cat([sample.prompt.grid for sample in samples])
    return batch


def _row(sample: Sample, stop_id: int | None, block_size: int | None) -> dict[str, torch.Tensor]:
    prompt, canvas = sample.prompt.ids, sample.canvas
    tokens, block = canvas.tokens, canvas.block - canvas.block[0]
    section, given = canvas.section, canvas.given
    if stop_id is not None:
        tokens = torch.cat([tokens, torch.tensor([stop_id])])
        block = torch.cat([block, block[-1:] + 1])
        section = torch.cat([section, section[-1:]])
        given = torch.cat([given, torch.tensor([False])])
    if block_size is not None:
        block = torch.arange(len(tokens)) // block_size
        given = torch.zeros_like(given)
    return {
        "ids": torch.cat([prompt, tokens]),
        "block": torch.cat([torch.full_like(prompt, PROMPT), block]),
        "answer": torch.arange(len(prompt), len(prompt) + len(tokens)),
        "section": section,
        "given": given,
    }


def _positions(
    model: Any, batch: dict[str, torch.Tensor], prompts: Sequence[Prompt]
) -> torch.Tensor:
    ids = batch["ids"]
    if not hasattr(model.model, "get_rope_index"):
        return torch.arange(ids.shape[1]).expand_as(ids)
    grid = torch.cat([prompt.grid for prompt in prompts])
    positions, _ = model.model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        image_grid_thw=grid if len(grid) else None,
    )
    placed: torch.Tensor = positions.transpose(0, 1)
    return placed
