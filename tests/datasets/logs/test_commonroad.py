"""CommonRoad: what a scenario says is in its log; hostile XML is refused."""

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.logs import commonroad, commonroad_xml


def point(x, y):
    return f"<point><x>{x}</x><y>{y}</y></point>"


def exact(tag, value):
    return f"<{tag}><exact>{value}</exact></{tag}>"


def state(tag, x, y, heading, speed, time):
    return (
        f"<{tag}><position>{point(x, y)}</position>{exact('orientation', heading)}"
        f"{exact('time', time)}{exact('velocity', speed)}</{tag}>"
    )


CAR = (
    "<dynamicObstacle id='7'><type>car</type><shape><rectangle><length>4.5</length>"
    "<width>2</width></rectangle></shape>"
    + state("initialState", 1, 2, 0, 10, 0)
    + "<trajectory>"
    + state("state", 2, 2, 0, 10, 1)
    + state("state", 4, 2, 0, 20, 3)
    + "</trajectory></dynamicObstacle>"
)
PARKED = (
    "<staticObstacle id='8'><type>parkedVehicle</type><shape><rectangle><length>4</length>"
    "<width>2</width><orientation>0.5</orientation><center><x>1</x><y>0.25</y></center></rectangle>"
    "</shape>" + state("initialState", 10, 5, np.pi / 2, 0, 0) + "</staticObstacle>"
)
WALKER = (
    "<dynamicObstacle id='9'><type>pedestrian</type><shape><circle><radius>0.3</radius></circle>"
    "</shape><initialState><position><rectangle><length>1</length><width>1</width>"
    "<orientation>0</orientation><center><x>3</x><y>4</y></center></rectangle></position>"
    "<orientation><intervalStart>-0.2</intervalStart><intervalEnd>0.4</intervalEnd></orientation>"
    "<time><exact>1</exact></time></initialState></dynamicObstacle>"
)
LANELETS = (
    "<lanelet id='1'><leftBound>"
    + point(0, 4)
    + point(9, 4)
    + "<lineMarking>dashed</lineMarking></leftBound><rightBound>"
    + point(0, 0)
    + point(9, 0)
    + "<lineMarking>curb</lineMarking></rightBound><successor ref='2'/>"
    "<adjacentLeft ref='3' drivingDir='opposite'/>"
    "<stopLine><lineMarking>solid</lineMarking></stopLine><laneletType>urban</laneletType>"
    "<trafficSignRef ref='20'/><trafficLightRef ref='30'/></lanelet>"
    "<lanelet id='4'><leftBound>"
    + point(9, 8)
    + point(12, 8)
    + "</leftBound><rightBound>"
    + point(9, 6)
    + point(12, 6)
    + "</rightBound><laneletType>crosswalk</laneletType></lanelet>"
)
SIGN = (
    "<trafficSign id='20'><trafficSignElement><trafficSignID>274</trafficSignID>"
    "<additionalValue>10</additionalValue></trafficSignElement><virtual>false</virtual></trafficSign>"
)
LIGHT = (
    "<trafficLight id='30'><cycle><cycleElement><duration>2</duration><color>green</color>"
    "</cycleElement><cycleElement><duration>1</duration><color>red</color></cycleElement>"
    "<timeOffset>1</timeOffset></cycle><direction>all</direction><active>true</active>"
    "</trafficLight>"
)
PROBLEM = (
    "<planningProblem id='40'>"
    + state("initialState", 0, 2, 0.1, 8, 0)
    + "<goalState><position><lanelet ref='2'/></position><time><intervalStart>20</intervalStart>"
    "<intervalEnd>30</intervalEnd></time></goalState></planningProblem>"
)
LOCATION = (
    "<location><gpsLatitude>48.1</gpsLatitude></location><scenarioTags><urban/></scenarioTags>"
)


def scenario(body, version="2020a", step="0.1", name="TST_Road-1_1_T-1"):
    return (
        f"<commonRoad commonRoadVersion='{version}' timeStepSize='{step}' benchmarkID='{name}' "
        f"source='made up'>{body}</commonRoad>"
    )


WHOLE = scenario(LOCATION + LANELETS + SIGN + LIGHT + CAR + PARKED + WALKER + PROBLEM)


def read_text(folder, text):
    file = folder / "scenario.xml"
    file.write_text(text)
    (log,) = commonroad.read(file)
    return log


@pytest.fixture
def log(tmp_path):
    return read_text(tmp_path, WHOLE)


def test_stamps_are_the_times_of_sightings(log):
    assert log.name == "TST_Road-1_1_T-1"
    assert log.ego is None
    np.testing.assert_array_equal(log.stamps, [0, 100_000_000, 300_000_000])


def test_an_obstacle_is_a_track(log):
    car = log.tracks["7"]
    assert (car.kind, car.category) == ("vehicle", "car")
    np.testing.assert_array_equal(car.position, [[1, 2, 0], [2, 2, 0], [4, 2, 0]])
    np.testing.assert_array_equal(car.velocity, [[10, 0], [10, 0], [20, 0]])
    np.testing.assert_array_equal(car.size, [4.5, 2, np.nan])
    assert car.valid.all()


def test_a_shape_may_be_beside_the_position(log):
    parked = log.tracks["8"]
    np.testing.assert_allclose(parked.position, [[9.75, 6, 0]] * 3)
    np.testing.assert_allclose(parked.heading, np.pi / 2 + 0.5)
    np.testing.assert_array_equal(parked.velocity, 0)


def test_the_middle_of_intervals_and_shapes_is_taken(log):
    walker = log.tracks["9"]
    assert walker.kind == "pedestrian"
    np.testing.assert_array_equal(walker.valid, [False, True, False])
    np.testing.assert_array_equal(walker.position[1], [3, 4, 0])
    np.testing.assert_allclose(walker.heading[1], 0.1)
    assert np.isnan(walker.velocity).all()
    np.testing.assert_allclose(walker.size[:2], 0.6)


def test_the_map(log):
    lane, left, right, stop, crosswalk, *_ = log.map
    assert [lane.kind, left.kind, right.kind, stop.kind, crosswalk.kind] == [
        "lane", "lane_line", "road_edge", "stop_line", "crosswalk"
    ]  # fmt: skip
    np.testing.assert_array_equal(lane.points, [[0, 2, 0], [9, 2, 0]])
    np.testing.assert_array_equal(lane.outline, [[0, 4, 0], [9, 4, 0], [9, 0, 0], [0, 0, 0]])
    assert lane.properties == {
        "entry_lanes": [], "exit_lanes": ["2"], "left_neighbor": ["3"], "right_neighbor": [],
        "left_neighbor_drives": "opposite", "speed_limit_kmh": 36,
    }  # fmt: skip
    assert (left.category, right.properties) == ("dashed", {"lane": "1", "side": "right"})
    np.testing.assert_array_equal(stop.points, [[9, 4, 0], [9, 0, 0]])
    assert crosswalk.area
    assert len(crosswalk.points) == 4


def test_traffic_lights_and_signs(log):
    light = log.signals["30:1"]
    assert light.states == ("stop", "go", "stop")
    assert light.lane == "1"
    np.testing.assert_array_equal(light.position, [9, 2, 0])
    assert light.properties["cycle"] == [["green", 0.2], ["red", 0.1]]
    sign = log.signals["traffic_signs"]["20"]
    assert sign["elements"] == [{"id": "274", "values": ["10"]}]
    assert sign["lanes"] == ["1"]


def test_a_traffic_light_that_is_off_shows_nothing(tmp_path):
    off = read_text(tmp_path, scenario(CAR + LIGHT.replace("true", "false")))
    assert off.signals["30"].states == ("unknown",) * 3


def test_the_planning_problem_is_in_the_metadata(log):
    (problem,) = log.metadata["planning_problems"]
    assert problem["initial"]["position"] == [{"shape": "point", "center": [0, 2, 0]}]
    assert problem["initial"]["heading"] == 0.1
    assert problem["goals"][0]["position"] == [{"shape": "lanelet", "lane": "2"}]
    np.testing.assert_allclose(problem["goals"][0]["time"], [2, 3])
    assert log.metadata["tags"] == ["urban"]
    assert log.metadata["location"] == {"latitude_deg": 48.1}


def test_intersections_lead_on(tmp_path):
    body = (
        "<intersection id='50'><incoming id='51'><incomingLanelet ref='1'/>"
        "<successorsRight ref='2'/><outgoingLeft ref='3'/></incoming></intersection>"
    )
    (intersection,) = read_text(tmp_path, scenario(body)).metadata["intersections"]
    assert intersection == {
        "id": "50",
        "incoming": [{"lanes": ["1"], "right": ["2"], "straight": [], "left": ["3"]}],
    }


def test_the_older_format_names_roles(tmp_path):
    body = CAR.replace("dynamicObstacle id='7'>", "obstacle id='7'><role>dynamic</role>")
    body += PARKED.replace("staticObstacle id='8'>", "obstacle id='8'><role>static</role>")
    body = re.sub("(dynamic|static)Obstacle", "obstacle", body)
    old = read_text(tmp_path, scenario(body, version="2018b"))
    assert old.tracks.keys() == {"7", "8"}
    assert old.tracks["8"].valid.all()


def test_a_scenario_without_traffic(tmp_path):
    empty = read_text(tmp_path, scenario(PROBLEM))
    assert (len(empty), dict(empty.tracks)) == (1, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!DOCTYPE x [<!ENTITY a 'b'>]>" + WHOLE, "document type"),
        ("<!DOCTYPE x SYSTEM 'file:///etc/passwd'>" + WHOLE, "document type"),
        ("<a>" * 60 + "</a>" * 60, "in each other"),
        ("<gpx/>", "expected commonRoad"),
        (WHOLE[:-5], "no readable XML"),
        (scenario("", version="2017a"), "version 2017a"),
        (scenario("", step="nan"), "expected a number"),
        (scenario("", step="0"), "timeStepSize is 0"),
        (scenario(CAR + CAR), "two obstacles have the id '7'"),
        (scenario(CAR.replace("<x>4</x>", "<x>inf</x>")), "expected a number"),
        (scenario(CAR.replace("<exact>3<", "<exact>1<")), "twice at one time"),
        (scenario(CAR.replace("<exact>3<", "<exact>2.5<")), "whole number"),
        (scenario(CAR.replace("<exact>3<", "<exact>1e11<")), "later than any drive"),
        (scenario(CAR.replace("velocity", "velocity ")), None),
        (scenario(CAR.replace("orientation", "speed")), "no orientation"),
        (scenario(LANELETS.replace(point(9, 0), "")), "expected as many"),
        (scenario(LIGHT.replace("<duration>1<", "<duration>-9<")), "impossible durations"),
        (scenario(LIGHT * 2), "two elements trafficLight have the same id"),
        (scenario(LIGHT.replace("<cycleElement>", "<x>").replace("</cycleElement>", "</x>")), None),
    ],
)
def test_what_is_refused_and_what_is_not(tmp_path, text, message):
    if message is None:
        assert len(read_text(tmp_path, text))
        return
    with pytest.raises(DatasetError, match=message) as raised:
        read_text(tmp_path, text)
    assert "scenario.xml" in str(raised.value)


def test_two_sightings_far_apart_take_little(tmp_path):
    far = read_text(tmp_path, scenario(CAR.replace("<exact>3<", "<exact>9000000000<")))
    assert len(far) == 3


def test_road_users_that_would_fill_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fastloop.datasets.logs.sightings.LIMIT", 8)
    with pytest.raises(DatasetError, match="3 road users over 3 stamps"):
        read_text(tmp_path, WHOLE)


def test_elements_and_bytes_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(commonroad_xml, "MAX_ELEMENTS", 10)
    with pytest.raises(DatasetError, match="more than 10 elements"):
        read_text(tmp_path, WHOLE)
    monkeypatch.setattr(commonroad_xml, "MAX_BYTES", 10)
    with pytest.raises(DatasetError, match="at most 10 bytes"):
        read_text(tmp_path, WHOLE)


def test_reading_goes_on_after_a_fault(tmp_path):
    (tmp_path / "a.xml").write_text("<broken")
    (tmp_path / "b.xml").write_text(WHOLE)
    faults = []
    logs = list(commonroad.read(tmp_path, on_fault=faults.append))
    assert [log.name for log in logs] == ["TST_Road-1_1_T-1"]
    assert "a.xml" in str(faults[0])


def test_missing_files_are_told(tmp_path):
    with pytest.raises(DatasetError, match=r"holds no .xml"):
        list(commonroad.read(tmp_path))
    with pytest.raises(DatasetError, match=r"none.xml"):
        list(commonroad.read(tmp_path / "none.xml"))


@settings(max_examples=50)
@given(st.data())
def test_damage_gives_a_log_or_a_fault(tmp_path_factory, data):
    content = bytearray(WHOLE.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content) - 1))
        end = data.draw(st.integers(start, min(start + 30, len(content))))
        content[start:end] = data.draw(st.binary(max_size=6) | st.sampled_from([b"9", b"-1e30"]))
    file = tmp_path_factory.mktemp("fuzz") / "a.xml"
    file.write_bytes(content)
    list(commonroad.read(file, on_fault=lambda fault: None))


@settings(max_examples=25)
@given(content=st.binary(max_size=60))
def test_any_bytes_give_a_fault(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("fuzz") / "a.xml"
    file.write_bytes(content)
    with pytest.raises(DatasetError):
        list(commonroad.read(file))


def test_recorded_scenarios_agree_with_their_headers(realdata):
    logs = {log.name: log for log in commonroad.read(realdata / "commonroad")}
    files = sorted((realdata / "commonroad").glob("*.xml"))
    assert logs.keys() == {file.stem for file in files}
    for file in files:
        text, log = file.read_text(), logs[file.stem]
        count = Counter(re.findall(r"<(lanelet|obstacle|dynamicObstacle) id=", text))
        assert len(log.tracks) == count["obstacle"] + count["dynamicObstacle"]
        lanes = [feature for feature in log.map if feature.kind == "lane"]
        assert len(lanes) == count["lanelet"]
        step = float(re.search('timeStepSize="(.*?)"', text)[1])
        np.testing.assert_array_equal(np.diff(log.stamps), round(step * 1e9))
        last = max(
            map(int, re.findall(r"<time>\s*<exact>(\d+)</exact>", text.split("<planning")[0]))
        )
        assert len(log) == last + 1
        sightings = sum(track.valid.sum() for track in log.tracks.values())
        problem = text.count("<initialState>") - len(log.tracks)
        assert sightings == text.count("<state>") + text.count("<initialState>") - problem


def test_recorded_velocities_agree_with_positions(realdata):
    for log in commonroad.read(realdata / "commonroad"):
        moved, said = [], []
        for track in log.tracks.values():
            both = track.valid[1:] & track.valid[:-1]
            steps = np.linalg.norm(np.diff(track.position[:, :2], axis=0), axis=1)[both]
            moved.append(steps.sum() / (np.diff(log.stamps)[0] / 1e9))
            said.append(np.linalg.norm(track.velocity, axis=1)[1:][both].sum())
        assert np.sum(moved) == pytest.approx(np.sum(said), rel=0.05)
