"""Folders in Hugging Face's layout, for stock classes of transformers: nothing in them is run.

A folder has ``config.json`` and weights in safetensors, in one file or in shards. Classes of its
own that it names (``auto_map``) are not run; weights that the stock class has no place for are
refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastloop.extras import require
from fastloop.policies.checkpoints.errors import CheckpointError, RefusedError
from fastloop.policies.checkpoints.files import read_json, read_safetensors

__all__ = [
    "DTYPES",
    "make_config",
    "make_network",
    "quietly",
    "read_config",
    "read_weights",
    "weights_dtype",
]

DTYPES = ("float32", "bfloat16", "float16", "float64")
DEEPEST = 1000  # layers
# Fields of a configuration that make transformers load something, besides those that begin in "_".
LOADING = ("attn_implementation", "auto_map", "transformers_weights")


def weights_dtype(dtype: str, device: torch.device | str) -> torch.dtype:
    """The dtype of this name; of "", bfloat16 on a GPU and float32 elsewhere.

    Raises:
        ValueError: for an unknown dtype, or a device that there is not.
    """
    try:
        on = torch.empty(0, device=device).device.type
    except (AssertionError, RuntimeError) as error:  # what torch raises for no such device
        raise ValueError(f"the model cannot be put on device {device!r}: {error}") from error
    dtype = dtype or ("bfloat16" if on == "cuda" else "float32")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; have: {', '.join(DTYPES)}")
    found: torch.dtype = getattr(torch, dtype)
    return found


def read_config(folder: Path, known: Collection[str]) -> dict[str, Any]:
    """What ``config.json`` says of a model of a known type.

    Raises:
        CheckpointError: for another type, for quantized weights, and for a damaged file.
    """
    described = read_json(folder / "config.json")
    if described.get("model_type") not in known:
        raise CheckpointError(
            f"{folder} holds a model of type {described.get('model_type')!r}; expected one of "
            f"{', '.join(known)}"
        )
    if "quantization_config" in described:
        raise CheckpointError(
            f"{folder} holds quantized weights ({described['quantization_config']}); expected the "
            "original ones"
        )
    return described


def make_config(name: str, folder: Path, described: Mapping[str, Any]) -> Any:
    """A configuration of transformers, without what would make it load or run something.

    Args:
        name: of the class.
        folder: to be named in errors.
        described: fields, as ``config.json`` has them.

    Raises:
        CheckpointError: for fields that cannot be.
        MissingExtraError: without transformers.
    """
    transformers = require("transformers", extra="vla")
    layers = [
        part.get(key, 0)
        for part in (described, described.get("text_config"), described.get("vision_config"))
        if isinstance(part, dict)
        for key in ("num_hidden_layers", "depth")
    ]
    if not all(isinstance(count, int) and 0 <= count <= DEEPEST for count in layers):
        raise CheckpointError(f"{folder}/config.json: {layers} layers, at most {DEEPEST} are read")
    try:
        config = getattr(transformers, name).from_dict(_plain(described))
        config._attn_implementation = "sdpa"  # of all its parts; reads boolean masks
        return config
    except Exception as error:  # its fields check themselves, with exceptions of several kinds
        raise CheckpointError(f"{folder}/config.json is malformed: {error}") from error


def read_weights(
    folder: Path, key: Callable[[str], str]
) -> tuple[dict[str, torch.Tensor], list[Path]]:
    """All weights of a folder on the CPU, and the files that they are in.

    Args:
        folder: of the model.
        key: what a weight is called in the stock class.

    Raises:
        CheckpointError: for missing or damaged files, and for two weights of one name.
        RefusedError: for weights that only pickle can read, and files outside of the folder.
    """
    shards = _weight_files(folder)
    weights: dict[str, torch.Tensor] = {}
    for shard in shards:
        for name, value in read_safetensors(shard).items():
            if key(name) in weights:
                raise CheckpointError(f"{shard} holds {name}, which is there already: {key(name)}")
            weights[key(name)] = value
    return weights, shards


def make_network(
    name: str,
    config: Any,
    weights: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype,
    folder: Path,
    described: Mapping[str, Any],
    what: str,
) -> Any:
    """A network of transformers with these weights, each of which has its place.

    Args:
        name: of the class.
        config: of `make_config`.
        weights: under the names of the stock class.
        dtype: that they are cast to.
        folder: to be named in errors.
        described: its ``config.json``, for classes of its own.
        what: the network in words, for errors.

    Raises:
        CheckpointError: for weights that are missing, left over or of another shape.
    """
    network = getattr(require("transformers", extra="vla"), name)
    _check_weights(network, config, weights, folder, described, what)
    with quietly():
        return network.from_pretrained(
            None, config=config, state_dict=dict(weights), dtype=dtype, attn_implementation="sdpa"
        )


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _plain(value) if isinstance(value, dict) else value
        for key, value in part.items()
        if not key.startswith("_") and key not in LOADING
    }


def _weight_files(folder: Path) -> list[Path]:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if index.exists():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise CheckpointError(f"{index} names no shards, expected a weight_map")
        shards = sorted(set(map(str, named.values())))
        if outside := [name for name in shards if Path(name).name != name]:
            raise RefusedError(f"{index} names files outside of its folder: {outside}")
        return [folder / name for name in shards]
    if pickled := sorted(path.name for path in folder.glob("*.bin")):
        raise RefusedError(
            f"{folder} holds its weights in {', '.join(pickled[:3])}, which only pickle reads, and "
            "a pickle can run anything: convert it to model.safetensors where you trust it"
        )
    raise CheckpointError(f"{folder} holds no weights, expected model.safetensors or its index")


def _check_weights(
    network: Any,
    config: Any,
    weights: Mapping[str, torch.Tensor],
    folder: Path,
    described: Mapping[str, Any],
    what: str,
) -> None:
    try:
        with torch.device("meta"):
            wanted = {
                key: tuple(value.shape) for key, value in network(config).state_dict().items()
            }
    except Exception as error:  # sizes that do not fit each other
        raise CheckpointError(f"{folder}/config.json describes no network: {error}") from error
    if config.tie_word_embeddings and "lm_head.weight" not in weights:
        del wanted["lm_head.weight"]
    held = {key: tuple(value.shape) for key, value in weights.items()}
    faults = [
        f"{key}: configuration {wanted.get(key, 'has none')}, weights {held.get(key, 'have none')}"
        for key in sorted(wanted.keys() | held.keys())
        if wanted.get(key) != held.get(key)
    ]
    if faults:
        more = f"\n  and {len(faults) - 12} more" if len(faults) > 12 else ""
        own = described.get("auto_map")
        classes = f" (it names classes of its own, {own}, which are not run)" if own else ""
        raise CheckpointError(
            f"{folder}: {len(faults)} weights are not those of a {what} of this "
            f"configuration{classes}:\n  " + "\n  ".join(faults[:12]) + more
        )


@contextmanager
def quietly() -> Iterator[None]:
    """Without progress bars, which transformers would draw."""
    logging = require("transformers.utils.logging", extra="vla")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
