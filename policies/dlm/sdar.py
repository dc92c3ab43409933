"""SDAR (arXiv 2510.06303) and TraDo (arXiv 2509.06949): block by block, blocks see themselves.

Their network is a Qwen3, under the same names; a logit speaks of its own slot. Blocks are counted
from the start of the prompt. Mixtures of experts (``sdar_moe``) are other networks, not read here.
"""

from fastloop.accel.decoding.model import Regime
from fastloop.policies.dlm.adapter import TextAdapter

__all__ = ["ADAPTER"]

ADAPTER = TextAdapter(
    "SDAR", ("sdar",), "Qwen3", Regime.BLOCK_CAUSAL, logit_shift=0, mask_id=151669, block_size=4
)
