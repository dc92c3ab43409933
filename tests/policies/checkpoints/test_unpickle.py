"""The pickle machine: data comes out as it went in, nothing else happens."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path

import dill
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.policies.checkpoints import load_checkpoint
from fastloop.policies.checkpoints.archive import open_archive
from fastloop.policies.checkpoints.errors import CheckpointError, RefusedError
from fastloop.policies.checkpoints.unpickle import interpret, small_int


class Call:
    """Pickles as a call of something."""

    def __init__(self, function, *args) -> None:
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
plain_data = st.recursive(
    scalars | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner, inner)
        | st.sets(st.integers())
    ),
    max_leaves=20,
)


@given(plain_data, st.sampled_from([0, 1, 2, 4]))
def test_plain_data_comes_back(data, protocol) -> None:
    if protocol == 0 and b"_codecs" in pickle.dumps(data, 0):
        protocol = 2  # protocol 0 spells bytes in ways that torch never wrote
    assert interpret(pickle.dumps(data, protocol), lambda _: None) == data


@settings(max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 10_000), st.integers(0, 255))
def test_damage_is_one_kind_of_error(noise, place, byte) -> None:
    whole = bytearray(pickle.dumps({"a": [1, 2.5, {"b": ("c", None)}], "d": OrderedDict(e=1)}, 2))
    whole[place % len(whole)] = byte
    for data in (noise, bytes(whole), bytes(whole[: place % len(whole)])):
        with contextlib.suppress(CheckpointError):
            interpret(data, lambda _: None)


# What the refusal has to name, and a maker of the thing; pickle and dill have names of their own
# for some (protocol 2 still spells subprocess as commands).
HOSTILE = {
    "os.system": lambda marker: Call(os.system, f"touch {marker}"),
    "builtins.eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
    "builtins.exec": lambda marker: Call(exec, f"open({str(marker)!r}, 'w')"),
    "io.open": lambda marker: Call(open, str(marker), "w"),
    "importlib.import_module": lambda marker: Call(importlib.import_module, "antigravity"),
    "builtins.getattr": lambda marker: Call(getattr, os, "system"),
    "commands.Popen": lambda marker: Call(subprocess.Popen, ["touch", str(marker)]),
    "PartialType": lambda marker: functools.partial(os.system, f"touch {marker}"),
    "getattr": lambda marker: Call(Path.touch, marker),
    "torch.serialization.load": lambda marker: Call(torch.load, str(marker)),
    "dill._dill._create_function": lambda marker: lambda: marker.touch(),
    "builtins.type": lambda marker: Call(type, "Made", (), {}),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("where", ["payload", "weights"])
def test_hostile_files_are_refused_and_do_nothing(tmp_path, published, name, where) -> None:
    marker = tmp_path / "marker"
    bad = HOSTILE[name](marker)
    if where == "payload":
        path = published.write(published.transformer_config(), {}, extra=bad)
    else:
        weights = published.transformer_weights()
        path = published.write(published.transformer_config(), weights, raw={"x": bad})
    with pytest.raises(RefusedError, match="refused: the file tries to") as caught:
        load_checkpoint(path)
    assert name in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"(S'echo'\nios\nsystem\n.", "os.system"),  # protocol 0 INST
        (b"cos\nsystem\n(S'echo'\ntR.", "os.system"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "os.system"),
        (b"\x80\x02c__builtin__\neval\n.", "builtins.eval"),
        (b"\x80\x02c__builtin__\ndict\n)R.", "builtins.dict"),  # a name that is data, called
        (b"\x80\x02ccollections\nOrderedDict\nq\x00}b.", "set the state of a Symbol"),
        (b"\x80\x02\x82\x01.", "EXT1"),
    ],
)
def test_every_road_to_a_global_is_closed(data: bytes, named: str) -> None:
    with pytest.raises(RefusedError, match=named):
        interpret(data, lambda _: None)


def test_copies_cannot_multiply_without_bound() -> None:
    long = pickle.dumps("x" * 1_000_000, 2)[:-1]
    again = b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R0"
    with pytest.raises(CheckpointError, match="without bound"):
        interpret(long + again * 100 + b"N.", lambda _: None)


def test_keys_are_scalars() -> None:
    key = ()
    for _ in range(60):
        key = (key, key)
    bomb = pickle.dumps([key], 2)[:-2] + b"}h\x00K\x01s."  # {[...]: 1} would take 2^60 hashes
    with pytest.raises(CheckpointError, match="malformed"):
        interpret(bomb, lambda _: None)
    with pytest.raises(CheckpointError, match="as a key"):
        interpret(pickle.dumps({(1, 2): 3}, 2), lambda _: None)


def test_a_step_count_is_read_and_nothing_else() -> None:
    assert small_int(dill.dumps(300_000)) == 300_000
    assert small_int(pickle.dumps(5, 2)) == 5
    assert small_int(dill.dumps("a path")) is None
    assert small_int(dill.dumps(Call(os.system, "true"))) is None
    assert small_int(b"garbage") is None
    assert small_int(7) is None


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_say_so(published, share) -> None:
    path = published.transformer()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"truncated|empty|no zip"):
        load_checkpoint(path)


def test_flipped_weights_say_so(published) -> None:
    path = published.transformer()
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        biggest = max(archive.infolist(), key=lambda info: info.file_size)
    data[biggest.header_offset + 300] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.set_(t.untyped_storage(), 0, (3,), (1,)), None),
        ("declares", "declares"),
        ("shape", "does not fit"),
    ],
)
def test_declared_sizes_are_checked(tmp_path, edit, message) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save({"w": torch.arange(3.0)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(key for key in records if key.endswith("/data.pkl"))
    # The pickle says K\x03 twice: three elements in the storage, and the shape (3,).
    first, second = (b"K\x03ttq", b"K\x03\x85q")
    data = records[name]
    if message:
        old = first[:2] if edit == "declares" else second[:3]
        place = data.index(old) if edit == "declares" else data.index(second[:3])
        data = data[:place] + old.replace(b"\x03", b"\xff") + data[place + len(old) :]
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in records.items():
            archive.writestr(key, data if key == name else value)
    if message is None:
        with open_archive(path) as opened:
            tensor = opened.payload["w"]
            assert torch.equal(opened.read(tensor), torch.arange(3.0))
    else:
        with pytest.raises(CheckpointError, match=message), open_archive(path):
            pass


def test_views_come_back_as_they_were(tmp_path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    saved = {"t": base.t(), "part": base[1:3, 2:4], "half": base.half(), "none": torch.empty(0, 3)}
    path = tmp_path / "views.ckpt"
    torch.save(saved, path)
    with open_archive(path) as archive:
        read = {key: archive.read(tensor) for key, tensor in archive.payload.items()}
    for key, tensor in saved.items():
        assert torch.equal(read[key], tensor), key
        assert read[key].dtype == tensor.dtype


@pytest.mark.parametrize("protocol", ["legacy", "pickle", "compressed", "text", "script"])
def test_other_files_are_named(tmp_path, protocol) -> None:
    path = tmp_path / "other.ckpt"
    expected = {
        "legacy": "bare pickle",
        "pickle": "bare pickle",
        "compressed": "compressed",
        "text": "no zip file",
        "script": "data.pkl",
    }[protocol]
    if protocol == "legacy":
        torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    elif protocol == "pickle":
        path.write_bytes(pickle.dumps({"w": 1}))
    elif protocol == "text":
        path.write_text("not a checkpoint")
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            name = "x/data.pkl" if protocol == "compressed" else "x/other"
            archive.writestr(name, pickle.dumps({}))
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(path)
