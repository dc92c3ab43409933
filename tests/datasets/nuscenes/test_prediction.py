"""The prediction challenge: submissions, futures, figures, and equality with nuscenes-devkit."""

import importlib.util
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.nuscenes.prediction import NuScenesPrediction, read_forecasts

VERSION = "v1.0-mini"
LOCATIONS = (
    "boston-seaport", "singapore-onenorth", "singapore-queenstown", "singapore-hollandvillage",
)  # fmt: skip
LAYERS = (
    "polygon", "line", "node", "drivable_area", "road_segment", "road_block", "lane",
    "lane_connector", "ped_crossing", "walkway", "stop_line", "carpark_area", "road_divider",
    "lane_divider", "traffic_light",
)  # fmt: skip


def complete(root):
    """Add what the devkit wants to see: pictures of maps, and the agents of the split that stay for
    six seconds."""
    from PIL import Image

    table = {
        name: json.loads((root / VERSION / f"{name}.json").read_text())
        for name in ("scene", "sample", "sample_annotation", "map")
    }
    for row in table["map"]:
        Image.new("L", (1, 1)).save(root / row["filename"])
    boxes = {row["token"]: row for row in table["sample_annotation"]}
    scene_of = {row["token"]: row["scene_token"] for row in table["sample"]}
    names = {row["token"]: row["name"] for row in table["scene"]}
    split = {}
    for row in boxes.values():
        last, steps = row, 0
        while last["next"] and steps < 12:
            last, steps = boxes[last["next"]], steps + 1
        if steps == 12:
            keys = split.setdefault(names[scene_of[row["sample_token"]]], [])
            keys.append(f"{row['instance_token']}_{row['sample_token']}")
    (root / "maps" / "prediction").mkdir()
    (root / "maps" / "prediction" / "prediction_scenes.json").write_text(json.dumps(split))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small root of invented drives, scene-0103 and scene-0916, as mini_val has them."""
    pytest.importorskip("nuscenes.prediction")
    place = Path(__file__).with_name("synthetic.py")
    spec = importlib.util.spec_from_file_location("synthetic", place)
    synthetic = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(synthetic)
    folder = tmp_path_factory.mktemp("nuscenes")
    names = ["scene-0103", "scene-0916"]
    synthetic.write_root(folder, names=names, lengths=[24, 24], version=VERSION)
    return complete(folder)


@pytest.fixture(scope="module")
def challenge(root):
    return NuScenesPrediction(root, VERSION, "mini_val")


def submission(challenge, modes=3, seed=0):
    """Noisy futures as the official JSON."""
    rng = np.random.default_rng(seed)
    entries = []
    for key in challenge.keys:
        instance, sample = key.split("_")
        noise = rng.normal(0, 1.5, (modes, 12, 2))
        entries.append(
            {
                "instance": instance,
                "sample": sample,
                "prediction": (challenge.truth(key) + noise).tolist(),
                "probabilities": rng.random(modes).tolist(),
            }
        )
    return entries


def write(folder, entries):
    path = folder / "forecasts.json"
    path.write_text(json.dumps(entries))
    return path


def official(root, challenge, entries):
    """What the devkit's own script says of a submission, without the off-road rate."""
    from nuscenes.eval.prediction.compute_metrics import compute_metrics
    from nuscenes.eval.prediction.config import PredictionConfig
    from nuscenes.eval.prediction.metrics import (
        MinADEK,
        MinFDEK,
        MissRateTopK,
        RowMean,
        flatten_metrics,
    )

    kinds = [kind([1, 5, 10], [RowMean()]) for kind in (MinADEK, MinFDEK, MissRateTopK)]
    kinds[2].tolerance = 2
    results = compute_metrics(entries, challenge._helper, PredictionConfig(kinds))
    names = {"MinADEK": "minADE", "MinFDEK": "minFDE"}
    flat = {}
    for name, value in flatten_metrics(results, kinds).items():
        kind, _, rest = name.partition("_")
        flat[f"{names.get(kind, kind)}_{rest}"] = value
    return flat


@pytest.mark.parametrize("modes", [1, 3, 12])
def test_figures_are_the_devkits(root, challenge, tmp_path, modes):
    entries = submission(challenge, modes)
    forecasts = read_forecasts(write(tmp_path, entries))
    metrics = challenge.metrics(challenge.keys, challenge.score(challenge.keys, forecasts))
    expected = official(root, challenge, entries)
    assert set(metrics) == set(expected)
    for name, metric in metrics.items():
        assert metric.value == pytest.approx(expected[name], abs=1e-12)
        assert metric.n == len(challenge.keys)
        assert metric.low <= metric.value <= metric.high
    assert "boston-seaport.json" in challenge.conditions["OffRoadRate"]


def test_the_exact_future_has_no_error(challenge, tmp_path):
    entries = submission(challenge)
    for entry in entries:
        key = f"{entry['instance']}_{entry['sample']}"
        entry["prediction"][2] = challenge.truth(key).tolist()
    columns = challenge.score(challenge.keys, read_forecasts(write(tmp_path, entries)))
    assert not columns["minADE_5"].any()
    assert not columns["MissRateTopK_2_5"].any()
    assert columns["minADE_1"].any()


def test_agents_without_a_forecast_are_not_scored(challenge, tmp_path):
    forecasts = read_forecasts(write(tmp_path, submission(challenge)[1:]))
    columns = challenge.score(challenge.keys, forecasts)
    assert np.isnan(columns["minADE_1"]).tolist() == [True] + [False] * (len(challenge.keys) - 1)
    assert challenge.metrics(challenge.keys, columns)["minADE_1"].n == len(challenge.keys) - 1


def test_an_agent_that_the_tables_lack_is_a_fault(root, tmp_path):
    told = []
    challenge = NuScenesPrediction(root, VERSION, "mini_val", on_fault=told.append)
    instance, sample = challenge.keys[0].split("_")
    for key, message in (
        (f"{instance}_nosample", "no scene of the split holds this sample"),
        (f"noagent_{sample}", "do not tell its future"),
    ):
        challenge._home[key] = "" if "nosample" in key else "scene-0103"
        (forecast,) = read_forecasts(write(tmp_path, submission(challenge)[:1])).values()
        columns = challenge.score([key], {key: forecast})
        assert np.isnan(columns["minADE_1"][0])
        assert message in str(told.pop())


@pytest.fixture
def small_masks(monkeypatch):
    """The devkit draws maps at their full size, 3 GB; here the first 40 x 40 m."""
    from nuscenes.eval.prediction import metrics

    def load(helper):
        return {
            name: world.get_map_mask((20, 20, 40, 40), 0, ["drivable_area"], (400, 400))[0]
            for name, world in metrics.load_all_maps(helper).items()
        }

    monkeypatch.setattr(metrics.OffRoadRate, "load_drivable_area_masks", staticmethod(load))


def expansion(root, side=40.0, road=20.0):
    """Maps of `side` m whose lower left `road` x `road` m are drivable."""
    corners = [(0, 0), (road, 0), (road, road), (0, road)]
    layers = {name: [] for name in LAYERS}
    layers["node"] = [{"token": f"n{i}", "x": x, "y": y} for i, (x, y) in enumerate(corners)]
    layers["polygon"] = [
        {"token": "p", "exterior_node_tokens": [f"n{i}" for i in range(4)], "holes": []}
    ]
    layers["drivable_area"] = [{"token": "d", "polygon_tokens": ["p"]}]
    content = {
        "version": "1.3", "canvas_edge": [side, side], "arcline_path_3": {}, "connectivity": {},
    }  # fmt: skip
    (root / "maps" / "expansion").mkdir()
    for location in LOCATIONS:
        text = json.dumps(content | layers)
        (root / "maps" / "expansion" / f"{location}.json").write_text(text)


def test_modes_that_leave_the_road(root, tmp_path, small_masks):
    copy = tmp_path / "root"
    (copy / "maps").mkdir(parents=True)
    (copy / VERSION).symlink_to(root / VERSION)
    for entry in (root / "maps").iterdir():
        if entry.name != "expansion":
            (copy / "maps" / entry.name).symlink_to(entry)
    expansion(copy)
    challenge = NuScenesPrediction(copy, VERSION, "mini_val")
    assert "OffRoadRate" not in challenge.conditions
    line = np.stack([np.linspace(2, 15, 12), np.full(12, 5.0)], -1)
    far = line + np.array([0, 18])  # beside the road
    gone = line + np.array([0, 1000])  # beside the map
    entries = submission(challenge, modes=4)[:1]
    entries[0]["prediction"] = [line.tolist(), far.tolist(), gone.tolist(), line.tolist()]
    columns = challenge.score(challenge.keys[:1], read_forecasts(write(tmp_path, entries)))
    assert columns["OffRoadRate"] == [0.5]

    for content in ("{", '{"version": "1.0"}'):
        (copy / "maps" / "expansion" / "boston-seaport.json").write_text(content)
        with pytest.raises(DatasetError, match=r"cannot read .*expansion"):
            NuScenesPrediction(copy, VERSION, "mini_val")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instance": 3}, "tokens, strings"),
        ({"prediction": [[[0, 0]] * 11]}, r"shape \(1, 11, 2\), expected \(modes, 12, 2\)"),
        ({"prediction": [[[0, 0]] * 12] * 26}, "1 to 25 modes"),
        ({"prediction": []}, "1 to 25 modes"),
        ({"prediction": [[[0, 0]] * 11 + [[0]]]}, "ragged"),
        ({"prediction": [[[0, float("nan")]] * 12]}, "finite numbers"),
        ({"prediction": [[["0", "0"]] * 12]}, "finite numbers"),
        ({"prediction": [[[0, 10**400]] * 12]}, "finite numbers|ragged"),
        ({"probabilities": [0.5]}, "expected 2 probabilities"),
        ({"probabilities": [0.5, -0.5]}, "expected 2 probabilities of 0 or more"),
    ],
)
def test_a_malformed_forecast(tmp_path, changes, message):
    good = {
        "instance": "i", "sample": "s", "prediction": [[[0, 0]] * 12] * 2, "probabilities": [1, 0],
    }  # fmt: skip
    path = write(tmp_path, [good, good | {"sample": "t"} | changes, good, 7])
    with pytest.raises(DatasetError, match=f"entry 1: .*({message})"):
        read_forecasts(path)
    told = []
    assert list(read_forecasts(path, on_fault=told.append)) == ["i_s"]
    repeated, no_object = map(str, told[1:])
    assert "entry 2: i_s was forecast before" in repeated
    assert "entry 3: expected an object with instance" in no_object


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"\xff", b"[1e999"])
def test_a_file_that_is_no_submission(tmp_path, content):
    path = tmp_path / "forecasts.json"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"forecasts\.json"):
        read_forecasts(path)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_forecasts(tmp_path / "nothing.json")


@given(data=st.data())
def test_a_damaged_submission_is_data_or_a_fault(tmp_path_factory, data):
    entry = {
        "instance": "i", "sample": "s", "prediction": [[[0.5, 0]] * 12], "probabilities": [1],
    }  # fmt: skip
    text = bytearray(json.dumps([entry]).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.mktemp("fuzz") / "forecasts.json"
    path.write_bytes(text)
    try:
        for forecast in read_forecasts(path).values():
            assert forecast.modes.shape[1:] == (12, 2)
    except DatasetError:
        pass


def test_a_split_that_is_not_there(root, tmp_path):
    with pytest.raises(DatasetError, match=r"unknown split 'test'; have: mini_train, mini_val"):
        NuScenesPrediction(root, VERSION, "test")
    (tmp_path / VERSION).symlink_to(root / VERSION)
    (tmp_path / "maps" / "prediction").mkdir(parents=True)
    for picture in (root / "maps").glob("*.png"):
        (tmp_path / "maps" / picture.name).symlink_to(picture)
    with pytest.raises(DatasetError, match=r"prediction_scenes\.json is missing"):
        NuScenesPrediction(tmp_path, VERSION, "mini_val")
    scenes = tmp_path / "maps" / "prediction" / "prediction_scenes.json"
    for content, message in (
        ("[", "cannot be read"),
        ('{"scene-0103": ["a"]}', "more than strings"),
        ('{"scene-0103": ["a_b", "a_b"]}', "names an agent twice"),
        ("{}", "names no agent of mini_val"),
    ):
        scenes.write_text(content)
        with pytest.raises(DatasetError, match=message):
            NuScenesPrediction(tmp_path, VERSION, "mini_val")


def test_real_agents(realdata, tmp_path):
    """Of the real mini split: straight on with the last velocity, equal to the devkit's figures."""
    pytest.importorskip("nuscenes.prediction")
    with tarfile.open(realdata / "nuscenes_mini_tables" / "nusc_mini_reconstructed.tar.gz") as file:
        file.extractall(tmp_path, filter="data")
    (tables,) = tmp_path.rglob("v1.0-mini")
    root = complete(tables.parent)
    challenge = NuScenesPrediction(root, VERSION, "mini_val")
    assert set(challenge.scenes) == {"scene-0103", "scene-0916"}
    keys = challenge.keys[::40]
    entries = []
    for key in keys:
        instance, sample = key.split("_")
        box = challenge._helper.get_sample_annotation(instance, sample)
        velocity = challenge._helper.data.box_velocity(box["token"])[:2]
        line = box["translation"][:2] + velocity * 0.5 * np.arange(1, 13)[:, None]
        entries.append(
            {"instance": instance, "sample": sample, "prediction": [line.tolist()],
             "probabilities": [1.0]}
        )  # fmt: skip
    columns = challenge.score(keys, read_forecasts(write(tmp_path, entries)))
    metrics = challenge.metrics(keys, columns)
    for name, value in official(root, challenge, entries).items():
        assert metrics[name].value == pytest.approx(value, abs=1e-12)
