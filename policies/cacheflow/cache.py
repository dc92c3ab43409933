"""The table of training futures: made once, kept beside the weights, refused for other weights."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path

import torch

from fastloop.accel.flow_table.mixture import Mixture
from fastloop.accel.flow_table.queries import log_base
from fastloop.accel.flow_table.table import FlowTable
from fastloop.policies.cacheflow.model import CacheFlowModel
from fastloop.policies.cacheflow.samples import Samples
from fastloop.policies.checkpoints.checkpoint import file_digest
from fastloop.policies.checkpoints.errors import CheckpointError
from fastloop.policies.checkpoints.files import read_json, read_safetensors, write_safetensors

__all__ = ["build_table", "k_centers", "load_table", "representatives", "save_table"]

TABLE, DESCRIPTION = "table.safetensors", "table.json"
FORMAT, VERSION = "fastloop.flow_table", 1
ROWS = 4096  # futures that go through the flow at a time
CONTEXTS = 2048  # situations over which the reference density is averaged
PROBE = 1e-2  # of a whitened coordinate, a step along it
CENTERS = 0.25  # share of a budget that covers everything; the rest is spread as futures are


@torch.inference_mode()
def build_table(
    model: CacheFlowModel,
    samples: Samples,
    *,
    feasible: torch.Tensor | None = None,
    seed: int = 0,
) -> FlowTable:
    """Cache the futures of training samples, at most ``model.config.budget`` of them.

    Where the budget leaves futures out, `representatives` stay. The reference density of a future
    is the mean of q(z | c) over training situations, divided by the number of futures that it
    stands for; so that the self-normalized weights stay those of all futures.

    Args:
        model: trained, on any device.
        samples: to cache.
        feasible: (n,) bool, futures that may be drawn; all by default.
        seed: of the situations that are averaged over, and of the futures that stay.

    Returns:
        a table on the model's device, float32.
    """
    device = model.factorization.mean.device
    if feasible is None:
        feasible = torch.ones(len(samples), dtype=torch.bool)
    futures = samples.future.to(device)
    moved = model.factorization.project(futures) * model.factorization.scale
    chosen, counts = representatives(moved, model.config.budget, seed=seed)
    through = map(model.base, futures[chosen].split(ROWS))
    z, log_det = (torch.cat(parts) for parts in zip(*through, strict=True))
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    known = samples.some(order[:CONTEXTS]).rows(slice(None))
    known = {name: part.to(device) for name, part in known.items() if name != "future"}
    table = FlowTable.of(
        z, log_det, torch.zeros_like(log_det), futures[chosen], feasible.to(device)[chosen],
        _metric(model, z),
    )  # fmt: skip
    reference = _mean_density(table, model.condition(**known)) - counts.to(z).log()
    return FlowTable.of(z, log_det, reference, table.futures, table.feasible, table.metric)


def representatives(
    points: torch.Tensor, budget: int, *, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points that stand for all: a quarter of them `k_centers`, so that nothing rare is far from
    all of them, the others drawn at random, so that they lie close where points usually are.

    Centers alone are spread evenly, and leave most of a budget to what hardly ever happens.

    Args:
        points: (n, d).
        budget: of representatives; all points where there are not more.
        seed: of the draw.

    Returns:
        (K,) int64 representatives, and (K,) int64 how many points are nearest to each, at least 1.
    """
    if len(points) <= budget:
        everyone = torch.arange(len(points), device=points.device)
        return everyone, torch.ones_like(everyone)
    centers = k_centers(points, max(1, int(CENTERS * budget)))
    others = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    others = others.to(centers.device)
    others = others[~torch.isin(others, centers)][: budget - len(centers)]
    chosen = torch.cat([centers, others])
    nearest = [torch.cdist(some, points[chosen]).argmin(1) for some in points.split(ROWS)]
    # Of points that repeat, those beyond the first own nothing, and stand for themselves.
    return chosen, torch.bincount(torch.cat(nearest), minlength=budget).clamp(min=1)


def k_centers(points: torch.Tensor, count: int) -> torch.Tensor:
    """The greedy solution of k-center: each time the point that is farthest from those taken
    (Gonzalez 1985), which leaves no point farther from them than twice the least that is possible.

    Args:
        points: (n, d).
        count: of centers, at most n.

    Returns:
        (count,) int64, which of the points; a point repeats only where points do.
    """
    distances = torch.full_like(points[:, 0], torch.inf)
    newest = (points - points.mean(0)).square().sum(-1).argmin()
    centers = []
    for _ in range(count):
        centers.append(newest)
        distances = distances.minimum((points - points[newest]).square().sum(-1))
        newest = distances.argmax()
    return torch.stack(centers)


def _mean_density(table: FlowTable, mixtures: Mixture) -> torch.Tensor:
    """(K,) the logarithm of the mean density over A agents."""
    total = torch.full_like(table.log_det, -torch.inf)
    for first in range(0, len(mixtures), 64):
        some = log_base(table, mixtures[first : first + 64], least_weight=0)
        total = torch.logaddexp(total, some.logsumexp(0))
    return total - float(torch.tensor(len(mixtures)).log())


def _metric(model: CacheFlowModel, z: torch.Tensor) -> torch.Tensor:
    """(d,) how far futures move with each coordinate, in the mean over some of the table, in the
    units that the factorization gave their elements."""
    some = z[:: max(1, len(z) // 256)]
    steps = PROBE * torch.eye(z.shape[-1], device=z.device)[:, None]
    moved = (model.futures(some + steps) - model.futures(some - steps)) / (2 * PROBE)
    moved = moved / model.factorization.unit
    return moved.flatten(2).square().sum(-1).mean(1).sqrt().clamp(min=1e-6)


def save_table(folder: str | Path, table: FlowTable, digest: str) -> None:
    """Write a table; each file appears whole or not at all.

    Args:
        folder: that exists.
        table: to keep; what follows from the rest is not written.
        digest: of the flow and factorization that made it.
    """
    folder = Path(folder)
    tensors = {
        part.name: getattr(table, part.name).detach().cpu().contiguous()
        for part in fields(table)
        if part.name != "features"
    }
    new = folder / f".{TABLE}.new"
    write_safetensors(new, tensors)
    described = {
        "format": FORMAT, "version": VERSION, "flow": digest, "futures": len(table),
        "sha256": file_digest(new),
    }  # fmt: skip
    text = folder / f".{DESCRIPTION}.new"
    text.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    os.replace(new, folder / TABLE)
    os.replace(text, folder / DESCRIPTION)


def load_table(folder: str | Path, digest: str) -> FlowTable:
    """Read a table that `save_table` wrote.

    Args:
        folder: see there.
        digest: of the flow and factorization that it will be used with.

    Raises:
        CheckpointError: a file is missing or damaged, the table is empty, or it was made by another
            flow.
    """
    folder = Path(folder)
    told = read_json(folder / DESCRIPTION)
    if (told.get("format"), told.get("version")) != (FORMAT, VERSION):
        raise CheckpointError(
            f"{folder / DESCRIPTION}: expected {FORMAT} version {VERSION}, found "
            f"{told.get('format')} version {told.get('version')}"
        )
    if told.get("flow") != digest:
        raise CheckpointError(
            f"{folder / TABLE} is stale: it was made by flow {told.get('flow')}, the weights here "
            f"are of flow {digest}; build the table again"
        )
    tensors = read_safetensors(folder / TABLE)
    if file_digest(folder / TABLE) != told.get("sha256"):
        raise CheckpointError(
            f"{folder / TABLE} is not the table that {DESCRIPTION} describes: damaged, or the two "
            "files are of different saves"
        )
    try:
        return FlowTable.of(**tensors)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / TABLE}: {error}") from error
