"""How checkpoints that others published are read as stock classes of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fastloop.accel.decoding.model import LanguageModel, ModelSpec, Regime
from fastloop.policies.checkpoints.checkpoint import file_digest
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.checkpoints.files import read_json
from fastloop.policies.checkpoints.published import make_config, make_network, read_weights
from fastloop.policies.dlm.decoder import Decoder
from fastloop.policies.vla.manifest import MANIFEST, Manifest, read_manifest

__all__ = ["Adapter", "TextAdapter", "stop_ids"]


class Adapter(Protocol):
    """One a module of this folder, under the name ``ADAPTER``; that is all that makes it known."""

    @property
    def model_types(self) -> tuple[str, ...]:
        """What ``config.json`` calls its models."""
        ...

    def load(
        self, folder: Path, described: Mapping[str, Any], *, dtype: torch.dtype, device: Any
    ) -> LanguageModel:
        """The model of a folder.

        Args:
            folder: in the published layout.
            described: its ``config.json``.
            dtype: of the weights.
            device: torch device.

        Raises:
            CheckpointError: for a configuration that is no such model, ids that are not of its
                vocabulary, and weights that are missing, left over or of another shape.
        """
        ...


@dataclass(frozen=True)
class TextAdapter:
    """Checkpoints whose network is a stock decoder under other names.

    What ``fastloop.json`` in the folder says goes before what is said here (see `Manifest`).

    Attributes:
        name: of the models.
        model_types: what ``config.json`` calls them.
        network: family of classes in transformers: Llama, Qwen2 or Qwen3.
        regime: what attends to what.
        logit_shift: 1 where the logits of position p - 1 speak of position p, else 0.
        mask_id: where ``config.json`` has no ``mask_token_id``.
        block_size: where it has neither ``block_size`` nor ``bd_size``.
        native: whether it was trained to fill masks from the start (`ModelSpec`).
        stop_ids: that end an answer beside those that the folder says, where its vocabulary has
            them.
        config: fields of the stock configuration, from those of ``config.json``; ValueError for
            what a stock network cannot do.
        key: of the stock class, from the published key of a weight.
    """

    name: str
    model_types: tuple[str, ...]
    network: str
    regime: Regime
    logit_shift: int
    mask_id: int
    block_size: int = 32
    native: bool = False
    stop_ids: tuple[int, ...] = ()
    config: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    key: Callable[[str], str] = str

    def load(
        self, folder: Path, described: Mapping[str, Any], *, dtype: torch.dtype, device: Any
    ) -> Decoder:
        """See `Adapter.load`."""
        try:
            fields = self.config(described)
        except KeyError as error:
            raise CheckpointError(f"{folder}/config.json does not say {error}") from error
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}/config.json: {error}") from error
        config = make_config(f"{self.network}Config", folder, fields)
        manifest = self.manifest(folder, described, config.vocab_size)
        weights, shards = read_weights(folder, self.key)
        network = make_network(
            f"{self.network}ForCausalLM", config, weights, dtype=dtype, folder=folder,
            described=described, what=self.name,
        )  # fmt: skip
        said = [path for path in (folder / "config.json", folder / MANIFEST) if path.exists()]
        digest = file_digest(*said, *shards)
        spec = self.spec(manifest, vocab=config.vocab_size, digest=digest)
        try:
            return Decoder(network.to(device), spec)
        except ValueError as error:
            raise CheckpointError(f"{folder}: {error}") from error

    def manifest(self, folder: Path, described: Mapping[str, Any], vocab: int) -> Manifest:
        """What the engine has to know, from the folder and from what is published.

        Raises:
            CheckpointError: for ids that are not of the vocabulary.
        """
        sizes = (described.get(name) for name in ("block_size", "bd_size"))
        mask = described.get("mask_token_id")
        released = {
            "regime": self.regime.value,
            "mask_id": self.mask_id if mask is None else mask,
            "stop_id": (
                *stop_ids(folder, described),
                *(token for token in self.stop_ids if token < vocab),
            ),
            "block_size": next((size for size in sizes if size is not None), self.block_size),
        }
        return read_manifest(folder, described, vocab, released=released)

    def spec(self, told: Manifest, *, vocab: int, digest: str) -> ModelSpec:
        """What the decoding engine has to know."""
        return ModelSpec(
            regime=Regime(told.regime), vocab=vocab, mask_id=told.mask_id, stop_ids=told.stop_ids,
            null_id=told.null_id, logit_shift=self.logit_shift, block_size=told.block_size,
            digest=digest, native=self.native,
        )  # fmt: skip


def stop_ids(folder: Path, described: Mapping[str, Any]) -> tuple[int, ...]:
    """What ends an answer: of ``generation_config.json`` where there is one, as in transformers."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    stop = generation.get("eos_token_id", described.get("eos_token_id"))
    if stop is None:
        return ()
    return tuple(stop) if isinstance(stop, list) else (stop,)
