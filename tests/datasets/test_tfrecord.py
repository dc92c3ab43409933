import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets import tfrecord
from fastloop.datasets.errors import DatasetError

pytest.importorskip("google_crc32c")
PAYLOADS = [b"first", b"", b"third record", bytes(1000)]


def payloads(path, **options):
    return [bytes(payload) for _, payload in tfrecord.records(path, **options)]


@pytest.fixture
def file(tmp_path):
    return tfrecord.write(tmp_path / "a.tfrecord-00000-of-00001", PAYLOADS)


def test_a_known_record_has_its_known_bytes(tmp_path):
    path = tfrecord.write(tmp_path / "empty_record", [b""])
    # CRC-32C of eight zero bytes is 0x8c28b28a, of nothing 0; masking is rotate right 15 and add.
    rotated = (0x8C28B28A >> 15 | 0x8C28B28A << 17) & 0xFFFFFFFF
    expected = struct.pack("<QII", 0, (rotated + 0xA282EAD8) & 0xFFFFFFFF, 0xA282EAD8)
    assert path.read_bytes() == expected


def test_what_is_written_is_read(file):
    assert payloads(file) == PAYLOADS
    assert payloads(file, verify=False) == PAYLOADS


def test_a_record_is_read_by_its_offset(file):
    for offset, payload in tfrecord.records(file):
        assert tfrecord.read(file, offset, len(payload)) == payload
    with pytest.raises(DatasetError, match="changed since it was indexed"):
        tfrecord.read(file, 0, 4)
    for offset in (-1, 1, 10**12):
        with pytest.raises(DatasetError, match=f"at byte {offset}"):
            tfrecord.read(file, offset)


def test_a_payload_is_a_read_only_view(file):
    (_, payload), *_ = tfrecord.records(file)
    assert payload.readonly
    assert payload.format == "B"


def test_an_empty_file_holds_no_records(tmp_path):
    assert payloads(tfrecord.write(tmp_path / "empty", [])) == []


@pytest.mark.parametrize("name", ["missing", ".", "pipe"])
def test_what_cannot_be_opened_is_a_fault(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="cannot be read"):
        payloads(tmp_path / name)


def test_a_damaged_payload_is_named_and_the_next_is_read(file):
    offset, _ = list(tfrecord.records(file))[2]
    data = bytearray(file.read_bytes())
    data[offset + 12] ^= 1
    file.write_bytes(data)
    faults = []
    assert payloads(file, on_fault=faults.append) == [PAYLOADS[0], PAYLOADS[1], PAYLOADS[3]]
    assert [str(fault) for fault in faults] == [
        f"{file} at byte {offset}: a record of 12 bytes fails its checksum"
    ]
    with pytest.raises(DatasetError, match=f"{file.name} at byte {offset}:"):
        payloads(file)
    assert len(payloads(file, verify=False)) == 4


def test_a_damaged_length_ends_the_file(file):
    offset, _ = list(tfrecord.records(file))[1]
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)
    faults = []
    assert payloads(file, on_fault=faults.append) == PAYLOADS[:1]
    assert len(faults) == 1
    assert f"at byte {offset}: the length of a record fails its checksum" in str(faults[0])


def test_a_length_beyond_the_file_is_a_fault_and_takes_no_memory(tmp_path):
    length = struct.pack("<Q", 1 << 62)
    crc = struct.pack("<I", tfrecord._masked_crc(length))
    path = tmp_path / "huge"
    path.write_bytes(length + crc + bytes(100))
    with pytest.raises(DatasetError, match=f"a record of {1 << 62} bytes is cut off; 96 are left"):
        payloads(path)


@pytest.mark.parametrize("cut", [1, 5, 1000, 1010])
def test_a_cut_tail_is_a_fault(file, cut):
    data = file.read_bytes()
    file.write_bytes(data[:-cut])
    faults = []
    assert payloads(file, on_fault=faults.append) == PAYLOADS[:3]
    assert len(faults) == 1
    assert "cut off" in str(faults[0])
    assert f"at byte {len(data) - 1016}:" in str(faults[0])


def test_a_full_disk_leaves_what_was_there(file):
    before = file.read_bytes()

    def failing():
        yield b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        tfrecord.write(file, failing())
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


@settings(max_examples=50)
@given(st.data())
def test_damaged_files_give_data_or_faults(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "f"
    content = bytearray(tfrecord.write(path, PAYLOADS[:3]).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "replace"]))
    if kind == "flip":
        content[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[at : at + data.draw(st.integers(1, 40))]
    elif kind == "insert":
        content[at:at] = data.draw(st.binary(min_size=1, max_size=40))
    else:
        content = data.draw(st.binary(max_size=64))
    path.write_bytes(content)
    faults = []
    assert all(payload in PAYLOADS for payload in payloads(path, on_fault=faults.append))
    assert faults or kind != "flip"


def test_real_recordings(realdata):
    for path in sorted(realdata.glob("w*/*.tfrecord*")):
        assert payloads(path)
