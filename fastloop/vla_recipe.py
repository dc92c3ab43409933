"""From a training configuration to a vision-language planner: moments, network, stages, folder."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastloop.accel.decoding.choose import Greedy
from fastloop.accel.decoding.model import ModelSpec, Regime
from fastloop.accel.decoding.rollouts import decode
from fastloop.bench.decode.validity import measure_validity
from fastloop.config import TrainVerbConfig
from fastloop.datasets import robomimic
from fastloop.datasets.demonstration import Demonstration
from fastloop.datasets.moments import Moments
from fastloop.datasets.scores.ade import ade
from fastloop.extras import require
from fastloop.policies.driving.whole_plans import plan_rate, waypoint_env
from fastloop.policies.load import find_checkpoint
from fastloop.policies.spec import EnvSpec
from fastloop.policies.training import Trainer
from fastloop.policies.vla.answer import STOP, read_tokens
from fastloop.policies.vla.canvas import Layout, build_layout
from fastloop.policies.vla.checkpoint import TOKENIZER, VLMCheckpoint, load_vlm, save_vlm
from fastloop.policies.vla.decoding import DecodingConfig, build_driver
from fastloop.policies.vla.images import PatchConfig, resized_shape
from fastloop.policies.vla.manifest import Manifest
from fastloop.policies.vla.policy import IMAGES, INTENT, STATES
from fastloop.policies.vla.prompt import Template, load_template
from fastloop.policies.vla.qwen25vl import Qwen25VL
from fastloop.policies.vla.samples import DrivingSamples, collate
from fastloop.policies.vla.schema import Schema, load_schema
from fastloop.policies.vla.small import new_network, new_tokenizer
from fastloop.policies.vla.tokenizer import MASK, NULL, FileTokenizer, token_id
from fastloop.policies.vla.training import StageConfig, build_loss, build_trainer, stop_behind
from fastloop.policies.vla.waypoints import WaypointPlan
from fastloop.recipe import told
from fastloop.sims.targets import build

__all__ = ["HELD_OUT", "VLARecipe"]

HELD_OUT = "held_out.hdf5"  # in the policy's folder: moments that it was not trained on
NEIGHBORS = "observation.neighbors"
CHECKED, ROWS = 64, 32  # moments that a check looks at, and how many at a time
ANNOTATED = (20, 4.0)  # waypoints and waypoints a second of a plan that can be put into words


@dataclass(frozen=True)
class VLARecipe:
    """What a configuration trains for an environment; each part is built when first asked for.

    Attributes:
        config: of `fastloop train`, with a network of kind ``qwen2_5_vl``.
        env: where the planner will act; it takes whole plans.
    """

    config: TrainVerbConfig
    env: EnvSpec

    @cached_property
    def cameras(self) -> tuple[str, ...]:
        """In the order in which the model knows them.

        Raises:
            ValueError: when the environment does not show what the network reads, or takes other
                plans than can be put into words.
        """
        inputs = self.config.network.inputs
        if missing := [key for key in inputs if key not in self.env.observations]:
            raise ValueError(
                f"{self.env.name} shows no {', '.join(missing)}; network.inputs can be "
                f"{', '.join(self.env.observations)} (cameras: "
                "sim.cameras=[front_left,front,front_right])"
            )
        pictures = [key for key in inputs if key.startswith(IMAGES)]
        others = [key for key in inputs if not key.startswith(IMAGES)]
        if sorted(others) != sorted([STATES, INTENT]) or not pictures:
            raise ValueError(
                f"a vision-language planner reads {STATES}, {INTENT} and cameras, got "
                f"network.inputs={list(inputs)}"
            )
        if self.env.action.kind != "plan" or plan_rate(self.env.action) != ANNOTATED:
            raise ValueError(
                f"answers are made of plans of {ANNOTATED[0]} waypoints at {ANNOTATED[1]:g} Hz; "
                f"{self.env.name} takes {self.env.action.dim} elements of kind "
                f"{self.env.action.kind}"
            )
        return tuple(key.removeprefix(IMAGES) for key in pictures)

    @cached_property
    def drives(self) -> tuple[list[Demonstration], list[Demonstration]]:
        """Those to learn from, and those of the last seeds, to check on.

        Raises:
            ValueError: when there are too few, or their pictures are not the environment's.
        """
        cameras = self.cameras
        made = build(self.config.dataset, "dataset")
        if not isinstance(made, Iterable):
            raise ValueError(
                f"dataset: {self.config.dataset['_target_']} holds no demonstrations to train on; "
                "say dataset=camera_drives"
            )
        drives = list(made)
        for key in (IMAGES + camera for camera in cameras):
            expected = self.env.observations[key].shape
            frames = [d.observations[key] for d in drives if key in d.observations]
            if strange := {frame.shape[1:] for frame in frames} - {expected}:
                raise ValueError(
                    f"{key} has shape {sorted(strange)[0]} in the demonstrations, {expected} in "
                    f"{self.env.name}: say sim.image_size as it was recorded"
                )
        # A disturbed drive comes in several parts.
        named = [n if drive.seed is None else (drive.seed,) for n, drive in enumerate(drives)]
        seeds, count = list(dict.fromkeys(named)), self.config.check_episodes
        if not 0 < count < len(seeds):
            raise ValueError(
                f"the file holds {len(seeds)} drives, of which check_episodes={count} are kept to "
                "check on: at least 1, and fewer than there are"
            )
        last = set(seeds[-count:])
        parts = [
            [drive for name, drive in zip(named, drives, strict=True) if (name in last) == kept]
            for kept in (False, True)
        ]
        return parts[0], parts[1]

    @cached_property
    def schema(self) -> Schema:
        """Of the answer."""
        return load_schema(self.config.network.vla.schema)

    @cached_property
    def template(self) -> Template:
        """Of the question."""
        return load_template(self.config.network.vla.prompt)

    @cached_property
    def tokenizer_json(self) -> str:
        """As it is written to the folder."""
        return new_tokenizer(self.schema, self.template)

    @cached_property
    def layout(self) -> Layout:
        """Of the answer, for that tokenizer."""
        library = require("tokenizers", extra="vla")
        tokenizer = FileTokenizer(library.Tokenizer.from_str(self.tokenizer_json))
        return build_layout(self.schema, tokenizer)

    @cached_property
    def spec(self) -> ModelSpec:
        """What the model will be to the decoding engine."""
        tokenizer = self.layout.tokenizer
        seen = any(stage.stage == "prefix_lm" for stage in self._stages.values())
        return ModelSpec(
            Regime.PREFIX_LM if seen else Regime.CAUSAL_CONTEXT,
            vocab=len(tokenizer), mask_id=token_id(tokenizer, MASK),
            stop_id=token_id(tokenizer, STOP), null_id=token_id(tokenizer, NULL),
            block_size=self.schema.block_size,
        )  # fmt: skip

    @cached_property
    def patches(self) -> PatchConfig:
        """How pictures of the environment's size are cut."""
        vision = self.config.network.arch["vision"]
        sizes = vision["patch_size"], vision["spatial_merge_size"], vision["temporal_patch_size"]
        _, height, width = self.env.observations[IMAGES + self.cameras[0]].shape
        rows, columns = resized_shape(height, width, PatchConfig(1, height * width * 4, *sizes))
        return PatchConfig(rows * columns, rows * columns, *sizes)

    @cached_property
    def model(self) -> Any:
        """A fresh one, or as `origin` is, on the configured device.

        Raises:
            ValueError: no such device, network of this size, or compiler; another network, or
                other tokens, in `origin`.
        """
        torch.manual_seed(self.config.train.seed)
        network = new_network(self.config.network.arch, self.layout.tokenizer)
        if self.origin:
            _start_from(self.origin, network, self.tokenizer_json)
        try:
            network = network.to(self.config.device)
        except (AssertionError, RuntimeError) as error:  # what torch raises for no such device
            raise ValueError(f"cannot train on device {self.config.device!r}: {error}") from error
        if self.config.network.vla.compile:
            _check_compiler(network.device)
            for layer in network.get_decoder().layers:  # by layers: what is averaged stays plain
                layer.compile(dynamic=True)
        return network

    @cached_property
    def origin(self) -> VLMCheckpoint | None:
        """The planner to start from.

        Raises:
            CheckpointError: when it cannot be read.
        """
        folder = self.config.init
        return load_vlm(find_checkpoint(folder), dtype="float32") if folder else None

    @cached_property
    def samples(self) -> DrivingSamples:
        """To learn from."""
        return self._samples(Moments(self.drives[0], self._keys, mirror=self.config.mirror))

    @cached_property
    def held_out(self) -> DrivingSamples:
        """To check on: moments evenly over the last drives."""
        return self._samples(Moments(_spread(self.drives[1]), self._keys))

    def stages(self, folder: Path) -> Iterator[tuple[str, Trainer]]:
        """The trainer of each stage, which goes on from the averaged weights of the one before.

        Args:
            folder: of the run; nothing is left there.

        Raises:
            ValueError: for stages that do not make up a training.
        """
        config, shares = self.config, [stage.share for stage in self._stages.values()]
        if abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"the shares of network.vla.stages must be 1 in all, got {shares}")
        names = ("sim", "dataset", "network", "mirror", "check_episodes")
        facts = {name: value for name, value in asdict(config).items() if name in names}
        facts["network"] = told(config.network)
        if self.origin:
            facts["init"] = self.origin.digest
        for name, stage in self._stages.items():
            train = replace(
                config.train,
                steps=max(1, round(stage.share * config.train.steps)),
                lr=stage.lr_factor * config.train.lr,
            )
            trainer = build_trainer(self.model, self.spec, self.samples, stage, train, facts=facts)
            yield name, trainer
            averaged: Any = trainer.ema.averaged
            self.model.load_state_dict(averaged.model.state_dict())

    def check(self, name: str, trainer: Trainer) -> dict[str, float]:
        """How a stage's averaged weights do on the held-out moments.

        Returns:
            ``held_out_loss`` of the stage; of answers that are written in the fastest way:
            ``ade_5s`` m, ``tokens_per_forward``, and the shares of `Validity`.
        """
        network = trainer.ema.averaged.model
        samples = [self.held_out[i] for i in range(len(self.held_out))]
        batches = [samples[start : start + ROWS] for start in range(0, len(samples), ROWS)]
        losses, plans, answers = [], [], []
        stage, canvas = self._stages[name], self.layout.canvas
        loss = build_loss(network, self.spec, canvas.sections, stage)
        to_plan = WaypointPlan(self.schema, waypoint_env(self.env))
        model = Qwen25VL(network, self.spec)
        driver = build_driver(DecodingConfig(), model, Greedy(), canvas)
        states = iter(seen[STATES] for seen, _ in self.held_out.moments)
        for batch in batches:
            rows = collate(batch, model=network, stop_id=stop_behind(self.spec, stage))
            rows = {key: value.to(trainer.device) for key, value in rows.items()}
            with torch.no_grad():
                found = loss(rows, torch.Generator().manual_seed(0))
            losses += [float(found)] * len(batch)
            decoded = decode(model, [sample.prompt for sample in batch], canvas, driver)
            answers.append(decoded)
            for tokens in decoded.tokens.cpu():
                answer = read_tokens(self.layout, tokens)
                straight = to_plan.straight_on(torch.as_tensor(next(states)))
                plans.append(straight if answer.fallback else to_plan(answer.values))
        driven = [plan for _, plan in self.held_out.moments]
        valid = measure_validity(self.layout, answers)
        weights = [len(batch) for batch in batches]
        return {
            "held_out_loss": float(np.mean(losses)),
            "ade_5s": float(ade(torch.stack(plans).numpy(), driven, 5.0).mean()),
            "tokens_per_forward": float(
                np.average([one.tokens_per_forward for one in answers], weights=weights)
            ),
            "json_validity": valid.json.value,
            "schema_validity": valid.schema.value,
        }

    def save(self, folder: Path, trainer: Trainer) -> None:
        """Write the averaged weights in half precision, and the held-out moments beside them."""
        vla, spec = self.config.network.vla, self.spec
        own = Path(vla.schema).suffix in (".yaml", ".yml")
        _, height, width = self.env.observations[IMAGES + self.cameras[0]].shape
        manifest = Manifest(
            spec.regime.value, spec.block_size, mask_id=spec.mask_id, null_id=spec.null_id,
            stop_id=spec.stop_id, schema=Path(vla.schema).name, prompt=vla.prompt,
            cameras=self.cameras, min_pixels=self.patches.min_pixels,
            max_pixels=self.patches.max_pixels, image_size=(width, height),
            training={
                "environment": self.env.name, "samples": len(self.samples),
                "steps": self.config.train.steps, "batch_size": self.config.train.batch_size,
                "seed": self.config.train.seed,
            },
        )  # fmt: skip
        network = copy.deepcopy(trainer.ema.averaged.model).cpu().half()
        text = Path(vla.schema).read_text(encoding="utf-8") if own else ""
        save_vlm(folder, network, manifest, tokenizer=self.tokenizer_json, schema=text)
        told = {"env_name": self.env.name}
        robomimic.write(folder / HELD_OUT, _spread(self.drives[1]), env_args=told)

    @property
    def _stages(self) -> dict[str, StageConfig]:
        """Those that have a share."""
        stages = self.config.network.vla.stages
        return {name: stage for name, stage in stages.items() if stage.share}

    @property
    def _keys(self) -> list[str]:
        """Of the observations that make a sample."""
        return [STATES, INTENT, NEIGHBORS, *(IMAGES + camera for camera in self.cameras)]

    def _samples(self, moments: Moments) -> DrivingSamples:
        return DrivingSamples(moments, self.layout, self.template, self.patches, self.cameras)


def _start_from(origin: VLMCheckpoint, network: Any, tokenizer: str) -> None:
    """Give a network the weights of a checkpoint that has the same tokens."""
    theirs = (origin.folder / TOKENIZER).read_text(encoding="utf-8")
    if json.loads(theirs)["model"] != json.loads(tokenizer)["model"]:
        raise ValueError(
            f"init={origin.folder} knows other tokens than those that network.vla.schema and "
            "network.vla.prompt make"
        )
    try:
        network.load_state_dict(origin.network.state_dict())
    except RuntimeError as error:  # names what differs
        raise ValueError(
            f"init={origin.folder} holds another network than the one configured: {error}"
        ) from error


def _check_compiler(device: torch.device) -> None:
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(
            f"network.vla.compile=true needs a C++ compiler, and there is no {compiler}: install "
            "one, name it in the environment variable CXX, or train without"
        )


def _spread(drives: list[Demonstration]) -> list[Demonstration]:
    """`CHECKED` moments evenly over some drives, or all where there are fewer."""
    ends = np.cumsum([len(drive) for drive in drives])
    places = np.unique(np.linspace(0, ends[-1] - 1, CHECKED).round().astype(int))
    chosen = []
    for drive, end in zip(drives, ends, strict=True):
        rows = places[(places >= end - len(drive)) & (places < end)] - (end - len(drive))
        if len(rows):
            frames = {key: np.asarray(seen[rows]) for key, seen in drive.observations.items()}
            chosen.append(Demonstration(frames, drive.actions[rows], seed=drive.seed))
    return chosen
