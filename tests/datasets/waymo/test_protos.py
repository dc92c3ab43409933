import pytest
import yaml

from fastloop.datasets import tfrecord
from fastloop.datasets.errors import DatasetError
from fastloop.datasets.waymo import protos

pytest.importorskip("google.protobuf")
pytest.importorskip("google_crc32c")


@pytest.fixture
def official(realdata):
    """The pool of Waymo's own descriptor set."""
    from google.protobuf import descriptor_pb2, descriptor_pool

    content = (realdata / "wod_e2e_rebuilt" / "wod_e2e_protos.desc").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(content).file:
        pool.Add(file)
    return pool


def test_every_message_of_the_table_can_be_made():
    table = yaml.safe_load(protos.MESSAGES.read_text())
    for package, content in table.items():
        for name in content["messages"]:
            made = protos.messages(f"{package}.{name}")
            assert made.DESCRIPTOR.full_name == f"{package}.{name}"
            assert list(made.DESCRIPTOR.fields_by_name) == list(content["messages"][name])


def test_an_unknown_message_is_told_with_those_that_there_are():
    with pytest.raises(DatasetError, match=r"unknown message 'Frame'; have: .*open_dataset.Frame,"):
        protos.messages("Frame")


def test_fields_are_those_of_the_official_descriptors(official):
    """Scenario and its tracks are not in that set; real scenarios are read below."""
    compared = 0
    for name in yaml.safe_load(protos.MESSAGES.read_text())["waymo.open_dataset"]["messages"]:
        try:
            theirs = official.FindMessageTypeByName(f"waymo.open_dataset.{name}")
        except KeyError:
            continue
        for field in protos.messages(f"waymo.open_dataset.{name}").DESCRIPTOR.fields:
            other = theirs.fields_by_name[field.name]
            for fact in ("number", "type", "has_presence"):
                assert getattr(field, fact) == getattr(other, fact), (name, field.name, fact)
            assert field.GetOptions().packed == other.GetOptions().packed, (name, field.name)
            for kind in ("message_type", "enum_type", "containing_oneof"):
                ours, official_kind = getattr(field, kind), getattr(other, kind)
                assert (ours and ours.full_name) == (official_kind and official_kind.full_name)
            if field.enum_type:
                ours, others = (
                    {v.name: v.number for v in f.enum_type.values} for f in (field, other)
                )
                assert ours == others
            compared += 1
    assert compared > 90


def test_real_frames_parse_as_with_the_official_descriptors(official, realdata):
    from google.protobuf import json_format, message_factory

    theirs = message_factory.GetMessageClass(
        official.FindMessageTypeByName("waymo.open_dataset.E2EDFrame")
    )
    for path in sorted((realdata / "wod_e2e_rebuilt").glob("*.tfrecord*")):
        for _, payload in tfrecord.records(path):
            ours = protos.parse("waymo.open_dataset.E2EDFrame", payload, where="here")
            expected = json_format.MessageToDict(theirs.FromString(bytes(payload)))
            assert json_format.MessageToDict(ours) == expected
            assert ours.SerializeToString() == bytes(payload)


def unknown_fields(message):
    """The contents of all fields that are not in our table, in the message and those in it."""
    from google.protobuf.unknown_fields import UnknownFieldSet

    yield from (field.data for field in UnknownFieldSet(message))
    for field, value in message.ListFields():
        if field.message_type:
            if field.message_type.GetOptions().map_entry:
                parts = value.values()
            else:
                parts = [value] if field.has_presence else value
            for part in parts:
                yield from unknown_fields(part)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("motion_data_one_scenario.tfrecord", "waymo.open_dataset.Scenario"),
        ("womd_scenario_input.tfrecord", "waymo.open_dataset.Scenario"),
        ("motion_data_one_example.tfrecord", "tensorflow.Example"),
    ],
)
def test_real_motion_records_hold_nothing_that_the_table_lacks(realdata, file, name):
    """One has a field that Waymo's table lacks, too; it is empty."""
    for _, payload in tfrecord.records(realdata / "waymo_motion" / file):
        message = protos.parse(name, payload, where="here")
        assert message.ListFields()
        assert not any(unknown_fields(message))


def test_a_payload_of_another_kind_is_a_fault():
    with pytest.raises(DatasetError, match=r"shard at byte 7: no waymo.open_dataset.Scenario"):
        protos.parse("waymo.open_dataset.Scenario", b"\xff\xff", where="shard at byte 7")


def test_an_example_is_a_map_of_lists():
    example = protos.messages("tensorflow.Example")()
    example.features.feature["state/x"].float_list.value[:] = [1.5, 2.5]
    example.features.feature["id"].bytes_list.value.append(b"a")
    read = protos.parse("tensorflow.Example", example.SerializeToString(), where="here")
    assert list(read.features.feature["state/x"].float_list.value) == [1.5, 2.5]
    assert read.features.feature["id"].WhichOneof("kind") == "bytes_list"
    # The known bytes of Example{features{feature{key: "a" value{int64_list{value: 300}}}}}.
    known = bytes.fromhex("0a0d0a0b0a016112061a040a02ac02")
    assert list(
        protos.parse("tensorflow.Example", known, where="here")
        .features.feature["a"]
        .int64_list.value
    ) == [300]
