"""The command that converts a model: rewrite a FunASR model as ONNX graphs, check them beside torch, keep them in the user's cache.

The service runs this itself where a model has no graphs yet. Progress is logged on stderr; exit code 0, or 3 where the model cannot be
converted, with the reason in the log and in a file beside the place where the graphs would be.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import structlog

from voice.conversion.convert import convert_model
from voice.errors import EXIT_MODEL, EXIT_OK, ModelLoadFailed, describe
from voice.models.converted import GRAPHS, conversion_path, source_digest
from voice.models.directory import describe_model
from voice.process.logs import configure_logs

_NICENESS = 10

log = structlog.get_logger()


def main() -> int:
    """Convert one model; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m voice.conversion", description="Rewrite a FunASR model as ONNX graphs.")
    parser.add_argument("directory", type=Path, metavar="MODEL_DIR", help="a FunASR model directory")
    parser.add_argument("--target", type=Path, metavar="DIR", help="where the graphs are kept (default: the user's cache)")
    parser.add_argument("--log-format", choices=("console", "json"), default="console", help="form of the log on stderr")
    arguments = parser.parse_args()
    configure_logs(arguments.log_format, "info")
    if hasattr(os, "nice"):
        os.nice(_NICENESS)  # a service may be recognising meanwhile
    directory = arguments.directory.absolute()
    try:
        description = describe_model(directory, tuple(GRAPHS))
        target: Path = arguments.target or conversion_path(description.model_class, source_digest(description))
    except ModelLoadFailed as error:
        log.error("conversion_failed", model=str(directory), error=describe(error))
        return EXIT_MODEL
    failed = target.with_suffix(".failed")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        log.error("conversion_failed", model=str(directory), error=f"{target.parent} cannot hold converted models ({describe(error)})")
        return EXIT_MODEL
    try:
        convert_model(directory, description, made)
        shutil.rmtree(target, ignore_errors=True)
        made.chmod(0o755)
        made.replace(target)
        failed.unlink(missing_ok=True)
    except Exception as error:  # noqa: BLE001 -- whatever a foreign model makes FunASR, torch or the graphs raise: torch runs it, or refuses it
        log.error("conversion_failed", model=str(directory), error=describe(error))
        with contextlib.suppress(OSError):
            failed.write_text(describe(error), encoding="utf-8", errors="backslashreplace")
        return EXIT_MODEL
    finally:
        shutil.rmtree(made, ignore_errors=True)
    log.info("converted", model=str(directory), target=str(target))
    return EXIT_OK
