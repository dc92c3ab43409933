"""`fastloop score` on frames of WOD-E2E that are made here: a vehicle in a gentle curve, rated."""

import json

import numpy as np
import pytest

from fastloop import cli
from fastloop.datasets import predictions, tfrecord
from fastloop.datasets.waymo import submission
from fastloop.score import pieces, workers

FRAMES = 24


def path_of(number, times):
    """Where the vehicle of a frame is at `times` (N,), s from now: (N, 2) m."""
    speed, rate = 4.0 + number / 4, 0.02 * (number % 5 - 2)
    angle = rate * times
    along = np.where(rate == 0, times, np.sin(angle) / (rate or 1))
    aside = np.where(rate == 0, 0 * times, (1 - np.cos(angle)) / (rate or 1))
    return speed * np.stack([along, aside], axis=-1)


def frame(number):
    from fastloop.datasets.waymo.protos import messages

    made = messages("waymo.open_dataset.E2EDFrame")(intent=1)
    made.frame.context.name = f"{number // 2:032x}-{number:03d}"
    past = path_of(number, np.arange(-15, 1) / 4)
    future = path_of(number, np.arange(1, 21) / 4)
    made.past_states.pos_x[:], made.past_states.pos_y[:] = past.T.tolist()
    made.past_states.vel_x[:] = [4.0 + number / 4] * 16
    for name in ("vel_y", "accel_x", "accel_y"):
        getattr(made.past_states, name)[:] = [0.0] * 16
    for states in (made.future_states, made.preference_trajectories.add(preference_score=8)):
        states.pos_x[:], states.pos_y[:] = future.T.tolist()
    made.future_states.pos_z[:] = [0.0] * 20
    return made.SerializeToString()


@pytest.fixture
def shard(tmp_path, monkeypatch):
    """A shard of 24 frames, two of each sequence."""
    pytest.importorskip("google_crc32c")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "val.tfrecord-00000-of-00001"
    return tfrecord.write(path, [frame(number) for number in range(FRAMES)])


@pytest.fixture
def score(shard, capsys):
    """A function: settings of a run, to its exit code, result and what was printed."""

    def call(name, *settings):
        given = [f"dataset.root={shard}", f"run_dir={name}", "piece=5", "workers=1", *settings]
        code = cli.main(["score", "dataset=wod_e2e", *given])
        out, err = capsys.readouterr()
        result = shard.parent / name / "result.json"
        return code, json.loads(result.read_text()) if result.exists() else None, out + err

    return call


def figures(result):
    return {name: metric["value"] for name, metric in result["metrics"].items()}


def test_a_policy_is_scored_and_says_on_what(score, shard):
    code, result, told = score("run")
    assert code == 0
    assert {"rfs", "ade_3s", "ade_5s"} <= set(result["metrics"])
    straight, curved = path_of(2, np.arange(1, 21) / 4), path_of(4, np.arange(1, 21) / 4)
    assert np.ptp(straight[:, 1]) == 0
    assert np.ptp(curved[:, 1]) > 0
    expected = np.mean(
        [
            np.linalg.norm(
                path_of(n, np.arange(1, 21) / 4)
                - np.outer(np.arange(1, 21) / 4, [4.0 + n / 4, 0.0]),
                axis=1,
            ).mean()
            for n in range(FRAMES)
        ]
    )
    assert figures(result)["ade_5s"] == pytest.approx(expected, abs=1e-5)
    assert result["metrics"]["rfs"]["n"] == FRAMES
    assert result["metrics"]["rfs"]["low"] <= figures(result)["rfs"]
    assert result["coverage"]["value"] == 1
    assert result["provenance"]["conditions"]["ego status"] == "read"
    page = (shard.parent / "run" / "report.html").read_text()
    assert page.count("<svg") == 12
    assert "24 of 24 samples" in told.replace("\n", " ")


@pytest.mark.slow
def test_figures_are_the_same_whoever_works(score, monkeypatch):
    _, alone, _ = score("alone", "policy=constant_turn_rate")
    _, two, _ = score("two", "policy=constant_turn_rate", "workers=2", "piece=3")
    assert figures(two) == figures(alone)
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    _, far, _ = score("far", "policy=constant_turn_rate", "worker=ray", "workers=2")
    assert figures(far) == figures(alone)


@pytest.mark.slow
def test_what_breaks_in_a_process_is_told(score, shard, monkeypatch):
    code, _, told = score("gone", "workers=2", "+dataset.gone=1")
    assert code == 2
    assert "does not take" in told
    job = pieces.Job({"_target_": "fastloop.datasets.nowhere.Set"}, None, 1, 0)
    some = [pieces.Piece(n, ("a",), np.zeros((1, 20, 2))) for n in range(2)]
    with pytest.raises(ValueError, match=r"there is no fastloop\.datasets\.nowhere"):
        list(workers.do_pieces(job, some, worker="process", workers=2))


def test_a_file_of_predictions_scores_as_its_policy_did(score, shard):
    _, policy, _ = score("policy")
    code, again, _ = score("file", "predictions=policy/predictions.npz")
    assert code == 0
    assert figures(again) == figures(policy)
    assert "unknown" in again["provenance"]["conditions"]["ego status"]


def test_missing_predictions_are_counted_and_fail_unless_allowed(score, shard):
    score("policy")
    kept = dict(predictions.read(shard.parent / "policy/predictions.npz", steps=20).trajectories)
    gone = kept.popitem()[0]
    kept["somewhere-else"] = np.zeros((20, 2))
    broken = next(iter(kept))
    rows = {key: plan.tolist() for key, plan in kept.items()}
    rows[broken][3][0] = float("nan")
    (shard.parent / "some.json").write_text(json.dumps(rows))
    code, result, told = score("some", "predictions=some.json")
    assert code == 1
    assert result["coverage"]["scored"] == FRAMES - 2
    assert gone in result["coverage"]["faults"]
    assert broken in result["coverage"]["faults"]
    assert result["coverage"]["strangers"] == ["somewhere-else"]
    assert f"{FRAMES - 2} of {FRAMES}" in told.replace("\n", " ")
    assert score("allowed", "predictions=some.json", "allow_partial=true")[0] == 0


def test_plans_of_a_whole_split_are_complete_for_a_part_of_it(score, shard):
    score("policy")
    kept = dict(predictions.read(shard.parent / "policy/predictions.npz", steps=20).trajectories)
    kept["of-another-frame"] = np.zeros((20, 2))
    predictions.write(shard.parent / "more.npz", kept)
    code, result, told = score("more", "predictions=more.npz")
    assert code == 0
    assert result["coverage"]["complete"]
    assert "of-another-frame" in told


def test_names_of_figures_are_whole_in_a_narrow_terminal(score, shard, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    clusters = {f"{n:032x}": {"scenario_cluster": "Foreign Object Debris"} for n in range(12)}
    (shard.parent / "clusters.json").write_text(json.dumps(clusters))
    _, _, told = score("narrow", "dataset.clusters=clusters.json", "worst=0")
    assert "rfs_foreign_object_debris" in told


def test_one_sequence_has_no_interval_and_the_result_is_json(score, shard):
    names = [f"{0:032x}-{n:03d}" for n in range(2)]
    (shard.parent / "frames.txt").write_text("\n".join(names) + "\n")
    code, result, _ = score("few", "dataset.frames=frames.txt")
    assert code == 0
    assert result["metrics"]["rfs"]["n"] == 2
    assert result["metrics"]["rfs"]["low"] is None
    assert "NaN" not in (shard.parent / "few" / "result.json").read_text()


def test_lidar_axes_are_noticed(score, shard):
    score("policy")
    kept = predictions.read(shard.parent / "policy/predictions.npz", steps=20).trajectories
    turned = {key: plan[:, ::-1] * [-1, 1] for key, plan in kept.items()}
    predictions.write(shard.parent / "turned.json", turned)
    code, result, told = score("turned", "predictions=turned.json")
    assert code == 2
    assert result is None
    assert "lidar" in told


def test_predictions_for_other_samples_are_refused(score, shard):
    predictions.write(shard.parent / "other.json", {"scene-1": np.zeros((20, 2))})
    code, _, told = score("other", "predictions=other.json")
    assert code == 2
    assert "scene-1" in told


def test_a_damaged_record_is_named_and_the_rest_scored(score, shard):
    data = bytearray(shard.read_bytes())
    _, (offset, _), *_ = [(at, len(payload)) for at, payload in tfrecord.records(shard)]
    data[offset + 12 + 40] ^= 0xFF
    shard.write_bytes(data)
    code, result, told = score("torn")
    assert code == 1
    assert result["coverage"]["scored"] == FRAMES - 1
    assert f"byte {offset}" in told


def test_a_submission_is_checked_before_and_written_after(score, shard):
    code, _, told = score("early", "submit=true")
    assert code == 2
    assert "account_name" in told
    assert not (shard.parent / "early/pieces").exists()
    names = [f"{n // 2:032x}-{n:03d}" for n in range(FRAMES)]
    wanted = {name.rpartition("-")[0]: int(name.rpartition("-")[2]) for name in names[1::2]}
    (shard.parent / "frames.json").write_text(json.dumps(wanted))
    code, _, _ = score(
        "sent", "submit=true", "submission.account_name=me@example.org",
        "submission.unique_method_name=straight", "submission.num_model_parameters=0K",
        "submission.uses_public_model_pretraining=false", "submission.frames=frames.json",
        "dataset.frames=frames.json", "dataset.reference=none",
    )  # fmt: skip
    assert code == 0
    sent = submission.read(shard.parent / "sent/submission.tar.gz")
    assert set(sent.predictions) == set(names[1::2])
    assert sent.metadata["unique_method_name"] == "straight"


def test_a_policy_that_does_not_fit_is_refused_at_once(score):
    code, result, told = score("misfit", "policy=dp_pusht")
    assert code == 2
    assert result is None
    assert "cannot drive" in told
    code, _, told = score("denoise", "policy.sampler.num_inference_steps=2")
    assert code == 2
    assert "sampler" in told, "what is configured of a policy is heard"
    code, _, told = score("train", "dataset=robomimic", "+dataset.path=x", "~dataset.root")
    assert code == 2


@pytest.mark.parametrize(
    ("setting", "words"),
    [("worker=slurm", "process, ray"), ("piece=0", "piece"), ("workers=-1", "workers")],
)
def test_settings_are_checked_first(score, setting, words):
    code, _, told = score("bad", setting)
    assert code == 2
    assert words in told


def test_a_benchmark_is_nothing_to_train_on(shard, capsys):
    code = cli.main(["train", "dataset=wod_e2e", f"dataset.root={shard}", "run_dir=train"])
    assert code == 2
    assert "no demonstrations" in capsys.readouterr().err
