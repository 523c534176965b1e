"""Foundation: where the files are that come with the service. No state but what the import finds; any thread.

In a checkout ``config/``, ``models/embedded/`` and ``examples/`` stand beside this package; in an installed package they stand inside it.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
IMPORT_ROOT = PACKAGE.parent
"""The directory from which ``voice`` is imported."""
_INSTALLED = PACKAGE / "_data"
DATA = _INSTALLED if _INSTALLED.is_dir() else IMPORT_ROOT
"""Holds ``config/``, ``models/embedded/`` and ``examples/``."""
EMBEDDED = DATA / "models" / "embedded"
EXAMPLES = DATA / "examples"
