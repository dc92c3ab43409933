"""Our own checkpoint folder: it comes back as it was, and damage is noticed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastloop.policies.checkpoints import (
    Checkpoint,
    CheckpointError,
    convert,
    describe,
    load_checkpoint,
    native,
)
from fastloop.policies.checkpoints.model import build_model
from fastloop.policies.spec import ActionSpec, TensorSpec


@pytest.fixture
def checkpoint(published) -> Checkpoint:
    """A policy that knows its task, with bounds on some sides only."""
    return dataclasses.replace(
        load_checkpoint(published.transformer()),
        inputs={"obs": TensorSpec((5,), low=0.0, names=tuple("abcde"), unit="pixel")},
        action=ActionSpec(2, "absolute_position", (0.0, -math.inf), (512.0, math.inf), ("x", "y")),
        control_hz=10.0,
    )


def test_comes_back_as_it_was(checkpoint, tmp_path) -> None:
    loaded = load_checkpoint(native.save(tmp_path / "out", checkpoint))
    for name in [f.name for f in dataclasses.fields(Checkpoint)]:
        if name not in ("kind", "state_dict", "source", "digest"):
            assert getattr(loaded, name) == getattr(checkpoint, name), name
    assert loaded.kind == "fastloop"
    assert loaded.spec == checkpoint.spec
    assert loaded.state_dict.keys() == checkpoint.state_dict.keys()
    for key, value in loaded.state_dict.items():
        assert torch.equal(value, checkpoint.state_dict[key]), key


def test_half_precision_keeps_the_normalizer(checkpoint, tmp_path) -> None:
    full = native.save(tmp_path / "full", checkpoint)
    half = native.save(tmp_path / "half", checkpoint, half=True)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (half, full)]
    assert sizes[0] < 0.7 * sizes[1]
    loaded = load_checkpoint(half)
    for key, value in loaded.state_dict.items():
        original = checkpoint.state_dict[key]
        assert value.dtype == torch.float32, key
        same = original if key.startswith("normalizer.") else original.half().float()
        assert torch.equal(value, same), key
    build_model(loaded)


def test_weights_beyond_half_precision_are_refused(checkpoint, tmp_path) -> None:
    state_dict = {**checkpoint.state_dict, "model.head.bias": torch.tensor([1e6, 0.0])}
    broken = dataclasses.replace(checkpoint, state_dict=state_dict)
    with pytest.raises(CheckpointError, match=r"model\.head\.bias holds values beyond half"):
        native.save(tmp_path / "out", broken, half=True)
    assert not list((tmp_path / "out").iterdir())


def test_a_failed_save_keeps_the_old_one(checkpoint, tmp_path) -> None:
    folder = native.save(tmp_path / "out", checkpoint)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    unwritable = dataclasses.replace(checkpoint, training={"seed": object()})
    with pytest.raises(TypeError):
        native.save(folder, unwritable)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def edit(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 1, found .* version 2"),
        ({"format": "other"}, "found other"),
        ({"network": "mlp"}, "choose one of transformer, unet"),
        ({"spec": {}}, "malformed"),
        ({"spec": {"inputs": 3, "action": None}}, "malformed"),
        ({"arch": [1]}, "malformed"),
        ({"arch": {"n_emb": 16}}, "n_layer: configuration None, weights 2"),
        ({"sampler": {"kind": "magic"}}, "choose one of ddpm"),
        ({"sampler": {"surprise": 1}}, "surprise"),
        ({"weights": {}}, "belongs to weights None"),
        ({"vision": {"surprise": 1}}, "malformed"),
    ],
)
def test_wrong_configurations_say_what_was_expected(checkpoint, tmp_path, changes, message) -> None:
    folder = native.save(tmp_path / "out", checkpoint)
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 16}, "policy's horizon is 16, its network's 8"),
        ({"n_obs_steps": 3}, "policy's n_obs_steps is 3, its network's 2"),
        ({"n_action_steps": 8}, r"are \(2, 8, 8\)"),
        ({"n_action_steps": "4"}, "expected positive numbers"),
        ({"action_dim": 3}, "action"),
    ],
)
def test_steps_that_do_not_fit_are_refused(checkpoint, tmp_path, changes, message) -> None:
    folder = native.save(tmp_path / "out", checkpoint)
    spec = json.loads((folder / "config.json").read_text())["spec"]
    edit(folder, spec={**spec, **changes})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_wrong_kinds_anywhere_are_one_kind_of_error(lerobot_folder, data) -> None:
    folder = lerobot_folder.old()
    config = json.loads((folder / "config.json").read_text())
    key = data.draw(st.sampled_from(sorted(config)))
    config[key] = data.draw(st.sampled_from([None, 0, -1, 2.5, "x", [], [None], {}, {"a": []}]))
    (folder / "config.json").write_text(json.dumps(config))
    with contextlib.suppress(CheckpointError):
        load_checkpoint(folder)


def test_missing_fields_are_named(checkpoint, tmp_path) -> None:
    folder = native.save(tmp_path / "out", checkpoint)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["sampler"], config["arch"]
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has no arch, sampler"):
        load_checkpoint(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 0.999])
def test_truncated_files_say_so(checkpoint, tmp_path, file, share) -> None:
    path = native.save(tmp_path / "out", checkpoint) / file
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(path.parent)


def test_files_of_two_saves_are_told_apart(checkpoint, tmp_path) -> None:
    folder = native.save(tmp_path / "out", checkpoint)
    other = native.save(tmp_path / "other", checkpoint, half=True)
    (other / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="different saves"):
        load_checkpoint(folder)


def test_paths_that_are_no_checkpoint_say_what_is(tmp_path, checkpoint) -> None:
    with pytest.raises(CheckpointError, match="does not exist; expected a folder"):
        load_checkpoint(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match="holds nothing; expected a folder"):
        load_checkpoint(empty)
    folder = native.save(tmp_path / "out", checkpoint)
    with pytest.raises(CheckpointError, match="give the folder"):
        load_checkpoint(folder / "model.safetensors")


def test_published_files_do_not_say_what_actions_mean(published) -> None:
    checkpoint = load_checkpoint(published.transformer())
    with pytest.raises(CheckpointError, match="give the action"):
        _ = checkpoint.spec


def test_convert_and_describe(published, tmp_path) -> None:
    path = published.transformer()
    original = load_checkpoint(path)
    folder = convert(path, tmp_path / "converted")
    loaded = load_checkpoint(folder)
    assert loaded.training["converted_from"] == {
        "kind": "diffusion_policy", "source": path.name, "sha256": original.digest,
    }  # fmt: skip
    for key, value in original.state_dict.items():
        assert torch.equal(loaded.state_dict[key], value), key
    for source in (path, folder):
        described = describe(source)
        assert described["network"] == "transformer"
        assert described["normalizer"] == {"obs": 5, "action": 2}
        assert described["parameters"] == original.parameters
        assert described["sampler"]["kind"] == "ddpm"
        assert described["training"]["epoch"] == 7
        assert "keys" not in described
        json.dumps(described)
    keys = describe(folder, keys=True)["keys"]
    assert keys["model.pos_emb"] == [1, 8, 16]


@pytest.mark.parametrize("lags", [(), (1, 0), (20, 0)])
def test_where_the_frames_lie_comes_back(checkpoint, tmp_path, lags) -> None:
    folder = native.save(tmp_path / "out", dataclasses.replace(checkpoint, lags=lags))
    loaded = load_checkpoint(folder)
    assert loaded.lags == lags
    assert loaded.spec.lags == (lags or (1, 0))
    assert describe(folder)["lags"] == list(lags or (1, 0))


def test_folders_of_before_lags_see_every_tick(checkpoint, tmp_path) -> None:
    folder = native.save(tmp_path / "out", checkpoint)
    spec = json.loads((folder / "config.json").read_text())["spec"]
    del spec["lags"]
    edit(folder, spec=spec)
    assert load_checkpoint(folder).spec == checkpoint.spec


@pytest.mark.parametrize("lags", [[0], [2, 1], [1, 1], [3, 2, 0], 3, ["a", 0]])
def test_lags_that_are_no_window_are_refused(checkpoint, tmp_path, lags) -> None:
    folder = native.save(tmp_path / "out", checkpoint)
    spec = json.loads((folder / "config.json").read_text())["spec"]
    edit(folder, spec={**spec, "lags": lags})
    with pytest.raises(CheckpointError, match=r"fall to 0|malformed"):
        load_checkpoint(folder)
