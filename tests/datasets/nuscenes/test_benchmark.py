"""Open-loop planning as a benchmark: its samples, observations, figures and pictures."""

import io
import pickle

import numpy as np
import pytest

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.nuscenes.benchmark import PLANNING_FAULTS, NuScenesPlanning
from fastloop.datasets.nuscenes.scenes import NuScenes

STATES = "observation.ego_states"


def constant_velocity(benchmark):
    speeds = [benchmark.observe(key, [STATES])[STATES][-1, 2:4] for key in benchmark.keys]
    return np.stack(speeds)[:, None].astype(np.float64) * 0.5 * np.arange(1, 7)[:, None]


def figures(benchmark, plans):
    columns = benchmark.score(benchmark.keys, plans)
    return benchmark.metrics(benchmark.keys, columns)


def test_constant_velocity_on_mini(mini, realdata):
    benchmark = NuScenesPlanning(mini, "v1.0-mini", maps=realdata / "nuscenes_maps_drivable")
    assert len(benchmark.keys) == 334
    found = figures(benchmark, constant_velocity(benchmark))
    expected = {
        "l2_uniad": (0.4008, 1.2243, 2.4141),
        "l2_stp3": (0.2737, 0.6333, 1.1209),
        "l2_vad": (0.2737, 0.6333, 1.1209),
    }
    for name, values in expected.items():
        for horizon, value in zip(("1s", "2s", "3s"), values, strict=True):
            metric = found[f"{name}_{horizon}"]
            assert (metric.value, metric.unit, metric.n) == (
                pytest.approx(value, abs=5e-5),
                "m",
                334,
            )
            assert metric.low < metric.value < metric.high
        assert found[f"{name}_avg"].value == pytest.approx(np.mean(values), abs=1e-4)
    assert {name.rpartition("_")[0] for name in found} == {
        *(f"{kind}_{c}" for kind in ("l2", "collision") for c in ("uniad", "stp3", "vad")),
        "collision_exact",
        "boundary_rate",
    }
    hits = {"uniad": (0, 3, 13), "exact": (0, 6, 19)}  # the first as UniAD's own code counts them
    for name, counts in hits.items():
        for horizon, count in zip(("1s", "2s", "3s"), counts, strict=True):
            metric = found[f"collision_{name}_{horizon}"]
            assert (metric.value, metric.unit) == (pytest.approx(count / 334), "fraction")
    assert 0 < found["boundary_rate_3s"].value < 0.2


def test_published_samples_and_faults_on_mini(mini):
    benchmark = NuScenesPlanning(mini, "v1.0-mini", samples="published", faults="all")
    plans = constant_velocity(benchmark)
    found = figures(benchmark, plans)
    counts = {c: found[f"l2_{c}_3s"].n for c in ("uniad", "stp3", "vad")}
    assert counts == {"uniad": 404, "stp3": 324, "vad": 344}
    assert "404 samples" in benchmark.conditions["uniad"]
    # UniAD divides by all samples, and takes missing futures for zero error.
    motion = benchmark._motion
    error = np.linalg.norm(plans - motion.future, axis=-1) * motion.known
    assert found["l2_uniad_3s"].value == pytest.approx(error[:, 5].sum() / 404)
    mended = figures(NuScenesPlanning(mini, "v1.0-mini", samples="published"), plans)
    assert mended["l2_uniad_3s"].n == 404 - 60
    assert mended["l2_uniad_3s"].value > found["l2_uniad_3s"].value


def test_what_belongs_to_a_convention_is_no_switch():
    assert set(PLANNING_FAULTS) == {
        "masked_as_zero", "late_objects_invisible", "frame_offset", "resampled_grid",
        "border_clipping", "point_cell", "near_objects_only",
    }  # fmt: skip


def test_the_interval_of_an_average_is_about_it(benchmark):
    rng = np.random.default_rng(0)
    keys = benchmark.keys
    columns = {
        f"l2_vad_{h}": k + rng.random(len(keys)) for h, k in (("1s", 0), ("2s", 9), ("3s", 90))
    }
    columns["l2_vad_3s"][::3] = np.nan  # a third of the samples do not reach so far
    metric = benchmark.metrics(keys, columns)["l2_vad_avg"]
    means = [np.nanmean(column) for column in columns.values()]
    assert metric.value == pytest.approx(np.mean(means))
    assert metric.low < metric.value < metric.high
    assert metric.n == len(keys)


@pytest.fixture(scope="module")
def benchmark(invented):
    return NuScenesPlanning(invented, "v1.0-mini")


def test_common_samples_have_a_past_and_a_whole_future(benchmark):
    tables = benchmark.data.tables
    expected = [
        tables.tokens[k] for scene in tables.scenes for k in range(scene.first + 1, scene.last - 6)
    ]
    assert benchmark.keys == expected
    assert f"{len(expected)} of {len(tables.tokens)}" in benchmark.conditions["samples"]


def test_observations_fit_what_is_promised(benchmark):
    wanted = list(benchmark.inputs)
    assert wanted == [STATES, "observation.ego_heading", "observation.intent"]
    for key in benchmark.keys[:5]:
        for name, value in benchmark.observe(key, wanted).items():
            assert (value.shape, str(value.dtype)) == benchmark.inputs[name]
    assert "gives the answer away" in benchmark.conditions["observation.intent"]


def test_the_recorded_way_is_perfect(benchmark):
    truth = np.stack([benchmark.moment(key).truth for key in benchmark.keys])
    found = figures(benchmark, truth)
    assert all(abs(m.value) < 1e-9 for name, m in found.items() if name.startswith("l2"))
    assert all(m.value == 0 for name, m in found.items() if name.startswith("collision"))


@pytest.mark.parametrize("faults", [(), "all"])
def test_scores_do_not_depend_on_pieces(invented, faults):
    benchmark = NuScenesPlanning(invented, "v1.0-mini", samples="published", faults=faults)
    benchmark = pickle.loads(pickle.dumps(benchmark))  # as other processes get it
    plans = constant_velocity(benchmark)
    whole = benchmark.score(benchmark.keys, plans)
    order = np.random.default_rng(0).permutation(len(plans))
    pieces = [
        benchmark.score([benchmark.keys[i] for i in rows], plans[rows])
        for rows in np.array_split(order, 5)
    ]
    for name, column in whole.items():
        joined = np.concatenate([piece[name] for piece in pieces])
        np.testing.assert_array_equal(joined, column[order])


def test_a_plan_through_somebody_is_the_worst(write_root, tmp_path):
    root = write_root(tmp_path, scenes=4, lengths=[10] * 4, boxes=4)
    benchmark = NuScenesPlanning(root, "v1.0-mini")
    truth = np.stack([benchmark.moment(key).truth for key in benchmark.keys])
    rows = np.array([benchmark.data.rows[key] for key in benchmark.keys])
    agents = benchmark._agents.boxes(rows, "vad")
    distance = np.linalg.norm(agents.rectangles[:, :2] - truth[agents.sample, agents.step], axis=1)
    crowded = np.unique(agents.sample[distance < 5.5])  # what is recorded may hit somebody there
    free = ~np.isin(agents.sample, crowded) & (agents.step == 5) & ~agents.human
    target = np.flatnonzero(free)[0]
    row = agents.sample[target]
    plans = truth.copy()
    plans[(row + 1) % len(plans)] += 50  # far off, and nobody there
    plans[row, 5] = agents.rectangles[target, :2]
    columns = benchmark.score(benchmark.keys, plans)
    assert columns["collision_uniad_3s"][row] == 1
    assert columns["collision_vad_3s"][row] == pytest.approx(1 / 6)
    worst = benchmark.worst(benchmark.keys, columns)
    assert sorted(worst) == list(range(len(plans)))
    assert worst[0] == row


def test_a_moment_shows_everybody_where_he_is(benchmark):
    key = benchmark.keys[4]
    moment = benchmark.moment(key)
    row = benchmark.data.rows[key]
    boxes = benchmark.data.boxes(row)
    shown = [shape for shape in moment.shapes if shape.kind in ("agent", "pedestrian")]
    users = [i for i, c in enumerate(boxes.category) if c.startswith(("vehicle", "human"))]
    assert len(shown) == len(users)
    back = np.linalg.inv(benchmark.data.tables.lidar_pose[row])
    for shape, i in zip(shown, users, strict=True):
        right, forward = (back @ [*boxes.center[i], 1])[:2]
        np.testing.assert_allclose(shape.points.mean(0), [forward, -right], atol=1e-6)
    assert moment.title == "scene-0001, 2.5 s"
    assert moment.image is None


def test_pictures(write_root, tmp_path):
    image = pytest.importorskip("PIL.Image")
    root = write_root(tmp_path, scenes=1, lengths=[9], boxes=2, cameras=True)
    data = NuScenes(root, "v1.0-mini")
    pixels = np.random.default_rng(0).integers(0, 255, (900, 1600, 3), dtype=np.uint8)
    for sample in (1, 2):
        path = root / data.cameras(sample)["CAM_FRONT"].path
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:5000])

    benchmark = NuScenesPlanning(root, "v1.0-mini")
    name = "observation.images.front"
    assert benchmark.inputs[name] == ((3, 900, 1600), "uint8")
    assert "observation.images.front_left" not in benchmark.inputs
    seen = benchmark.observe(benchmark.keys[0], [name])[name]
    jpeg = benchmark.moment(benchmark.keys[0]).image
    np.testing.assert_array_equal(seen.transpose(1, 2, 0), image.open(io.BytesIO(jpeg)))
    with pytest.raises(DatasetError, match=r"CAM_FRONT.*damaged"):
        benchmark.observe(benchmark.keys[1], [name])
    with pytest.raises(DatasetError, match=r"CAM_FRONT_LEFT.*unpacked"):
        benchmark.observe(benchmark.keys[0], ["observation.images.front_left"])
    with pytest.raises(DatasetError, match="no picture of 'CAM_BACK'; have: CAM_FRONT"):
        benchmark.observe(benchmark.keys[0], ["observation.images.back"])


def test_a_picture_outside_of_the_root_is_not_read(write_root, tmp_path):
    root = write_root(tmp_path / "root", scenes=1, lengths=[9], boxes=2, cameras=True)
    table = root / "v1.0-mini" / "sample_data.json"
    text = table.read_text().replace("samples/CAM_FRONT/scene-0001_001.jpg", "../secret.jpg")
    table.write_text(text)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    with pytest.raises(DatasetError, match="leads out of"):
        NuScenes(root, "v1.0-mini").jpeg(1, "CAM_FRONT")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"samples": "all"}, "samples='all'; have: common, published"),
        ({"faults": ["typo"]}, f"'typo'.*have: all, {next(iter(PLANNING_FAULTS))}"),
        ({"faults": "cells"}, "unknown faults"),
        ({"conventions": ["nuplan"]}, "have: exact, stp3, uniad, vad"),
        ({"conventions": "uniad"}, "have: exact, stp3, uniad, vad"),
        ({"split": "test"}, "no scene of test"),
        ({"version": "v1.0-trainval"}, "lacks attribute.json"),
    ],
)
def test_wrong_arguments_are_told_with_the_right_ones(invented, arguments, words):
    with pytest.raises(DatasetError, match=words):
        NuScenesPlanning(invented, **{"version": "v1.0-mini"} | arguments)


def test_wrong_questions_are_told(benchmark):
    with pytest.raises(DatasetError, match="no sample is called 'x'"):
        benchmark.observe("x", [STATES])
    with pytest.raises(DatasetError, match=r"'observation\.sound'; have: observation"):
        benchmark.observe(benchmark.keys[0], ["observation.sound"])
    with pytest.raises(DatasetError, match=r"shape \(2, 5, 2\) for 2 samples"):
        benchmark.score(benchmark.keys[:2], np.zeros((2, 5, 2)))
    with pytest.raises(DatasetError, match="not finite"):
        benchmark.score(benchmark.keys[:1], np.full((1, 6, 2), np.nan))


def test_drives_too_short_to_be_scored(write_root, tmp_path):
    root = write_root(tmp_path, scenes=2, lengths=[5, 6])
    with pytest.raises(DatasetError, match="none of 11 samples can be scored"):
        NuScenesPlanning(root, "v1.0-mini")
