"""A vision-language model that drives: cameras, past and command in, waypoints in an answer out."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastloop.accel.decoding.captured import Captured
from fastloop.accel.decoding.choose import Choice, Greedy, Gumbel
from fastloop.accel.decoding.compose import compose
from fastloop.accel.decoding.model import LanguageModel, Regime
from fastloop.accel.decoding.result import Exactness
from fastloop.accel.decoding.rollouts import decode, rollouts
from fastloop.accel.report import AccelReport
from fastloop.policies.base import Budget, Plan
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.checkpoints.files import read_json
from fastloop.policies.dlm.folder import is_language_model, load_language_model
from fastloop.policies.dlm.pictured import Pictured
from fastloop.policies.dlm.renamed import Renamed
from fastloop.policies.history import History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import EnvSpec, PolicySpec, SpecMismatchError
from fastloop.policies.vla.answer import read_tokens
from fastloop.policies.vla.canvas import Layout, build_layout
from fastloop.policies.vla.checkpoint import TOKENIZER, load_vlm
from fastloop.policies.vla.decoding import DecodingConfig, build_driver, build_model
from fastloop.policies.vla.images import PatchConfig, Pictures
from fastloop.policies.vla.manifest import Manifest, read_manifest
from fastloop.policies.vla.prompt import Prompt, Template, build_prompt, load_template
from fastloop.policies.vla.qwen25vl import Qwen25VL
from fastloop.policies.vla.schema import load_schema
from fastloop.policies.vla.selectors import build_selector
from fastloop.policies.vla.tokenizer import MASK, NULL, FileTokenizer, Tokenizer, token_id
from fastloop.policies.vla.waypoints import WaypointPlan

__all__ = ["VisionLanguagePlanner"]

STATES, INTENT, IMAGES = "observation.ego_states", "observation.intent", "observation.images."
YAML = (".yaml", ".yml")


class VisionLanguagePlanner:
    """Plans the waypoints that a model writes.

    It reads ``observation.ego_states`` (O, 6), ``observation.intent`` and one picture a camera. An
    answer that holds no waypoints does not stop anything: the plan goes on at constant velocity,
    and its text ends in the reason, in brackets.

    Args:
        model: reads prompts and text.
        layout: of its answer.
        template: words of the question.
        pictures: how the model cuts them.
        cameras: in the order that it knows, without ``observation.images.``.
        env: what it plans for; its action must be a waypoint (x, y) and its horizon known.
        decoding: how the answer is written.

    Raises:
        SpecMismatchError: when `env` does not show or take that.
        ValueError: when the model cannot be decoded so, or the schema holds no waypoints.
    """

    def __init__(
        self,
        model: LanguageModel,
        layout: Layout,
        *,
        template: Template,
        pictures: Pictures,
        cameras: Sequence[str],
        env: EnvSpec,
        decoding: DecodingConfig | None = None,
    ) -> None:
        self.waypoints = WaypointPlan(layout.schema, env)
        self.cameras = tuple(IMAGES + camera for camera in cameras)
        reads = (STATES, INTENT, *self.cameras)
        if missing := [key for key in reads if key not in env.observations]:
            offered = ", ".join(env.observations) or "nothing"
            raise SpecMismatchError(f"the model reads {missing}; {env.name} offers {offered}")
        self.model, self.layout, self.template = model, layout, template
        self.pictures = pictures
        self._decode_as(decoding or DecodingConfig())
        self.name, self.digest = "vision_language", model.spec.digest
        self.spec = PolicySpec(
            inputs={key: env.observations[key] for key in reads},
            action=env.action, n_obs_steps=1, horizon=self.waypoints.horizon, n_action_steps=1,
            control_hz=env.control_hz,
        )  # fmt: skip

    @classmethod
    def load(
        cls,
        folder: str | Path,
        env: EnvSpec,
        *,
        decoding: DecodingConfig | None = None,
        device: torch.device | str = "cpu",
        dtype: str = "",
    ) -> VisionLanguagePlanner:
        """Load from a folder that `load_vlm` reads, or `load_language_model` (LaViDa).

        Args:
            folder: with a tokenizer, and a manifest that names a schema and a prompt.
            env, decoding: as above.
            device, dtype: as `load_vlm`.

        Raises:
            CheckpointError: as `load_vlm`, and for a model that was not taught to drive, whose
                tokenizer does not fit it, or that is shown no pictures.
            SpecMismatchError: as above, and for pictures of another size than it was shown.
        """
        model, told, pictures = _read(Path(folder), dtype, device)
        if told.schema is None or told.prompt is None:
            raise CheckpointError(
                f"{folder} does not say what the model was taught to answer: name its schema and "
                "its prompt in fastloop.json"
            )
        schema = Path(folder) / told.schema if told.schema.endswith(YAML) else told.schema
        try:
            tokenizer: Tokenizer = FileTokenizer(Path(folder) / TOKENIZER)
            template = load_template(told.prompt)
            if isinstance(model, Pictured):
                names = {MASK: told.mask_id, NULL: told.null_id, template.place: model.place}
                told_ids = {name: token for name, token in names.items() if token is not None}
                tokenizer = Renamed(tokenizer, told_ids)
            token_id(tokenizer, template.place)
            layout = build_layout(load_schema(schema), tokenizer, vocab=model.spec.vocab)
        except ValueError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        if (mask := token_id(tokenizer, MASK)) != told.mask_id:
            raise CheckpointError(
                f"{folder}: {MASK} is {mask} of its tokenizer, not {told.mask_id}"
            )
        _check_pictures(told, env)
        return cls(
            model, layout, template=template, pictures=pictures, cameras=told.cameras, env=env,
            decoding=decoding,
        )  # fmt: skip

    def plan(self, history: History, *, rng: Rng, budget: Budget | None = None) -> Plan:
        """Waypoint k (from 0) is for ``(k + 1) / control_hz`` seconds from now; the budget is not
        used. Where an observation cannot be asked about (a past that is no number, say) the plan
        goes on at constant velocity, too.

        Raises:
            ValueError: for a prompt that the model is too small for.
        """
        start = time.perf_counter()
        states = history[STATES][:, -1].cpu()
        asked = self._ask(history)
        prompt_ms = 1e3 * (time.perf_counter() - start)
        rows = [b for b, prompt in enumerate(asked) if isinstance(prompt, Prompt)]
        prompts = [prompt for prompt in asked if isinstance(prompt, Prompt)]
        answers, report = self._write(prompts, [rng.keys[b] for b in rows])
        written = dict(zip(rows, answers.cpu(), strict=True))
        plans, texts = [], []
        for b, row in enumerate(states):
            if b in written:
                candidates, text = self._read(row, written[b])
            else:
                straight = self.waypoints.straight_on(row.nan_to_num(0.0, 0.0, 0.0))
                candidates = straight.expand(self.decoding.rollouts, -1, -1), straight
                text = f"[constant velocity: {asked[b]}]"
            plans.append(candidates)
            texts.append(text)
        if isinstance(self.writer, Captured):
            passes, why = self.writer.told()
            replayed = int(bool(passes) and not why)
            report = replace(report, replayed=replayed, not_replayed=dict.fromkeys(why, 1))
        found = torch.stack([candidates for candidates, _ in plans])
        return Plan(
            actions=torch.stack([chosen for _, chosen in plans]),
            dt=1 / self.spec.control_hz,
            t0=history.ticks,
            text=tuple(texts),
            candidates=found if self.decoding.rollouts > 1 else None,
            report=replace(report, stage_ms={"prompt": prompt_ms, **report.stage_ms}),
        )

    def with_decoding(self, decoding: DecodingConfig) -> VisionLanguagePlanner:
        """The same model, writing in another way.

        Raises:
            ValueError: when it cannot be decoded so.
        """
        other = copy.copy(self)
        other._decode_as(decoding)
        return other

    def _decode_as(self, decoding: DecodingConfig) -> None:
        self.decoding = decoding
        self.writer = build_model(decoding, self.model)
        self.driver = build_driver(decoding, self.writer, Greedy(), self.layout.canvas)

    def prompts(self, history: History) -> list[Prompt]:
        """The question of each of B environments.

        Raises:
            ValueError: for a past that is no number, or pictures that are none.
        """
        asked = self._ask(history)
        for b, prompt in enumerate(asked):
            if isinstance(prompt, ValueError):
                raise ValueError(f"environment {b}: {prompt}") from prompt
        return [prompt for prompt in asked if isinstance(prompt, Prompt)]

    def _ask(self, history: History) -> list[Prompt | ValueError]:
        """The question of each of B environments, or why there is none."""
        states, intents = (history[key][:, -1].cpu() for key in (STATES, INTENT))
        frames = [history[camera][:, -1].cpu() for camera in self.cameras]
        asked: list[Prompt | ValueError] = []
        for b in range(len(history)):
            try:
                question = build_prompt(
                    self.template, self.layout.tokenizer, self.pictures,
                    frames=[camera[b] for camera in frames], states=states[b],
                    intent=int(intents[b]),
                )  # fmt: skip
            except ValueError as error:
                asked.append(error)
            else:
                asked.append(question)
        return asked

    def _write(
        self, prompts: Sequence[Prompt], keys: Sequence[tuple[int, int, int]]
    ) -> tuple[torch.Tensor, AccelReport]:
        """Answers (B, N, n), and what they took."""
        config, canvas = self.decoding, self.layout.canvas
        if not prompts:
            exact = compose(self.writer, self.driver, canvas) is Exactness.LOSSLESS
            answers = torch.zeros(0, config.rollouts, len(canvas), dtype=torch.int64)
            return answers, AccelReport(self.driver.name, exact)
        if config.rollouts == 1:
            seeds = tuple(_seed(key, 0) for key in keys)
            choice: Choice = Gumbel(config.temperature, seeds) if config.temperature else Greedy()
            driver: Any = replace(self.driver, choice=choice)
            decoded = decode(self.writer, prompts, canvas, driver)
            return decoded.tokens[:, None], decoded.report()
        parts = [
            rollouts(
                self.writer, prompt, canvas, self.driver, temperature=config.temperature,
                seeds=[_seed(key, n) for n in range(config.rollouts)],
            )
            for prompt, key in zip(prompts, keys, strict=True)
        ]  # fmt: skip
        report = AccelReport.total(part.report() for part in parts)
        return torch.stack([part.tokens for part in parts]), replace(report, plans=1)

    def _read(
        self, states: torch.Tensor, answers: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], str]:
        """Candidates (N, T, 2), the plan (T, 2) and its text, of one environment's answers (N, n).

        A candidate that cannot be read stands at constant velocity and is not chosen from.
        """
        read = [read_tokens(self.layout, tokens) for tokens in answers]
        straight = self.waypoints.straight_on(states)
        candidates = torch.stack(
            [straight if one.fallback else self.waypoints(one.values) for one in read]
        )
        good = torch.tensor([not one.fallback for one in read])
        if len(read) == 1 or not good.any():
            chosen = candidates[0]
        else:
            choose = build_selector(self.decoding.selector, 1 / self.spec.control_hz)
            chosen = choose(candidates[good])
        # What keeps waypoints from being read is told first.
        told = sorted((one for one in read if one.reason), key=lambda one: not one.fallback)
        reason = told[0].reason if told else ""
        if not good.any():
            reason = f"constant velocity: {reason}"
        elif not good.all():
            reason = f"{int((~good).sum())} of {len(read)} rollouts left out: {reason}"
        return (candidates, chosen), read[0].text + (f" [{reason}]" if reason else "")


def _read(
    folder: Path, dtype: str, device: torch.device | str
) -> tuple[LanguageModel, Manifest, Pictures]:
    """A model of either kind, what it was taught, and how it is shown pictures."""
    if not is_language_model(folder):
        loaded = load_vlm(folder, dtype=dtype, device=device)
        told, vision = loaded.manifest, loaded.network.config.vision_config
        cut = PatchConfig(
            told.min_pixels, told.max_pixels, vision.patch_size, vision.spatial_merge_size,
            vision.temporal_patch_size,
        )  # fmt: skip
        return Qwen25VL(loaded.network, loaded.spec), told, cut
    model = load_language_model(folder, dtype, device)
    if not isinstance(model, Pictured):
        raise CheckpointError(f"{folder} holds a model of text, which is shown no pictures")
    spec = model.spec
    if spec.regime is Regime.BLOCK_CAUSAL:
        raise CheckpointError(
            f"{folder} holds a {spec.regime.value} model, whose blocks begin with the prompt, not "
            "with the answer: planners do not write so; decode it with fastloop.policies.dlm.grid"
        )
    released = {"regime": spec.regime.value, "mask_id": spec.mask_id, "stop_id": spec.stop_ids}
    described = read_json(folder / "config.json")
    told = read_manifest(folder, described, spec.vocab, released=released)
    return model, told, model.pictures


def _check_pictures(told: Manifest, env: EnvSpec) -> None:
    """Refuse pictures of another size than those that the model was shown."""
    if told.image_size is None:
        return
    for camera in told.cameras:
        shown = env.observations.get(IMAGES + camera)
        if shown is not None and shown.shape[:0:-1] != told.image_size:
            raise SpecMismatchError(
                f"the model was shown pictures of {told.image_size} pixels (width, height), "
                f"{env.name} shows {IMAGES}{camera} in {shown.shape[:0:-1]}: say "
                f"sim.image_size=[{','.join(map(str, told.image_size))}]"
            )


def _seed(key: tuple[int, int, int], rollout: int) -> int:
    """Of the noise of one environment's tick."""
    return int.from_bytes(hashlib.blake2b(repr((key, rollout)).encode(), digest_size=8).digest())
