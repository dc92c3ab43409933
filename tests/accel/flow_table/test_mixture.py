import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from fastloop.accel.flow_table import fast, reference
from fastloop.accel.flow_table.mixture import Mixture, features_of
from fastloop.accel.flow_table.queries import seeded_noise


def torch_says(mixture, z):
    """torch.distributions on points (K, d): (A, K)."""
    each = Independent(Normal(mixture.means, mixture.variances.sqrt()), 1)
    family = MixtureSameFamily(Categorical(logits=mixture.log_weights), each)
    return family.log_prob(z[:, None]).T


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 5, 4, 40), (2, 50, 8, 129), (7, 16, 12, 33)])
def test_every_form_is_torchs_mixture(mixture, size):
    A, M, d, K = size
    some, z = mixture(A, M, d), torch.randn(K, d, dtype=torch.float64)
    expected = torch_says(some, z)
    features = features_of(z)
    forms = {
        "exact": some.log_prob(z.expand(A, K, d)),
        "reference": reference.log_mixture(features, some.matrix),
        "fast": fast.log_mixture(features, some.matrix),
        "numpy": torch.from_numpy(fast.log_mixture(features.numpy(), some.matrix.numpy())),
    }
    for name, result in forms.items():
        torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("spread", [1e-2, 1.0, 1e4])
def test_float32_forms_near_and_far_from_every_component(mixture, spread):
    some, z = mixture(2, 50, 8, spread=spread), 3 * torch.randn(500, 8, dtype=torch.float64)
    expected = torch_says(some, z)
    features, matrix = features_of(z).float(), some.matrix.float()
    # As many roundings as the largest term weighs.
    largest = (features.abs() @ matrix.abs()).amax().item()
    for result in (
        fast.log_mixture(features, matrix),
        torch.from_numpy(fast.log_mixture(features.numpy(), matrix.numpy())),
    ):
        assert result.dtype == torch.float32
        assert (result - expected).abs().max() <= 1e-6 + 4 * 2**-23 * largest


def test_agents_do_not_meet_and_their_number_does_not_matter(mixture, monkeypatch):
    some, z = mixture(7, 6, 3), torch.randn(30, 3, dtype=torch.float64)
    whole = fast.log_mixture(features_of(z), some.matrix)
    monkeypatch.setattr(fast, "ROOM", 400)  # two agents at a time
    torch.testing.assert_close(fast.log_mixture(features_of(z), some.matrix), whole)
    for agent in range(7):
        alone = fast.log_mixture(features_of(z), some[agent : agent + 1].matrix)
        torch.testing.assert_close(alone[0], whole[agent])


def test_nearest_is_the_nearest_that_is_allowed():
    z, points = torch.randn(50, 3), torch.randn(4, 9, 3)
    allowed = torch.rand(50) < 0.5
    chosen = fast.Nearest(z, allowed)(points)
    assert allowed[chosen].all()
    assert torch.equal(chosen, reference.nearest(points, z, allowed))


@settings(max_examples=25)
@given(seed=st.integers(0, 99), M=st.integers(1, 12), least=st.sampled_from([1e-4, 1e-2, 0.3]))
def test_pruning_takes_away_what_it_says(seed, M, least):
    random = torch.Generator().manual_seed(seed)
    logs = (4 * torch.randn(3, M, generator=random, dtype=torch.float64)).log_softmax(-1)
    means = torch.randn(3, M, 2, generator=random, dtype=torch.float64)
    whole = Mixture(logs, means, torch.ones_like(means))
    small = whole.pruned(least)
    gone = torch.where(
        (logs < math.log(least)) & (logs < logs.amax(-1, keepdim=True)), logs.exp(), 0
    )
    torch.testing.assert_close(small.left_out, gone.sum(-1))
    z = 2 * torch.randn(3, 20, 2, generator=random, dtype=torch.float64)
    lost = whole.log_prob(z).exp() - small.log_prob(z).exp()
    assert (lost >= -1e-12).all()
    assert (lost <= gone.sum(-1, keepdim=True) / (2 * math.pi) + 1e-12).all()  # a density's peak
    assert (small.matrix.shape[-1] < M) == bool((gone > 0).any(-1).all() and M > 1)


def test_the_heaviest_component_stays_however_light():
    logs = torch.tensor([[0.2, 0.3, 0.25, 0.25]]).log()
    small = Mixture(logs, torch.zeros(1, 4, 1), torch.ones(1, 4, 1)).pruned(0.5)
    torch.testing.assert_close(small.log_weights.exp(), torch.tensor([[0.3]]))


def test_a_mixture_without_light_components_stays_as_it_is(mixture):
    some = mixture()
    even = Mixture(torch.full_like(some.log_weights, -math.log(5)), some.means, some.variances)
    assert even.pruned() is even
    assert even.left_out.abs().max() < 1e-12


def test_a_component_of_weight_zero_is_never_drawn_and_changes_no_density():
    logs = torch.tensor([[0.0, -torch.inf]])
    some = Mixture(logs, torch.tensor([[[0.0], [100.0]]]), torch.ones(1, 2, 1))
    noise = torch.full((1, 1, 2), 9.0)  # ndtr of 9 is 1 in float32
    assert some.sample(noise).item() == 9.0
    matrix, features = some.matrix, features_of(torch.zeros(1, 1))
    expected = torch.tensor([[-0.5 * math.log(2 * math.pi)]])
    torch.testing.assert_close(fast.log_mixture(features, matrix), expected)


def test_samples_are_spread_as_the_mixture(mixture):
    some = mixture(2, 3, 2, dtype=torch.float32)
    points = some.sample(seeded_noise([3, 4], 40_000, 2))
    mean = (some.log_weights.exp()[..., None] * some.means).sum(1)
    square = (some.log_weights.exp()[..., None] * (some.means**2 + some.variances)).sum(1)
    torch.testing.assert_close(points.mean(1), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(points.square().mean(1), square, rtol=0.05, atol=0.05)


def test_an_agents_samples_are_its_own(mixture):
    some = mixture(3, 4, 2, dtype=torch.float32)
    together = some.sample(seeded_noise([5, 6, 7], 8, 2))
    alone = some[1:2].sample(seeded_noise([6], 8, 2))
    assert torch.equal(together[1:2], alone)
