import pytest
import torch

from fastloop.accel.flow_table import queries
from fastloop.accel.flow_table.table import FlowTable
from fastloop.policies.cacheflow.mixture import MixtureEncoder
from fastloop.policies.cacheflow.single import SingleAgent


def normal(*shape, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    made = MixtureEncoder(3, 4, components=6, width=16, command=2, neighbors=5).double()
    torch.nn.init.normal_(made.head[-1].weight)
    made.fit(normal(50, 7, 3), normal(50, 4, 5))
    return made.eval().requires_grad_(False)


@pytest.fixture
def table():
    z = normal(300, 4, seed=1)
    feasible = torch.arange(300) % 5 > 0
    rest = torch.zeros(300).double(), torch.zeros(300).double(), normal(300, 6, 2, seed=2)
    return FlowTable.of(z, *rest, feasible, metric=torch.tensor([1.0, 3.0, 0.5, 2.0]).double())


@pytest.mark.parametrize("far", [0.0, 1.0, 50.0, 1e9])
def test_a_single_agents_mixture_is_the_encoders(encoder, table, far):
    neighbors = normal(1, 4, 5, seed=4)
    neighbors[:, 2] = torch.nan
    seen = far * normal(1, 7, 3, seed=3), torch.eye(2).double()[:1], neighbors
    found, expected = SingleAgent(encoder, table).condition(*seen), encoder(*seen)
    for name, part in vars(expected).items():
        torch.testing.assert_close(getattr(found, name), part, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("seed", range(4))
def test_its_futures_are_those_that_several_agents_draw(encoder, table, seed):
    single = SingleAgent(encoder, table)
    neighbors = normal(1, 4, 5, seed=seed)
    mixture = single.condition(normal(1, 7, 3, seed=seed), torch.eye(2).double()[1:], neighbors)
    noise = queries.seeded_noise([seed], 40, 4).double()
    places, log_prob = single.draw(mixture, noise)
    assert torch.equal(places, queries.draw(table, mixture, noise))
    assert table.feasible[places].all()
    expected = mixture.log_prob(table.z[places])
    torch.testing.assert_close(log_prob, expected, rtol=1e-12, atol=1e-12)


def test_a_forecast_alone_is_the_one_among_others(trained, samples, monkeypatch):
    """By the trained model: the two ways differ by rounding only."""
    past = samples(30, 5).history
    mixtures = trained.condition(past)
    for row in range(30):
        alone = trained.condition(past[row : row + 1])
        for name, part in vars(mixtures[row : row + 1]).items():
            torch.testing.assert_close(getattr(alone, name), part, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(SingleAgent, "condition", None)
    with pytest.raises(TypeError):
        trained.condition(past[:1])
    trained.condition(past[:2])
