"""The adaLN-Zero transformer as a list of gated residual branches, for block caches.

Shift, scale and gate of all branches are one linear map of silu(time features, observations). As
silu works on each number by itself, the map is a sum of two: its time part is a table over the K
steps, computed when the stack is built, its observation part is computed once per chunk. No step
multiplies by these weights, which are more than half of the network's at the published sizes.
"""

from __future__ import annotations

import copy

import torch
from torch.nn.functional import linear, silu

from fastloop.accel.block_cache.stack import Branch
from fastloop.accel.kernels.products import multiply_by_one_dnn
from fastloop.policies.diffusion.dit import DiT, modulate

__all__ = ["DiTStack"]


class DiTStack:
    """`DiT` in evaluation mode, branch by branch: a `ResidualStack` with gates.

    A branch's value is what its gate multiplies. So a value that is reused gets the gate of the
    step that reuses it, and only the branch itself is approximated.

    It reads the network's own weights. Its tables belong to the weights, device and dtype that
    the network had at construction; build it again when they change.

    Args:
        net: the network.
        timesteps: (K,) of the sampler.
    """

    gated = True

    @torch.no_grad()
    def __init__(self, net: DiT, timesteps: torch.Tensor) -> None:
        self.net = copy.deepcopy(
            net, {id(part): part for part in (*net.parameters(), *net.buffers())}
        )
        multiply_by_one_dnn(self.net.eval())  # the published network stays what it is
        self._blocks = list(self.net.transformer_blocks)
        time = silu(net.time_features(timesteps.to(net.input_proj.weight.device)))
        self._time_dim = time.shape[-1]
        maps = [block.adaLN_modulation[1] for block in self._blocks]
        table = [linear(time, m.weight[:, : self._time_dim], m.bias) for m in maps]
        # (K, L, 6, 1, 1, E)
        self._time = torch.stack(table, dim=1).unflatten(-1, (6, 1, 1, -1))
        self.shared = (len(timesteps) - 1) * len(self._blocks)
        self.branches = [
            Branch(f"blocks.{layer}.{name}", layer, kind)
            for layer in range(len(self._blocks))
            for name, kind in (("attn", "sa"), ("mlp", "ffn"))
        ]

    def context(self, cond: torch.Tensor) -> torch.Tensor:
        """Shift, scale and gate of both branches of every layer: (K, L, 6, B, 1, E).

        Args:
            cond: (B, O, D).
        """
        observed = silu(cond.flatten(1))
        parts = [
            linear(observed, block.adaLN_modulation[1].weight[:, self._time_dim :])
            for block in self._blocks
        ]
        # (L, 6, B, 1, E)
        modulation = torch.stack(parts).unflatten(-1, (6, 1, -1)).transpose(1, 2)
        return self._time + modulation

    def begin(self, x: torch.Tensor, k: int, ctx: torch.Tensor) -> torch.Tensor:
        """The embedded sample (B, T, E)."""
        return self.net.embed(x)

    def branch(self, i: int, h: torch.Tensor, k: int, ctx: torch.Tensor) -> torch.Tensor:
        """The value (B, T, E) of branch i before its gate."""
        layer, is_mlp = divmod(i, 2)
        block, first = self._blocks[layer], 3 * is_mlp
        shift, scale = ctx[k, layer, first], ctx[k, layer, first + 1]
        if is_mlp:
            value: torch.Tensor = block.mlp(modulate(block.norm2(h), shift, scale))
            return value
        return block.attention(modulate(block.norm1(h), shift, scale))

    def gate(self, i: int, k: int, ctx: torch.Tensor) -> torch.Tensor:
        """What multiplies the value of branch i at step k before it is added: (B, 1, E)."""
        layer, is_mlp = divmod(i, 2)
        return ctx[k, layer, 3 * is_mlp + 2]

    def add(
        self, i: int, h: torch.Tensor, r: torch.Tensor, k: int, ctx: torch.Tensor
    ) -> torch.Tensor:
        """The stream with the value `r` of branch i added through the gate of step k."""
        return torch.addcmul(h, self.gate(i, k, ctx), r)

    def finish(self, h: torch.Tensor, k: int, ctx: torch.Tensor) -> torch.Tensor:
        """The output (B, T, A)."""
        return self.net.answer(h)
