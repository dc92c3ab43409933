"""The OpenGL backend: what is chosen where, and what is said where there is none."""

from __future__ import annotations

import pytest

from fastloop.sims import gl


@pytest.mark.parametrize(("there", "chosen"), [(True, "egl"), (False, "disabled")])
def test_egl_where_it_is_and_none_elsewhere(monkeypatch, there: bool, chosen: str) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "egl_is_there", lambda: there)
    gl.choose_backend()
    assert gl.os.environ["MUJOCO_GL"] == chosen


def test_the_users_choice_stays(monkeypatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    gl.choose_backend()
    gl.require_gl()
    assert gl.os.environ["MUJOCO_GL"] == "osmesa"


def test_without_egl_the_install_line_is_given(monkeypatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(gl.NoRenderingError, match=r"apt-get install .* libegl1"):
        gl.require_gl()
