"""A head is trained on what a frozen encoder made; the policy drives from what it sees."""

import dataclasses
import json
import shutil
import signal

import numpy as np
import pytest
import torch

from fastloop import cli, load_policy, recipe
from fastloop.accel.denoise import PlainLoop
from fastloop.datasets import robomimic
from fastloop.datasets.demonstration import Demonstration
from fastloop.datasets.embeddings import EMBEDDING, Embeddings
from fastloop.datasets.windows import Windows
from fastloop.frozen_encoder import FrozenEncoder, embed
from fastloop.policies.checkpoints import load_checkpoint, native
from fastloop.policies.checkpoints.model import build_model
from fastloop.policies.diffusion import vision
from fastloop.policies.session import Session

pytest.importorskip("gym_pusht")

CAMERA = "observation.images.top"
INPUTS = ["observation.state", CAMERA]
SIM = ["sim=pusht", "sim.images=true", f"network.inputs=[{','.join(INPUTS)}]"]
SMALL = [
    "network.arch.n_layer=1", "network.arch.n_head=2", "network.arch.n_emb=16",
    "network.horizon=8", "network.n_action_steps=4", "sampler.num_train_timesteps=10",
    "sampler.num_inference_steps=10", "train.batch_size=4", "train.warmup_steps=1",
    "train.lr=1e-2", "threads=1",
]  # fmt: skip
VISION = ["vision.crop_shape=[40,40]", "vision.num_keypoints=4", "vision.feature_dim=6"]
LONG = ["network.n_obs_steps=4", "network.stride=2", "train.steps=4"]


class Backbone(torch.nn.Sequential):
    """As coarse as a ResNet-18, in a thousandth of its numbers."""

    channels, stride = 16, 32

    def __init__(self, in_channels=3):
        super().__init__(
            torch.nn.Conv2d(in_channels, 16, 3, 8, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 16, 3, 4, padding=1),
        )


@pytest.fixture(autouse=True, scope="module")
def small_backbone():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision, "ResNet18", Backbone)
        yield


def demonstration(length, seed):
    random = np.random.default_rng(seed)
    return Demonstration(
        observations={
            "observation.state": random.uniform(0, 512, (length, 2)).astype("f4"),
            CAMERA: random.integers(256, size=(length, 3, 96, 96), dtype="u1"),
        },
        actions=random.uniform(0, 512, (length, 2)).astype("f4"),
    )


def train(folder, demos, *overrides):
    told = [f"dataset.path={demos}", f"run_dir={folder}"]
    return cli.main(["train", *SIM, *SMALL, *overrides, *told])


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    made = [demonstration(length, seed) for seed, length in enumerate((7, 4, 9))]
    return robomimic.write(tmp_path_factory.mktemp("demos") / "demos.hdf5", made, env_args={})


@pytest.fixture(scope="module")
def source(demos, tmp_path_factory):
    """A policy of two frames whose encoder is taken."""
    folder = tmp_path_factory.mktemp("source")
    assert train(folder, demos, *VISION, "train.steps=3") == 0
    return folder / "policy"


@pytest.fixture(scope="module")
def head(demos, source, tmp_path_factory):
    """The run folder of a policy of four frames with that encoder."""
    folder = tmp_path_factory.mktemp("head")
    assert train(folder, demos, *LONG, f"network.encoder={source}") == 0
    return folder


def stored(head, demos):
    """The embeddings of a run, by demonstration."""
    checkpoint = load_checkpoint(head / "policy")
    frozen = FrozenEncoder(checkpoint, checkpoint.inputs)
    path = head / "embeddings.hdf5"
    return Embeddings(path, robomimic.read(demos), INPUTS, None, encoder=frozen.digest).read()


def samples(demonstrations, keys, spec):
    windows = Windows.of(demonstrations, keys, n_obs_steps=4, horizon=8, lags=spec.lags)
    return windows.gather(torch.arange(len(windows)))


def test_the_encoder_is_that_of_the_other_policy(head, source):
    ours, theirs = load_checkpoint(head / "policy"), load_checkpoint(source)
    taken = [key for key in theirs.state_dict if key.startswith("obs_encoder.")]
    taken += [f"normalizer.params_dict.{key}.{n}" for key in INPUTS for n in ("scale", "offset")]
    for key in taken:
        assert torch.equal(ours.state_dict[key], theirs.state_dict[key]), key
    assert ours.vision == theirs.vision
    assert ours.training["encoder"] == theirs.digest
    assert ours.n_obs_steps == 4


def test_what_the_policy_sees_is_what_its_head_was_trained_on(head, demos):
    policy = load_policy(head / "policy", env=env_spec())
    demonstrations = robomimic.read(demos)
    raw = samples(demonstrations, INPUTS, policy.spec)
    kept = samples(stored(head, demos), [EMBEDDING], policy.spec)[EMBEDDING]
    with torch.inference_mode():
        seen = policy.model.condition(raw)
        torch.testing.assert_close(seen, kept, rtol=1e-6, atol=1e-6)
        noise = torch.randn(policy.sampler.num_noises, len(seen), 8, 2)
        loop = PlainLoop(policy.model.denoise, policy.sampler)
        chunks = [loop(noise, cond)[0] for cond in (seen, kept)]
    torch.testing.assert_close(*chunks, rtol=1e-5, atol=1e-5)


def test_embeddings_are_conditions_in_double_precision(head, demos):
    checkpoint = load_checkpoint(head / "policy")
    model = build_model(checkpoint).double()
    demonstrations = robomimic.read(demos)
    made = [
        dataclasses.replace(d, observations={EMBEDDING: embed(model, d.observations)})
        for d in demonstrations
    ]
    embeddings = np.concatenate([d.observations[EMBEDDING] for d in made])
    assert embeddings.dtype == np.float64
    lags = load_checkpoint(head / "policy").spec.lags
    first = np.cumsum([0] + [len(d) for d in demonstrations])
    with torch.inference_mode():
        for start, demo in zip(first, demonstrations, strict=False):
            for tick in range(len(demo)):
                frames = [max(tick - lag, 0) for lag in lags]
                window = {
                    key: torch.from_numpy(demo.observations[key][frames])[None] for key in INPUTS
                }
                window["observation.state"] = window["observation.state"].double()
                seen = model.condition(window)[0].numpy()
                np.testing.assert_allclose(
                    seen, embeddings[start + np.array(frames)], rtol=1e-12, atol=1e-12
                )


def test_embedding_leaves_the_mode_as_it_was(head, demos):
    model = build_model(load_checkpoint(head / "policy"))
    frames = robomimic.read(demos)[0].observations
    made = []
    for training in (True, False):
        model.train(training)
        made.append(embed(model, frames))
        assert model.training is model.obs_encoder.training is training
    np.testing.assert_array_equal(*made)


def env_spec(**arguments):
    from fastloop.sims.pusht import PushT

    sim = PushT(images=True, **arguments)
    spec = sim.env_spec
    sim.close()
    return spec


def test_the_policy_drives_without_its_store(head, tmp_path):
    from fastloop.sims.pusht import PushT

    shutil.copytree(head / "policy", tmp_path / "policy")
    sim = PushT(images=True)
    session = Session(load_policy(tmp_path / "policy", env=sim.env_spec))
    observation, _ = sim.reset(seed=0)
    session.begin(0, 0)
    for _ in range(6):
        batch = {key: torch.from_numpy(observation[key])[None] for key in INPUTS}
        action = session.select_action(batch)[0].double().numpy()
        assert np.isfinite(action).all()
        observation, *_ = sim.step(action)
    sim.close()


def test_weights_that_were_not_stored_in_half_precision(source, demos, tmp_path):
    """The head learns on the encoder as it will be stored."""
    whole = load_checkpoint(source)
    odd = {k: v + 1e-5 if "obs_encoder" in k else v for k, v in whole.state_dict.items()}
    native.save(tmp_path / "whole", dataclasses.replace(whole, state_dict=odd))
    assert train(tmp_path / "run", demos, *LONG, f"network.encoder={tmp_path / 'whole'}") == 0
    policy = load_policy(tmp_path / "run/policy", env=env_spec())
    raw = samples(robomimic.read(demos), INPUTS, policy.spec)
    kept = samples(stored(tmp_path / "run", demos), [EMBEDDING], policy.spec)[EMBEDDING]
    with torch.inference_mode():
        torch.testing.assert_close(policy.model.condition(raw), kept, rtol=1e-6, atol=1e-6)


def counted(monkeypatch, at=None, then=None):
    """Count calls of the encoder; in the `at`-th one, do something."""
    calls = []

    def counting(model, frames):
        calls.append(len(calls))
        if len(calls) - 1 == at:
            then()
        return embed(model, frames)

    monkeypatch.setattr(recipe, "embed", counting)
    return calls


def weights(folder):
    return (folder / "policy/model.safetensors").read_bytes()


def kill():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("then", "again"), [(kill, 2), (lambda: signal.raise_signal(signal.SIGINT), 1)]
)
def test_a_broken_run_goes_on(head, source, demos, tmp_path, monkeypatch, capfd, then, again):
    encoder = f"network.encoder={source}"
    counted(monkeypatch, 1, then)
    assert train(tmp_path, demos, *LONG, encoder) == 130
    assert not (tmp_path / "embeddings.hdf5").exists()
    calls = counted(monkeypatch)
    assert train(tmp_path, demos, *LONG, encoder) == 0
    assert len(calls) == again
    assert weights(tmp_path) == weights(head)


def test_runs_share_a_store(head, source, demos, tmp_path, monkeypatch):
    calls = counted(monkeypatch)
    shutil.copy(head / "embeddings.hdf5", tmp_path / "store.hdf5")
    told = [f"network.encoder={source}", f"network.embeddings={tmp_path / 'store.hdf5'}"]
    assert train(tmp_path / "run", demos, *LONG, *told) == 0
    assert not calls
    assert weights(tmp_path / "run") == weights(head)


def other_weights(source, demos, folder):
    checkpoint = load_checkpoint(source)
    state = dict(checkpoint.state_dict)
    key = next(key for key in state if key.startswith("obs_encoder."))
    state[key] = state[key] * 2
    native.save(folder / "other", dataclasses.replace(checkpoint, state_dict=state))
    return folder / "other", demos


def other_crop(source, demos, folder):
    checkpoint = load_checkpoint(source)
    cropped = dataclasses.replace(checkpoint.vision, crop_shape=(42, 42))
    native.save(folder / "other", dataclasses.replace(checkpoint, vision=cropped))
    return folder / "other", demos


def other_normalizer(source, demos, folder):
    checkpoint = load_checkpoint(source)
    key = "normalizer.params_dict.observation.state.offset"
    state = checkpoint.state_dict | {key: checkpoint.state_dict[key] + 0.5}
    native.save(folder / "other", dataclasses.replace(checkpoint, state_dict=state))
    return folder / "other", demos


def other_data(source, demos, folder):
    made = [demonstration(length, seed + 1) for seed, length in enumerate((7, 4, 9))]
    return source, robomimic.write(folder / "other.hdf5", made, env_args={})


@pytest.mark.parametrize("other", [other_weights, other_crop, other_normalizer, other_data])
def test_a_stale_store_is_refused(head, source, demos, tmp_path, capsys, other):
    shutil.copy(head / "embeddings.hdf5", tmp_path / "store.hdf5")
    encoder, data = other(source, demos, tmp_path)
    told = [f"network.encoder={encoder}", f"network.embeddings={tmp_path / 'store.hdf5'}"]
    assert train(tmp_path / "run", data, *LONG, *told) == 2
    assert "holds the embeddings of another encoder" in capsys.readouterr().err
    assert not (tmp_path / "run/policy").exists()


def test_a_run_does_not_go_on_with_another_encoder(head, source, demos, tmp_path, capsys):
    shutil.copytree(head, tmp_path / "run")
    (tmp_path / "run/embeddings.hdf5").unlink()
    encoder, _ = other_weights(source, demos, tmp_path)
    assert train(tmp_path / "run", demos, *LONG, f"network.encoder={encoder}") == 2
    assert "saved by a run with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ([], "its observations are only normalized"),
        (["network.state.depth=1", "network.state.width=8"], "frames of its window together"),
    ],
)
def test_encoders_without_an_embedding_of_each_frame(demos, tmp_path, capsys, network, message):
    inputs = "network.inputs=[observation.state]"
    assert train(tmp_path / "low", demos, inputs, *network, "train.steps=1") == 0
    told = [inputs, f"network.encoder={tmp_path / 'low/policy'}"]
    assert train(tmp_path / "run", demos, *LONG, *told) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["network.inputs=[observation.images.top]"], "set network.inputs=[observation.state,"),
        (["pretrain.steps=3"], "network.encoder and pretrain.steps each decide the encoder"),
        (["network.state.depth=2"], "network.encoder and network.state each decide"),
        (["init=dp_pusht"], "network.encoder and init each decide"),
        (["network.encoder=nowhere"], "no checkpoint at nowhere"),
        (["network.encoder=null", "network.embeddings=x.hdf5"], "say whose with network.encoder"),
    ],
)
def test_what_cannot_be_is_refused_at_once(source, demos, tmp_path, capsys, overrides, message):
    told = [*LONG, f"network.encoder={source}", *overrides]
    assert train(tmp_path / "run", demos, *told) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_relative_actions_keep_what_they_are_relative_to(source, demos, tmp_path):
    told = [f"network.encoder={source}", "network.relative_to=observation.state"]
    assert train(tmp_path, demos, *LONG, *told) == 0
    assert load_checkpoint(tmp_path / "policy").relative_to == "observation.state"


def test_the_head_beside_training_end_to_end(source, demos, tmp_path, capsys):
    told = [f"network.encoder={source}", "repeats=2", f"run_dir={tmp_path}"]
    assert cli.main(["bench", "train", *SIM, *SMALL, *LONG, f"dataset.path={demos}", *told]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    found = {name: metric["value"] for name, metric in result["metrics"].items()}
    assert min(found.values()) > 0
    for arm in ("head", "end_to_end"):
        steps = 20 / 4  # of an epoch: 20 frames in batches of 4
        assert found[f"{arm}_epoch_s"] == pytest.approx(found[f"{arm}_step_ms"] * steps / 1e3)
    ratio = found["end_to_end_step_ms"] / found["head_step_ms"]
    assert found["speedup"] == pytest.approx(ratio)
    assert "embeddings, once" in capsys.readouterr().out
    assert (tmp_path / "embeddings.hdf5").exists()


def test_a_bench_without_an_encoder_says_so(demos, tmp_path, capsys):
    told = ["bench", "train", *SIM, *SMALL, f"dataset.path={demos}", f"run_dir={tmp_path / 'run'}"]
    assert cli.main(told) == 2
    assert "say whose encoder is taken over with network.encoder" in capsys.readouterr().err
