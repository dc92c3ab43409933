"""`fastloop bench window`: gated by parity, and a table by frames."""

import json

import pytest

from fastloop import cli
from fastloop.bench.window import run as window
from fastloop.policies.diffusion.window import Window

QUICK = [
    "frames=[1,3]", "cameras=1", "image_size=40", "vision.crop_shape=[36,36]", "repeats=2",
    "arch.n_layer=1", "arch.n_emb=8", "arch.n_head=1", "future=2",
    "sampler.num_inference_steps=2",
]  # fmt: skip


def test_ticks_are_timed_both_ways(tmp_path, capfd):
    assert cli.main(["bench", "window", f"run_dir={tmp_path}", *QUICK]) == 0
    found = json.loads((tmp_path / "result.json").read_text())["metrics"]
    for count in (1, 3):
        assert found[f"parity_{count}"]["value"] <= window.TOLERANCE
        assert found[f"tick_ms_{count}"]["n"] == found[f"again_ms_{count}"]["n"] == 2
    assert found["cost_1"]["value"] == 1
    assert found["cost_3"]["value"] == pytest.approx(
        found["tick_ms_3"]["value"] / found["tick_ms_1"]["value"]
    )
    assert found["speedup_3"]["value"] == pytest.approx(
        found["again_ms_3"]["value"] / found["tick_ms_3"]["value"]
    )
    assert "cost beside 1" in capfd.readouterr().out


def test_what_is_timed_is_what_it_says(tmp_path, monkeypatch):
    made, encode = [], Window.encode

    def watched(self, history):
        encoded = encode(self, history)
        made.append((len(history.frames[0]), encoded.frames))
        return encoded

    monkeypatch.setattr(window, "_difference", lambda policy: 0.0)
    monkeypatch.setattr(Window, "encode", watched)
    assert cli.main(["bench", "window", f"run_dir={tmp_path}", *QUICK]) == 0
    warm = made[4:]
    assert warm == [(1, (1,)), (1, (1,)), (3, (1,)), (3, (3,))] * 2


@pytest.mark.parametrize("wrong", [1e-9, float("nan")])
def test_no_times_where_the_condition_is_another(tmp_path, monkeypatch, capfd, wrong):
    monkeypatch.setattr(window, "_difference", lambda policy: wrong)
    assert cli.main(["bench", "window", f"run_dir={tmp_path}", *QUICK]) == 1
    assert "no times are taken" in capfd.readouterr().out
    found = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert list(found) == ["parity_1", "parity_3"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("frames=[]", "frames must be numbers from 1 on, each once"),
        ("frames=[2,2]", "each once"),
        ("frames=[0]", "from 1 on"),
        ("repeats=0", "repeats must be at least 1, got 0"),
        ("cameras=0", "cameras must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, capfd, override, message):
    assert cli.main(["bench", "window", f"run_dir={tmp_path / 'run'}", *QUICK, override]) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
