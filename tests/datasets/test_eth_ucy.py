"""Pedestrians of ETH and UCY: the literature's splits and counts, and windows without gaps."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastloop.datasets.agent_frame import AgentFrame
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.eth_ucy import (
    SCENES,
    TRAINING_ONLY,
    split,
    trajectories,
    windows,
)
from fastloop.datasets.pedestrians import Recording, read

NAMES = [name for names in SCENES.values() for name in names]


def text(rows):
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def walk(pedestrian, begin, n, step=10):
    """n rows of someone who walks along x, 0.5 m a step."""
    return [(begin + k * step, pedestrian, pedestrian + 0.5 * k, -1.0) for k in range(n)]


@pytest.fixture
def whole(tmp_path):
    """A folder of small whole recordings, each of 100 frames and named differently inside."""
    for number, name in enumerate((*NAMES, *TRAINING_ONLY)):
        (tmp_path / f"{name}.txt").write_text(text(walk(number + 1, 0, 100)))
    return tmp_path


def obvious(recording, past, future, least):
    """Windows by asking for each frame, pedestrian and time."""
    at = {
        (f, p): tuple(xy)
        for f, p, xy in zip(
            recording.frames.tolist(), recording.pedestrians.tolist(),
            recording.positions.tolist(), strict=True,
        )
    }  # fmt: skip
    people = sorted(set(recording.pedestrians.tolist()))
    found = []
    for begin in sorted(set(recording.frames.tolist())):
        times = [begin + k * recording.step for k in range(past + future)]
        complete = [p for p in people if all((t, p) in at for t in times)]
        if len(complete) < max(1, least):
            continue
        seen = [p for p in people if any((t, p) in at for t in times[:past])]
        points = [[at.get((t, p), (np.nan, np.nan)) for t in times] for p in seen]
        found.append((times[past - 1], seen, [p in complete for p in seen], np.array(points)))
    return found


def assert_as_obvious(recording, past, future, least):
    ours = list(windows(recording, past=past, future=future, min_pedestrians=least))
    slow = obvious(recording, past, future, least)
    assert len(ours) == len(slow)
    for window, (frame, seen, complete, points) in zip(ours, slow, strict=True):
        assert (window.recording, window.frame) == (recording.name, frame)
        assert window.pedestrians.tolist() == seen
        assert window.complete.tolist() == complete
        np.testing.assert_array_equal(window.past, points[:, :past])
        np.testing.assert_array_equal(window.future, points[:, past:])


@given(
    seen=st.sets(st.tuples(st.integers(0, 14), st.integers(0, 4)), min_size=1),
    step=st.sampled_from([1, 6, 10]),
    past=st.integers(1, 3),
    future=st.integers(1, 3),
    least=st.integers(1, 2),
)
@settings(max_examples=100)
def test_windows_equal_the_obvious_ones(seen, step, past, future, least):
    keys = np.array(sorted(seen))
    positions = np.random.default_rng(0).normal(size=(len(keys), 2))
    recording = Recording("r", step, keys[:, 0] * step, keys[:, 1], positions)
    assert_as_obvious(recording, past, future, least)


# Windows and complete trajectories: with anyone, and with two or more, which are the counts of
# Social GAN's loader; errors of constant velocity in m over the former.
COUNTS = {
    "eth": (253, 364, 70, 181, 1.075, 2.282),
    "hotel": (445, 1197, 301, 1053, 0.319, 0.614),
    "univ": (947, 24334, 947, 24334, 0.524, 1.165),
    "zara1": (705, 2356, 602, 2253, 0.427, 0.952),
    "zara2": (998, 5910, 921, 5833, 0.324, 0.724),
}


@pytest.mark.parametrize("scene", SCENES)
def test_the_counts_of_the_literature(realdata, scene):
    recordings = split(realdata / "eth_ucy", scene, "test")
    found = [window for recording in recordings for window in windows(recording)]
    crowds = [window for window in found if window.complete.sum() > 1]
    past = np.concatenate([window.past[window.complete] for window in found])
    future = np.concatenate([window.future[window.complete] for window in found])
    assert past.shape[1:] == (8, 2)
    assert future.shape[1:] == (12, 2)
    velocity = past[:, -1:] - past[:, -2:-1]
    away = np.linalg.norm(past[:, -1:] + velocity * np.arange(1, 13)[:, None] - future, axis=-1)
    assert (
        len(found), len(past), len(crowds), sum(int(it.complete.sum()) for it in crowds),
        round(away.mean(), 3), round(away[:, -1].mean(), 3),
    ) == COUNTS[scene]  # fmt: skip
    lone = sum(1 for recording in recordings for _ in windows(recording, min_pedestrians=2))
    assert lone == len(crowds)


@pytest.mark.parametrize("least", [1, 2])
def test_trajectories_are_those_of_the_windows(realdata, least):
    data = trajectories(realdata / "eth_ucy", "eth", min_pedestrians=least)
    recordings = split(realdata / "eth_ucy", "eth", "test")
    found = [it for one in recordings for it in windows(one, min_pedestrians=least)]
    whole = [np.concatenate([it.past, it.future], 1)[it.complete] for it in found]
    whole = np.concatenate(whole)
    groups = [f"{it.recording}/{who}" for it in found for who in it.pedestrians[it.complete]]
    assert data.test.groups.tolist() == groups
    frame = AgentFrame.of(whole[:, :8])
    seen = np.concatenate([data.test.past, data.test.future], 1)
    np.testing.assert_allclose(frame.world(seen), whole, atol=1e-5)
    np.testing.assert_array_equal(data.test.past[:, -1], 0)
    one, other = data.test.past[3], data.test.past[77]
    rms = np.sqrt((np.linalg.norm(one - other, axis=-1) ** 2).mean())
    apart = np.linalg.norm(data.test.situation[3] - data.test.situation[77])
    assert apart == pytest.approx(rms, rel=1e-5)


def test_trajectories_of_each_part(whole):
    data = trajectories(whole, "univ")
    assert [len(it) for it in (data.train, data.val, data.test)] == [6 * 61, 6 * 1, 2 * 81]
    assert {it.split("/")[0] for it in data.test.groups} == set(SCENES["univ"])
    ahead = 0.5 * np.arange(1, 13)
    np.testing.assert_allclose(data.train.future[:, :, 0], ahead[None].repeat(6 * 61, 0), atol=1e-5)
    with pytest.raises(DatasetError, match=r"8 \+ 93 times for train of univ"):
        trajectories(whole, "univ", future=93)
    with pytest.raises(ValueError, match="future is 0"):
        trajectories(whole, "univ", future=0)


def test_moments_of_recordings_follow_each_other(whole):
    data = trajectories(whole, "univ", past=8, future=12)
    first = np.arange(81) + 7
    assert data.test.moment.tolist() == [*first, *(first + first[-1] + 12)]
    assert (np.diff(data.train.moment) > 0).all()
    assert data.test[np.array([3, 90])].moment.tolist() == [10, first[9] + first[-1] + 12]


def test_real_windows_equal_the_obvious_ones(realdata):
    (recording,) = split(realdata / "eth_ucy", "eth", "test")
    few = recording.frames < 3000
    recording = Recording("eth", 10, recording.frames[few], recording.pedestrians[few],
                          recording.positions[few])  # fmt: skip
    assert_as_obvious(recording, 8, 12, 1)


def test_training_and_validation_are_cut_where_the_release_cuts(realdata):
    borders = {
        "biwi_eth": (10230, 10240), "biwi_hotel": (14390, 14400), "crowds_zara01": (7100, 7110),
        "crowds_zara02": (8410, 8420), "students001": (3540, 3550), "students003": (4310, 4320),
    }  # fmt: skip
    for scene, tested in SCENES.items():
        train = split(realdata / "eth_ucy", scene, "train")
        val = split(realdata / "eth_ucy", scene, "val")
        found = {
            a.name: (int(a.frames.max()), int(b.frames.min()))
            for a, b in zip(train, val, strict=True)
        }
        assert found == {name: it for name, it in borders.items() if name not in tested}


def test_eth_is_slower_than_its_step_says(realdata):
    (recording,) = split(realdata / "eth_ucy", "eth", "test")
    order = np.lexsort((recording.frames, recording.pedestrians))
    same = np.diff(recording.pedestrians[order]) == 0
    stretches = np.diff(recording.positions[order], axis=0)[same]
    walking = np.median(np.linalg.norm(stretches, axis=-1)) * 2.5
    assert walking > 2  # nobody walks like that for long
    assert 1.2 < walking * 0.4 / (10 / 15) < 1.8  # at 15 frames a second they stroll


@pytest.mark.parametrize("scene", SCENES)
def test_the_tested_scene_is_in_no_training(whole, scene):
    tested = {it.name for it in split(whole, scene, "test")}
    assert tested == set(SCENES[scene])
    for part, frames in (("train", range(0, 800, 10)), ("val", range(800, 1000, 10))):
        recordings = split(whole, scene, part)
        assert {it.name for it in recordings} == {*NAMES, *TRAINING_ONLY} - tested
        for recording in recordings:
            assert recording.frames.tolist() == list(frames)


def test_recordings_that_only_train_may_be_missing(whole):
    for name in TRAINING_ONLY:
        (whole / f"{name}.txt").unlink()
    assert {it.name for it in split(whole, "univ", "train")} == set(NAMES) - set(SCENES["univ"])
    (whole / "students003.txt").unlink()
    with pytest.raises(DatasetError, match=r"lacks students003\.txt; the benchmark is of biwi_eth"):
        split(whole, "univ", "test")


def test_the_folders_of_the_release_are_the_same_benchmark(whole, tmp_path):
    release = tmp_path / "release"
    for scene, tested in SCENES.items():
        for part in ("train", "val", "test"):
            (release / scene / part).mkdir(parents=True)
        for name in (*NAMES, *TRAINING_ONLY):
            lines = (whole / f"{name}.txt").read_text().splitlines(keepends=True)
            if name in tested:
                (release / scene / "test" / f"{name}.txt").write_text("".join(lines))
                continue
            for part, share in (("train", lines[:80]), ("val", lines[80:])):
                (release / scene / part / f"{name}_{part}.txt").write_text("".join(share))
    for scene in SCENES:
        for part in ("train", "val", "test"):
            ours, theirs = split(release, scene, part), split(whole, scene, part)
            np.testing.assert_equal([vars(it) for it in ours], [vars(it) for it in theirs])


def test_no_window_leads_over_a_gap(tmp_path):
    rows = walk(1, 0, 19) + walk(1, 200, 20) + walk(2, 0, 45)
    (tmp_path / "a.txt").write_text(text(row for row in rows if row[0] != 400))
    found = list(windows(read(tmp_path / "a.txt")))
    assert [it.frame for it in found if it.complete[it.pedestrians == 1]] == [270]
    frames = [it.frame for it in found if it.complete[it.pedestrians == 2].any()]
    assert frames == list(range(70, 280, 10))  # frame 400 is missing


def test_neighbours_are_those_seen_in_the_past(tmp_path):
    rows = walk(1, 0, 20) + walk(2, 0, 3) + walk(3, 70, 3) + walk(4, 80, 12)
    (tmp_path / "a.txt").write_text(text(rows))
    (window,) = windows(read(tmp_path / "a.txt"))
    assert window.pedestrians.tolist() == [1, 2, 3]
    assert window.complete.tolist() == [True, False, False]
    assert np.isnan(window.past[1, 3:]).all()
    np.testing.assert_array_equal(window.past[2, 7], [3.0, -1.0])
    np.testing.assert_array_equal(window.future[2, 0], [3.5, -1.0])


def test_the_step_is_that_of_the_file(tmp_path):
    (tmp_path / "a.txt").write_text(text(walk(1, 780, 25, step=6)))
    recording = read(tmp_path / "a.txt")
    assert recording.step == 6
    assert [it.frame for it in windows(recording)] == [822, 828, 834, 840, 846, 852]


def test_lines_in_any_order_and_with_any_blanks(tmp_path):
    rows = walk(1, 0, 5) + walk(2, 0, 5)
    (tmp_path / "a.txt").write_text(text(rows))
    (tmp_path / "b.txt").write_text(
        "\r\n".join(f" {float(f)}   {p:.1f} {x} {y} " for f, p, x, y in reversed(rows)) + "\n\n"
    )
    one, other = vars(read(tmp_path / "a.txt")), vars(read(tmp_path / "b.txt"))
    np.testing.assert_equal(one | {"name": "b"}, other)


def test_bad_lines_are_told_and_left_out(tmp_path):
    bad = ["20 1 0.5", "30 1 a b", "40 1 nan 0", "50.5 1 0 0", "60 1 1e999 0", "0 1 9 9",
           "1e300 1 0 0", "70 1 0 0 0", "\xff\x00"]  # fmt: skip
    path = tmp_path / "a.txt"
    path.write_bytes((text(walk(1, 0, 2)) + "\n".join(bad) + "\n").encode("latin1"))
    faults = []
    recording = read(path, on_fault=faults.append)
    assert recording.frames.tolist() == [0, 10]
    assert len(faults) == len(bad)
    assert "a.txt, line 3: '20 1 0.5': not enough values" in str(faults[0])
    assert "in this frame already" in str(faults[5])
    with pytest.raises(DatasetError, match="line 3"):
        read(path)


def test_what_is_wrong_is_named(whole):
    with pytest.raises(DatasetError, match="unknown scene 'zara3'; have: eth, hotel"):
        split(whole, "zara3", "test")
    with pytest.raises(DatasetError, match="unknown part 'valid'; have: train, val, test"):
        split(whole, "eth", "valid")
    with pytest.raises(DatasetError, match="cannot be read"):
        read(whole / "none.txt")
    (whole / "a.txt").write_text("0 1 0 0\n0 2 0 0\n")
    with pytest.raises(DatasetError, match="seen twice, in 2 rows"):
        read(whole / "a.txt")
    with pytest.raises(ValueError, match="past is 0"):
        next(windows(read(whole / "biwi_eth.txt"), past=0))


@given(data=st.data())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_told(tmp_path, data):
    damaged = bytearray(text(walk(1, 0, 22) + walk(2, 40, 8)).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        damaged[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=4))
    path = tmp_path / "a.txt"
    path.write_bytes(data.draw(st.one_of(st.just(bytes(damaged)), st.binary(max_size=60))))
    try:
        recording = read(path, on_fault=lambda fault: None)
    except DatasetError:
        return
    for window in windows(recording):
        assert window.complete.any()
        assert np.isfinite(window.past[window.complete]).all()
        assert np.isfinite(window.future[window.complete]).all()
