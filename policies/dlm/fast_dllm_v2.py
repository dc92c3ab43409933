"""Fast-dLLM v2 (arXiv 2509.26328): block by block, blocks see themselves.

Its network is a Qwen2, under the same names; a logit speaks of the next slot, so that the last
logit of a finished block tells the first token of the next (``SectionDiffusion(seed=True)``).
Blocks are counted from the start of the prompt, and both prompt and finished blocks are kept from
passes in which a block sees all of itself. The configuration says ``bd_size`` and no mask.
"""

from fastloop.accel.decoding.model import Regime
from fastloop.policies.dlm.adapter import TextAdapter

__all__ = ["ADAPTER"]

ADAPTER = TextAdapter(
    "Fast-dLLM v2", ("Fast_dLLM_Qwen",), "Qwen2", Regime.BLOCK_CAUSAL, logit_shift=1, mask_id=151665
)
