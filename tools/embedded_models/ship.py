"""Copy what was trained into `models/embedded`, with SHA256SUMS: `python ship.py [--only asr]`.

The service compares the files with their sums when it loads them. `convert.py` then makes the graphs that ship beside them.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path

from shards import WORKSPACE

EMBEDDED = Path(__file__).resolve().parents[2] / "models" / "embedded"
MODELS = {"asr": "recognition", "punctuation": "punctuation", "emotion": "emotion", "speaker": "speaker"}
FILES = ("am.mvn", "config.yaml", "configuration.json", "language_model.npz", "model.pt", "tokens.json", "tokens.txt")


def ship(name: str) -> None:
    """One model."""
    source, target = WORKSPACE / MODELS[name], EMBEDDED / name
    target.mkdir(parents=True, exist_ok=True)
    sums = []
    for file in FILES:
        if (source / file).exists():
            shutil.copy(source / file, target / file)
            sums.append(f"{hashlib.sha256((target / file).read_bytes()).hexdigest()}  {file}")
    (target / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf8")


def main() -> None:
    """Ship all of them, or one."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", choices=MODELS)
    options = arguments.parse_args()
    for name in [options.only] if options.only else MODELS:
        if options.only or (WORKSPACE / MODELS[name] / "model.pt").exists():  # what was not trained here stays as it is
            ship(name)


if __name__ == "__main__":
    main()
