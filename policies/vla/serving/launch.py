"""Command lines that start engines; nothing is started here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["ALGORITHMS", "ENGINES", "Launch", "launch_command"]

ENGINES = ("sglang", "vllm")

# Decoding algorithms of SGLang's diffusion mode and what each may be told
# (https://docs.sglang.io/docs/supported-models/diffusion_language_models); the last two are of
# NVlabs' fork, which knows Fast-dLLM v2 and Fast-dVLM.
ALGORITHMS = {
    "LowConfidence": ("threshold", "block_size"),
    "JointThreshold": (
        "threshold", "edit_threshold", "max_post_edit_steps", "penalty_lambda", "block_size",
    ),
    "Gemma4Renoise": (),
    "HierarchyBlock": ("threshold", "sub_block_size", "token_shift", "block_size"),
    "SpeculativeBlock": ("token_shift", "block_size"),
}  # fmt: skip
DIFFUSION_CONFIG = ("canvas_length", "max_denoising_steps")  # of vLLM's --diffusion-config


@dataclass(frozen=True)
class Launch:
    """How to start an engine.

    Attributes:
        argv: the command, word by word, for the environment in which the engine is installed.
        files: path to text, to be written first.
    """

    argv: tuple[str, ...]
    files: Mapping[str, str]


def launch_command(
    engine: str,
    model: str,
    *,
    port: int = 30000,
    algorithm: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    config_path: str | Path = "algorithm.yaml",
) -> Launch:
    """The command of an engine that serves `model` to this machine only.

    Args:
        engine: one of `ENGINES`.
        model: folder of a checkpoint, or its name, by which the engine also serves it.
        port: of 127.0.0.1.
        algorithm: SGLang's way to decode a diffusion model, one of `ALGORITHMS`; None for an
            autoregressive one.
        parameters: of that algorithm; for vLLM of its canvas.
        config_path: of the file that tells SGLang the parameters.

    Raises:
        ValueError: for an unknown engine, algorithm or parameter.
    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; have: {', '.join(ENGINES)}")
    if not model or model.startswith("-"):
        raise ValueError(f"model must be a folder or a name, got {model!r}")
    if not 0 < port < 65536:
        raise ValueError(f"port must be from 1 to 65535, got {port}")
    parameters = dict(parameters or {})
    place = ("--host", "127.0.0.1", "--port", str(port))
    if engine == "vllm":
        if algorithm is not None:
            raise ValueError("vllm decodes each model in one way: algorithm must be None")
        _check("vllm", parameters, DIFFUSION_CONFIG)
        told = ("--diffusion-config", json.dumps(parameters)) if parameters else ()
        return Launch(("vllm", "serve", model, *place, *told), {})
    argv: tuple[str, ...] = ("python", "-m", "sglang.launch_server", "--model-path", model, *place)
    if algorithm is None:
        _check("an autoregressive model", parameters, ())
        return Launch(argv, {})
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {algorithm!r}; have: {', '.join(ALGORITHMS)}")
    _check(algorithm, parameters, ALGORITHMS[algorithm])
    argv += ("--dllm-algorithm", algorithm)
    if not parameters:
        return Launch(argv, {})
    argv += ("--dllm-algorithm-config", str(config_path))
    return Launch(argv, {str(config_path): yaml.safe_dump(parameters)})


def _check(name: str, parameters: Mapping[str, Any], known: tuple[str, ...]) -> None:
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(
            f"{name} has no parameter {', '.join(unknown)}; it takes: {', '.join(known) or 'none'}"
        )
