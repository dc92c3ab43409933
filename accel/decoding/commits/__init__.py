"""Which slots of a block that is being denoised are written down after a pass.

Sources differ in ways that change the answer; here, once for all:

- confidence is the probability of the chosen token, entropy that of the slot, both after tokens
  that may not stand there have been taken out and before any temperature;
- `Confidence` compares with >= (Fast-dLLM v1; v2 and SGLang compare with >), and where no slot
  passes exactly one is written, the best (dInfer writes all that tie with it);
- ties go to the leftmost slot.

The rule of deferred commitment (DCD) is `Confidence`; what is deferred there is the window.

Every policy writes at least one slot of every row that has open ones, and none of the others.
"""

from fastloop.accel.decoding.commits.commit import Commit
from fastloop.accel.decoding.commits.confidence import Confidence
from fastloop.accel.decoding.commits.credit import Credit
from fastloop.accel.decoding.commits.entropy_bound import EntropyBound
from fastloop.accel.decoding.commits.factor import Factor
from fastloop.accel.decoding.commits.fixed_count import FixedCount
from fastloop.accel.decoding.commits.hierarchy import Hierarchy
from fastloop.accel.decoding.commits.joint_threshold import JointThreshold
from fastloop.accel.decoding.commits.learned import BlockFilter, Calibration, Learned
from fastloop.accel.decoding.commits.sequential import Sequential
from fastloop.accel.decoding.commits.shifted import Shifted

__all__ = [
    "BlockFilter",
    "Calibration",
    "Commit",
    "Confidence",
    "Credit",
    "EntropyBound",
    "Factor",
    "FixedCount",
    "Hierarchy",
    "JointThreshold",
    "Learned",
    "Sequential",
    "Shifted",
]
