"""Each frame goes through the encoder once, and the condition is the same."""

import copy
import random

import pytest
import torch

from fastloop.accel.apply import accelerate
from fastloop.accel.config import AccelConfig
from fastloop.policies.diffusion.clip import TOKENS, ClipConfig, ClipEncoder
from fastloop.policies.diffusion.model import DiffusionModel
from fastloop.policies.diffusion.normalizer import LinearNormalizer
from fastloop.policies.diffusion.window import Window
from fastloop.policies.history import EpisodeHistory, History
from fastloop.policies.rng import Rng
from fastloop.policies.spec import TensorSpec

LAGS = [(3, 2, 1, 0), (9, 6, 3, 0), (7, 4, 1, 0)]


@pytest.fixture
def windowed(camera_policy):
    """A function (lags, n_action_steps) -> a policy with a camera and a frame for each lag."""

    def make(lags=LAGS[0], n_action_steps=1):
        return camera_policy(n_obs_steps=len(lags), lags=lags, n_action_steps=n_action_steps)

    return make


@pytest.fixture
def watched(monkeypatch):
    """A function (policy) -> the list of how many images each call of its encoder sees."""

    def watch(policy):
        seen = []
        (encoder,) = policy.model.obs_encoder.obs_nets.values()
        encoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
        return seen

    return watch


def stack(policy, episodes):
    return History.stack(episodes, policy.spec.lags)


def episodes_of(policy, observe, ages):
    """Histories of as many ticks."""
    made = []
    for env, age in enumerate(ages):
        episode = EpisodeHistory(1 + policy.spec.lags[0])
        for tick in range(age):
            episode.observe(observe(policy, 100 * env + tick))
        made.append(episode)
    return made


def in_full(policy, history):
    return policy.model.condition(policy.observations(history))


@pytest.mark.parametrize("lags", LAGS)
def test_the_condition_is_that_of_all_frames_encoded_together(windowed, observe, lags):
    policy = windowed(lags).to(torch.float64)
    episodes = episodes_of(policy, observe, [1, 3, 12])
    draw = random.Random(0)
    for tick in range(14):
        for env, episode in enumerate(episodes):
            episode.observe(observe(policy, 1000 * env + tick))
        some = [episode for episode in episodes if draw.random() < 0.6] or episodes
        history = stack(policy, some)
        torch.testing.assert_close(
            policy.condition(history), in_full(policy, history), rtol=0, atol=1e-12
        )


def test_every_frame_is_encoded_once(windowed, observe, watched):
    policy = windowed()
    seen = watched(policy)
    (episode,) = episodes_of(policy, observe, [0])
    for tick in range(9):
        episode.observe(observe(policy, tick))
        plan = policy.plan(stack(policy, [episode]), rng=Rng.for_envs(0, [0], [tick]))
        assert plan.report.frames_encoded == 1, "also the one that stands for all at the beginning"
        assert plan.report.frames_remembered == 3
    assert seen == [1] * 9


def test_a_plan_of_several_ticks_encodes_what_came_since(windowed, observe, watched):
    policy = windowed((5, 4, 3, 2, 1, 0), n_action_steps=3)
    seen = watched(policy)
    episodes = episodes_of(policy, observe, [7, 7])
    policy.condition(stack(policy, episodes))
    for _ in range(3):
        for episode in episodes:
            episode.observe(observe(policy, 5))
    plan = policy.plan(stack(policy, episodes), rng=Rng.for_envs(0, [0, 1], [9, 9]))
    assert seen == [12, 6], "the new frames of both environments together"
    assert [one.frames_encoded for one in plan.reports] == [3, 3]
    assert (plan.report.frames_encoded, plan.report.frames_remembered) == (6, 6)


def test_raw_images_of_remembered_frames_are_not_touched(windowed, observe):
    policy = windowed()
    (episode,) = episodes_of(policy, observe, [4])
    before = policy.condition(stack(policy, [episode]))
    for frame in episode.frames:
        frame.values = {}
    assert torch.equal(policy.condition(stack(policy, [episode])), before)


def test_what_the_neighbors_have_seen_changes_no_bit(windowed, observe):
    """With 8 rows, see `Session`."""
    policy = windowed(n_action_steps=3)
    for ages in ([9] * 8, [9, 1, 2, 3, 4, 12, 1, 1]):
        episodes = episodes_of(policy, observe, ages)
        policy.condition(stack(policy, episodes[:1] * 8))  # the first one plans by itself
        for env in [0, 0, 1, 1, 2, 3, 3, 3, 4]:
            episodes[env].observe(observe(policy, 50 + env))
        together = policy.plan(
            stack(policy, episodes), rng=Rng.for_envs(0, range(8), [0] * 8)
        ).actions[0]
        (alone,) = episodes_of(policy, observe, [9])
        policy.condition(stack(policy, [alone] * 8))
        for _ in range(2):
            alone.observe(observe(policy, 50))
        filled = policy.plan(stack(policy, [alone] * 8), rng=Rng.for_envs(0, [0] * 8, [0] * 8))
        assert torch.equal(filled.actions[0], together)
        assert len({one.frames_encoded for one in filled.reports}) == 1


def test_rows_that_repeat_an_environment_cost_nothing(windowed, observe, watched):
    policy = windowed()
    seen = watched(policy)
    (episode,) = episodes_of(policy, observe, [1])
    policy.condition(stack(policy, [episode] * 5))
    assert seen == [5], "as many rows as if all were different, once"
    policy.condition(stack(policy, [episode] * 5))
    assert seen == [5]


def test_branches_of_an_episode_share_what_they_share(windowed, observe):
    policy = windowed().to(torch.float64)
    (episode,) = episodes_of(policy, observe, [3])
    branch = copy.copy(episode)
    branch.frames = copy.copy(episode.frames)
    episode.observe(observe(policy, 7))
    branch.observe(observe(policy, 8))
    history = stack(policy, [episode, branch])
    torch.testing.assert_close(
        policy.condition(history), in_full(policy, history), rtol=0, atol=1e-12
    )


def test_other_weights_remember_nothing(windowed, observe, watched):
    policy = windowed()
    (episode,) = episodes_of(policy, observe, [4])
    history = stack(policy, [episode])
    policy.condition(history)
    other = windowed()
    for parameter in other.model.obs_encoder.parameters():
        parameter.data += 0.1
    for one in (other, policy.to(torch.float64), copy.deepcopy(policy)):
        seen = watched(one)
        cond = one.condition(history)
        assert seen == [4]
        assert cond.dtype == next(one.model.parameters()).dtype
        assert torch.equal(cond, one.condition(history))
    assert not torch.allclose(other.condition(history), policy.condition(history))


def test_an_accelerated_policy_has_the_same_weights(windowed, observe, watched):
    policy = windowed()
    fast = accelerate(policy, AccelConfig("exact"))
    seen = watched(policy)
    history = stack(policy, episodes_of(policy, observe, [4]))
    policy.condition(history)
    fast.condition(history)
    assert seen == [4]


def test_a_condition_of_a_plan_can_be_learned_from(windowed, observe):
    """Memos are filled in inference mode; what is made of them outside is an ordinary tensor."""
    policy = windowed()
    history = stack(policy, episodes_of(policy, observe, [2]))
    policy.plan(history, rng=Rng.for_envs(0, [0], [1]))
    weight = torch.ones((), requires_grad=True)
    (weight * policy.condition(history)).sum().backward()
    assert weight.grad.isfinite()


def test_policies_without_an_encoder_remember_nothing(diffusion_policy, observe):
    policy = diffusion_policy()
    (episode,) = episodes_of(policy, observe, [2])
    plan = policy.plan(stack(policy, [episode]), rng=Rng.for_envs(0, [0], [1]))
    assert not any(frame.memo for frame in episode.frames)
    assert plan.reports == ()
    assert plan.report.frames_encoded == plan.report.frames_remembered == 0


def test_a_missing_observation_is_told(windowed, observe):
    policy = windowed()
    (episode,) = episodes_of(policy, observe, [1])
    del episode.frames[0].values["observation.images.top"]
    with pytest.raises(KeyError, match=r"no observation 'observation.images.top' .* it holds"):
        policy.condition(stack(policy, [episode]))


def test_a_new_instruction_holds_for_the_whole_window():
    inputs = {
        "observation.state": TensorSpec((3,)),
        "observation.images.top": TensorSpec((3, 8, 8), "uint8", 0, 255),
        TOKENS: TensorSpec((9,), "int64", 0, 49),
    }
    torch.manual_seed(0)
    sizes = ClipConfig(
        text_width=64, text_layers=1, vocabulary=50, max_tokens=9, text_dim=6,
        vision_width=64, vision_layers=1, patch=4, image_size=8, crop_shape=(8, 8),
    )  # fmt: skip
    encoder = ClipEncoder(inputs, sizes)
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    normalizer = LinearNormalizer({"observation.state": 3, "observation.images.top": 3})
    model = DiffusionModel(torch.nn.Linear(1, 1), normalizer, inputs, encoder)
    model = model.eval().double().requires_grad_(False)
    window = Window(model, tuple(inputs))
    episode = EpisodeHistory(3)
    for tick in range(7):
        episode.observe(
            {
                "observation.state": torch.randn(3),
                "observation.images.top": torch.randint(256, (3, 8, 8), dtype=torch.uint8),
                TOKENS: torch.tensor([48, 3 + tick // 4, 49, 0, 0, 0, 0, 0, 0]),
            }
        )
        history = History.stack([episode], (2, 1, 0))
        encoded = window.encode(history)
        assert encoded.frames == ({4: (3,)}.get(tick, (1,))), "a new instruction asks for all"
        expected = model.condition(window.read(history))
        torch.testing.assert_close(encoded.cond, expected, rtol=0, atol=1e-12)
