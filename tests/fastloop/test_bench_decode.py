"""`fastloop bench decode` on a random model: what it measures, and when it is silent."""

import dataclasses
import json
import re

import pytest
import torch

from fastloop import cli
from fastloop.accel.decoding.result import Decoded, Exactness
from fastloop.accel.decoding.speculative import Speculative
from fastloop.accel.report import AccelReport
from fastloop.bench.decode import arms, run
from fastloop.bench.decode.displacement import measure_errors
from fastloop.bench.decode.moments import Moment, visited
from fastloop.bench.decode.timing import Timed
from fastloop.bench.decode.validity import measure_validity
from fastloop.policies.base import Plan
from fastloop.policies.driving.whole_plans import waypoint_env
from fastloop.policies.load import load_policy
from fastloop.policies.vla import decoding, policy
from fastloop.policies.vla.canvas import build_layout
from fastloop.policies.vla.schema import load_schema
from fastloop.policies.vla.tokenizer import FileTokenizer
from fastloop.sims.toy_road import ToyRoad

ARMS = ("ar", "jump_forward", "self_speculative", "denoise", "scaffold_speculative", "fork4",
        "fork8")  # fmt: skip
HEADLINES = (
    "tokens_per_forward", "value_tokens_per_forward", "forwards_ratio_vs_jump_forward_ar",
    "wall_ratio_vs_ar", "json_validity", "fork4_time_ratio", "fork8_time_ratio",
)  # fmt: skip


def bench(checkpoint, folder, *overrides):
    return cli.main(
        ["bench", "decode", f"policy.checkpoint={checkpoint}", f"run_dir={folder}", "prompts=2",
         "policy.device=cpu", "policy.threads=1", "sampled_prompts=1", *overrides]
    )  # fmt: skip


def without(*arms):
    return [f"~arms.{name}" for name in arms]


def metrics(folder):
    return json.loads((folder / "result.json").read_text())["metrics"]


def line(printed, arm):
    """The row of an arm in the first table that has one."""
    return next(row for row in printed.splitlines() if re.match(rf"\W*{arm}\b", row))


def test_every_way_is_measured(vlm_folder, tmp_path, capfd):
    assert bench(vlm_folder, tmp_path, "repeats=2", "projection.ms_per_forward=2.5") == 0
    found = metrics(tmp_path)
    for name in HEADLINES:
        assert found[name]["value"] > 0, name
    assert found["json_validity"]["value"] == 1
    assert found["schema_validity_scaffold_speculative"]["value"] == 1
    for arm in ARMS:
        assert found[f"json_validity_{arm}"]["value"] == 1
        assert found[f"given_violations_{arm}"]["value"] == 0
        assert found[f"parity_{arm}"]["value"] == 0
        assert found[f"parity_{arm}"]["n"] >= 2
        assert found[f"latency_p50_{arm}"]["n"] == 4
        assert found[f"latency_p50_{arm}"]["value"] <= found[f"latency_p99_{arm}"]["value"]
        assert found[f"latency_cold_{arm}"]["n"] == 1
        assert found[f"kv_bytes_{arm}"]["value"] > 0
        assert 0 <= found[f"agreement_{arm}"]["value"] <= 1
        assert found[f"tokens_fed_{arm}"]["value"] >= found[f"forwards_{arm}"]["value"]
        speedup = found[f"speedup_{arm}"]
        assert 0 < speedup["low"] <= speedup["value"] <= speedup["high"]
        phases = [found[f"forwards_{p}_{arm}"]["value"] for p in ("draft", "verify", "denoise")]
        total = sum(phases) + found[f"forwards_keep_{arm}"]["value"]
        assert found[f"forwards_{arm}"]["value"] == pytest.approx(total)
        assert found[f"forwards_prefill_{arm}"]["value"] == 1
    assert found["speedup_ar"]["value"] == 1
    assert found["wall_ratio_vs_ar"] == found["speedup_scaffold_speculative"]
    p50 = {arm: found[f"latency_p50_{arm}"]["value"] for arm in ARMS}
    for name, slow, fast in (
        ("wall_ratio_vs_ar", "ar", "scaffold_speculative"),
        ("fork4_time_ratio", "fork4", "scaffold_speculative"),
        ("fork8_time_ratio", "fork8", "scaffold_speculative"),
    ):
        assert found[name]["value"] == pytest.approx(p50[slow] / p50[fast])
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
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
    assert found["agreement_scaffold_speculative"]["value"] == 1
    assert found["tokens_fed_ar"]["value"] == forwards["ar"]
    # What is given behind the last value is not read.
    assert forwards["jump_forward"] < found["tokens_fed_jump_forward"]["value"] < tokens
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


EVERY = ["every=true", "prompts=1", *without("fork8")]
SLOW = ("uncached", "prefix_cache", "dual_cache")


@pytest.fixture
def few_commits(monkeypatch):
    names = ("confidence", "joint_threshold", "learned", "one_by_one")
    monkeypatch.setattr(arms, "COMMITS", {name: decoding.COMMITS[name] for name in names})


def test_every_way_that_is_right(vlm_folder, tmp_path, capfd, monkeypatch, few_commits):
    monkeypatch.setenv("COLUMNS", "240")
    assert bench(vlm_folder, tmp_path, *EVERY) == 0
    found = metrics(tmp_path)
    measured = {name.removeprefix("tokens_fed_") for name in found if name.startswith("tokens_fed")}
    assert measured == {
        "denoise", "hierarchical", "flash_block", "denoise_joint_threshold", "denoise_one_by_one",
        "ar", "jump_forward", "tidar", "self_speculative", "scaffold_speculative", "layer_skip",
        "fork4", "prune_withdrawn", "prune_early",
    }  # fmt: skip
    exact = {"ar", "jump_forward", "tidar", "self_speculative", "scaffold_speculative"}
    for arm in exact:
        assert found[f"agreement_{arm}"]["value"] == 1
    slow, fast = (found[f"forwards_{arm}"]["value"] for arm in ("denoise_one_by_one", "denoise"))
    assert slow >= fast
    assert min(found[f"agreement_{arm}"]["value"] for arm in measured) < 1
    assert all(f"latency_p50_{arm}" in found and f"ade_5s_{arm}" in found for arm in measured)
    printed = capfd.readouterr().out
    table = printed[printed.index("Ways of writing") : printed.index("Forwards of a plan")]
    assert "tokens fed" in table
    assert "lossy" in line(table, "prune_early")
    assert "approximate kv" in line(table, "flash_block")
    assert "exact kv" in line(table, "denoise_one_by_one")
    assert "lossless" in line(table, "tidar")
    left_out = printed[printed.index("Left out") :]
    assert "keys of what it has finished stay right" in line(left_out, "dual_cache")
    assert "dual_cache_one_by_one" not in left_out
    assert "autoregressive" in line(left_out, "skip")
    assert "between the two" in line(left_out, "prune_late")
    assert "never trained on prompts that are masked" in line(left_out, "guided")


def test_every_way_of_a_model_whose_answer_sees_itself(
    vlm_folder, random_lavida, tmp_path, capfd, monkeypatch, few_commits
):
    monkeypatch.setenv("COLUMNS", "240")
    schema, cameras = (vlm_folder / "answer.yaml").read_text(), ["front_left", "front"]
    folder = random_lavida(tmp_path / "lavida", schema, cameras=cameras)
    (folder / "held_out.hdf5").write_bytes((vlm_folder / "held_out.hdf5").read_bytes())
    pairs = [*((name, "one_by_one") for name in SLOW), ("dual_cache", "joint_threshold")]
    told = [f"{name}_{commit}: {{driver: {name}, commit: {commit}}}" for name, commit in pairs]
    slow = [f"+arms={{{', '.join(told)}}}"]
    assert bench(folder, tmp_path / "run", *EVERY, *slow) == 0
    found = metrics(tmp_path / "run")
    measured = {name.removeprefix("tokens_fed_") for name in found if name.startswith("tokens_fed")}
    caches = {"uncached", "prefix_cache", "dual_cache", "dkv_decode", "dkv_greedy",
              "window_diffusion", "vicinity_cache", "sliding", "elastic_cache"}  # fmt: skip
    ways = {f"{name}_one_by_one" for name in (*SLOW, "denoise")}
    assert measured == caches | ways | {
        "plain", "denoise", "denoise_joint_threshold", "guided", "prune_withdrawn", "prune_early",
        "prune_late", "prune_progressive",
    }  # fmt: skip
    assert found["speedup_plain"]["value"] == 1
    for arm in ("plain", "uncached_one_by_one", "denoise_one_by_one"):
        assert found[f"agreement_{arm}"]["value"] == 1
        assert found[f"forwards_{arm}"]["value"] == found["forwards_plain"]["value"]
        assert found[f"tokens_fed_{arm}"]["value"] == found["tokens_fed_plain"]["value"]
    assert found["agreement_uncached"]["value"] == found["agreement_denoise"]["value"]
    fed = {arm: found[f"tokens_fed_{arm}"]["value"] for arm in measured}
    assert fed["dual_cache_one_by_one"] < fed["prefix_cache_one_by_one"] < fed["plain"]
    assert all(f"latency_p50_{arm}" in found and f"ade_5s_{arm}" in found for arm in measured)
    assert found["wall_ratio_vs_ar"]["value"] is None
    printed = capfd.readouterr().out
    assert "faster than plain" in printed
    assert "fewer forwards than plain" in printed
    left_out = printed[printed.index("Left out") :]
    assert "no pass may be kept of its beginning" in line(left_out, "scaffold_speculative")
    assert "use SectionDiffusion" in line(left_out, "dual_cache_joint_threshold")


def test_errors_beside_the_expert(vlm_folder, tmp_path):
    """The planner's way at the recorded moments, by hand for the arm that is the fastest."""
    assert bench(vlm_folder, tmp_path, "prompts=4", *without("self_speculative", "fork8")) == 0
    found = metrics(tmp_path)
    assert found["fork8_time_ratio"]["value"] is None
    for arm in ("ar", "jump_forward", "scaffold_speculative", "fork4"):
        for seconds in (3, 5):
            error = found[f"ade_{seconds}s_{arm}"]
            assert error["low"] <= error["value"] <= error["high"]
            assert error["n"] == 4
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
def test_a_red_gate_says_no_speed_up(vlm_folder, tmp_path, monkeypatch, capfd, wrong, gate):
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.setitem(decoding.DRIVERS, "scaffold_speculative", lambda choice, *_: wrong(choice))
    assert bench(vlm_folder, tmp_path, *without("denoise", "fork8")) == 1
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


def test_what_is_timed_is_what_was_checked(vlm_folder, tmp_path, monkeypatch, capfd):
    """An arm that writes something else when it is timed."""

    def wrong(model, prompts, canvas, driver, **how):
        decoded = decode(model, prompts, canvas, driver, **how)
        if driver.name != "scaffold_speculation":
            return decoded
        return dataclasses.replace(decoded, tokens=altered(decoded, canvas, "value"))

    decode = policy.decode
    monkeypatch.setattr(policy, "decode", wrong)
    assert bench(vlm_folder, tmp_path, *without("self_speculative", "denoise", "fork8")) == 1
    found = metrics(tmp_path)
    assert found["wall_ratio_vs_ar"]["value"] is None
    assert found["fork4_time_ratio"]["value"] is None, "it is over that arm's time"
    assert found["alike_scaffold_speculative"]["value"] == 0
    assert "scaffold_speculative: as timed: 2 of 2" in capfd.readouterr().out


def test_moments_of_a_simulator(vlm_folder, tmp_path):
    pytest.importorskip("cv2", reason="pictures are painted with OpenCV (extra data)")
    only = without("self_speculative", "denoise", "fork4", "fork8")
    sim = ["sim=toy_road", "sim.image_size=[56,28]", "episode_prompts=2", "prompts=3"]
    assert bench(vlm_folder, tmp_path, *sim, *only) == 0
    found = metrics(tmp_path)
    assert found["parity_scaffold_speculative"]["n"] > 3
    assert found["wall_ratio_vs_ar"]["n"] == 3
    assert not [name for name in found if name.startswith("ade")]
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["provenance"]["observations"] == "ToyRoad"


def test_half_precision_is_checked_in_single(vlm_folder, tmp_path, monkeypatch):
    dtypes, check = [], run.check

    def watched(arms, answers, prompts, model, **how):
        dtypes.extend([arms[0].planner.model.network.dtype, model.network.dtype])
        return check(arms, answers, prompts, model, **how)

    monkeypatch.setattr(run, "check", watched)
    few = without("self_speculative", "denoise", "fork4", "fork8")
    assert bench(vlm_folder, tmp_path, "prompts=1", "policy.dtype=bfloat16", *few) == 0
    assert dtypes == [torch.bfloat16, torch.float32]
    assert metrics(tmp_path)["parity_scaffold_speculative"]["value"] == 0


def test_moments_are_where_plans_are_made():
    sim = ToyRoad(max_steps=12)
    planner = load_policy("constant_velocity", env=waypoint_env(sim.env_spec))
    how = {"first_seed": 3, "an_episode": 4, "apart_s": 0.5}
    found = visited(sim, planner, 7, **how)
    assert [moment.episode for moment in found] == [3, 3, 3, 4, 4, 4, 5], "the drives end"
    assert [int(moment.history.ticks) for moment in found] == [0, 5, 10, 0, 5, 10, 0]
    again = visited(sim, planner, 2, **how)[1]
    key = "observation.ego_states"
    assert torch.equal(found[1].history[key], again.history[key])
    sim.distinct_seeds = 4
    with pytest.raises(ValueError, match="the seeds 0 to 3, and 7 prompts take 2 from 3 on"):
        visited(sim, planner, 7, **how)


def moment(driven):
    return Moment(history=None, episode=0, driven=driven)


def test_displacement_at_each_horizon():
    driven = torch.zeros(20, 2)
    off = driven.clone()
    off[12:] = torch.tensor([3.0, 4.0])  # from 3 s on
    plans = [Plan(way[None], dt=0.25, t0=torch.zeros(1)) for way in (driven, off)]
    errors = measure_errors(plans, [moment(driven)] * 2)
    assert errors[3].tolist() == [0, 0]
    assert errors[5].tolist() == [0, 2]
    assert list(measure_errors(plans, [moment(driven[:12])] * 2)) == [3]
    assert not measure_errors(plans, [moment(driven), moment(None)])


def test_what_is_valid(vlm_folder):
    schema = load_schema(vlm_folder / "answer.yaml")
    layout = build_layout(schema, FileTokenizer(vlm_folder / "tokenizer.json"))
    flag, point = layout.slots["flags.cyclist"][0], layout.slots["trajectory"][0]
    yes, plus = (layout.tokenizer.encode(text)[0] for text in ("yes", " +"))
    whole = layout.canvas.tokens.clone()
    whole[list(layout.slots["trajectory"])] = layout.tokenizer.encode("7")[0]
    whole[[flag, layout.slots["flags.pedestrian"][0]]] = yes
    no_flag, no_json = whole.clone(), whole.clone()
    no_flag[flag] = plus
    no_json[point] = layout.tokenizer.encode('"')[0]
    answers = [Decoded("", Exactness.LOSSLESS, torch.stack([whole, no_flag, no_json]), 18, {})]
    valid = measure_validity(layout, answers)
    assert (valid.json.value, valid.json.n) == (pytest.approx(2 / 3), 3)
    assert valid.schema.value == pytest.approx(1 / 3)
    cut = [dataclasses.replace(answers[0], tokens=whole[None, :-1])]
    assert measure_validity(layout, cut).json.value == 0


def test_where_the_time_goes():
    spent = {"prompt": 1.0, "prefill": 2.0, "draft": 3.0, "verify": 5.0}
    report = AccelReport(network_evaluations=5, stage_ms=spent)
    plan = Plan(torch.zeros(1, 1, 2), dt=0.25, t0=torch.zeros(1), report=report)
    timed = Timed(99.0, [12.0, 14.0], [plan, plan])
    assert timed.stages_ms == {**spent, "rest": 2.0}
    assert timed.ms_per_forward == 2.0
    assert (timed.latency.p50, timed.latency.cold_max) == (13.0, 99.0)


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
        (["arms.denoise.commit=learned"], "arm 'denoise': commit learned needs the path of a"),
        (
            ["arms.denoise.prune=some"],
            "unknown prune 'some'; have: withdrawn, early",
        ),
        (["policy.dtype=int3"], "unknown dtype 'int3'"),
        (["policy.checkpoint=dp_pusht"], "no vision-language model"),
        (["dataset.path=nowhere.hdf5"], "nowhere.hdf5 does not exist"),
        (["arms.denoise.treshold=1"], "unknown setting 'arms.denoise.treshold'; have: driver"),
    ],
)
def test_a_mistake_is_told_before_any_work(vlm_folder, tmp_path, capsys, overrides, message):
    assert bench(vlm_folder, tmp_path / "run", *overrides) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_way_that_cannot_be_right_is_left_out(vlm_folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    causal = tmp_path / "causal"
    causal.mkdir()
    for path in vlm_folder.iterdir():
        (causal / path.name).write_bytes(path.read_bytes())
    told = json.loads((causal / "fastloop.json").read_text()) | {"regime": "causal"}
    (causal / "fastloop.json").write_text(json.dumps(told))
    few = without("self_speculative", "scaffold_speculative", "fork4", "fork8")
    assert bench(causal, tmp_path / "run", "prompts=1", *few) == 0
    assert "never trained to fill masks" in line(capfd.readouterr().out, "denoise")
    assert "speedup_denoise" not in metrics(tmp_path / "run")


def test_it_says_what_it_needs_to_look_at(vlm_folder, tmp_path, capsys, monkeypatch):
    (vlm_folder / "held_out.hdf5").rename(vlm_folder / "elsewhere.hdf5")
    try:
        assert bench(vlm_folder, tmp_path / "run") == 2
    finally:
        (vlm_folder / "elsewhere.hdf5").rename(vlm_folder / "held_out.hdf5")
    assert "say what it shall look at: sim=metadrive_map" in capsys.readouterr().err
    monkeypatch.setenv("FASTLOOP_ACCEL", "off")
    assert bench(vlm_folder, tmp_path / "run") == 2
    assert "unset it" in capsys.readouterr().err


def test_help(capsys):
    assert cli.main(["bench", "decode", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: fastloop bench decode [key=value ...]")
    assert "sampled_prompts: 4" in out
    assert re.search(r"^sim= one of .*toy_road", out, re.MULTILINE)
