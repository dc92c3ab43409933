"""What every sampler is: a table of coefficients, one row a step, and the step that uses a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch

from fastloop.accel.samplers.schedule import NoiseSchedule, check_prediction_type

__all__ = ["CleanTables", "Leap", "Sampler", "Tables", "denoise", "describe"]

# Several steps at once: of the sample, the memory and all noises of a chain, the sample and the
# memory after them, and the step to go on with.
Leap = Callable[
    [torch.Tensor, torch.Tensor | None, torch.Tensor],
    tuple[torch.Tensor, torch.Tensor | None, int],
]


class Sampler(Protocol):
    """A reverse process from noise to an action chunk, with K evaluations of the network.

    A solver that evaluates several times before it moves on counts every evaluation as a step.

    A chain starts from its first noise tensor, with `memory` None, and keeps nothing on the
    sampler: the same object serves any number of chains at once.

    Attributes:
        timesteps: (K,) what the network is given at each step; int64, or float32 for flow.
        log_snr: (K,) float64, log of the signal's over the noise's amplitude.
        num_noises: independent standard normal tensors that one chain needs, the start included.
            Step k takes noise k + 1, or None where there is none left.
    """

    @property
    def timesteps(self) -> torch.Tensor: ...

    @property
    def log_snr(self) -> torch.Tensor: ...

    @property
    def num_noises(self) -> int: ...

    def step(
        self,
        k: int,
        sample: torch.Tensor,
        output: torch.Tensor,
        noise: torch.Tensor | None = None,
        memory: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Turn the sample of step k and the network's output on it into the next sample.

        Returns:
            The next sample, and the memory to pass to step k + 1.
        """
        ...

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """The same sampler with its coefficients on `device` as `dtype`."""
        ...


def denoise(
    sampler: Sampler,
    network: Callable[[int, torch.Tensor], torch.Tensor],
    noises: torch.Tensor,
    leaps: Mapping[int, Leap] | None = None,
) -> torch.Tensor:
    """Run a whole chain.

    Args:
        sampler: the reverse process.
        network: answers step k on a sample.
        noises: `sampler.num_noises` standard normal tensors (B, T, A), the start first.
        leaps: what runs in place of step k and some after it.

    Returns:
        (B, T, A) the last sample.
    """
    if len(noises) != sampler.num_noises:
        raise ValueError(f"this chain needs {sampler.num_noises} noise tensors, got {len(noises)}")
    sample, k = noises[0], 0
    memory: torch.Tensor | None = None
    while k < len(sampler.timesteps):
        if leaps and k in leaps:
            sample, memory, k = leaps[k](sample, memory, noises)
            continue
        noise = noises[k + 1] if k + 1 < sampler.num_noises else None
        sample, memory = sampler.step(k, sample, network(k, sample), noise, memory)
        k += 1
    return sample


def describe(sampler: Sampler) -> str:
    """The reverse process in words, such as ``DDPM, timesteps 99 to 0``."""
    first, last = sampler.timesteps[0].item(), sampler.timesteps[-1].item()
    return f"{type(sampler).__name__}, timesteps {first:g} to {last:g}"


@dataclass(frozen=True)
class Tables:
    """Coefficients as (K,) tensors, so that a step reads them where it runs, without a sync.

    Attributes:
        timesteps, log_snr: as in `Sampler`.
    """

    timesteps: torch.Tensor
    log_snr: torch.Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """Move every table to `device`, the coefficients (not the timesteps) as `dtype`."""
        moved: dict[str, Any] = {"timesteps": self.timesteps.to(device)}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "timesteps" and isinstance(value, torch.Tensor):
                moved[field.name] = value.to(device, dtype)
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True)
class CleanTables(Tables):
    """The estimate of x_0 that every noise-schedule sampler starts from.

    Attributes:
        x0_sample, x0_output: (K,) x_0 = x0_sample[k] sample + x0_output[k] output.
        clip: the estimate is clipped to [-clip, clip]; None leaves it free.
    """

    x0_sample: torch.Tensor
    x0_output: torch.Tensor
    clip: float | None

    def predict_clean(self, k: int, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The clean sample that the network's output at step k stands for."""
        x0 = self.x0_sample[k] * sample + self.x0_output[k] * output
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)


def clean_coefficients(
    abar: torch.Tensor, prediction_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x0_sample` and `x0_output` for a network that predicts `prediction_type` at abar (K,)."""
    check_prediction_type(prediction_type)
    signal, spread = abar.sqrt(), (1 - abar).sqrt()
    if prediction_type == "epsilon":
        return 1 / signal, -spread / signal
    if prediction_type == "sample":
        return torch.zeros_like(abar), torch.ones_like(abar)
    return signal, -spread


def log_snr(abar: torch.Tensor) -> torch.Tensor:
    """Log of signal over noise at abar (K,)."""
    ratio: torch.Tensor = 0.5 * (abar.log() - (1 - abar).log())
    return ratio


def leading_steps(
    schedule: NoiseSchedule, num_inference_steps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Evenly spaced timesteps that end at 0 (`timestep_spacing="leading"`).

    Returns:
        (K,) int64 timesteps, and abar (K,) float64 at them and after each of them (1 at the end).
    """
    stride = len(schedule) // num_inference_steps
    timesteps = torch.arange(num_inference_steps).flip(0) * stride
    abar = schedule.alphas_cumprod[timesteps]
    return timesteps, abar, torch.cat([abar[1:], abar.new_ones(1)])
