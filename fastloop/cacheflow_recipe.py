"""From a training configuration to a CacheFlow policy: samples, model, trainer, table, folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch

from fastloop.config import TrainVerbConfig
from fastloop.datasets.plans import mirrored
from fastloop.datasets.scores.probabilities import auroc
from fastloop.lessons import Lessons
from fastloop.policies.cacheflow.folder import save_cacheflow
from fastloop.policies.cacheflow.forecast import CacheFlow
from fastloop.policies.cacheflow.frame import frame_of
from fastloop.policies.cacheflow.model import CacheFlowConfig, CacheFlowModel
from fastloop.policies.cacheflow.policy import CacheFlowPolicy
from fastloop.policies.cacheflow.reading import NEAREST, check_inputs, read
from fastloop.policies.cacheflow.samples import Samples, condition_of
from fastloop.policies.cacheflow.training import build_trainer
from fastloop.policies.diffusion.model import ACTION
from fastloop.policies.rng import Rng
from fastloop.policies.spec import EnvSpec, PolicySpec
from fastloop.policies.training import Trainer

__all__ = ["KIND", "CacheFlowRecipe"]

KIND = "cacheflow"
HELD_OUT, CHECKED = 0.1, 512  # share of the samples, the last ones; how many a check looks at
BEST_OF = 20
ROWS = 1024  # samples that are read at a time
ALARM = 0.01  # share of the table that a situation has to be covered by, if training ones are


Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class CacheFlowRecipe:
    """What a configuration trains for an environment; each part is built when first asked for.

    Attributes:
        config: of `fastloop train`, with a network of kind ``cacheflow``, whose arch is of
            `CacheFlowConfig`.
        env: where the policy will act.
    """

    config: TrainVerbConfig
    env: EnvSpec

    @cached_property
    def windows(self) -> Lessons:
        """What cuts the demonstrations."""
        recipe = Lessons(self.config, self.env)
        check_inputs(recipe.inputs)
        if (rows := self.config.network.scene.rows) != NEAREST:
            raise ValueError(f"cacheflow reads {NEAREST} of a scene, got {rows}: leave them")
        return recipe

    @cached_property
    def sizes(self) -> CacheFlowConfig:
        """Raises: ValueError, for sizes that there are not."""
        try:
            return CacheFlowConfig(**self.config.network.arch)
        except TypeError as error:
            have = ", ".join(asdict(CacheFlowConfig()))
            raise ValueError(
                f"no cacheflow of network.arch={self.config.network.arch}: {error}; have: {have}"
            ) from error

    @cached_property
    def parts(self) -> tuple[Samples, Samples]:
        """Those to learn from, and the last ones, to check on."""
        windows = self.windows.windows
        # The mirror image of a moment, frames later, is on the same side.
        frames = len(windows.actions)
        places = torch.arange(len(windows))
        learned = places % frames < max(1, int((1 - HELD_OUT) * frames))
        held_out = places[learned if learned.all() else ~learned]
        return self._read(places[learned]), self._read(held_out)

    @cached_property
    def other_side(self) -> Samples | None:
        """Those to check on with left and right changed, as where traffic keeps to the other side
        of the road; None where that means nothing, or is learned from."""
        if not self.windows.plans or self.config.mirror:
            return None
        frames = len(self.windows.windows)
        return self._read(torch.arange(frames - len(self.parts[1]), frames), mirrored)

    def _read(self, places: torch.Tensor, seen: Callable[[Batch], Batch] = dict) -> Samples:
        """The samples at some places, as they are `seen`."""
        network, recipe = self.config.network, self.windows
        parts = []
        for some in places.split(ROWS):
            batch = seen(recipe.windows.gather(some))
            future = batch[ACTION][:, network.n_obs_steps - 1 :]
            frame = frame_of(network.relative_to, batch)
            known = read(batch, recipe.inputs, relative_to=network.relative_to)
            parts.append({"future": frame.relative(future), **known})
        return Samples(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    @property
    def samples(self) -> Samples:
        """To learn from."""
        return self.parts[0]

    @cached_property
    def model(self) -> CacheFlowModel:
        """A fresh one, on the configured device.

        Raises:
            ValueError: no such device or sizes; a policy to start from.
        """
        if self.config.init:
            raise ValueError("init is for diffusion policies; leave it out for cacheflow")
        torch.manual_seed(self.config.train.seed)
        model = CacheFlowModel.new(self.sizes, self.samples)
        try:
            return model.to(self.config.device)
        except (AssertionError, RuntimeError) as error:  # what torch raises for no such device
            raise ValueError(f"cannot train on device {self.config.device!r}: {error}") from error

    def stages(self, folder: Path) -> Iterator[tuple[str, Trainer]]:
        """The only stage; `folder` is not used."""
        names = ("sim", "dataset", "network", "mirror")
        facts = {name: value for name, value in asdict(self.config).items() if name in names}
        yield "trainer", build_trainer(self.model, self.samples, self.config.train, facts=facts)

    def policy(self, trainer: Trainer) -> CacheFlowPolicy:
        """The averaged weights as they are now, with their table."""
        network, recipe = self.config.network, self.windows
        spec = PolicySpec(
            inputs=recipe.inputs, action=recipe.world.action, n_obs_steps=network.n_obs_steps,
            horizon=network.horizon, n_action_steps=network.n_action_steps,
            control_hz=recipe.world.control_hz, lags=recipe.lags,
        )  # fmt: skip
        cacheflow = CacheFlow.build(trainer.ema.averaged, self.samples)
        alarm = min(ALARM, cacheflow.usual_coverage(self.samples))
        return CacheFlowPolicy(spec, cacheflow, relative_to=network.relative_to, alarm=alarm)

    def check(self, name: str, trainer: Trainer) -> dict[str, float]:
        """How the averaged weights do on the last samples.

        Returns:
            ``nll`` in nats a number of the future; ``best_of_20`` and ``best_of_20_uncached``, the
            mean distance to the nearest of 20 futures, in the units of the action;
            ``reconstruction_error``, what of it the factorization loses; ``explained``, the share
            of the variance that it keeps; ``coverage``, see `CacheFlow.coverage`; ``novel``, the
            share of them that is called so, and ``other_side_auroc``, how well `CacheFlow.novelty`
            tells them from `other_side`.
        """
        held_out = self.parts[1]
        every = max(1, len(held_out) // CHECKED)
        rows = held_out.rows(torch.arange(0, len(held_out), every))
        known, future = condition_of(rows), rows["future"]
        cacheflow = CacheFlow.build(trainer.ema.averaged, self.samples)
        rng = Rng.for_envs(0, range(len(future)), [0] * len(future))
        others = {name: part for name, part in known.items() if name != "history"}
        cached = cacheflow.forecast(known["history"], BEST_OF, rng, **others)
        live = cacheflow.uncached_forecast(known["history"], BEST_OF, rng, **others)
        log_prob = cacheflow.log_prob(known["history"], future, **others)
        factorization = cacheflow.model.factorization
        around = known.get("neighbors")
        novelty = cacheflow.novelty(known["history"], around).cpu()
        alarm = {"novel": float((novelty > 1).float().mean())}
        if self.other_side is not None:
            other = self.other_side.rows(torch.arange(0, len(held_out), every))
            strange = cacheflow.novelty(other["history"], other.get("neighbors")).cpu()
            came = torch.arange(2 * len(novelty)) >= len(novelty)
            alarm["other_side_auroc"] = auroc(torch.cat([novelty, strange]), came)
        return {
            "nll": -float(log_prob.mean()) / future[0].numel(),
            "best_of_20": _best(cached.samples.cpu(), future),
            "best_of_20_uncached": _best(live.samples.cpu(), future),
            "reconstruction_error": float(factorization.error),
            "explained": float(factorization.explained),
            "coverage": float(cacheflow.coverage(cacheflow.condition(**known)).mean()),
            **alarm,
        }

    def save(self, folder: Path, trainer: Trainer) -> None:
        """Write the averaged weights and their table."""
        training = {
            "steps": trainer.step,
            "batch_size": self.config.train.batch_size,
            "seed": self.config.train.seed,
            "environment": self.env.name,
            "samples": len(self.samples),
        }
        save_cacheflow(folder, self.policy(trainer), training)


def _best(samples: torch.Tensor, future: torch.Tensor) -> float:
    """Mean over agents of the smallest mean distance, samples (A, N, T, F) to futures (A, T, F)."""
    return float((samples - future[:, None]).norm(dim=-1).mean(-1).amin(1).mean())
