"""The root folders are one import package: the map, the links, and what may import what."""

import ast
import json
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ROOMS = {"accel", "configs", "datasets", "deploy", "policies", "sims"}
FILES = sorted(
    path.relative_to(ROOT) for room in (*ROOMS, "fastloop") for path in (ROOT / room).rglob("*.py")
)


def module_name(path):
    parts = path.with_suffix("").parts
    parts = parts if parts[0] == "fastloop" else ("fastloop", *parts)
    return ".".join(parts).removesuffix(".__init__")


def imported(path):
    """(line, module) of every import of a file, wherever in it."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            yield node.lineno, node.module


def test_wheel_map_is_the_folders():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["scikit-build"]["wheel"]["packages"]
    assert packages == {f"fastloop/{room}": room for room in ROOMS} | {"fastloop": "fastloop"}
    held = {path.parent.name for path in ROOT.glob("*/py.typed")}
    assert held == {*ROOMS, "fastloop"}, "a root folder with code is missing from the wheel's map"


def test_static_tools_see_the_rooms_through_links():
    links = ROOT / "tests/typing/fastloop"
    face = {"__init__.py", "extras.py"}  # all that a room may import of it
    assert {link.name for link in links.iterdir()} == ROOMS | face
    assert all((links / room).resolve() == ROOT / room for room in ROOMS)
    assert all((links / name).resolve() == ROOT / "fastloop" / name for name in face)


def test_datasets_has_no_init():
    assert not (ROOT / "datasets/__init__.py").exists(), (
        "with it, `import datasets` from this folder would find ours and not Hugging Face's: "
        "a package beats a folder without __init__.py, wherever on sys.path it is"
    )


def test_modules_import_by_their_installed_names():
    for path in FILES:
        for line, module in imported(path):
            root = module.split(".")[0]
            assert root not in ROOMS - {"datasets"}, f"{path}:{line}: say fastloop.{module}"
            if path.parts[0] != "fastloop" and root == "fastloop":
                part = (*module.split("."), "the face itself")[1]
                assert part in ROOMS | {"extras"}, f"{path}:{line}: a room imports {part}"


def test_accel_needs_torch_and_numpy_only():
    allowed = {*sys.stdlib_module_names, "numpy", "torch", "fastloop"}
    for path in FILES:
        if path.parts[0] == "accel":
            for line, module in imported(path):
                assert module.split(".")[0] in allowed, f"{path}:{line} imports {module}"


def optional_packages():
    """Import names of everything installed that `pip install fastloop` alone does not bring."""
    wanted, core = ["fastloop"], set()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name not in core:
            core.add(name)
            needs = [Requirement(line) for line in distribution(name).requires or []]
            wanted += [
                need.name
                for need in needs
                if need.marker is None or need.marker.evaluate({"extra": ""})
            ]
    return {
        package
        for package, owners in packages_distributions().items()
        if not core & {canonicalize_name(owner) for owner in owners}
    }


IMPORT_ALL = """
import importlib, json, sys
from importlib.machinery import PathFinder

optional, modules = json.load(sys.stdin)

class CoreOnly:
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in optional else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = CoreOnly()
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError as error:
        sys.exit(f"{module}: {error}")
"""


def test_every_module_imports_with_the_core_alone(tmp_path):
    given = json.dumps([sorted(optional_packages()), [module_name(path) for path in FILES]])
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        input=given,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, (
        done.stderr + "\nimport optional packages inside functions, through fastloop.extras.require"
    )
