"""What the server remembers of each client: the episode's history, as the policy reads it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

import torch

from fastloop.deploy.server.protocol import Request, RequestError
from fastloop.policies.history import EpisodeHistory, Frame, History
from fastloop.policies.spec import PolicySpec

__all__ = ["Row", "join"]

Key = tuple[int, int, int]


class Row:
    """The history of one client. Only the thread that plans touches it.

    Args:
        spec: of the policy.
        seed: root of all noise.
        episodes: where the numbers of new episodes come from; all clients share it, so that no two
            have the same noise.
    """

    def __init__(self, spec: PolicySpec, seed: int, episodes: Iterator[int] | None = None) -> None:
        self.spec = spec
        self.seed = seed
        self.episodes = itertools.count() if episodes is None else episodes
        self.begin()

    def begin(self) -> None:
        """A new episode: forget everything."""
        self.episode = next(self.episodes)
        self.asked = 0
        self._forget()

    def _forget(self) -> None:
        self.history = EpisodeHistory(self.spec.ticks_kept)

    def take(self, request: Request) -> tuple[History, Key]:
        """What the policy is asked, and the key of its noise.

        A tick that does not follow the last one begins a new window: frames in between are missing,
        and an old frame in place of a missing one would show a speed that was never driven.

        Raises:
            RequestError: for a request without observation.
        """
        if request.observation is None:
            raise RequestError("nothing to plan from: the request holds no observation")
        values = {key: torch.tensor(value) for key, value in request.observation.items()}
        if request.window:
            tick = request.key[2] if request.key else self.asked
            history = _alone(values, tick, self.spec.n_obs_steps)
        elif request.tick is None:
            history = _alone({key: value[None] for key, value in values.items()}, self.asked, 1)
            first = history.frames[0][0]
            history = History(((first,) * self.spec.n_obs_steps,), ((),), history.ticks, ((),))
        else:
            self._advance(request, request.tick)
            self.history.observe(values)
            history = History.stack([self.history], self.spec.lags)
        key = request.key or (self.seed, self.episode, int(history.ticks[0]))
        self.asked += 1
        return history, key

    def planned(self, request: Request, actions: torch.Tensor) -> None:
        """Remember the answer (T, A) to a request that came with its tick; the next one tells how
        late it was taken up."""
        if request.tick is not None:
            self.history.planned(actions)

    def _advance(self, request: Request, tick: int) -> None:
        """Bring the history to the tick before `tick`."""
        if (plan := self.history.underway) is not None and plan.delays:
            delays = (*plan.delays[:-1], request.late)
            self.history.underway = replace(plan, delays=delays)
        if tick != self.history.tick + 1:
            underway = self.history.underway if tick > self.history.tick else None
            self._forget()
            self.history.tick, self.history.underway = tick - 1, underway
        if request.executed is not None:
            for action in torch.from_numpy(request.executed):
                self.history.acted(action)
        self.history.done = tick

    @property
    def frames(self) -> int:
        """Frames of the newest window that are not repetitions."""
        seen = len(self.history.frames)
        return len({min(lag, seen - 1) for lag in self.spec.lags}) if seen else 1


def _alone(values: dict[str, torch.Tensor], tick: int, frames: int) -> History:
    """The history of a window (O, ...) that stands for itself."""
    row = tuple(Frame({key: value[n] for key, value in values.items()}) for n in range(frames))
    return History((row,), ((),), torch.tensor([tick]), ((),), (None,))


def join(histories: Sequence[History]) -> History:
    """Histories of one environment each, as one of all."""
    return History(
        frames=tuple(chain.from_iterable(one.frames for one in histories)),
        actions=tuple(chain.from_iterable(one.actions for one in histories)),
        ticks=torch.cat([one.ticks for one in histories]),
        overridden=tuple(chain.from_iterable(one.overridden or ((),) for one in histories)),
        underway=tuple(chain.from_iterable(one.underway or (None,) for one in histories)),
    )
