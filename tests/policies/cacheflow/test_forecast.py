import dataclasses

import pytest
import torch

from fastloop.accel.flow_table import queries
from fastloop.policies.cacheflow.forecast import CacheFlow
from fastloop.policies.cacheflow.model import CacheFlowConfig
from fastloop.policies.cacheflow.samples import Samples
from fastloop.policies.cacheflow.training import build_trainer
from fastloop.policies.rng import Rng
from fastloop.policies.training import TrainConfig


def rng(agents):
    return Rng.for_envs(0, range(agents), [0] * agents)


def nearest(samples, future):
    return (samples - future[:, None]).norm(dim=-1).mean(-1).amin(1).mean().item()


def test_cached_densities_are_live_ones(trained, samples):
    data = samples(30, 5)
    drawn = trained.forecast(data.history, 12, rng(30))
    live = trained.log_prob(data.history, drawn.samples)
    torch.testing.assert_close(drawn.log_prob, live, rtol=1e-6, atol=1e-6)
    table = trained.table
    with torch.inference_mode():
        mixture = trained.condition(data.history)
        every = queries.log_density(table, mixture, least_weight=0)
    one = trained.log_prob(data.history[:1], table.futures[None])[0]
    torch.testing.assert_close(every[0], one, rtol=1e-4, atol=1e-3)


def test_live_samples_come_with_their_density(trained, samples):
    data = samples(10, 5)
    drawn = trained.uncached_forecast(data.history, 8, rng(10))
    live = trained.log_prob(data.history, drawn.samples)
    torch.testing.assert_close(drawn.log_prob, live, rtol=1e-4, atol=1e-3)


def test_it_has_learned_who_walks_how_fast_and_that_they_turn(trained, samples):
    data = samples(60, 5)
    first, last = data.history[:, :1], data.history[:, -1:]
    straight = last + (last - first) / 3 * torch.arange(1, 7).view(6, 1)
    drawn = trained.forecast(data.history, 20, rng(60))
    assert nearest(drawn.samples, data.future) < 0.5 * nearest(straight[:, None], data.future)
    mixture = trained.condition(data.history)
    left, right = (trained.table.futures[:, -1, 1] * side > 0.3 for side in (1, -1))
    found = trained.event_probability(mixture, torch.stack([left, right])).mean(0)
    truth = torch.stack([(data.future[:, -1, 1] * s > 0.3).float().mean() for s in (1, -1)])
    assert (found - truth).abs().max() < 0.12


def test_densities_are_normalized(trained, samples):
    """Importance sampling from the model itself, over the plane of its components."""
    mixture = trained.condition(samples(1, 5).history)
    random = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        y = 1.5 * torch.randn(40_000, 4, generator=random)
        z, log_det = trained.model.flow.inverse(y)
        log_prob = mixture.log_prob(z[None])[0] - log_det
        proposal = torch.distributions.Normal(0.0, 1.5).log_prob(y).sum(-1)
    ratio = (log_prob - proposal).exp()
    error = ratio.std() / len(ratio) ** 0.5
    assert abs(ratio.mean() - 1) < max(0.02, 3 * error.item())


def test_a_mixture_beside_the_cache_is_not_covered(trained, samples):
    mixture = trained.condition(samples(40, 5).history)
    usual = trained.coverage(mixture)
    assert ((usual > 0) & (usual <= 1)).all()
    away = dataclasses.replace(mixture, means=mixture.means + 6)
    assert trained.coverage(away).median() < 0.1 * usual.median()


def test_few_learned_situations_are_below_the_usual_coverage(trained, samples):
    data = samples(400)
    found = trained.coverage(trained.condition(data.history))
    assert trained.usual_coverage(data, share=0.25) == pytest.approx(found.quantile(0.25).item())
    few = trained.usual_coverage(data, share=0.25, most=100)
    assert few == pytest.approx(found.quantile(0.25).item(), rel=0.3)


def test_pasts_that_were_not_learned_are_novel(trained, samples):
    past = samples(200, 5).history
    assert (trained.novelty(past) < 1).float().mean() > 0.97
    for strange in (6 * past, past.flip(1), past + 5, past.roll(1, -1)):
        assert (trained.novelty(strange) > 1).all()


def test_an_agents_forecast_is_its_own(trained, samples):
    data = samples(5, 5)
    together = trained.forecast(data.history, 6, rng(5))
    alone = trained.forecast(data.history[2:3], 6, Rng(rng(5).keys[2:3]))
    assert torch.equal(together.samples[2], alone.samples[0])


@pytest.mark.parametrize("flow", ["coupling", "continuous"])
@pytest.mark.parametrize("joint", [True, False])
def test_every_objective_learns(small, samples, flow, joint):
    data = samples(100)
    model = small(data, flow=flow, joint=joint)
    config = TrainConfig(steps=25, batch_size=32, lr=3e-3, warmup_steps=1)
    trainer = build_trainer(model, data, config)
    loss = [model.loss(data.rows(slice(None)), torch.Generator().manual_seed(0)).item()]
    for _ in range(25):
        trainer.advance()
    loss.append(model.loss(data.rows(slice(None)), torch.Generator().manual_seed(0)).item())
    assert loss[1] < loss[0]
    model.zero_grad()
    model.flow.requires_grad_(True)
    model.loss(data.batch(0, 16, 0), torch.Generator().manual_seed(0)).backward()
    z = model.flow.base(model.factorization.project(data.future[:4]))
    assert z.requires_grad  # what the mixture sees can reach the flow
    drawn = CacheFlow.build(trainer.ema.averaged, data).forecast(data.history[:2], 3, rng(2))
    assert drawn.samples.shape == (2, 3, 6, 2)
    assert drawn.log_prob.isfinite().all()


def test_a_separate_flow_learns_nothing_from_the_mixture(small, samples):
    data = samples(50)
    for joint in (True, False):
        model = small(data, joint=joint)
        model.flow.loss = lambda y, generator=None: y.sum() * 0
        model.loss(data.batch(0, 16, 0), torch.Generator().manual_seed(0)).backward()
        moved = [p.grad is not None and p.grad.abs().sum() > 0 for p in model.flow.parameters()]
        assert any(moved) == joint


def test_commands_and_neighbors_matter_and_neighbors_have_no_order(small, samples):
    data = samples(50)
    random = torch.Generator().manual_seed(3)
    command = torch.eye(3)[torch.randint(3, (50,), generator=random)]
    neighbors = torch.randn(50, 4, 2, 2, generator=random)
    neighbors[:, 3] = torch.nan
    full = Samples(data.history, data.future, command, neighbors)
    model = small(full).eval()
    torch.nn.init.normal_(model.encoder.head[-1].weight)
    told = {"history": data.history, "command": command, "neighbors": neighbors}

    def weights(**changes):
        with torch.no_grad():
            return model.condition(**{**told, **changes}).log_weights

    base = weights()
    assert not torch.allclose(weights(command=command.roll(1, 1)), base)
    assert not torch.allclose(weights(neighbors=neighbors + 1), base)
    torch.testing.assert_close(weights(neighbors=neighbors[:, [2, 3, 0, 1]]), base)
    torch.testing.assert_close(weights(neighbors=neighbors[:, :3]), base)
    assert weights(neighbors=torch.full_like(neighbors, torch.nan)).isfinite().all()
    with pytest.raises(ValueError, match="this model needs command"):
        weights(command=None)
    with pytest.raises(ValueError, match="4 numbers of each neighbor are needed"):
        weights(neighbors=neighbors[..., :1])
    assert weights(neighbors=neighbors[:, :0]).isfinite().all()
    for strange in (torch.nan, torch.inf):
        torn = neighbors.clone()
        torn[0, 0, 0, 1] = strange
        with pytest.raises(ValueError, match="finite numbers only, or NaN only"):
            weights(neighbors=torn)
    with pytest.raises(ValueError, match=r"a command of 3 numbers is needed, got \(2,\)"):
        weights(command=command[:, :2])


def test_bad_conditions_are_refused(trained, samples):
    history = samples(3, 5).history
    with pytest.raises(ValueError, match="a history of 4 steps of 2 numbers is needed, got 3 x 2"):
        trained.forecast(history[:, 1:], 4, rng(3))
    with pytest.raises(ValueError, match="history must hold finite"):
        trained.forecast(history * torch.tensor([[[1.0, torch.inf]]]), 4, rng(3))
    with pytest.raises(ValueError, match="was learned without command"):
        trained.forecast(history, 4, rng(3), command=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="futures of 6 x 2 numbers are known, got 5 x 2"):
        trained.log_prob(history, samples(3, 5).future[:, 1:])


@pytest.mark.parametrize("far", [1e3, 1e12, 3e38])
def test_a_condition_far_outside_is_told_and_still_answered(trained, samples, far):
    history = samples(3, 5).history.sign() * far
    assert (~(trained.novelty(history) <= 1)).all()
    drawn = trained.forecast(history, 4, rng(3))
    assert drawn.samples.isfinite().all()
    assert not drawn.log_prob.isnan().any()


def test_a_table_of_another_model_is_refused(trained, small, samples):
    other = small(samples(50), dims=3)
    with pytest.raises(ValueError, match="the table holds 4 numbers a future of shape"):
        CacheFlow(other, trained.table)


def test_bad_samples_and_sizes_are_refused(samples):
    data = samples(4)
    with pytest.raises(ValueError, match="future must hold finite"):
        Samples(data.history, data.future * torch.nan)
    with pytest.raises(ValueError, match="all parts of one length"):
        dataclasses.replace(data, history=data.history[:2])
    with pytest.raises(ValueError, match="samples must be some"):
        data.some(slice(0))
    with pytest.raises(ValueError, match="unknown flow 'spline'; have: coupling, continuous"):
        CacheFlowConfig(flow="spline")
    with pytest.raises(ValueError, match="budget must be at least 1, got 0"):
        CacheFlowConfig(budget=0)


def test_batches_visit_everybody_once_an_epoch(samples):
    data = samples(10)
    seen = torch.cat([data.batch(step, 4, 0)["future"][:, 0, 0] for step in range(5)])
    for epoch in seen.split(10):
        assert torch.equal(epoch.sort().values, data.future[:, 0, 0].sort().values)
    assert not torch.equal(seen[:10], seen[10:])
