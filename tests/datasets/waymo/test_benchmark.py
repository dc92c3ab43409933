import json

import numpy as np
import pytest

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.waymo.benchmark import CLUSTERS, WodE2E

NAMES = ("a-010", "b-010", "c-010", "d-010", "e-010")


@pytest.fixture
def folder(wod, tmp_path):
    """Five rated frames of five drives, one that nobody rated and one without a future."""
    root = tmp_path / "data"
    root.mkdir()
    rated = [
        wod.message(
            name, speed=4 + n, images=[(1, wod.jpeg(seed=n)), (8, b"no JPEG")][: 1 + n // 4]
        )
        for n, name in enumerate(NAMES)
    ]
    wod.write(
        root / "val_1.tfrecord-00000-of-00001",
        *rated[::-1],
        wod.message("a-011", ratings=[(-1, 0.0)] * 3),
        wod.message("a-012", ratings=(), future=False),
    )
    return root


@pytest.fixture
def clusters(folder):
    clusters = dict(
        zip("abcd", ["Cut-In", "Cut-In", "Cut-In", "Foreign Object Debris"], strict=True)
    )
    path = folder / CLUSTERS
    path.write_text(
        json.dumps({sequence: {"scenario_cluster": name} for sequence, name in clusters.items()})
    )
    return path


def plans_of(benchmark, wod, **options):
    speeds = [benchmark.observe(key, ["observation.ego_states"]) for key in benchmark.keys]
    return np.stack(
        [wod.straight(seen["observation.ego_states"][-1, 2], **options) for seen in speeds]
    )


def test_samples_are_the_rated_frames_in_order(folder):
    pytest.importorskip("PIL")
    benchmark = WodE2E(folder)
    assert list(benchmark.keys) == list(NAMES)
    assert (benchmark.steps, benchmark.hz, benchmark.name) == (20, 4, "WOD-E2E val")
    assert "5 of 7 frames; 5 of them are rated" in benchmark.conditions["samples"]
    assert benchmark.inputs == {
        "observation.ego_states": ((16, 6), "float32"),
        "observation.intent": ((), "int64"),
        "observation.images.front": ((3, 32, 24), "uint8"),
    }


def test_observations_have_the_shapes_and_types_that_are_told(folder):
    pytest.importorskip("PIL")
    benchmark = WodE2E(folder)
    seen = benchmark.observe("b-010", list(benchmark.inputs))
    assert {key: (array.shape, str(array.dtype)) for key, array in seen.items()} == dict(
        benchmark.inputs
    )
    np.testing.assert_array_equal(seen["observation.ego_states"][-1], [0, 0, 5, 0, 0, 0])


def test_pictures_are_decoded_only_when_wanted(folder):
    pytest.importorskip("PIL")
    benchmark = WodE2E(folder)
    assert set(benchmark.observe("e-010", ["observation.intent"])) == {"observation.intent"}
    with pytest.raises(
        DatasetError, match=r"'observation.images.back_right'; have: observation.ego"
    ):
        benchmark.observe("e-010", ["observation.images.back_right"])
    with pytest.raises(DatasetError, match=r"'observation.lidar'"):
        benchmark.observe("a-010", ["observation.lidar"])


def test_a_picture_of_another_size_is_a_fault(wod, folder):
    pytest.importorskip("PIL")
    wide = wod.message("f-010", images=[(1, wod.jpeg(width=40))])
    wod.write(folder / "val_2.tfrecord", wide)
    with pytest.raises(DatasetError, match=r"picture of \(32, 40\), expected \(32, 24\)"):
        WodE2E(folder).observe("f-010", ["observation.images.front"])


def test_the_top_rated_plan_earns_its_score(wod, folder):
    benchmark = WodE2E(folder)
    columns = benchmark.score(benchmark.keys, plans_of(benchmark, wod))
    np.testing.assert_array_equal(columns["rfs"], 9)
    np.testing.assert_array_equal(columns["ade_3s"], 0)
    np.testing.assert_array_equal(columns["ade_5s"], 0)


def test_displacement_is_from_the_top_rated_or_from_the_log(wod, tmp_path):
    path = wod.write(tmp_path / "f", wod.message("a-001", ratings=[(2, 0.0), (8, 0.4), (8, 0.8)]))
    plan = wod.straight()[None]
    off = 0.4 * np.arange(1, 21) / 4
    top = WodE2E(path).score(["a-001"], plan)
    assert top["ade_5s"][0] == pytest.approx(off.mean())
    assert top["ade_3s"][0] == pytest.approx(off[:12].mean())
    assert WodE2E(path, reference="log").score(["a-001"], plan)["ade_5s"][0] == 0


def test_the_log_is_a_reference_without_ratings(wod, folder):
    benchmark = WodE2E(folder, reference="log")
    assert list(benchmark.keys) == ["a-010", "a-011", *NAMES[1:]]
    columns = benchmark.score(benchmark.keys, plans_of(benchmark, wod))
    assert list(np.isnan(columns["rfs"])) == [False, True] + [False] * 4
    figures = benchmark.metrics(benchmark.keys, columns)
    assert (figures["rfs"].n, figures["ade_5s"].n) == (5, 6)


def test_rows_do_not_depend_on_each_other(wod, folder):
    benchmark = WodE2E(folder, reference="log")
    plans = plans_of(benchmark, wod, side=0.3)
    whole = benchmark.score(benchmark.keys, plans)
    for name, column in whole.items():
        parts = [
            benchmark.score([key], plan[None])[name][0]
            for key, plan in zip(benchmark.keys, plans, strict=True)
        ]
        np.testing.assert_array_equal(parts, column)


def test_the_cluster_mean_is_no_mean_over_frames(clusters, folder):
    benchmark = WodE2E(folder)
    columns = {
        "rfs": np.array([4.0, 6.0, 8.0, 9.0, 1.0]), "ade_3s": np.ones(5), "ade_5s": np.ones(5),
    }  # fmt: skip
    figures = benchmark.metrics(benchmark.keys, columns)
    assert figures["rfs"].value == pytest.approx(28 / 5)
    assert figures["rfs_cluster_mean"].value == pytest.approx((6 + 9) / 2)
    assert (figures["rfs_cluster_mean"].n, figures["rfs_cut_in"].n) == (4, 3)
    assert figures["rfs_cut_in"].value == pytest.approx(6)
    assert figures["rfs_foreign_object_debris"].value == pytest.approx(9)
    assert 4 <= figures["rfs_cut_in"].low < 6 < figures["rfs_cut_in"].high <= 8
    assert figures["ade_3s"].unit == "m"
    assert "1 rated frames are in none" in benchmark.conditions["scenario clusters"]


def test_frames_of_one_drive_are_drawn_together(wod, tmp_path):
    names = [f"{drive}-{index:03d}" for drive in "ab" for index in range(20)]
    path = wod.write(tmp_path / "f", *(wod.message(name) for name in names))
    benchmark = WodE2E(path)
    rfs = np.repeat([4.0, 8.0], 20)
    figure = benchmark.metrics(benchmark.keys, {"rfs": rfs, "ade_3s": rfs, "ade_5s": rfs})["rfs"]
    assert (figure.low, figure.value, figure.high) == (4, 6, 8)


def test_without_clusters_there_are_no_figures_of_them(wod, folder):
    benchmark = WodE2E(folder)
    columns = benchmark.score(benchmark.keys, plans_of(benchmark, wod))
    assert set(benchmark.metrics(benchmark.keys, columns)) == {"rfs", "ade_3s", "ade_5s"}
    assert benchmark.conditions["scenario clusters"] == "unknown"


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"scenario_cluster": 1}}'])
def test_clusters_of_another_layout_are_a_fault(folder, content):
    (folder / CLUSTERS).write_text(content)
    with pytest.raises(DatasetError, match="gives no scenario clusters"):
        WodE2E(folder)


def test_the_worst_comes_first_and_what_nobody_rated_last(folder):
    columns = {"rfs": np.array([5, np.nan, 1, np.nan]), "ade_5s": np.array([0.0, 3, 1, 9])}
    assert list(WodE2E(folder).worst(NAMES[:4], columns)) == [2, 0, 3, 1]


def test_a_moment_shows_what_people_thought(wod, folder):
    moment = WodE2E(folder).moment("c-010")
    assert moment.title == "sequence c, frame 10"
    assert moment.truth.shape == (20, 2)
    assert list(moment.others) == ["rater 1: 9", "rater 2: 4", "rater 3: 1"]
    assert moment.image == wod.jpeg(seed=2)
    assert moment.shapes[0].points.shape == (16, 2)


def test_short_ratings_are_parked_and_told(wod, tmp_path):
    path = wod.write(tmp_path / "f", wod.message("a-001", points=11))
    benchmark = WodE2E(path)
    assert benchmark.conditions["short ratings"].startswith("3 of 3 rated trajectories")
    parked = np.concatenate([wod.straight()[:11], np.repeat(wod.straight()[10:11], 9, axis=0)])
    columns = benchmark.score(benchmark.keys, parked[None])
    assert (columns["rfs"][0], columns["ade_5s"][0]) == (9, 0)


def test_nothing_to_score_says_why(wod, folder, tmp_path):
    path = wod.write(tmp_path / "f", wod.message("a-001", ratings=()))
    with pytest.raises(
        DatasetError, match=r"none of 1 frames .* 0 are rated, 1 have a known future"
    ):
        WodE2E(path)
    with pytest.raises(DatasetError, match="have: top_rated, log, none"):
        WodE2E(folder, reference="best")


def test_the_frames_of_a_submission_are_only_planned_for(wod, folder, tmp_path):
    asked = tmp_path / "test_sequence_frames_for_submission.json"
    asked.write_text(json.dumps({"a": 12, "z": 7}))
    benchmark = WodE2E(folder, reference="none", frames=asked)
    assert list(benchmark.keys) == ["a-012"]
    assert benchmark.faults == [f"frame z-007 of {asked} is in no shard"]
    assert benchmark.observe("a-012", ["observation.ego_states"])
    columns = benchmark.score(["a-012"], np.zeros((1, 20, 2)))
    assert columns == benchmark.metrics(["a-012"], columns) == {}
    assert list(benchmark.worst(["a-012"], columns)) == [0]
    assert benchmark.moment("a-012").truth.shape == (0, 2)


def test_plans_of_another_shape_are_a_fault(folder):
    with pytest.raises(
        DatasetError, match=r"shape \(1, 6, 2\) for 1 frames, expected \(N, 20, 2\)"
    ):
        WodE2E(folder).score(["a-010"], np.zeros((1, 6, 2)))
    with pytest.raises(DatasetError, match="no frame is called 'z'"):
        WodE2E(folder).score(["z"], np.zeros((1, 20, 2)))


def test_damage_is_told_and_the_rest_is_scored(wod, folder):
    pytest.importorskip("PIL")
    shard = folder / "val_1.tfrecord-00000-of-00001"
    data = shard.read_bytes()
    picture = wod.jpeg(seed=0)  # of the first sample, whose size the others are told of
    shard.write_bytes(data.replace(picture, picture[:-1] + b"\0")[:-1])
    benchmark = WodE2E(folder)
    assert ["cut off" in fault for fault in benchmark.faults] == [True]
    assert "observation.images.front" in benchmark.inputs
    with pytest.raises(DatasetError, match="checksum"):
        benchmark.observe("a-010", ["observation.intent"])
    assert benchmark.score(["b-010"], wod.straight(5)[None])["rfs"][0] == 9
    assert WodE2E(folder, verify=False).observe("a-010", ["observation.intent"])


def test_real_shards(realdata):
    root = realdata / "wod_e2e_rebuilt"
    rated = WodE2E(root / "womd_ego_synthetic_ratings.tfrecord-00000-of-00001")
    assert len(rated.keys) == 21
    frames = [rated.frames.places[key].read() for key in rated.keys]
    top = np.stack([frame.raters[int(np.argmax(frame.scores))][:20] for frame in frames])
    columns = rated.score(rated.keys, top)
    assert (columns["rfs"] >= 9).all()
    np.testing.assert_array_equal(columns["ade_5s"], 0)
    log = WodE2E(root, split="*", reference="log")
    truth = np.stack([log.moment(key).truth for key in log.keys])
    columns = log.score(log.keys, truth)
    np.testing.assert_array_equal(columns["ade_5s"], 0)
    figures = log.metrics(log.keys, columns)
    assert (figures["rfs"].n, figures["ade_3s"].n) == (21, 23)
