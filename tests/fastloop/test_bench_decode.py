"""`fastloop bench decode` on a random model: what it measures, and when it is silent."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from fastloop import cli
from fastloop.accel.decoding.result import Decoded
from fastloop.accel.decoding.speculative import Speculative
from fastloop.datasets.demonstration import Demonstration
from fastloop.datasets.robomimic import write
from fastloop.policies.vla import decoding
from fastloop.policies.vla.canvas import vocabulary
from fastloop.policies.vla.checkpoint import save_vlm
from fastloop.policies.vla.manifest import Manifest
from fastloop.policies.vla.prompt import load_template
from fastloop.policies.vla.schema import load_schema
from fastloop.policies.vla.tokenizer import MASK, NULL, FileTokenizer, build_tokenizer, token_id

transformers = pytest.importorskip("transformers", reason="its models are of transformers (vla)")
pytest.importorskip("tokenizers", reason="their tokenizers are of tokenizers (extra vla)")
pytest.importorskip("PIL", reason="their pictures are resized with pillow (extra vla)")

SCHEMA = """
name: tiny
block_size: 7
sections:
  flags: {pedestrian: {kind: flag}, cyclist: {kind: flag}}
  trajectory: {kind: waypoints, count: 2, step_s: 2.5, digits: 1, decimals: 1}
"""
CAMERAS = ("front_left", "front")
ARMS = ("ar", "jump_forward", "self_speculative", "denoise", "scaffold_speculative", "fork4",
        "fork8")  # fmt: skip
HEADLINES = (
    "tokens_per_forward", "value_tokens_per_forward", "forwards_ratio_vs_jump_forward_ar",
    "wall_ratio_vs_ar", "json_validity", "fork4_time_ratio", "fork8_time_ratio",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A policy with drives of its own: 2 of 3 moments each."""
    folder = tmp_path_factory.mktemp("vlm")
    (folder / "answer.yaml").write_text(SCHEMA)
    template = load_template("short")
    words = [template.text, template.state, *template.commands]
    tokenizer = build_tokenizer([*vocabulary(load_schema(folder / "answer.yaml")), *words])
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    ids = FileTokenizer(folder / "tokenizer.json")
    told = Manifest(
        "causal_context", 7, mask_id=token_id(ids, MASK), null_id=token_id(ids, NULL),
        schema="answer.yaml", prompt="short", cameras=CAMERAS, min_pixels=784, max_pixels=3136,
    )  # fmt: skip
    save_vlm(folder, _network(ids), told, tokenizer=tokenizer, schema=SCHEMA)
    random = np.random.default_rng(0)
    drives = [_drive(random) for _ in range(2)]
    write(folder / "held_out.hdf5", drives, env_args={"env_name": "made up"})
    return folder


def _network(ids):
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(ids), "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 2048, "bos_token_id": None, "eos_token_id": None,
            "pad_token_id": None,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2],
            },
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "window_size": 56, "out_hidden_size": 32, "fullatt_block_indexes": [0],
        },
        tie_word_embeddings=True, image_token_id=token_id(ids, "<|image_pad|>"),
        video_token_id=token_id(ids, "<|video_pad|>"),
        vision_start_token_id=token_id(ids, "<|vision_start|>"),
        vision_end_token_id=token_id(ids, "<|vision_end|>"),
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    network = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data *= 4  # else all logits are nearly equal
    return network


def _drive(random, frames=3, waypoints=20):
    plans = np.cumsum(random.normal(size=(frames, waypoints, 2)), 1).reshape(frames, -1)
    pictures = {
        f"observation.images.{camera}": random.integers(256, size=(frames, 3, 28, 56), dtype="u1")
        for camera in CAMERAS
    }
    return Demonstration(
        observations={
            "observation.ego_states": random.normal(size=(frames, 16, 6)).astype("f4"),
            "observation.intent": random.integers(4, size=frames),
            **pictures,
        },
        actions=np.concatenate([np.zeros((frames, 1)), plans], 1).astype("f4"),
    )


def bench(checkpoint, folder, *overrides):
    return cli.main(
        ["bench", "decode", f"policy.checkpoint={checkpoint}", f"run_dir={folder}", "prompts=2",
         "policy.device=cpu", "policy.threads=1", "sampled_prompts=1", *overrides]
    )  # fmt: skip


def metrics(folder):
    return json.loads((folder / "result.json").read_text())["metrics"]


def line(printed, arm):
    """The row of an arm in the first table that has one."""
    return next(row for row in printed.splitlines() if re.match(rf"\W*{arm}\b", row))


def test_every_way_is_measured(folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    assert bench(folder, tmp_path, "repeats=2", "projection.ms_per_forward=2.5") == 0
    found = metrics(tmp_path)
    for name in HEADLINES:
        assert found[name]["value"] > 0, name
    assert found["json_validity"]["value"] == 1
    for arm in ARMS:
        assert found[f"json_validity_{arm}"]["value"] == 1
        assert found[f"given_violations_{arm}"]["value"] == 0
        assert found[f"parity_{arm}"]["value"] == 0
        assert found[f"parity_{arm}"]["n"] >= 2
        assert found[f"latency_p50_{arm}"]["n"] == 4
        assert found[f"latency_p50_{arm}"]["value"] <= found[f"latency_p99_{arm}"]["value"]
        assert found[f"latency_cold_{arm}"]["n"] == 1
        assert found[f"kv_bytes_{arm}"]["value"] > 0
        speedup = found[f"speedup_{arm}"]
        assert 0 < speedup["low"] <= speedup["value"] <= speedup["high"]
        phases = [found[f"forwards_{p}_{arm}"]["value"] for p in ("draft", "verify", "denoise")]
        total = sum(phases) + found[f"forwards_keep_{arm}"]["value"]
        assert found[f"forwards_{arm}"]["value"] == pytest.approx(total)
        assert found[f"forwards_prefill_{arm}"]["value"] == 1
    assert found["speedup_ar"]["value"] == 1
    assert found["wall_ratio_vs_ar"] == found["speedup_scaffold_speculative"]
    forwards = {arm: found[f"forwards_{arm}"]["value"] for arm in ARMS}
    assert found["forwards_ratio_vs_jump_forward_ar"]["value"] == pytest.approx(
        forwards["jump_forward"] / forwards["scaffold_speculative"]
    )
    # Each value but the last, and what is given at the beginning, is a pass; and so is every token.
    values = found["value_tokens_per_forward_ar"]["value"] * forwards["ar"]
    assert forwards["jump_forward"] == pytest.approx(values)
    tokens = found["tokens_per_forward_ar"]["value"] * forwards["ar"]
    assert forwards["ar"] == pytest.approx(tokens - 1)
    assert found["alike_scaffold_speculative"]["value"] == 1
    assert found["accepted_per_cycle_ar"]["value"] is None
    assert found["accepted_per_cycle_scaffold_speculative"]["value"] >= 1
    page = (tmp_path / "bench.html").read_text()
    assert page.count("<svg") == 2
    assert not re.findall(r"(?:src|href)\s*=|url\(|@import", page), "it opens offline"
    printed = capfd.readouterr().out
    assert "same answer" in line(printed, "scaffold_speculative")
    assert "not exact" in line(printed, "denoise")
    assert "PROJECTION, not measured" in printed
    assert "206 ms" in line(printed, "fast_ddrive_published")
    assert printed.rstrip().endswith(str(tmp_path)), "the folder is printed last"


def test_errors_beside_the_expert(folder, tmp_path):
    """The planner's way at the recorded moments, by hand for the arm that is the fastest."""
    assert bench(folder, tmp_path, "prompts=6", "~arms.self_speculative", "~arms.fork8") == 0
    found = metrics(tmp_path)
    assert found["fork8_time_ratio"]["value"] is None
    for arm in ("ar", "jump_forward", "scaffold_speculative", "fork4"):
        for seconds in (3, 5):
            error = found[f"ade_{seconds}s_{arm}"]
            assert error["low"] <= error["value"] <= error["high"]
            assert error["n"] == 6
    same = found["ade_3s_difference_jump_forward"]
    assert same["value"] == same["low"] == same["high"] == 0
    gap = found["ade_5s_fork4"]["value"] - found["ade_5s_scaffold_speculative"]["value"]
    assert found["ade_5s_difference_fork4"]["value"] == pytest.approx(gap)
    assert "ade_3s_difference_ar" not in found


@dataclasses.dataclass(frozen=True)
class Wrong(Speculative):
    """One value is another token that may stand there, or one given token is a value's."""

    def decode(self, model, context, canvas, **how):
        decoded = super().decode(model, context, canvas, **how)
        return dataclasses.replace(decoded, tokens=altered(decoded, canvas, self.fault))


class WrongValue(Wrong):
    fault = "value"


class WrongScaffold(Wrong):
    fault = "given"


def altered(decoded: Decoded, canvas, fault):
    tokens = decoded.tokens.clone()
    slot = int((canvas.given if fault == "given" else ~canvas.given).nonzero()[-1])
    may = canvas.allowed[canvas.kind[int((~canvas.given).nonzero()[-1])]].nonzero().flatten()
    tokens[:, slot] = torch.where(tokens[:, slot] == may[0], may[1], may[0])
    return tokens


@pytest.mark.parametrize(("wrong", "gate"), [
    (WrongValue, "token by token"), (WrongScaffold, "given tokens stand"),
])  # fmt: skip
def test_a_red_gate_says_no_speed_up(folder, tmp_path, monkeypatch, capfd, wrong, gate):
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.setitem(decoding.DRIVERS, "scaffold_speculative", lambda choice, *_: wrong(choice))
    assert bench(folder, tmp_path, "~arms.fork8", "~arms.denoise") == 1
    found = metrics(tmp_path)
    for name in HEADLINES:
        assert found[name]["value"] is None, name
    for arm in ("scaffold_speculative", "fork4"):
        for name in ("speedup", "forwards_ratio", "tokens_per_forward"):
            assert found[f"{name}_{arm}"]["value"] is None
        assert found[f"parity_{arm}"]["value"] > 0
        assert f"latency_p50_{arm}" not in found
    assert found["speedup_jump_forward"]["value"] > 0
    assert found["speedup_self_speculative"]["value"] > 0
    printed = capfd.readouterr().out
    row = line(printed, "scaffold_speculative")
    assert "parity FAILED" in row
    assert not re.search(r"\dx", row)
    assert f"scaffold_speculative: {gate}: 2 of 2 answers are wrong; no speed-up" in printed
    assert "parity FAILED" in (tmp_path / "bench.html").read_text()


def test_what_is_timed_is_what_was_checked(folder, tmp_path, monkeypatch, capfd):
    """An arm that writes something else when it is timed."""
    from fastloop.policies.vla import policy

    def wrong(model, prompts, canvas, driver, **how):
        decoded = decode(model, prompts, canvas, driver, **how)
        if driver.name != "scaffold_speculation":
            return decoded
        return dataclasses.replace(decoded, tokens=altered(decoded, canvas, "value"))

    decode = policy.decode
    monkeypatch.setattr(policy, "decode", wrong)
    few = [f"~arms.{name}" for name in ("self_speculative", "denoise", "fork8")]
    assert bench(folder, tmp_path, *few) == 1
    found = metrics(tmp_path)
    assert found["wall_ratio_vs_ar"]["value"] is None
    assert found["fork4_time_ratio"]["value"] is None, "it is over that arm's time"
    assert found["alike_scaffold_speculative"]["value"] == 0
    assert "scaffold_speculative: as timed: 2 of 2" in capfd.readouterr().out


def test_moments_of_a_simulator(folder, tmp_path):
    pytest.importorskip("cv2", reason="pictures are painted with OpenCV (extra data)")
    only = [f"~arms.{name}" for name in ("self_speculative", "denoise", "fork4", "fork8")]
    sim = ["sim=toy_road", "sim.image_size=[56,28]", "episode_prompts=2", "prompts=3"]
    assert bench(folder, tmp_path, *sim, *only) == 0
    found = metrics(tmp_path)
    assert found["parity_scaffold_speculative"]["n"] > 3
    assert found["wall_ratio_vs_ar"]["n"] == 3
    assert not [name for name in found if name.startswith("ade")]
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["provenance"]["observations"] == "ToyRoad"


def test_half_precision_is_checked_in_single(folder, tmp_path):
    few = [f"~arms.{name}" for name in ("self_speculative", "denoise", "fork8")]
    assert bench(folder, tmp_path, "dtype=bfloat16", *few) == 0
    assert metrics(tmp_path)["parity_scaffold_speculative"]["value"] == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prompts=0"], "prompts must be at least 1"),
        (["prompts=7"], "hold 6 moments, 7 prompts are asked for: say prompts=6"),
        (["apart_s=0"], "apart_s must be above 0"),
        (["+arms={ar: {driver: denoise}}"], "cannot be called 'ar'"),
        (["+arms={a/b: {driver: denoise}}"], "cannot be called 'a/b'"),
        (["+arms={mine: {driver: magic}}"], "arm 'mine': unknown driver 'magic'; have: ar, jump"),
        (["arms.fork4.temperature=0"], "arm 'fork4': 4 rollouts at temperature 0"),
        (["dtype=int3"], "unknown dtype 'int3'"),
        (["policy.checkpoint=dp_pusht"], "no vision-language model"),
        (["dataset.path=nowhere.hdf5"], "nowhere.hdf5 does not exist"),
        (["arms.denoise.treshold=1"], "unknown setting 'arms.denoise.treshold'; have: driver"),
    ],
)
def test_a_mistake_is_told_before_any_work(folder, tmp_path, capsys, overrides, message):
    assert bench(folder, tmp_path / "run", *overrides) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_way_that_cannot_be_right_is_left_out(folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    causal = tmp_path / "causal"
    causal.mkdir()
    for path in folder.iterdir():
        (causal / path.name).write_bytes(path.read_bytes())
    told = json.loads((causal / "fastloop.json").read_text()) | {"regime": "causal"}
    (causal / "fastloop.json").write_text(json.dumps(told))
    few = [f"~arms.{name}" for name in ("self_speculative", "fork4", "fork8")]
    assert bench(causal, tmp_path / "run", *few) == 0
    assert "never trained to fill masks" in line(capfd.readouterr().out, "denoise")
    assert "speedup_denoise" not in metrics(tmp_path / "run")


def test_it_says_what_it_needs_to_look_at(folder, tmp_path, capsys, monkeypatch):
    (folder / "held_out.hdf5").rename(folder / "elsewhere.hdf5")
    try:
        assert bench(folder, tmp_path / "run") == 2
    finally:
        (folder / "elsewhere.hdf5").rename(folder / "held_out.hdf5")
    assert "say what it shall look at: sim=metadrive_map" in capsys.readouterr().err
    monkeypatch.setenv("FASTLOOP_ACCEL", "off")
    assert bench(folder, tmp_path / "run") == 2
    assert "unset it" in capsys.readouterr().err


def test_help(capsys):
    assert cli.main(["bench", "decode", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: fastloop bench decode [key=value ...]")
    assert "sampled_prompts: 4" in out
    assert re.search(r"^sim= one of .*toy_road", out, re.MULTILINE)
