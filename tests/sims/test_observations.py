import numpy as np

from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.rng import Rng
from fastloop.sims.observations import visited_observations
from fastloop.sims.toy import PointMass


def test_the_first_one_is_an_episode_s_first(homing):
    spec = homing().spec
    history = visited_observations(PointMass(), homing(), [5])
    seen, _ = PointMass().reset(seed=5)
    assert history.ticks.tolist() == [0]
    for key in spec.inputs:
        assert history[key].shape[1] == spec.n_obs_steps
        for frame in history[key][0]:
            assert np.array_equal(frame.numpy(), seen[key])


def test_each_is_where_the_policy_goes_in_its_chunks(homing):
    policy, sim, seeds = homing(), PointMass(), range(3, 11)
    history = visited_observations(PointMass(), policy, seeds)
    assert len(history) == 8
    for row, seed in enumerate(seeds):
        seen, _ = sim.reset(seed=seed)
        episode = EpisodeHistory(policy.spec.n_obs_steps)
        episode.observe({key: seen[key] for key in policy.spec.inputs})
        ended = False
        for _ in range(row % 6):
            rng = Rng.for_envs(0, [seed], [episode.tick])
            plan = policy.plan(History.stack([episode], policy.spec.lags), rng=rng)
            for action in plan.actions[0, : policy.spec.n_action_steps]:
                if ended:
                    break
                seen, _, terminated, truncated, _ = sim.step(action.numpy())
                episode.observe({key: seen[key] for key in policy.spec.inputs})
                ended = terminated or truncated
        assert history.ticks[row] == episode.tick
        for key in policy.spec.inputs:
            assert np.array_equal(history[key][row][-1].numpy(), seen[key])
    assert history.ticks.max() > policy.spec.n_action_steps
