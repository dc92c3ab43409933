import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from fastloop.policies.cacheflow.factorization import Factorization


def futures(count=200, steps=5, width=2):
    random = torch.Generator().manual_seed(0)
    return torch.randn(count, steps, width, generator=random).cumsum(1) + 3


def fitted(dims, **how):
    factorization = Factorization(5, 2, dims)
    factorization.fit(futures(), **how)
    return factorization.double()


def test_all_components_lose_nothing():
    factorization = fitted(10)
    x = futures().double()
    torch.testing.assert_close(
        factorization.expand(factorization.project(x)), x, rtol=1e-5, atol=1e-5
    )
    assert factorization.explained.item() == pytest.approx(1)
    assert factorization.error.item() < 1e-5


def test_coordinates_are_white_and_fewer_lose_more():
    errors = []
    for dims in (1, 3, 6):
        factorization = fitted(dims)
        y = factorization.project(futures().double())
        spread = torch.atleast_2d(y.T.cov(correction=0))
        torch.testing.assert_close(spread, torch.eye(dims).double(), atol=1e-4, rtol=0)
        lost = (factorization.expand(y) - futures()).norm(dim=-1).mean()
        assert factorization.error.item() == pytest.approx(lost.item(), rel=1e-4)
        errors.append(factorization.error.item())
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("dims", [3, 7, 10])
@pytest.mark.parametrize("rest", [0, 2, 64])
def test_the_density_is_that_of_probabilistic_components(dims, rest, standardize, monkeypatch):
    monkeypatch.setattr(f"{Factorization.__module__}.REST", rest)
    factorization = fitted(dims, standardize=standardize)
    x = futures(20).double() * 1.3
    y = factorization.project(x)
    normal = -0.5 * (y.square() + math.log(2 * math.pi)).sum(-1)
    found = normal + factorization.log_volume(x)
    along, unit = factorization.components, factorization.unit.repeat(5)
    scales = torch.cat([factorization.scale, factorization.rest])
    assert len(scales) == min(dims + rest, 10)
    inside = along.T @ torch.diag(scales.square()) @ along
    beside = torch.eye(10).double() - along.T @ along
    covariance = inside + beside * factorization.residual.square()
    spread = torch.diag(unit) @ covariance @ torch.diag(unit)
    mean = factorization.mean.flatten() * unit
    expected = MultivariateNormal(mean, (spread + spread.T) / 2).log_prob(x.flatten(1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_all_of_a_gaussian_is_known_where_the_rest_has_variances_of_its_own():
    """However few coordinates there are: its density is that of the sample covariance."""
    factorization, x = fitted(3), futures().double()
    y = factorization.project(x)
    normal = -0.5 * (y.square() + math.log(2 * math.pi)).sum(-1)
    flat = x.flatten(1)
    expected = MultivariateNormal(flat.mean(0), flat.T.cov(correction=0)).log_prob(flat)
    found = normal + factorization.log_volume(x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_what_no_component_gives_is_improbable():
    factorization = fitted(3)
    smooth = factorization.expand(torch.zeros(1, 3).double())
    jerky = smooth + 2 * torch.tensor([1.0, -1, 1, -1, 1]).view(5, 1)
    assert factorization.log_volume(jerky) < factorization.log_volume(smooth) - 10


def test_futures_that_never_change_are_no_division_by_zero():
    factorization = Factorization(3, 2, 2)
    factorization.fit(torch.ones(10, 3, 2), standardize=True)
    x = torch.ones(4, 3, 2)
    assert factorization.project(x).abs().max() < 1e-3
    assert factorization.log_volume(x).isfinite().all()


def test_more_components_than_numbers_are_refused():
    with pytest.raises(ValueError, match="have 1 to 10 components, got dims=11"):
        Factorization(5, 2, 11)
