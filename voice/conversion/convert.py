"""One model from FunASR's directory to a directory of graphs that were checked.

Description -> graphs, self-test, ``conversion.json``. In a process of its own: torch and the model stay in it. Raises ``Unconvertible`` for
a model that has no graphs or whose graphs do not compute what torch computes, ``ModelLoadFailed`` for one that cannot be loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from voice.conversion.check import check_emotion, check_punctuation, check_recognition, check_speaker
from voice.conversion.emotion import convert_emotion
from voice.conversion.graph import Precision
from voice.conversion.paraformer import convert_paraformer, paraformer_settings
from voice.conversion.punctuation import convert_punctuation, punctuation_settings
from voice.conversion.selftest import byte_precision, write_self_test
from voice.conversion.speaker import convert_speaker
from voice.models.converted import write_description
from voice.models.directory import Description
from voice.models.funasr_model import FunasrModel
from voice.models.loader import load_model

log = structlog.get_logger()


def convert_model(directory: Path, description: Description, target: Path) -> None:
    """Load a model, write its graphs, and compare them with it.

    Args:
        directory: FunASR's.
        description: of it.
        target: exists and is empty.

    Raises:
        ModelLoadFailed: the model cannot be loaded.
        Unconvertible: there are no graphs for it, or they failed the comparison.
        OSError: a file cannot be written.
    """
    log.info("conversion_loading", model=str(directory))
    model = load_model(directory, description.model_class, "cpu", with_language=False)  # graphs do not depend on it
    log.info("conversion_writing", parameters=model.num_parameters)
    write_graphs(model, description, target)
    log.info("conversion_checking")
    _CONVERTERS[description.model_class].check(model, target)


def write_graphs(model: FunasrModel, description: Description, target: Path, precision: Precision | None = None) -> None:
    """Write all that ``voice.models.converted.load_converted`` reads, without a comparison.

    Args:
        model: loaded.
        description: of its directory.
        target: exists and is empty.
        precision: of the weights; None chooses.

    Raises:
        Unconvertible: there are no graphs for it.
        OSError: a file cannot be written.
    """
    converter = _CONVERTERS[description.model_class]
    precision = precision or _precision(model)
    converter.write(model.module, target, precision)
    if precision == "int8":
        write_self_test(target)
    settings = {"precision": precision, "parameters": model.num_parameters, "num_tokens": len(model.tokens), **converter.settings(model)}
    write_description(target, description, settings)


def _precision(model: FunasrModel) -> Precision:
    """A small model's weights stay in a processor's cache as they are: one byte for each would spare little and cost accuracy."""
    return byte_precision() if model.is_large else "float32"


@dataclass(frozen=True, slots=True)
class _Converter:
    """Of one FunASR class."""

    write: Callable[[Any, Path, Precision], None]
    """Module, directory, precision."""
    settings: Callable[[FunasrModel], dict[str, Any]]
    check: Callable[[FunasrModel, Path], None]


_CONVERTERS = {
    "ParaformerStreaming": _Converter(convert_paraformer, paraformer_settings, check_recognition),
    "CTTransformer": _Converter(convert_punctuation, lambda model: punctuation_settings(model.module), check_punctuation),
    "Emotion2vec": _Converter(convert_emotion, lambda _: {}, check_emotion),
    "CAMPPlus": _Converter(convert_speaker, lambda _: {}, check_speaker),
}
