"""Bags: what was written comes back, what is damaged says so, and real recordings are whole."""

import shutil
import sqlite3
from collections import Counter

import pytest
import yaml

from fastloop.deploy.bags.reading import BagError, read_bag
from fastloop.deploy.bags.writing import BagWriter
from fastloop.deploy.messages import Messages
from fastloop.deploy.transport.base import Sample

pytest.importorskip("rosbags", reason="bags are of it (extra ros)")
mcap_reader = pytest.importorskip("mcap.reader", reason="bags are of it (extra ros)")
zstandard = pytest.importorskip("zstandard", reason="of mcap (extra ros)")

STRING = "std_msgs/msg/String"


@pytest.fixture(scope="module")
def messages():
    return Messages()


@pytest.fixture(scope="module")
def samples(messages):
    return [
        Sample(
            f"/topic{index % 2}", STRING, messages.encode(messages.type(STRING)(str(index))),
            1000 + index, 2000 + index,
        )
        for index in range(100)
    ]  # fmt: skip


@pytest.fixture
def bag(tmp_path, messages, samples):
    path = tmp_path / "bag.mcap"
    with BagWriter(path, messages) as writer:
        for sample in samples:
            writer.write(sample)
    return path


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_what_was_written_comes_back(tmp_path, messages, samples, compression):
    with BagWriter(tmp_path / "bag.mcap", messages, compression=compression) as writer:
        for sample in samples:
            writer.write(sample)
    assert list(read_bag(tmp_path / "bag.mcap")) == samples
    assert list(read_bag(tmp_path / "bag.mcap", ["/topic1"])) == samples[1::2]
    assert list(read_bag(tmp_path / "bag.mcap", [])) == []
    assert [path.name for path in tmp_path.iterdir()] == ["bag.mcap"]


def test_others_find_schemas_and_can_decode(bag):
    decoder = pytest.importorskip("mcap_ros2.decoder", reason="stands for viewers (extra ros)")
    with bag.open("rb") as stream:
        reader = mcap_reader.make_reader(stream, decoder_factories=[decoder.DecoderFactory()])
        assert reader.get_header().profile == "ros2"
        found = list(reader.iter_decoded_messages())
    assert [message.data for *_, message in found] == [str(index) for index in range(100)]
    schema, channel, _, _ = found[0]
    assert (schema.name, schema.encoding) == (STRING, "ros2msg")
    assert channel.metadata["topic_type_hash"].startswith("RIHS01_df668c74")


def test_a_file_that_was_not_finished_is_not_there(tmp_path, messages, samples):
    writer = BagWriter(tmp_path / "bag.mcap", messages)
    writer.write(samples[0])
    assert [path.name for path in tmp_path.iterdir()] == ["bag.mcap.partial"]
    with pytest.raises(ValueError, match="no message type"), writer:
        writer.write(Sample("/a", "std_msgs/msg/Strin", b"", None, 0))
    assert list(tmp_path.iterdir()) == []


def test_a_recording_that_was_cut_off_gives_what_it_has(bag, samples):
    bag.write_bytes(bag.read_bytes()[:-3000])
    found = []
    with pytest.raises(BagError, match="cannot be read to its end"):
        found.extend(read_bag(bag))
    # One chunk holds all of so small a file; a cut one is lost.
    assert found == samples[: len(found)]


def test_of_a_cut_recording_the_whole_chunks_are_read(tmp_path, messages, samples):
    writer_of = pytest.importorskip("mcap.writer")
    path = tmp_path / "bag.mcap"
    with path.open("wb") as stream:
        writer = writer_of.Writer(stream, chunk_size=400)
        writer.start("ros2", "somebody")
        schema = writer.register_schema(STRING, "ros2msg", b"string data")
        channel = writer.register_channel("/a", "cdr", schema)
        other = writer.register_channel("/json", "json", schema)
        for sample in samples:
            writer.add_message(other, 0, b"{}", 0)
            writer.add_message(channel, sample.received_ns, sample.data, sample.stamp_ns)
        writer.finish()
    whole = list(read_bag(path))
    assert [sample.data for sample in whole] == [sample.data for sample in samples]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = []
    with pytest.raises(BagError, match="cannot be read to its end"):
        found.extend(read_bag(path))
    assert 10 < len(found) < 100
    assert found == whole[: len(found)]


def folder_of(tmp_path, files, **told):
    """A rosbag2 folder around files."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    told = {"relative_file_paths": list(files), **told}
    (folder / "metadata.yaml").write_text(yaml.safe_dump({"rosbag2_bagfile_information": told}))
    return folder


def test_a_folder_is_its_files_in_order(tmp_path, bag, samples):
    data = bag.read_bytes()
    folder = folder_of(tmp_path, {"b_0.mcap": data, "a_1.mcap": data})
    assert list(read_bag(folder)) == samples * 2
    (folder / "metadata.yaml").unlink()  # as when a recording was killed
    assert list(read_bag(folder)) == samples * 2


def test_files_without_metadata_go_by_their_numbers(tmp_path, messages, samples):
    for number, sample in enumerate(samples[:12]):
        with BagWriter(tmp_path / f"bag_{number}.mcap", messages) as writer:
            writer.write(sample)
    assert list(read_bag(tmp_path)) == samples[:12]


def test_files_that_are_compressed(tmp_path, bag, samples):
    packed = zstandard.ZstdCompressor().compress(bag.read_bytes())
    (tmp_path / "bag.mcap.zstd").write_bytes(packed)
    assert list(read_bag(tmp_path / "bag.mcap.zstd")) == samples
    told = {"compression_format": "zstd", "compression_mode": "FILE"}
    assert list(read_bag(folder_of(tmp_path, {"a.mcap.zstd": packed}, **told))) == samples
    (tmp_path / "bag.mcap.zstd").write_bytes(packed[:50])
    with pytest.raises(BagError):
        list(read_bag(tmp_path / "bag.mcap.zstd"))


def sqlite_bag(path, rows, compress=lambda data: data):
    with sqlite3.connect(path) as tables:
        tables.execute(
            "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, "
            "serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL)"
        )
        tables.execute(
            "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, "
            "timestamp INTEGER NOT NULL, data BLOB NOT NULL)"
        )
        for index in range(2):
            row = (index, f"/topic{index}", STRING, "cdr", "")
            tables.execute("INSERT INTO topics VALUES (?, ?, ?, ?, ?)", row)
        for sample in rows:
            tables.execute(
                "INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)",
                (int(sample.topic[-1]), sample.received_ns, compress(sample.data)),
            )
    tables.close()


def test_messages_that_are_compressed(tmp_path, samples):
    sqlite_bag(tmp_path / "a.db3", samples, zstandard.ZstdCompressor().compress)
    told = {"compression_format": "zstd", "compression_mode": "MESSAGE"}
    folder = folder_of(tmp_path, {"a.db3": (tmp_path / "a.db3").read_bytes()}, **told)
    assert [sample.data for sample in read_bag(folder)] == [sample.data for sample in samples]
    told["compression_format"] = "lzma"
    shutil.rmtree(folder)
    with pytest.raises(BagError, match="'lzma'; only zstd"):
        list(read_bag(folder_of(tmp_path, {}, **told)))


def test_sqlite_does_not_say_when_messages_were_sent(tmp_path, samples):
    sqlite_bag(tmp_path / "a.db3", samples)
    found = list(read_bag(tmp_path / "a.db3"))
    assert [sample.data for sample in found] == [sample.data for sample in samples]
    assert [sample.received_ns for sample in found] == list(range(2000, 2100))
    assert {sample.stamp_ns for sample in found} == {None}


def test_what_is_no_bag_says_so(tmp_path):
    with pytest.raises(BagError, match="no bag at"):
        list(read_bag(tmp_path / "nothing"))
    (tmp_path / "a.txt").touch()
    with pytest.raises(BagError, match=r"ends in \.mcap or \.db3"):
        list(read_bag(tmp_path / "a.txt"))
    with pytest.raises(BagError, match=r"no metadata\.yaml"):
        list(read_bag(tmp_path))
    for name in ("a.mcap", "a.db3"):
        (tmp_path / name).write_bytes(b"something else" * 100)
        with pytest.raises(BagError, match="cannot be read to its end"):
            list(read_bag(tmp_path / name))
    (tmp_path / "metadata.yaml").write_text("- a list")
    with pytest.raises(BagError, match="no metadata of rosbag2"):
        list(read_bag(tmp_path))
    (tmp_path / "metadata.yaml").write_text(
        "rosbag2_bagfile_information: {relative_file_paths: [b.mcap]}"
    )
    with pytest.raises(BagError, match=r"lacks b\.mcap"):
        list(read_bag(tmp_path))


@pytest.mark.parametrize(
    ("place", "counts"),
    [
        ("rosbag2_py/mcap/talker", {"/topic": 10, "/rosout": 10}),
        ("rosbag2_py/sqlite3/talker", {"/topic": 10, "/rosout": 10}),
        ("rosbag2_tests/mcap/cdr_test", {"/array_topic": 4, "/test_topic": 3}),
        ("rosbag2_tests/sqlite3/cdr_test", {"/array_topic": 4, "/test_topic": 3}),
        ("services/only_services.mcap", {"/add_two_ints/_service_event": 12}),
    ],
)
def test_recordings_of_ros(realdata, place, counts):
    assert Counter(sample.topic for sample in read_bag(realdata / "rosbag2_samples" / place)) == (
        counts
    )


def test_both_storages_of_one_recording_hold_the_same(realdata, messages):
    folder = realdata / "rosbag2_samples" / "rosbag2_py"
    texts = [
        [
            messages.decode(STRING, s.data).data
            for s in read_bag(folder / kind / "talker", ["/topic"])
        ]
        for kind in ("mcap", "sqlite3")
    ]
    assert texts[0][0].startswith("Hello")
    assert len(texts[0]) == len(texts[1]) == 10


def test_our_hashes_are_those_that_ros_recorded(realdata, messages):
    path = realdata / "rosbag2_samples" / "services" / "topics_and_services.mcap"
    compared = 0
    with path.open("rb") as stream:
        summary = mcap_reader.make_reader(stream).get_summary()
    for channel in summary.channels.values():
        name = summary.schemas[channel.schema_id].name
        if name.startswith("rcl_interfaces/msg"):
            assert messages.hash(name) == channel.metadata["topic_type_hash"]
            compared += 1
    assert compared == 2
