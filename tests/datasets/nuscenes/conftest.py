"""Roots of nuScenes to read: invented ones of any shape, and the ten scenes of mini."""

import base64
import runpy
import tarfile
from pathlib import Path

import pytest

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="session")
def write_root():
    """The function that writes an invented root, with the pictures that the devkit asks for."""
    written = runpy.run_path(str(Path(__file__).with_name("synthetic.py")))

    def write(root, **shape):
        written["write_root"](root, **shape)
        for location in written["LOCATIONS"]:
            (root / "maps" / f"{location}.png").write_bytes(PNG)
        return root

    return write


@pytest.fixture(scope="session")
def invented(write_root, tmp_path_factory):
    """A root of three drives of 14, 13 and 12 keyframes, with two cameras."""
    folder = tmp_path_factory.mktemp("invented")
    return write_root(folder, scenes=3, lengths=[14, 13, 12], boxes=25, cameras=True)


@pytest.fixture(scope="session")
def mini(realdata, tmp_path_factory):
    """The root of the ten scenes of mini."""
    folder = tmp_path_factory.mktemp("mini")
    archive = realdata / "nuscenes_mini_tables" / "nusc_mini_reconstructed.tar.gz"
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return next(folder.rglob("v1.0-mini")).parent


@pytest.fixture(scope="session", params=["invented", "mini"])
def both(request):
    """One root after the other."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def devkit(both):
    """The devkit's view of the same root."""
    pytest.importorskip("nuscenes")
    from nuscenes import NuScenes

    return NuScenes("v1.0-mini", str(both), verbose=False)
