"""The gates before any speed-up: whoever must write the same tokens does, and nobody touches what
is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from fastloop.accel.decoding.canvas import Canvas
from fastloop.accel.decoding.model import LanguageModel
from fastloop.accel.decoding.result import Decoded
from fastloop.bench.decode.arms import DecodeArm
from fastloop.policies.vla.prompt import Prompt

__all__ = ["GIVEN", "Answers", "Gate", "check", "check_timed", "violations", "write_all"]

GIVEN = "given tokens stand"
EQUAL, SAMPLED = "token by token", "sampled token by token"
SINGLE, TIMED = "one rollout at temperature 0", "as timed"

Answers = Mapping[str, Sequence[Decoded]]
"""Of each arm, what it wrote at each prompt."""


@dataclass(frozen=True)
class Gate:
    """One comparison.

    Attributes:
        name: what is compared.
        compared: how many answers.
        wrong: how many of them are not what they must be.
    """

    name: str
    compared: int
    wrong: int

    @property
    def holds(self) -> bool:
        """Whether something was compared, and nothing was wrong."""
        return self.compared > 0 and self.wrong == 0


def write_all(
    arms: Sequence[DecodeArm],
    prompts: Sequence[Prompt],
    model: LanguageModel,
    advance: Callable[[int, str], None],
) -> Answers:
    """Every arm's answers, `advance` being called with how many are done and who is next."""
    written: dict[str, list[Decoded]] = {arm.name: [] for arm in arms}
    for done, prompt in enumerate(prompts):
        for index, arm in enumerate(arms):
            advance(done * len(arms) + index, arm.name)
            written[arm.name].append(arm.write(prompt, model))
    advance(len(arms) * len(prompts), "")
    return written


def check(
    arms: Sequence[DecodeArm],
    answers: Answers,
    prompts: Sequence[Prompt],
    model: LanguageModel,
    *,
    sampled: int,
) -> dict[str, tuple[Gate, ...]]:
    """The gates of each arm.

    Args:
        arms: the first of them is the plain one, against which the others are held.
        answers: of these arms on `model`, at `prompts`.
        prompts: all of them.
        model: that wrote the answers.
        sampled: at how many prompts rollouts are compared with rollouts token by token.
    """
    plain, few = answers[arms[0].name], prompts[:sampled]
    gates = {}
    for arm in arms:
        own, canvas = answers[arm.name], arm.planner.layout.canvas
        found = [Gate(GIVEN, len(own), sum(violations(one.tokens, canvas) > 0 for one in own))]
        if arm.exact and arm.forks:
            expected = [arm.write_token_by_token(prompt, model) for prompt in few]
            single = [arm.write_one_surely(prompt, model) for prompt in few]
            found += [_equal(SAMPLED, own, expected), _equal(SINGLE, single, plain)]
        elif arm.exact and arm is not arms[0]:
            if arm.config.temperature:
                plain = [arm.write_token_by_token(prompt, model) for prompt in prompts]
            found.append(_equal(EQUAL, own, plain))
        gates[arm.name] = tuple(found)
    return gates


def check_timed(arm: DecodeArm, answers: Sequence[Decoded], texts: Sequence[str]) -> Gate:
    """Whether the texts of timed plans are those of the answers that were checked."""
    tokenizer, null = arm.planner.layout.tokenizer, arm.planner.layout.null_id
    wrong = 0
    for one, text in zip(answers, texts, strict=True):
        own = tokenizer.decode([token for token in one.tokens[0].tolist() if token != null])
        wrong += text != own and not text.startswith(f"{own} [")  # then a reason follows
    return Gate(TIMED, len(texts), wrong)


def violations(tokens: torch.Tensor, canvas: Canvas) -> int:
    """Given slots of answers (N, n) that hold something else."""
    given = canvas.given.cpu()
    return int((tokens.cpu() != canvas.tokens.cpu())[:, given].sum())


def _equal(name: str, found: Sequence[Decoded], expected: Sequence[Decoded]) -> Gate:
    """As many answers as there are of both, token for token."""
    pairs = list(zip(found, expected, strict=False))
    wrong = sum(not torch.equal(one.tokens, other.tokens) for one, other in pairs)
    return Gate(name, len(pairs), wrong)
