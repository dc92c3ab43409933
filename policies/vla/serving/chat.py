"""A question in a model's own chat format as the messages that an engine takes."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["chat_messages", "encode_png"]

TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\n?|\Z)", re.DOTALL)
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
ANSWERS = "assistant"


def chat_messages(question: str, frames: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
    """Messages of the OpenAI protocol, pictures as data URIs where they stand in the text.

    The engine's chat template puts the format's tokens back.

    Args:
        question: what `fastloop.policies.vla.prompt.Template.write` gives: turns between
            ``<|im_start|>`` and ``<|im_end|>``, the last one the answer's, open.
        frames: pictures (3, H, W) uint8, one for each that the text holds.

    Raises:
        ValueError: for a text without turns, and for more or fewer pictures than it has.
    """
    turns = [(role, text) for role, text in TURN.findall(question) if role != ANSWERS]
    if not turns:
        raise ValueError(f"no <|im_start|>role ... <|im_end|> in {question!r:.80}")
    places = sum(text.count(PICTURE) for _, text in turns)
    if places != len(frames):
        raise ValueError(f"the question has {places} pictures, got {len(frames)}")
    pictures = iter(frames)
    messages = []
    for role, text in turns:
        first, *others = text.split(PICTURE)
        parts = [{"type": "text", "text": first}]
        for other in others:
            parts += [_picture(next(pictures)), {"type": "text", "text": other}]
        told = [part for part in parts if part.get("text") != ""]
        messages.append({"role": role, "content": told if others else first})
    return messages


def encode_png(frame: torch.Tensor) -> bytes:
    """A picture (3, H, W) uint8 as PNG (ISO/IEC 15948), packed fast rather than small.

    Raises:
        ValueError: for anything else.
    """
    if frame.ndim != 3 or frame.shape[0] != 3 or frame.dtype != torch.uint8 or not frame.numel():
        raise ValueError(
            f"a picture is (3, height, width) uint8, got {tuple(frame.shape)} {frame.dtype}"
        )
    _, height, width = frame.shape
    rows = frame.permute(1, 2, 0).reshape(height, 3 * width).cpu().numpy()
    lines = np.full((height, 1 + 3 * width), 2, np.uint8)  # filter 2: minus the row above
    lines[:, 1:] = rows
    lines[1:, 1:] -= rows[:-1]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bit RGB, not interlaced
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(lines.tobytes(), 1))
        + _chunk(b"IEND", b"")
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _picture(frame: torch.Tensor) -> dict[str, Any]:
    data = base64.b64encode(encode_png(frame)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
