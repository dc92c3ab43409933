"""What futures are relative to: nothing, an observation's value, or the route."""

from __future__ import annotations

import abc
from collections.abc import Mapping

import torch

from fastloop.policies.diffusion.scene import ROUTE

__all__ = ["ROUTE", "AlongRoute", "Frame", "frame_of", "turned"]

SHORT = 1e-3  # m; a step of less leads nowhere


class Frame(abc.ABC):
    """How B environments see futures (B, ..., T, A); both ways leave densities as they are."""

    @abc.abstractmethod
    def relative(self, actions: torch.Tensor) -> torch.Tensor:
        """From the environment's actions."""

    @abc.abstractmethod
    def absolute(self, futures: torch.Tensor) -> torch.Tensor:
        """Back to them."""


class _Shift(Frame):
    """Differences from a value (B, A), or from nothing."""

    def __init__(self, value: torch.Tensor | None) -> None:
        self.value = value

    def relative(self, actions: torch.Tensor) -> torch.Tensor:
        return actions if self.value is None else actions - self._beside(actions, self.value)

    def absolute(self, futures: torch.Tensor) -> torch.Tensor:
        return futures if self.value is None else futures + self._beside(futures, self.value)

    @staticmethod
    def _beside(futures: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.to(futures).view(len(value), *[1] * (futures.ndim - 2), -1)


class AlongRoute(Frame):
    """Places as m along a route and m to its left, so that a plan that was made on one road can be
    driven on any other.

    The nearest piece of the route counts; before its first point and beyond its last it goes
    straight on. Each piece turns and shifts the plane and no more, so that densities stay as they
    are; only where two pieces meet in a curve is a place that is d m aside moved by about d times
    the angle between them.

    Args:
        route: (B, R, 2) m, its end repeated; where it is all 0 the way is straight ahead.
    """

    def __init__(self, route: torch.Tensor) -> None:
        steps = route.diff(dim=1)
        self.lengths = steps.norm(dim=-1)
        leads = self.lengths > SHORT
        places = torch.arange(steps.shape[1], device=route.device)
        # Where it leads nowhere it goes on as before.
        before = torch.where(leads, places, 0).cummax(1).values
        ahead = torch.zeros_like(steps)
        ahead[..., 0] = 1
        units = steps / self.lengths[..., None].clamp(min=SHORT)
        units = torch.where(leads[..., None], units, ahead)
        self.directions = units.gather(1, before[..., None].expand_as(units))
        self.starts = route[:, :-1]
        self.stations = self.lengths.cumsum(1) - self.lengths
        self.last = before[:, -1:]

    def locate(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Places (B, ..., 2) to where they are along and beside the route, and to the direction of
        the route there, unit vectors (B, ..., 2)."""
        flat = points.flatten(1, -2)
        apart = flat[:, :, None] - self.starts[:, None].to(flat)  # (B, n, R-1, 2)
        directions = self.directions[:, None].to(flat)
        along = (apart * directions).sum(-1)
        beside = _cross(directions, apart)
        pieces = torch.arange(self.lengths.shape[1], device=flat.device)
        lowest = torch.where(pieces == 0, -torch.inf, 0.0).to(flat)
        highest = torch.where(pieces == self.last, torch.inf, self.lengths)[:, None].to(flat)
        missed = along - along.maximum(lowest).minimum(highest)
        nearest = (missed.square() + beside.square()).argmin(-1, keepdim=True)
        stations = self.stations[:, None].to(flat).expand_as(along)
        found = torch.cat([(stations + along).gather(2, nearest), beside.gather(2, nearest)], -1)
        places = nearest[..., None].expand(-1, -1, 1, 2)
        way = directions.expand_as(apart).gather(2, places)[:, :, 0]
        return found.view(points.shape), way.view(points.shape)

    def relative(self, actions: torch.Tensor) -> torch.Tensor:
        """Waypoints (B, ..., T, 2), see `Frame`."""
        return self.locate(actions)[0]

    def absolute(self, futures: torch.Tensor) -> torch.Tensor:
        """See `Frame`."""
        flat = futures.flatten(1, -2)
        stations = self.stations.to(flat).contiguous()
        piece = torch.searchsorted(stations, flat[..., 0].contiguous(), right=True) - 1
        piece = piece.clamp(min=0).minimum(self.last)
        places = piece[..., None].expand(-1, -1, 2)
        start = self.starts.to(flat).gather(1, places)
        way = self.directions.to(flat).gather(1, places)
        along = flat[..., :1] - stations.gather(1, piece)[..., None]
        left = torch.stack([-way[..., 1], way[..., 0]], -1)
        return (start + along * way + flat[..., 1:] * left).view(futures.shape)


def turned(vectors: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Vectors (..., 2) as seen by who looks along unit `directions` (..., 2)."""
    return torch.stack([(vectors * directions).sum(-1), _cross(directions, vectors)], -1)


def frame_of(relative_to: str | None, observations: Mapping[str, torch.Tensor]) -> Frame:
    """The frame of futures that are relative to an observation.

    Args:
        relative_to: its key; the route is gone along, all else subtracted; None for nothing.
        observations: (B, O, ...) by key; the newest counts.
    """
    if relative_to is None:
        return _Shift(None)
    newest = observations[relative_to][:, -1]
    return AlongRoute(newest.float()) if relative_to == ROUTE else _Shift(newest)


def _cross(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
