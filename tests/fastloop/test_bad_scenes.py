"""`fastloop eval` on a folder of which most cannot be driven in: named, counted, no success."""

import json
import pickle
import runpy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from fastloop import cli

pytestmark = pytest.mark.skipif(
    find_spec("metadrive") is None, reason='pip install -c constraints.txt -e ".[driving]"'
)

roads = runpy.run_path(str(Path(__file__).parents[1] / "sims" / "metadrive" / "roads.py"))


def no_map(scenario):
    scenario["map_features"] = {}


def vanished(scenario):
    scenario["tracks"]["ego"]["state"]["valid"][30:] = 0


def seen_once(scenario):
    scenario["tracks"]["ego"]["state"]["valid"][1:] = 0


def not_finite(scenario):
    scenario["tracks"]["beside"]["state"]["position"][7] = np.nan


def other_frame(scenario):
    scenario["tracks"]["ego"]["state"]["position"] += [0, 700, 0]


FAULTS = {
    no_map: "no_map has no map with lanes",
    vanished: "vanished: its ego ego is not there at 3.0 s",
    seen_once: "seen_once: its ego ego was seen 1 times",
    not_finite: "track beside has a position that is not finite",
    other_frame: "m from any lane: the map is of another frame",
    "hostile": "it asks for os.system; nothing was run",
}


@pytest.fixture
def folder(tmp_path):
    """One good scene, in which somebody is seen at one moment only, and one of each fault."""
    scenario = roads["to_scenario"](roads["straight"]("good"))
    scenario["tracks"]["beside"]["state"]["valid"][:20] = 0
    scenario["tracks"]["beside"]["state"]["valid"][21:] = 0
    folder = tmp_path / "scenes"
    folder.mkdir()
    (folder / "sd_good.pkl").write_bytes(pickle.dumps(scenario))
    (folder / "sd_hostile.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    for spoil in FAULTS:
        if callable(spoil):
            scenario = roads["to_scenario"](roads["straight"](spoil.__name__))
            spoil(scenario)
            (folder / f"sd_{spoil.__name__}.pkl").write_bytes(pickle.dumps(scenario))
    return folder


def test_each_is_named_and_none_is_driven(folder, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    command = [
        "eval", "sim=metadrive_log", f"sim.scenes={folder}", "sim.max_steps=30", "accel=none",
        "policy=stand_still", "timed_plans=1", "episodes=1", "run_dir=run",
    ]  # fmt: skip
    assert cli.main(command) == 1
    told = capfd.readouterr().out
    for words in FAULTS.values():
        assert words in told
    assert told.count("left out: ") == len(FAULTS)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["provenance"]["left_out"]) == len(FAULTS)
    assert not (tmp_path / "ran").exists()
    assert cli.main([*command, "allow_partial=true"]) == 0
    assert cli.main([*command, "episodes=2"]) == 2
    assert "has 1 different episodes, and 2 are asked for" in capfd.readouterr().err
    (folder / "sd_good.pkl").unlink()
    assert cli.main([*command, "run_dir=other"]) == 2
    told = capfd.readouterr().err
    assert "there is no scene to drive in" in told
    for words in FAULTS.values():
        assert words in told
