"""ONNX Runtime sessions that leave the machine alone: no threads that spin, no telemetry.

Graph file -> ``InferenceSession``. No state. Raises ``ModelLoadFailed``.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from voice.errors import ModelLoadFailed, describe


def open_session(graph: Path, num_threads: int = 1) -> Any:
    """Load a graph and the weights beside it.

    Args:
        graph: ``NAME.onnx``.
        num_threads: of one operation.

    Raises:
        ModelLoadFailed: onnxruntime cannot be imported, or a file is missing, damaged or beyond this version of it.
    """
    onnxruntime = _onnxruntime()
    load_errors: tuple[type[Exception], ...] = (OSError, ValueError, *session_errors())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised; nothing else belongs on stderr
    options.enable_mem_pattern = False  # of shapes that change from call to call
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except load_errors as error:
        raise ModelLoadFailed(f"{graph} cannot be loaded ({describe(error)[:300]})") from error


@functools.cache
def session_errors() -> tuple[type[Exception], ...]:
    """What a session raises; onnxruntime's exceptions have no base class of their own."""
    _onnxruntime()
    from onnxruntime.capi import onnxruntime_pybind11_state as native  # noqa: PLC0415

    return tuple(each for each in vars(native).values() if isinstance(each, type) and issubclass(each, Exception))


def disable_telemetry() -> None:
    """Keep ONNX Runtime from sending anything to anybody; called before it is imported, by whomever.

    The wheels of 1.32 collect events, make an identifier and a database in the user's cache, and upload over HTTPS. Their own switch in
    Python comes too late for the identifier.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def _onnxruntime() -> Any:
    disable_telemetry()
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError as error:
        reason = "the package onnxruntime cannot be imported; run: pip install -r requirements.txt"
        raise ModelLoadFailed(f"{reason} ({describe(error)})") from error
    return onnxruntime
