"""What a driving model is asked: a template's words, the vehicle's past and its cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from fastloop.policies.vla.images import Pictures
from fastloop.policies.vla.tokenizer import Tokenizer, token_id

__all__ = ["Prompt", "Template", "build_prompt", "load_template"]

FOLDER = Path(__file__).with_name("prompts")
STEP_S = 0.25  # between two rows of observation.ego_states
NUMBERS = ("x", "y", "vx", "vy", "ax", "ay")
START, PICTURE, END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"


@dataclass(frozen=True)
class Prompt:
    """One question as a model reads it.

    Attributes:
        ids: (P,) int64; each picture is as many picture tokens as it takes up.
        pixels: what its vision tower is shown of all pictures, float32: of Qwen2.5-VL (patches,
            width), of LaViDa (views, 3, side, side).
        grid: (pictures, ...) int64, how each was cut: of Qwen2.5-VL frames, rows and columns of
            patches, of LaViDa rows and columns of views, height and width.
    """

    ids: torch.Tensor
    pixels: torch.Tensor
    grid: torch.Tensor


@dataclass(frozen=True)
class Template:
    """The words of a question, which a model was trained on: data of ``prompts/``.

    Attributes:
        name: of its file.
        text: with ``{images}``, ``{command}`` and ``{states}`` in it, in the chat format's tokens.
        state: one past state, with ``{t}`` (s, now is 0) and each of `NUMBERS`.
        separator: between two states.
        commands: for the values of observation.intent: unknown, straight, left, right.
        states: past states told, the last is now.
        state_s: seconds between two of them.
        picture: what stands for a picture, a token of which is to be as many as it takes up.
        place: that token.
    """

    name: str
    text: str
    state: str
    separator: str
    commands: tuple[str, ...]
    states: int
    state_s: float
    picture: str = f"{START}{PICTURE}{END}"
    place: str = PICTURE

    def write(self, states: torch.Tensor, intent: int, pictures: int) -> str:
        """The question in words, a picture as one token.

        Args:
            states: (O, 6) of observation.ego_states: 4 Hz, the last is now.
            intent: of observation.intent.
            pictures: how many.

        Raises:
            ValueError: for a state that is no number, too few of them, or an intent that is none.
        """
        stride = round(self.state_s / STEP_S)
        needed = (self.states - 1) * stride + 1
        if states.ndim != 2 or states.shape[1] != len(NUMBERS) or len(states) < needed:
            raise ValueError(
                f"observation.ego_states is {tuple(states.shape)}; the prompt {self.name} tells "
                f"{self.states} states {self.state_s} s apart: at least ({needed}, {len(NUMBERS)})"
            )
        if not 0 <= intent < len(self.commands):
            raise ValueError(
                f"observation.intent is {intent}, expected 0 to {len(self.commands) - 1}"
            )
        told = states[len(states) - needed :: stride]
        if not told.isfinite().all():
            row, column = (int(i) for i in (~told.isfinite()).nonzero()[0])
            raise ValueError(
                f"observation.ego_states is {float(told[row, column])} at {NUMBERS[column]}, "
                f"{(self.states - 1 - row) * self.state_s:g} s ago"
            )
        lines = []
        for k, row in enumerate(told.double().tolist()):
            values = dict(zip(NUMBERS, row, strict=True))
            lines.append(self.state.format(t=(k + 1 - self.states) * self.state_s, **values))
        return self.text.format(
            images=self.picture * pictures,
            command=self.commands[intent],
            states=self.separator.join(lines),
        )


def load_template(name: str) -> Template:
    """The template of that name.

    Raises:
        ValueError: where there is none; all names are listed.
    """
    have = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name not in have:
        raise ValueError(f"there is no prompt {name!r}; have: {', '.join(have)}")
    fields = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return Template(name=name, **{**fields, "commands": tuple(fields["commands"])})


def build_prompt(
    template: Template,
    tokenizer: Tokenizer,
    config: Pictures,
    *,
    frames: Sequence[torch.Tensor],
    states: torch.Tensor,
    intent: int,
) -> Prompt:
    """A question about one vehicle's present.

    Args:
        template: its words.
        tokenizer: of the model.
        config: how the model cuts pictures.
        frames: a picture (3, H, W) uint8 of each camera, in the order that the model knows.
        states: (O, 6) of observation.ego_states.
        intent: of observation.intent.

    Raises:
        ValueError: as `Template.write` and `fastloop.policies.vla.images.check_picture`.
    """
    pixels, grid = config.cut(frames)
    ids = torch.tensor(tokenizer.encode(template.write(states, intent, len(frames))))
    repeats = torch.ones_like(ids)
    repeats[ids == token_id(tokenizer, template.place)] = config.tokens(grid)
    return Prompt(ids.repeat_interleave(repeats), pixels, grid)
