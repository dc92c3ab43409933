"""A stock decoder with fewer and larger products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import silu

from fastloop.accel.decoding.context import Context
from fastloop.accel.decoding.layered import Wrapped
from fastloop.accel.kernels.products import linear
from fastloop.policies.dlm.layers import Rotation, turned

__all__ = ["Fused", "joinable", "product"]

SHAPES = 64


class Fused(Wrapped):
    """Queries, keys and values of a layer by one product, and gate and up of its MLP by another.

    The network's own weights become views of the joined ones, so that nothing lies there twice and
    the network, which goes on reading prompts, stays what it is.

    Args:
        model: `Decoder` or `Qwen25VL`, of Llama, Qwen2 or Qwen2.5-VL.
        compiled: whether ``torch.compile`` makes one kernel of what is between two products. It
            needs a C++ compiler, and on a GPU Triton; the first passes take minutes.

    Attributes:
        products: of each layer, the four that there are: ``qkv``, ``out``, ``gate_up``, ``down``.

    Raises:
        ValueError: for layers of another kind.
    """

    model: Any

    def __init__(self, model: Any, *, compiled: bool = False) -> None:
        super().__init__(model)
        if not joinable(model):
            raise ValueError(
                f"layers are joined of Llama, Qwen2 and Qwen2.5-VL; {type(model).__name__} has "
                "none of transformers, or they norm their queries, have biases that those lack, or "
                "another activation: decode without"
            )
        self.blocks = model.text.layers
        self.products = nn.ModuleList(_products(block) for block in self.blocks)
        self._project, self._finish = _project, _finish
        if compiled:
            # More shapes and kinds of weights come up than torch compiles for of its own accord.
            torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
            self._project, self._finish = torch.compile(_project), torch.compile(_finish)

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Any], *, room: int) -> Context:
        """See `LanguageModel.prefill`: as the model itself does."""
        context: Context = self.model.prefill(prompts, room=room)
        return context

    @torch.no_grad()
    def project(
        self, layer: int, hidden: torch.Tensor, rotary: Rotation
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `LayeredModel.project`."""
        block, qkv = self.blocks[layer], self.products[layer]["qkv"]
        heads = [
            part.out_features // block.self_attn.head_dim
            for part in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
        ]
        norm = block.input_layernorm
        return self._project(
            hidden, rotary, norm.weight, norm.variance_epsilon, qkv.weight, qkv.bias, heads
        )

    @torch.no_grad()
    def finish(self, layer: int, hidden: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """See `LayeredModel.finish`."""
        norm, products = self.blocks[layer].post_attention_layernorm, self.products[layer]
        weights = [products[name].weight for name in ("out", "gate_up", "down")]
        return self._finish(hidden, mixed, norm.weight, norm.variance_epsilon, weights)


def joinable(model: Any) -> bool:
    """Whether `Fused` knows the layers of a model."""
    return hasattr(model, "text") and all(map(_plain, model.text.layers))


def _plain(block: Any) -> bool:
    attention, mlp = block.self_attn, block.mlp
    others = (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    biased = any(part.bias is not None for part in others)
    silu_alone: bool = mlp.config.hidden_act == "silu"
    return silu_alone and not biased and not hasattr(attention, "q_norm")


def _products(block: Any) -> nn.ModuleDict:
    attention, mlp = block.self_attn, block.mlp
    return nn.ModuleDict(
        {
            "qkv": _joined([attention.q_proj, attention.k_proj, attention.v_proj]),
            "out": product(attention.o_proj.weight, None),
            "gate_up": _joined([mlp.gate_proj, mlp.up_proj]),
            "down": product(mlp.down_proj.weight, None),
        }
    )


def _joined(parts: Sequence[nn.Linear]) -> nn.Linear:
    """One product that gives what several give, one after the other."""
    weight = _whole([part.weight for part in parts])
    bias = None if parts[0].bias is None else _whole([part.bias for part in parts])
    return product(weight, bias)


def _whole(parts: Sequence[nn.Parameter]) -> torch.Tensor:
    """Parameters as one tensor of which they become views, unless they have been joined before."""
    storages = [part.untyped_storage() for part in parts]
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    same = len({storage.data_ptr() for storage in storages}) == 1
    if same and storages[0].nbytes() == math.prod(shape) * parts[0].element_size():
        return parts[0].detach().as_strided(shape, parts[0].stride(), 0)
    whole = torch.cat(list(parts)).detach()
    for part, own in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = own
    return whole


def product(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A layer (out, in) over memory that is there already."""
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return layer


def _project(
    hidden: torch.Tensor,
    rotary: Rotation,
    scale: torch.Tensor,
    epsilon: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    heads: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    joined = linear(_normed(hidden, scale, epsilon), weight, bias)
    parts = joined.unflatten(-1, (sum(heads), -1)).transpose(1, 2).split(list(heads), 1)
    queries, keys, values = parts
    return turned(queries, rotary), turned(keys, rotary), values


def _finish(
    hidden: torch.Tensor,
    mixed: torch.Tensor,
    scale: torch.Tensor,
    epsilon: float,
    weights: Sequence[torch.Tensor],
) -> torch.Tensor:
    out, gate_up, down = weights
    hidden = hidden + linear(mixed.transpose(1, 2).flatten(2), out)
    gate, up = linear(_normed(hidden, scale, epsilon), gate_up).chunk(2, -1)
    return hidden + linear(silu(gate) * up, down)


def _normed(hidden: torch.Tensor, scale: torch.Tensor, epsilon: float) -> torch.Tensor:
    """As transformers does it: in float32, whatever it is given."""
    wide = hidden.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return scale * wide.to(hidden.dtype)
