"""Qwen2.5-VL and what was made of it (Fast-dVLM, Fast-dDrive) as the decoding engine asks for it.

The network is the one of transformers, unchanged: its vision tower, its language model and its head
are called one by one, with positions and masks made here; its layers too, where somebody asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.kv import KVCache
from fastloop.accel.decoding.layered import Reading, layers_of
from fastloop.accel.decoding.model import ModelSpec, Regime
from fastloop.policies.dlm.decoder import prompt_mask
from fastloop.policies.dlm.layers import StockLayers
from fastloop.policies.vla.prompt import Prompt

__all__ = ["Qwen25VL"]


class Qwen25VL(StockLayers):
    """``transformers.Qwen2_5_VLForConditionalGeneration`` as a `LayeredModel`.

    Nothing is remembered between calls: a picture takes up fewer positions than tokens, and
    `prefill` counts so, so that `Context.position` goes on where the pictures left off.

    Args:
        network: loaded, with ``attn_implementation="sdpa"``, which reads boolean masks; of any
            floating dtype, on any device.
        spec: what attends to what, and special tokens.

    Raises:
        ValueError: for a network with another kind of attention, or with sliding windows, and for
            a spec of the regime ``full``.
    """

    def __init__(self, network: Any, spec: ModelSpec) -> None:
        text = network.config.text_config
        if text._attn_implementation != "sdpa":
            raise ValueError(
                f"attention {text._attn_implementation!r} would add a boolean mask as numbers: "
                "load the network with attn_implementation='sdpa'"
            )
        if set(text.layer_types) != {"full_attention"}:
            raise ValueError(
                f"layers of kinds {sorted(set(text.layer_types))}; expected full_attention only: "
                "set use_sliding_window to false"
            )
        if spec.regime is Regime.FULL:
            raise ValueError("a model of regime full keeps no prompt, pictures would be lost")
        super().__init__(network.eval(), network.model.language_model)
        self.spec = spec

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        device: torch.device = self.network.device
        return device

    @property
    def place(self) -> int:
        """The id that stands in a prompt for a token of a picture."""
        return int(self.network.config.image_token_id)

    @property
    def window(self) -> int:
        """Positions that the network knows, those of the answer included."""
        return int(self.network.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Prompt], *, room: int) -> Context:
        """Read one prompt for each of B rows, once; pictures of all rows in one pass.

        Prompts may be of different lengths: slots that fill up the shorter ones are hidden.

        Args:
            prompts: B.
            room: slots for tokens that will follow.

        Raises:
            ValueError: for no prompt, one without a token, one whose picture tokens are not as many
                as its pictures take up, or one that leaves less than `room` of `window`.
        """
        self._check(prompts, room)
        reading = self.read(prompts)
        kv = KVCache(self.layers, reading.ids.shape[1] + room)
        # Without a mask it is causal, so that no token sees what fills up its row behind it.
        mask = reading.mask if self.spec.regime is Regime.PREFIX_LM else None
        hidden = self._layers(reading.hidden, reading.positions, mask, kv)
        rows = torch.arange(len(prompts), device=self.device)
        return Context(
            kv=kv,
            visible=reading.visible,
            position=reading.position,
            logits=self._logits(hidden[rows, reading.visible.sum(1) - 1]),
        )

    @torch.no_grad()
    def read(self, prompts: Sequence[Prompt]) -> Reading:
        """See `LayeredModel.read`; pictures of all rows in one pass, positions (3, B, P).

        Raises:
            ValueError: as `prefill`.
        """
        self._check(prompts, 0)
        network, device = self.network, self.device
        read = torch.nn.utils.rnn.pad_sequence([prompt.ids for prompt in prompts], batch_first=True)
        lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
        visible = torch.arange(read.shape[1]) < lengths[:, None]
        grid = torch.cat([prompt.grid for prompt in prompts])
        pictures = (read == self.place) & visible
        positions, _ = network.model.get_rope_index(
            read, mm_token_type_ids=pictures.int(), image_grid_thw=grid, attention_mask=visible
        )
        following = positions.amax((0, 2)) + 1  # the position of a slot that is not visible is 0

        embeddings = network.get_input_embeddings()(read.to(device))
        if len(grid):
            pixels = torch.cat([prompt.pixels for prompt in prompts]).to(device)
            seen = network.get_image_features(pixels, grid.to(device)).pooler_output
            embeddings = embeddings.masked_scatter(
                pictures.to(device)[..., None], torch.cat(list(seen)).to(embeddings.dtype)
            )
        return Reading(
            ids=read.to(device), hidden=embeddings, positions=positions.to(device),
            mask=(prompt_mask(self.spec, read.shape[1]) & visible[:, None]).to(device),
            visible=visible.to(device),
            visual=pictures.to(device), position=following.to(device),
        )  # fmt: skip

    @torch.no_grad()
    def forward(
        self, ids: torch.Tensor, *, positions: torch.Tensor, mask: torch.Tensor, kv: KVCache
    ) -> torch.Tensor:
        """One pass over new tokens of text; see `LanguageModel.forward`.

        Args:
            ids: (B, Q) int64.
            positions: (B, Q) int64, going on from `Context.position`.
            mask: (B or 1, Q, kv.length + Q) bool.
            kv: of these rows, appended in place.

        Returns:
            logits (B, Q, V), at least float32.
        """
        layers, places = range(self.layers), positions.expand(3, -1, -1)
        return self.head(layers_of(self, layers, self.embed(ids), places, mask, kv))

    def _layers(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        kv: KVCache,
    ) -> torch.Tensor:
        # A mask for each kind of layer is taken as it is, where a single one would be remade.
        hidden: torch.Tensor = self.network.model.language_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask={"full_attention": mask if mask is None else mask[:, None]},
            past_key_values=_Layers(kv),
            use_cache=True,
        ).last_hidden_state
        return hidden

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network.lm_head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _check(self, prompts: Sequence[Prompt], room: int) -> None:
        if not prompts:
            raise ValueError("there is no prompt to read: give one for each row")
        merge = self.network.config.vision_config.spatial_merge_size
        for row, prompt in enumerate(prompts):
            held = int((prompt.ids == self.place).sum())
            taken = int((prompt.grid.prod(1) // merge**2).sum())
            if held != taken:
                raise ValueError(
                    f"prompt {row} holds {held} picture tokens, its {len(prompt.grid)} pictures "
                    f"take up {taken}"
                )
            if not len(prompt.ids) or len(prompt.ids) + room > self.window:
                raise ValueError(
                    f"prompt {row} has {len(prompt.ids)} tokens and an answer of {room} is to "
                    f"follow; the model reads 1 to {self.window} in all: smaller pictures "
                    "(max_pixels) or fewer words"
                )


class _Layers:
    """A `KVCache` where the network expects a cache of transformers, of which it calls `update`."""

    def __init__(self, kv: KVCache) -> None:
        self.kv = kv

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.kv.append(layer, keys, values)
