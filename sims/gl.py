"""OpenGL without a display: the backend of MuJoCo, chosen before MuJoCo is imported."""

from __future__ import annotations

import ctypes
import os

__all__ = ["EGL_INSTALL", "NoRenderingError", "choose_backend", "egl_is_there", "require_gl"]

EGL_INSTALL = (
    "apt-get install -y --no-install-recommends "
    "libegl1 libegl-mesa0 libopengl0 libgl1-mesa-dri libgl1"
)


class NoRenderingError(RuntimeError):
    """Pictures were asked for where no OpenGL library is; the message holds the install line."""


def egl_is_there() -> bool:
    """Whether the libraries that MuJoCo's EGL backend opens can be loaded."""
    try:
        for library in ("libEGL.so.1", "libOpenGL.so.0"):
            ctypes.CDLL(library)
    except OSError:
        return False
    return True


def choose_backend() -> None:
    """Set ``MUJOCO_GL`` unless the user did: EGL, or none at all where EGL is missing.

    MuJoCo reads it once, at import, and cannot even be imported with a backend that is missing.
    PyOpenGL, which MuJoCo draws through, chooses once too: for whoever imports it first.
    """
    if os.environ.setdefault("MUJOCO_GL", "egl" if egl_is_there() else "disabled") == "egl":
        os.environ.setdefault("PYOPENGL_PLATFORM", "egl")


def require_gl() -> None:
    """Check that pictures can be drawn.

    Raises:
        NoRenderingError: with the line that installs software EGL.
    """
    if os.environ.get("MUJOCO_GL") == "disabled":
        raise NoRenderingError(
            "pictures of this simulator need OpenGL, and EGL is not installed "
            f"(or MUJOCO_GL=disabled). Software EGL on Debian and Ubuntu:\n    {EGL_INSTALL}"
        )
