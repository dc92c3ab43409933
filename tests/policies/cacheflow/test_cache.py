import json
from dataclasses import replace

import pytest
import torch

from fastloop.accel.flow_table import queries
from fastloop.policies.cacheflow.cache import (
    build_table,
    k_centers,
    load_table,
    representatives,
    save_table,
)
from fastloop.policies.checkpoints.errors import CheckpointError


def test_centers_cover():
    points = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    centers = k_centers(points, 20)
    assert len(centers.unique()) == 20
    distances = torch.cdist(points, points[centers])
    # Greedy: nobody is farther from the centers than the last one was from those before.
    last = torch.cdist(points[centers[-1:]], points[centers[:-1]]).min()
    assert distances.amin(1).max() <= last
    # Less than anybody else gets with 20 at random.
    lots = torch.randperm(300, generator=torch.Generator().manual_seed(1))[:20]
    assert distances.amin(1).max() < torch.cdist(points, points[lots]).amin(1).max()


def test_representatives_stand_for_everybody_and_are_dense_where_points_are():
    random = torch.Generator().manual_seed(0)
    usual = torch.randn(1900, 2, generator=random)
    rare = torch.tensor([30.0, 0.0]) + 5 * torch.rand(100, 2, generator=random)
    points = torch.cat([usual, rare])
    chosen, counts = representatives(points, 100)
    assert len(chosen.unique()) == 100
    assert counts.sum() == 2000
    distances = torch.cdist(points, points[chosen])
    assert torch.equal(counts, torch.bincount(distances.argmin(1), minlength=100))
    assert (
        distances.amin(1).max() <= torch.cdist(points, points[k_centers(points, 25)]).amin(1).max()
    )
    # Centers alone would be shared out by how much room there is, not by how often it is used.
    alone = (k_centers(points, 100) < 1900).float().mean()
    assert (chosen < 1900).float().mean() > alone + 0.1
    assert not torch.equal(representatives(points, 100, seed=1)[0], chosen)


def test_a_budget_for_everybody_and_points_that_repeat():
    chosen, counts = representatives(torch.randn(5, 2), 5)
    assert chosen.tolist() == list(range(5))
    assert counts.tolist() == [1] * 5
    chosen, counts = representatives(torch.zeros(5, 2), 3)
    assert len(chosen) == 3
    assert (counts >= 1).all()
    assert len(representatives(torch.randn(5, 2), 1)[0]) == 1


def test_the_table_holds_futures_as_they_are(small, samples):
    data = samples(60)
    model = small(data)
    table = build_table(model, data)
    assert torch.equal(table.futures, data.future)
    with torch.inference_mode():
        z, log_det = model.base(data.future)
    assert torch.equal(table.z, z)
    assert torch.equal(table.log_det, log_det)
    mixtures = model.condition(data.history)
    expected = mixtures.log_prob(table.z.expand(60, -1, -1)).logsumexp(0) - torch.tensor(60).log()
    torch.testing.assert_close(table.log_reference, expected.detach(), rtol=1e-4, atol=1e-4)


def test_a_smaller_table_asks_the_same_of_events(trained, samples):
    data = samples(400)
    probabilities, references = [], []
    for budget in (400, 150):
        model = trained.model
        object.__setattr__(model.config, "budget", budget)
        table = build_table(model, data)
        assert len(table) == budget
        with torch.inference_mode():
            weights = queries.log_weights(
                table, queries.log_base(table, model.condition(samples(40, 7).history))
            )
        references.append((table, table.log_reference))
        events = torch.stack([table.futures[:, -1, 1] > 0.5, table.futures[:, -1, 0] > 2.0])
        probabilities.append(queries.event_probability(weights, events))
    assert (probabilities[0] - probabilities[1]).abs().mean() < 0.05
    # A future of the smaller table counts for those that it stands for.
    (every, whole), (some, part) = references
    places = torch.cdist(some.z, every.z).argmin(1)
    stands_for = (whole[places] - part).exp()
    torch.testing.assert_close(stands_for, stands_for.round(), rtol=0, atol=1e-3)
    assert stands_for.sum().round() == 400
    object.__setattr__(trained.model.config, "budget", 128)


def test_coordinates_weigh_what_they_move(small, samples):
    model = small(samples(60))  # an untrained coupling flow is the identity
    torch.testing.assert_close(
        build_table(model, samples(60)).metric, model.factorization.scale, rtol=1e-3, atol=1e-3
    )


def test_a_table_is_kept_and_read(trained, tmp_path):
    save_table(tmp_path, trained.table, "this flow")
    table = load_table(tmp_path, "this flow")
    for name, value in vars(table).items():
        assert torch.equal(value, getattr(trained.table, name)), name


def test_a_stale_table_is_refused(trained, tmp_path):
    digest = trained.model.digest()
    save_table(tmp_path, trained.table, digest)
    flow = trained.model.flow.couplings[0].network[0]
    kept = flow.bias.clone()
    flow.bias.add_(1e-3)
    other = trained.model.digest()
    flow.bias.copy_(kept)
    assert other != digest
    with pytest.raises(CheckpointError, match=f"stale: it was made by flow {digest}.*{other}"):
        load_table(tmp_path, other)


@pytest.mark.parametrize("fault", ["missing", "cut", "other", "empty", "version", "nan"])
def test_a_bad_table_is_refused(trained, tmp_path, fault):
    save_table(tmp_path, trained.table, "flow")
    path, told = tmp_path / "table.safetensors", tmp_path / "table.json"
    match fault:
        case "missing":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:-20])
        case "version":
            told.write_text(json.dumps(json.loads(told.read_text()) | {"version": 9}))
        case "other":
            kept = told.read_text()
            save_table(tmp_path, trained.table.to("cpu", torch.float64), "flow")
            told.write_text(kept)
        case _:
            table = trained.table
            if fault == "empty":
                rows = ("z", "log_det", "log_reference", "futures", "feasible", "features")
                changes = {name: getattr(table, name)[:0] for name in rows}
            else:
                changes = {"log_det": table.log_det * torch.nan}
            save_table(tmp_path, replace(table, **changes), "flow")
    message = {
        "missing": "missing", "cut": "truncated or damaged", "other": "different saves",
        "empty": "the table is empty", "version": "version 9", "nan": "log_det must be finite",
    }[fault]  # fmt: skip
    with pytest.raises(CheckpointError, match=message):
        load_table(tmp_path, "flow")
