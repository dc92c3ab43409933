"""From the folder of a published checkpoint to a language model."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

import torch

from fastloop.accel.decoding.model import LanguageModel
from fastloop.policies import dlm
from fastloop.policies.checkpoints.files import read_json
from fastloop.policies.checkpoints.published import read_config, weights_dtype
from fastloop.policies.dlm.adapter import Adapter

__all__ = ["adapters", "is_language_model", "load_language_model"]


@cache
def adapters() -> dict[str, Adapter]:
    """By what ``config.json`` calls a model: those of all modules of this folder."""
    found: dict[str, Adapter] = {}
    for module in pkgutil.iter_modules(dlm.__path__, f"{dlm.__name__}."):
        adapter: Adapter | None = getattr(importlib.import_module(module.name), "ADAPTER", None)
        if adapter is None:
            continue
        for name in adapter.model_types:
            if name in found:
                raise RuntimeError(f"two adapters are for models of type {name!r}")
            found[name] = adapter
    return found


def is_language_model(path: str | Path) -> bool:
    """Whether this is a folder that `load_language_model` is for.

    Raises:
        CheckpointError: when its ``config.json`` is damaged.
    """
    config = Path(path) / "config.json"
    return config.is_file() and read_json(config).get("model_type") in list(adapters())


def load_language_model(
    path: str | Path, dtype: str = "", device: torch.device | str = "cpu"
) -> LanguageModel:
    """Read a model by the path of its folder; nothing is downloaded, no code of it is run.

    Args:
        path: a folder in the published layout: ``config.json``, weights in safetensors.
        dtype: of the weights, one of `published.DTYPES`; "" for bfloat16 on a GPU and float32
            elsewhere.
        device: torch device.

    Raises:
        ValueError: for an unknown dtype, or a device that there is not.
        CheckpointError: for another kind of model, special tokens that are not of its vocabulary,
            weights that are missing, left over or of another shape (they are named), and for
            damaged files.
        RefusedError: for weights that only pickle can read.
        MissingExtraError: without transformers.
    """
    folder, kind = Path(path), weights_dtype(dtype, device)
    described = read_config(folder, tuple(sorted(adapters())))
    adapter = adapters()[described["model_type"]]
    return adapter.load(folder, described, dtype=kind, device=device)
