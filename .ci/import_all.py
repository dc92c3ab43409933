"""Import every module that the installed fastloop holds, found by its files."""

import importlib
from importlib.metadata import files

modules = sorted(
    str(file.with_suffix("")).removesuffix("/__init__").replace("/", ".")
    for file in files("fastloop") or []
    if file.suffix == ".py"
)
assert modules, "the distribution fastloop holds no module"
for module in modules:
    importlib.import_module(module)
print(f"{len(modules)} modules of fastloop imported, with its core requirements alone")
