import pytest
import torch

from fastloop.policies.cacheflow.familiarity import Familiarity


def lanes(count, seed=0):
    """Others (n, 5, 2): where across, and which way; those on the left come, up to two are away."""
    random = torch.Generator().manual_seed(seed)
    across = 1.5 + 2.5 * torch.rand(count, 5, generator=random)
    across *= torch.where(torch.rand(count, 5, generator=random) < 0.5, -1.0, 1.0)
    found = torch.stack([across, torch.where(across > 0, -1.0, 1.0)], -1)
    found[torch.rand(count, 5, generator=random) < 0.2] = torch.nan
    return found


def pasts(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    speed = 1 + torch.rand(count, 1, 1, generator=random)
    return speed * torch.tensor([[-2.0, 0], [-1, 0], [0, 0]]) + 0.01 * torch.randn(
        count, 3, 2, generator=random
    )


@pytest.fixture(scope="module")
def familiar():
    known = Familiarity(3, 2, 2)
    known.fit(pasts(3000), lanes(3000))
    return known


def test_usual_situations_are_below_one_and_odd_pasts_above(familiar):
    past, around = pasts(2000, 1), lanes(2000, 1)
    assert (familiar(past, around) > 1).float().mean() < 0.01
    assert (familiar(past) > 1).float().mean() < 0.01
    assert (familiar(past.flip(2), around) > 1).all()  # they come from the side
    assert (familiar(5 * past) > 1).all()


def test_traffic_on_the_other_side_is_told_by_the_neighbors(familiar):
    past, around = pasts(500, 1), lanes(500, 1)
    mirrored = around * torch.tensor([-1.0, 1.0])
    usual, odd = familiar(past, around), familiar(past, mirrored)
    assert (odd > usual.max()).float().mean() > 0.9
    assert (familiar(past * torch.tensor([1.0, -1.0])) > 1).float().mean() < 0.02, "their past no"


def test_who_is_not_there_does_not_count_nor_does_order(familiar):
    past, around = pasts(20, 1), lanes(20, 1)
    expected = familiar(past, around)
    nobody = torch.full((20, 3, 2), torch.nan)
    more = torch.cat([around, nobody], 1)[:, torch.randperm(8)]
    torch.testing.assert_close(familiar(past, more), expected)
    torch.testing.assert_close(familiar(past, nobody), familiar(past))


def test_units_do_not_matter():
    past, around = pasts(500), lanes(500)
    metres, feet = Familiarity(3, 2, 2), Familiarity(3, 2, 2)
    metres.fit(past, around)
    unit = torch.tensor([3.28, 10.0])
    feet.fit(past * unit, around * unit)
    expected = metres(past, around)
    # Distances of nearly nothing are products' rounding.
    torch.testing.assert_close(feet(past * unit, around * unit), expected, rtol=1e-2, atol=0.15)


def test_few_neighbors_and_none():
    known = Familiarity(3, 2, 2)
    known.fit(pasts(4), lanes(4))
    assert known.known.isfinite().all()
    with pytest.raises(ValueError, match="hardly anybody is around"):
        known.fit(pasts(4), torch.full((4, 5, 2), torch.nan))
