"""Convert the embedded models to the graphs that ship beside them, `models/embedded/NAME/onnx`: `python convert.py [--only asr]`.

After `ship.py`, and after a change of `voice/conversion` (which raises its version): the service takes graphs of another version, or of
other weights, for none, and would convert the models on each user's machine.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
EMBEDDED = REPOSITORY / "models" / "embedded"
MODELS = ("asr", "punctuation", "emotion", "speaker")
LIMIT_BYTES = 64 * 2**20


def main() -> None:
    """Convert all of them, or one."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", choices=MODELS)
    options = arguments.parse_args()
    for name in [options.only] if options.only else MODELS:
        graphs = EMBEDDED / name / "onnx"
        subprocess.run([sys.executable, "-m", "voice.conversion", EMBEDDED / name, "--target", graphs], cwd=REPOSITORY, check=True)
        sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in sorted(graphs.iterdir())]
        (graphs / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf8")
    size = sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file())
    print(f"models/embedded: {size / 2**20:.1f} MiB")
    if size >= LIMIT_BYTES:
        raise SystemExit(f"that is too much: the limit is {LIMIT_BYTES // 2**20} MiB")


if __name__ == "__main__":
    main()
