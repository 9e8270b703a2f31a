"""Scripts of `packaging`, loaded by their path: the folder cannot be imported, its name is that of a library."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PACKAGING = Path(__file__).parents[1] / "packaging"


def load(file: str) -> ModuleType:
    """Return the script in *file* as a module."""
    name = f"packaging_{Path(file).stem}"
    spec = importlib.util.spec_from_file_location(name, PACKAGING / file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
