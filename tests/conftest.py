"""What every test finds: poisoned memory, skips that say why, and real recordings."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

from fastloop.sims.gl import EGL_INSTALL, choose_backend, egl_is_there

ROOT = Path(__file__).parents[1]
REALDATA = Path(os.environ.get("FASTLOOP_REALDATA") or ROOT.parent / "shared" / "realdata")

choose_backend()  # before a test imports PyOpenGL by way of somebody else

# The networks of tests are small: on a busy machine several threads take a hundred times as long.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the processes that tests start

# A machine under load is slow, not wrong.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")


def pytest_collection_modifyitems(items):
    """Skip what this machine cannot run."""
    missing = {}
    if not egl_is_there():
        missing["gl"] = f"renders through EGL, which is missing: {EGL_INSTALL}"
    if not torch.cuda.is_available():
        missing["gpu"] = "needs a CUDA device"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def poisoned_memory(request, monkeypatch):
    """Under tests/accel, fresh tensors hold NaN (integers: their largest), so reading one shows."""
    if ROOT / "tests" / "accel" not in request.path.parents:
        return

    def poisoned(allocate):
        def wrapper(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            if tensor.is_floating_point() or tensor.is_complex():
                return tensor.detach().fill_(torch.nan).requires_grad_(tensor.requires_grad)
            if tensor.dtype != torch.bool:
                tensor.fill_(torch.iinfo(tensor.dtype).max)
            return tensor

        return wrapper

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real recordings."""
    if not REALDATA.is_dir():
        pytest.skip(f"no recordings at {REALDATA}: FASTLOOP_REALDATA names their folder")
    return REALDATA
