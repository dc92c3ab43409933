"""Zarr format 2: equal to zarr over shapes, chunks and types; damage is told, and stays small."""

import base64
import contextlib
import io
import json
import tracemalloc
import zipfile
import zlib

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fastloop.datasets import zarr_codecs, zarr_v2
from fastloop.datasets.errors import DatasetError

CODECS = [
    None,
    numcodecs.Blosc("lz4"),
    numcodecs.Blosc("zstd", shuffle=numcodecs.Blosc.BITSHUFFLE),
    numcodecs.Blosc("blosclz"),
    numcodecs.Blosc("zlib"),
    numcodecs.Zstd(),
    numcodecs.LZ4(),
    numcodecs.Zlib(),
    numcodecs.GZip(),
]


def store_with(folder, files=(), **header):
    """A store with the array ``a``: its header as given, and its chunks by key."""
    (folder / "a").mkdir(parents=True)
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    defaults = {
        "zarr_format": 2, "shape": [4], "chunks": [4], "dtype": "<i4", "compressor": None,
        "fill_value": 0, "order": "C", "filters": None,
    }  # fmt: skip
    (folder / "a" / ".zarray").write_text(json.dumps(defaults | header))
    for key, data in dict(files).items():
        (folder / "a" / key).parent.mkdir(exist_ok=True)
        (folder / "a" / key).write_bytes(data)
    return folder


@settings(max_examples=40)
@given(
    shape=st.lists(st.integers(0, 7), min_size=1, max_size=3),
    chunk=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    dtype=st.sampled_from(["<f4", ">f8", "|b1", "<u2", "<i8", "|u1", "<c8", "<f2"]),
    order=st.sampled_from("CF"),
    codec=st.sampled_from(CODECS),
    separator=st.sampled_from("./"),
    data=st.data(),
)
def test_equal_to_zarr(tmp_path_factory, shape, chunk, dtype, order, codec, separator, data):
    folder = tmp_path_factory.mktemp("parity") / "store.zarr"
    values = np.random.default_rng(0).integers(0, 99, shape).astype(dtype)
    root = zarr.create_group(folder, zarr_format=2)
    array = root.create_array(
        "deep/values",
        shape=shape,
        dtype=dtype,
        chunks=tuple(chunk[: len(shape)]),
        compressors=codec,
        order=order,
        fill_value=1,
        chunk_key_encoding={"name": "v2", "separator": separator},
    )
    written = data.draw(st.integers(0, shape[0]))
    array[:written] = values[:written]
    read = zarr_v2.open(folder).array("deep/values")
    assert (read.shape, read.chunks, read.dtype) == (array.shape, array.chunks, array.dtype)
    np.testing.assert_array_equal(read[...], array[...])
    start, stop = data.draw(st.integers(-9, 9)), data.draw(st.integers(-9, 9))
    np.testing.assert_array_equal(read[start:stop], array[...][start:stop])
    if shape[0]:
        row = data.draw(st.integers(-shape[0], shape[0] - 1))
        np.testing.assert_array_equal(read[row], array[...][row])


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        ("<f8", np.nan), ("<f4", -np.inf), ("|b1", True), ("<i2", -7), ("<u8", 2**64 - 1),
        ("<c16", 1 - 2j), ("<U3", "abc"), ("|S3", b"ab"), ("<M8[s]", np.datetime64(5, "s")),
        (">m8[ms]", np.timedelta64(-5, "ms")),
    ],
)  # fmt: skip
def test_fill_values_are_those_of_zarr(tmp_path, dtype, fill):
    root = zarr.create_group(tmp_path / "s.zarr", zarr_format=2)
    written = root.create_array("a", shape=(3,), chunks=(2,), dtype=dtype, fill_value=fill)
    read = zarr_v2.open(tmp_path / "s.zarr").array("a")[:]
    assert read.dtype == written.dtype
    np.testing.assert_array_equal(read, written[:])


def test_structures_with_arrays_in_them(tmp_path):
    dtype = np.dtype(
        [("id", "<U4"), ("box", "<f4", (2, 3)), ("deep", [("x", "<i8"), ("y", "|b1")])]
    )
    rows = np.zeros(5, dtype)
    rows["id"], rows["box"] = list("abcde"), np.arange(30).reshape(5, 2, 3)
    rows["deep"]["x"] = range(5)
    codec = numcodecs.Blosc("lz4")
    fill = np.full((), rows[4], dtype)
    folder = store_with(
        tmp_path / "s.zarr",
        {"0": codec.encode(rows[:2]), "1": codec.encode(rows[2:4])},
        shape=[5],
        chunks=[2],
        dtype=[["id", "<U4"], ["box", "<f4", [2, 3]], ["deep", [["x", "<i8"], ["y", "|b1"]]]],
        compressor=codec.get_config(),
        fill_value=base64.b64encode(fill.tobytes()).decode(),
    )
    read = zarr_v2.open(folder).array("a")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read[:], rows)
    assert read[3]["id"] == "d"


@pytest.mark.parametrize("dtype", ["<U2", ">U2", [["deep", [["text", "<U1", [2]]]]]])
def test_text_that_is_no_unicode(tmp_path, dtype):
    for index, code in enumerate((b"\xff\xff\xff\xff", b"a\0\0a")):
        files = {"0": bytes(8) + code + bytes(20)}
        folder = store_with(tmp_path / f"{index}.zarr", files, dtype=dtype, fill_value=None)
        with pytest.raises(DatasetError, match="no Unicode"):
            zarr_v2.open(folder).array("a")[:]


def test_an_array_without_axes(tmp_path):
    root = zarr.create_group(tmp_path / "s.zarr", zarr_format=2)
    root.create_array("a", shape=(), dtype="<i4")[...] = 7
    read = zarr_v2.open(tmp_path / "s.zarr").array("a")
    assert (read.ndim, read[...].shape, read[...]) == (0, (), 7)
    with pytest.raises(TypeError, match="without axes"):
        len(read)


def test_groups_list_what_they_hold(tmp_path):
    root = zarr.create_group(tmp_path / "s.zarr", zarr_format=2, attributes={"made": "here"})
    root.create_array("data/x", data=np.arange(3))
    (tmp_path / "s.zarr" / "notes").mkdir()
    store = zarr_v2.open(tmp_path / "s.zarr")
    assert list(store) == ["data"]
    assert list(store.group("data")) == ["x"]
    assert store.attrs == {"made": "here"}
    assert "data/x" in store
    assert "data/y" not in store
    for name in ("y", "../s.zarr", "", "/etc"):
        with pytest.raises(DatasetError, match="it holds"):
            store[name]
    with pytest.raises(DatasetError, match="is a group"):
        store.array("data")
    with pytest.raises(DatasetError, match="is an array"):
        store.group("data/x")


def test_zips_are_read_like_folders(tmp_path):
    values = np.random.default_rng(0).normal(size=(7, 3))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = tmp_path / f"{method}.zarr.zip"
        with zarr.storage.ZipStore(path, mode="w", compression=method) as packed:
            zarr.create_group(packed, zarr_format=2).create_array(
                "data/x", data=values, chunks=(2, 2)
            )
        store = zarr_v2.open(path)
        assert list(store) == ["data"]
        np.testing.assert_array_equal(store.array("data/x")[1:6], values[1:6])


def test_only_the_chunks_that_hold_the_rows_are_read(tmp_path):
    folder = store_with(
        tmp_path / "s.zarr",
        {"0": b"broken", "1": np.array([5, 6], "<i4").tobytes(), "2": b""},
        shape=[6],
        chunks=[2],
    )
    array = zarr_v2.open(folder).array("a")
    np.testing.assert_array_equal(array[2:4], [5, 6])
    np.testing.assert_array_equal(array[3:3], [])
    for rows in (slice(0, 1), slice(None), slice(4, 6)):
        with pytest.raises(DatasetError, match=r"a/[02].*expected 8"):
            array[rows]


def test_keys_that_are_no_rows(tmp_path):
    array = zarr_v2.open(store_with(tmp_path / "s.zarr")).array("a")
    for row in (4, -5):
        with pytest.raises(IndexError, match="of an array of 4"):
            array[row]
    with pytest.raises(IndexError, match="step"):
        array[::2]
    with pytest.raises(TypeError):
        array["x"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"zarr_format": 3}, "expected 2"),
        ({"shape": [-1]}, "expected up to 32 lengths"),
        ({"shape": [True]}, "lengths"),
        ({"shape": "4"}, "lengths"),
        ({"shape": [2**70]}, "lengths"),
        ({"shape": [0, 2**61, 2**61], "chunks": [1, 1, 1]}, "lengths"),
        ({"shape": [1] * 33, "chunks": [1] * 33}, "lengths"),
        ({"chunks": [0]}, "lengths"),
        ({"chunks": [2, 2]}, "do not fit shape"),
        ({"dtype": "|O"}, "Python objects"),
        ({"dtype": [["a", "|O8"]]}, "Python objects"),
        ({"dtype": "f8,(9999,9999)f8"}, "expected such as"),
        ({"dtype": "<f3"}, "dtype"),
        ({"dtype": "|V0"}, "elements of 0 bytes"),
        ({"dtype": "<U999999999"}, "dtype"),
        ({"dtype": [["a", "<f8", [2**20, 2**20]]]}, "dtype"),
        ({"dtype": [["a", "<f8", [-1]]]}, "field"),
        ({"dtype": [["a"]]}, "field"),
        ({"dtype": [["a", "<f8"], ["a", "<f8"]]}, "dtype"),
        ({"dtype": [["a", [["a", [["a", [["a", [["a", "<f8"]]]]]]]]]]}, "dtype"),
        ({"dtype": None}, "dtype"),
        ({"fill_value": 2**40}, "does not fit"),
        ({"fill_value": "x"}, "does not fit"),
        ({"fill_value": [1]}, "does not fit"),
        ({"fill_value": "nan", "dtype": "<f4"}, "does not fit"),
        ({"fill_value": "AAAAAAAAAAA=", "dtype": "|S4"}, "does not fit"),
        ({"order": "Z"}, "expected C or F"),
        ({"dimension_separator": "0"}, "expected C or F"),
        ({"filters": [{"id": "vlen-utf8"}]}, "vlen-utf8"),
        (
            {"compressor": {"id": "imagecodecs_jpegxl", "level": 9}},
            "imagecodecs_jpegxl.*imagecodecs",
        ),
        ({"compressor": {"id": ["blosc"]}}, "have: blosc"),
        ({"compressor": "blosc2"}, "have: blosc"),
        ({"compressor": "blosc"}, "have: blosc"),
    ],
)
def test_headers_that_are_refused(tmp_path, header, message):
    folder = store_with(tmp_path / "s.zarr", **header)
    with pytest.raises(DatasetError, match=message):
        zarr_v2.open(folder)["a"]


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"zarr_format": 1e999}'])
def test_metadata_that_is_no_object(tmp_path, raw):
    folder = store_with(tmp_path / "s.zarr")
    (folder / ".zgroup").write_bytes(raw)
    with pytest.raises(DatasetError):
        zarr_v2.open(folder)


def test_stores_that_are_none(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        zarr_v2.open(tmp_path / "none.zarr")
    with pytest.raises(DatasetError, match=r"no \.zgroup"):
        zarr_v2.open(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(DatasetError, match="no readable zip"):
        zarr_v2.open(tmp_path / "a.zip")
    zarr.create_group(tmp_path / "new.zarr", zarr_format=3)
    with pytest.raises(DatasetError, match="format 3"):
        zarr_v2.open(tmp_path / "new.zarr")


def peak_of(action):
    tracemalloc.start()
    try:
        with pytest.raises(DatasetError) as raised:
            action()
        return raised, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


BOMBS = {
    "shape": {"shape": [10**12], "chunks": [10**6]},
    "many chunks": {"shape": [10**12], "chunks": [1]},
    "chunk": {"shape": [4], "chunks": [10**12]},
}


@pytest.mark.parametrize("name", BOMBS)
def test_sizes_that_nothing_stored_accounts_for(tmp_path, name):
    folder = store_with(tmp_path / "s.zarr", {"0": b"12345678"}, **BOMBS[name])
    array = zarr_v2.open(folder).array("a")
    raised, peak = peak_of(lambda: array[:])
    assert "cannot hold that" in str(raised.value)
    assert peak < 10**6


def test_rows_of_a_huge_array_are_read(tmp_path):
    folder = store_with(
        tmp_path / "s.zarr",
        {"7": np.arange(10, dtype="<i4").tobytes()},
        shape=[10**12],
        chunks=[10],
        fill_value=3,
    )
    array = zarr_v2.open(folder).array("a")
    np.testing.assert_array_equal(array[69:72], [3, 0, 1])
    np.testing.assert_array_equal(array[10**12 - 2 :], [3, 3])


@pytest.mark.parametrize(
    ("codec", "packed"),
    [
        ("zlib", zlib.compress(bytes(10**8))),
        ("gzip", numcodecs.GZip().encode(bytes(10**8))),
        ("zstd", numcodecs.Zstd().encode(bytes(10**8))),
        ("lz4", numcodecs.LZ4().encode(bytes(10**8))[:4000]),
        ("blosc", numcodecs.Blosc().encode(bytes(10**8))[:4000]),
    ],
)
def test_chunks_that_unpack_to_more_than_they_should(tmp_path, codec, packed):
    folder = store_with(
        tmp_path / "s.zarr", {"0": packed}, compressor={"id": codec}, shape=[10**6], chunks=[10**6]
    )
    array = zarr_v2.open(folder).array("a")
    _, peak = peak_of(lambda: array[:])
    assert peak < 3 * 10**7


def test_chunk_files_longer_than_their_chunk_are_not_read(tmp_path):
    folder = store_with(tmp_path / "s.zarr", {"0": bytes(10**6)}, compressor={"id": "zlib"})
    array = zarr_v2.open(folder).array("a")
    raised, peak = peak_of(lambda: array[:])
    assert "at most" in str(raised.value)
    assert peak < 10**6


def test_a_zip_that_lies_about_its_sizes(tmp_path):
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(".zgroup", bytes(10**8))
    honest = path.read_bytes()
    _, peak = peak_of(lambda: zarr_v2.open(path))
    assert peak < 10**6
    path.write_bytes(honest.replace((10**8).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    _, peak = peak_of(lambda: zarr_v2.open(path))
    assert peak < 10**6


def test_zips_of_other_methods_and_with_passwords(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr(".zgroup", '{"zarr_format": 2}')
    with pytest.raises(DatasetError, match="have: store, deflate"):
        zarr_v2.open(tmp_path / "a.zip")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(".zgroup", '{"zarr_format": 2}')
    raw = bytearray(buffer.getvalue())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(raw)
    with pytest.raises(DatasetError, match="password"):
        zarr_v2.open(tmp_path / "b.zip")


def test_a_frame_that_does_not_say_its_length_is_read():
    # Zstandard as a stream: magic, no content size, a window, one raw last block of 4 bytes.
    frame = bytes.fromhex("28b52ffd0050") + (4 << 3 | 1).to_bytes(3, "little") + b"data"
    decoded = zarr_codecs.decode(frame, {"id": "zstd"}, 4, "here")
    assert bytes(decoded) == b"data"


def damaged(content, data):
    content = bytearray(content)
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start, min(start + 20, len(content))))
    content[start:end] = data.draw(st.binary(max_size=6))
    return bytes(content)


@settings(max_examples=100)
@given(codec=st.sampled_from(CODECS[1:]), data=st.data())
def test_damaged_chunks_give_data_or_a_fault(tmp_path_factory, codec, data):
    packed = codec.encode((np.arange(500, dtype="<i4") // 3).tobytes())
    folder = store_with(
        tmp_path_factory.mktemp("fuzz") / "s.zarr",
        {"0": damaged(packed, data)},
        shape=[500],
        chunks=[500],
        compressor=codec.get_config(),
    )
    with contextlib.suppress(DatasetError):
        assert zarr_v2.open(folder).array("a")[:].shape == (500,)


@settings(max_examples=50)
@given(data=st.data())
def test_damaged_headers_give_data_or_a_fault(tmp_path_factory, data):
    folder = store_with(tmp_path_factory.mktemp("fuzz") / "s.zarr", {"0": bytes(16)})
    header = folder / "a" / ".zarray"
    header.write_bytes(damaged(header.read_bytes(), data))
    with contextlib.suppress(DatasetError):
        zarr_v2.open(folder).array("a")[:]


@settings(max_examples=50)
@given(data=st.data())
def test_damaged_zips_give_data_or_a_fault(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(".zgroup", '{"zarr_format": 2}')
        archive.writestr("a/.zgroup", '{"zarr_format": 2}')
    (folder / "s.zip").write_bytes(damaged(buffer.getvalue(), data))
    with contextlib.suppress(DatasetError):
        list(zarr_v2.open(folder / "s.zip"))


def test_a_recorded_store_is_read(realdata):
    store = zarr_v2.open(realdata / "lyft_l5_zarr" / "single_scene.zarr")
    assert list(store) == ["agents", "frames", "scenes", "traffic_light_faces"]
    frames = store.array("frames")[:]
    assert (np.diff(frames["timestamp"]) > 0).all()
    assert frames["agent_index_interval"][-1, 1] == len(store.array("agents"))
    rotation = frames["ego_rotation"]
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), [np.eye(3)] * 248, atol=1e-6)
