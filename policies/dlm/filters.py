"""Files of the filters that say which slots of a block are right."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open

from fastloop.accel.decoding.commits import BlockFilter, Calibration
from fastloop.policies.checkpoints.files import write_safetensors

__all__ = ["load_filter", "save_filter"]

FORMAT = "fastloop block filter 1"
NAMES = ("hidden_weight", "hidden_bias", "weight", "bias")


def save_filter(path: str | Path, made: BlockFilter) -> None:
    """Write a safetensors file, with the calibration as metadata."""
    tensors = {name: getattr(made, name).detach().cpu().contiguous() for name in NAMES}
    facts = {"format": FORMAT, "calibration": json.dumps(asdict(made.calibration))}
    write_safetensors(Path(path), tensors, facts)


def load_filter(path: str | Path) -> BlockFilter:
    """Read what `save_filter` wrote.

    Raises:
        ValueError: when the file is missing, damaged, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error})") from error
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{path} holds no filter: its format is {facts.get('format')!r}, expected {FORMAT!r}; "
            "make one with `fastloop.accel.decoding.learning.fit`"
        )
    try:
        return BlockFilter(Calibration(**json.loads(facts["calibration"])), **tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds a damaged filter ({error})") from error
