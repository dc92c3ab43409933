import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.accel.flow_table import queries
from fastloop.accel.flow_table.mixture import Mixture
from fastloop.accel.flow_table.table import FlowTable


def normal(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64)


def gaussian(mean, variance, d=2):
    """One component, (1, 1, d)."""
    shape = torch.ones(1, 1, d, dtype=torch.float64)
    return Mixture(torch.zeros(1, 1, dtype=torch.float64), mean * shape, variance * shape)


@pytest.fixture
def spread_normally():
    """20,000 standard normal points in the plane and the log-density with which they lie there."""
    z = normal(20_000, 2)
    reference = -0.5 * z.square().sum(-1)
    return FlowTable.of(z, torch.zeros(len(z)).double(), reference, z[:, None])


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (0.7, 0.5), (-1.0, 0.3)])
def test_events_are_as_probable_as_they_are(spread_normally, mean, variance):
    table = spread_normally
    weights = queries.log_weights(table, queries.log_base(table, gaussian(mean, variance)))
    levels = torch.tensor([-1.0, 0.0, 0.5, 1.5], dtype=torch.float64)
    events = table.z[:, 0] < levels[:, None]
    found = queries.event_probability(weights, events)[0]
    truth = torch.special.ndtr((levels - mean) / math.sqrt(variance))
    errors = (truth * (1 - truth) / queries.effective_sample_size(weights)).sqrt()
    assert ((found - truth).abs() <= 3 * errors).all()
    several = queries.event_probability(weights.expand(2, -1), torch.stack([events, ~events]))
    torch.testing.assert_close(several, torch.stack([found, 1 - found]))


def test_the_jacobian_cancels(table, mixture):
    some, cond = table(), mixture()
    marginal = some.log_reference - some.log_det  # log-density of the cached futures themselves
    ratios = queries.log_density(some, cond, least_weight=0) - marginal
    base = queries.log_base(some, cond, least_weight=0)
    torch.testing.assert_close(ratios, queries.log_weights(some, base))
    assert not torch.allclose(ratios, base)


@settings(max_examples=25)
@given(seed=st.integers(0, 99), copies=st.integers(2, 4))
def test_order_and_repetition_of_the_futures_do_not_matter(seed, copies):
    z, log_det, reference = normal(30, 3, seed=seed), normal(30, seed=1), normal(30, seed=2)
    mixture = Mixture(
        normal(2, 4, seed=3).log_softmax(-1), normal(2, 4, 3), 0.1 + normal(2, 4, 3).square()
    )
    event = z[:, 0] > 0.3

    def ask(order):
        table = FlowTable.of(z[order], log_det[order], reference[order], z[order, None])
        weights = queries.log_weights(table, queries.log_base(table, mixture))
        size = queries.effective_sample_size(weights)
        return queries.event_probability(weights, event[order][None]), size

    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    found, size = ask(torch.arange(30))
    for places, grown in ((order, 1), (order.repeat(copies), copies)):
        other, other_size = ask(places)
        torch.testing.assert_close(other, found)
        torch.testing.assert_close(other_size, grown * size)


def test_effective_sample_size_of_equal_and_of_single_weights():
    weights = torch.tensor([[3.0] * 8, [0.0] * 7 + [200.0], [0.0] * 4 + [-torch.inf] * 4])
    torch.testing.assert_close(
        queries.effective_sample_size(weights), torch.tensor([8.0, 1.0, 4.0])
    )


def test_what_was_never_seen_raises_the_alarm():
    traffic = normal(5_000, 2) * 0.5 + torch.tensor([2.0, 1.5], dtype=torch.float64)
    reference = -2 * (traffic - traffic.mean(0)).square().sum(-1)
    table = FlowTable.of(traffic, torch.zeros(5_000).double(), reference, traffic[:, None])
    seen = Mixture(*(torch.cat(part) for part in zip(
        vars(gaussian(1.75, 0.2)).values(), vars(gaussian(-1.75, 0.2)).values(), strict=True
    )))  # fmt: skip
    sizes = queries.effective_sample_size(queries.log_weights(table, queries.log_base(table, seen)))
    assert sizes[0] > 0.1 * len(table)
    assert sizes[1] < 0.01 * len(table)


def test_drawn_futures_are_neighbors_of_samples_each_agent_by_its_own_seed(table, mixture):
    some, cond = table(400, dtype=torch.float32), mixture(3, dtype=torch.float32)
    noise = queries.seeded_noise([1, (2, 5), 3], 20, 4)
    places = queries.draw(some, cond, noise)
    distances = torch.cdist(cond.sample(noise), some.z.expand(3, -1, -1))
    torch.testing.assert_close(distances.gather(2, places[..., None])[..., 0], distances.amin(-1))
    assert torch.equal(
        queries.draw(some, cond[1:2], queries.seeded_noise([(2, 5)], 20, 4))[0], places[1]
    )
    assert not torch.equal(places[0], places[1])


@pytest.mark.parametrize(("metric", "nearest"), [([1.0, 9.0], 0), ([9.0, 1.0], 1)])
def test_a_coordinate_that_hardly_moves_futures_hardly_matters(metric, nearest):
    z = torch.tensor([[0.0, 0.5], [0.5, 0.0]])
    rest = torch.zeros(2), torch.zeros(2), torch.zeros(2, 1, 2)
    table = FlowTable.of(z, *rest, metric=torch.tensor(metric))
    cond = Mixture(torch.zeros(1, 1), torch.tensor([[[0.45, 0.45]]]), torch.ones(1, 1, 2))
    assert queries.draw(table, cond, torch.zeros(1, 1, 3)).item() == nearest


def test_what_is_not_feasible_is_weighed_and_never_drawn(table, mixture):
    feasible = torch.arange(40) % 3 == 0
    some, cond = table(feasible=feasible), mixture()
    assert feasible[queries.draw(some, cond, queries.seeded_noise([0, 1, 2], 50, 4))].all()
    weights = queries.log_weights(some, queries.log_base(some, cond))
    assert feasible[queries.diverse_top_k(some, weights, 10)].all()
    torch.testing.assert_close(
        weights, queries.log_weights(table(), queries.log_base(table(), cond))
    )


def test_light_components_are_left_out_unless_all_are_asked_for(table, mixture):
    some, cond = table(), mixture(1, 2)
    light = Mixture(
        torch.tensor([[math.log1p(-5e-5), math.log(5e-5)]]).double(), cond.means, cond.variances
    )
    exact = light.log_prob(some.z[None])
    torch.testing.assert_close(queries.log_base(some, light, least_weight=0), exact)
    pruned = queries.log_base(some, light)
    assert (pruned <= exact + 1e-12).all()
    assert not torch.equal(pruned, exact)


def test_diverse_futures_begin_with_the_likeliest_and_lie_apart(table):
    some = table(200)
    weights = normal(2, 200, seed=9)
    chosen = queries.diverse_top_k(some, weights, 6, pool=50)
    assert torch.equal(chosen[:, 0], weights.argmax(-1))
    likeliest = weights.topk(50).indices
    for row, places in enumerate(chosen.tolist()):
        assert len(set(places)) == 6
        assert set(places) <= set(likeliest[row].tolist())
        futures = some.futures.flatten(1)
        for n in range(1, 6):  # each is as far from those before as any of the pool
            apart = torch.cdist(futures[likeliest[row]], futures[places[:n]]).amin(-1)
            own = torch.cdist(futures[places[n]][None], futures[places[:n]]).amin()
            torch.testing.assert_close(own, apart.max())


def test_more_diverse_futures_than_there_are_is_refused(table):
    with pytest.raises(ValueError, match="there are 2 futures to choose from, got count=3"):
        queries.diverse_top_k(table(feasible=torch.arange(40) < 2), normal(1, 40), 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": torch.zeros(0, 2)}, "the table is empty"),
        ({"log_det": torch.zeros(4)}, "of one length"),
        ({"futures": torch.zeros(3, 2)}, "a table holds"),
        ({"z": torch.full((3, 2), torch.nan)}, "the table's z must be finite"),
        ({"log_reference": torch.full((3,), torch.inf)}, "log_reference must be finite"),
        ({"feasible": torch.zeros(3, dtype=torch.bool)}, "no future of the table is feasible"),
        ({"metric": torch.ones(3)}, "a metric has a number a coordinate, 2"),
    ],
)
def test_bad_tables_are_refused(change, message):
    parts = {
        "z": torch.zeros(3, 2), "log_det": torch.zeros(3), "log_reference": torch.zeros(3),
        "futures": torch.zeros(3, 4, 2),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        FlowTable.of(**(parts | change))


def test_a_table_in_another_precision_is_the_same(table, mixture):
    some, cond = table(), mixture()
    small = some.to("cpu", torch.float32)
    assert small.feasible.dtype == torch.bool
    narrow = Mixture(*(part.float() for part in vars(cond).values()))
    torch.testing.assert_close(
        queries.log_density(small, narrow),
        queries.log_density(some, cond).float(),
        rtol=1e-4,
        atol=1e-4,
    )


def test_events_of_other_futures_are_refused(mixture, table):
    weights = queries.log_base(table(), mixture())
    with pytest.raises(ValueError, match=r"each of the 40 futures .* shape \(2, 39\)"):
        queries.event_probability(weights, torch.ones(2, 39))
