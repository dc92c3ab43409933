"""The public names, and what it costs to say `import fastloop`."""

import importlib.metadata
import subprocess
import sys

import pytest

import fastloop


def test_every_public_name_is_what_it_says():
    from fastloop.accel.apply import accelerate
    from fastloop.accel.config import AccelConfig
    from fastloop.policies.base import Plan, Policy
    from fastloop.policies.history import History
    from fastloop.policies.load import load_policy
    from fastloop.policies.rng import Rng
    from fastloop.policies.session import Session

    found = {
        "AccelConfig": AccelConfig, "History": History, "Plan": Plan, "Policy": Policy, "Rng": Rng,
        "Session": Session, "accelerate": accelerate, "load_policy": load_policy,
        "__version__": importlib.metadata.version("fastloop"),
    }  # fmt: skip
    assert sorted(found) == sorted(fastloop.__all__)
    for name, value in found.items():
        assert getattr(fastloop, name) is value or value == getattr(fastloop, name)
        assert name in dir(fastloop)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'fastloop' has no attribute 'accelerated'"):
        fastloop.accelerated  # noqa: B018
    with pytest.raises(ImportError):
        from fastloop import nothing  # noqa: F401


def test_importing_it_imports_nothing_else():
    """What makes it take no time, measured by what it does not load."""
    code = (
        "import sys; before = set(sys.modules); import fastloop; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['fastloop']"
