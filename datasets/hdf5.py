"""HDF5 files: written whole or not at all, and arrays read from those that may be hostile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fastloop.datasets.demonstration import DemonstrationError

__all__ = ["check_within", "new_file", "numbers"]

MOST_COMPRESSED = 2000  # times; a made-up size must not take all memory


@contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """An empty file to fill; it is put at `path` when the block ends, in the old one's place.

    Raises:
        OSError: when the disk is full; an existing file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # HDF5 crashes the process when the disk runs full under it, so it writes to memory.
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(image)
        os.replace(partial, path)
    except OSError as error:
        kept = "the file that was there is untouched" if path.exists() else "nothing was written"
        raise OSError(error.errno, f"cannot write {path} ({error.strerror}); {kept}") from error
    finally:
        partial.unlink(missing_ok=True)


def numbers(
    dataset: h5py.Dataset | h5py.Group, where: str, rows: int | None = None
) -> NDArray[Any]:
    """The numbers of an array; of each of its frames the first `rows` rows, where not all.

    Args:
        where: ``<path of the file>:<what it belongs to>``, for messages.

    Raises:
        DemonstrationError: it is no array of numbers, says that it is larger than the file can
            hold, or is not in this file.
    """
    if isinstance(dataset, h5py.Group) or not np.issubdtype(dataset.dtype, np.number):
        kind = "a group" if isinstance(dataset, h5py.Group) else str(dataset.dtype)
        raise DemonstrationError(
            f"{where}: {dataset.name} is {kind}; an array of numbers is expected"
        )
    if dataset.nbytes > MOST_COMPRESSED * dataset.id.get_storage_size():
        raise DemonstrationError(
            f"{where}: {dataset.name} says that it has {dataset.nbytes} bytes; the file has not"
        )
    check_within(dataset, where)
    values: NDArray[Any] = dataset[:] if rows is None else dataset[:, :rows]
    return values


def check_within(dataset: h5py.Dataset, where: str) -> None:
    """Refuse an array in another file, or with several names.

    A file can name any other file, of HDF5 or not, as the place of its numbers, and few numbers by
    many names.
    """
    if h5py.h5o.get_info(dataset.id).rc > 1:
        raise DemonstrationError(f"{where}: {dataset.name} is there under other names, too")
    if dataset.external or dataset.is_virtual or not where.startswith(f"{dataset.file.filename}:"):
        raise DemonstrationError(f"{where}: {dataset.name} is in another file; it is not followed")
