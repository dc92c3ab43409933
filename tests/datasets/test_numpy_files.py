"""NumPy files come out as NumPy reads them; what they say of themselves takes no memory."""

import contextlib
import io
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastloop.datasets.errors import DatasetError
from fastloop.datasets.numpy_files import read_npy, read_npz

ARRAYS = {
    "numbers": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    "words": np.array(["a", "bcd"]),
    "empty": np.zeros((0, 3)),
    "one": np.array(True),
}


def header(shape, dtype="<f8"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_2_0(
        stream, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


def test_arrays_come_out_as_they_went_in(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **ARRAYS, more=np.zeros(3))
    found = read_npz(tmp_path / "a.npz", ARRAYS)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.save(tmp_path / "a.npy", array)
        for read in (found[name], read_npy(tmp_path / "a.npy")):
            np.testing.assert_array_equal(read, array)
            assert read.dtype == array.dtype


@pytest.mark.parametrize("shape", [(10**12,), (10**30, 0), (2**63, 2**63), (-1, -1), ()])
@pytest.mark.parametrize("dtype", ["<U0", "<f8", "<U9", "|O", "<M8[s]", "|V8"])
def test_a_header_without_its_bytes_is_refused(tmp_path, shape, dtype):
    (tmp_path / "a.npy").write_bytes(header(shape, dtype))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", header(shape, dtype))
    with pytest.raises(DatasetError, match=r"a\.npy"):
        read_npy(tmp_path / "a.npy")
    with pytest.raises(DatasetError, match=r"a\.npz"):
        read_npz(tmp_path / "a.npz", ["a"])


@pytest.mark.parametrize("dtype", ["<U2", ">U2"])
def test_words_that_are_no_unicode_are_refused(tmp_path, dtype):
    (tmp_path / "a.npy").write_bytes(header((1,), dtype) + b"\x7f" * 8)
    with pytest.raises(DatasetError, match=r"a\.npy.*no Unicode"):
        read_npy(tmp_path / "a.npy")


def test_what_is_no_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(DatasetError, match="is missing, or no file"):
            read_npy(path)
        with pytest.raises(DatasetError, match="is missing, or no file"):
            read_npz(path, ["a"])


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_are_data_or_a_fault(tmp_path, data):
    stream = io.BytesIO()
    np.savez_compressed(stream, **ARRAYS)
    raw = bytearray(stream.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=8)):
        raw[place] = data.draw(st.integers(0, 255))
    (tmp_path / "a").write_bytes(raw)
    for read in (lambda: read_npz(tmp_path / "a", ARRAYS), lambda: read_npy(tmp_path / "a")):
        with contextlib.suppress(DatasetError):
            read()
