"""A loaded FunASR model: its module, vocabulary, tokenizer, frontend and device.

Holds the device, which changes once: an accelerator that runs out of memory is left for the CPU, for good. Used by one thread at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from voice.errors import describe
from voice.models.language_model import LanguageModel

_LARGE_PARAMETERS = 20_000_000

log = structlog.get_logger()

_Result = TypeVar("_Result")


class AcceleratorOutOfMemory(RuntimeError):
    """The accelerator had no memory left; the model is on the CPU now, and what was computed on the accelerator is lost."""


@dataclass(slots=True)
class FunasrModel:
    """A model in evaluation mode on its device, every weight of it read from its file."""

    directory: Path
    module: Any
    """The torch module, an instance of the class that config.yaml names."""
    tokens: tuple[str, ...]
    """The vocabulary, index = id; empty for a model without one."""
    tokenizer: Any
    frontend: Any
    """FunASR's feature extraction with its mean and variance, dither off; None for a model that takes samples."""
    device: str
    num_parameters: int
    language: LanguageModel | None = None
    """None where its directory has no language model."""

    @property
    def is_large(self) -> bool:
        """Whether its weights do not fit a processor's cache: then packing them pays, and sharing its work between threads."""
        return self.num_parameters > _LARGE_PARAMETERS

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Around what the model computes, without gradients: an accelerator that runs out of memory is left for the CPU, for good.

        Raises:
            AcceleratorOutOfMemory: that happened; the computation can be started again.
        """
        import torch  # noqa: PLC0415

        try:
            with torch.inference_mode():
                yield
        except RuntimeError as error:
            if self.device == "cpu" or not is_out_of_memory(error):
                raise
            left = self.device
            self.move_to_cpu()
            raise AcceleratorOutOfMemory(f"{left} has no memory left; the model goes on on the CPU ({describe(error)[:200]})") from error

    def run(self, compute: Callable[[], _Result]) -> _Result:
        """What ``compute`` gives, which keeps nothing on the device; it is called again on the CPU where an accelerator was left."""
        try:
            with self.computing():
                return compute()
        except AcceleratorOutOfMemory:
            with self.computing():
                return compute()

    def move_to_cpu(self) -> None:
        """Leave the accelerator for good, with a log line."""
        import torch  # noqa: PLC0415

        log.warning("accelerator_out_of_memory", model=str(self.directory), device=self.device, instead="cpu")
        self.module.to("cpu")
        self.device = "cpu"
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Of an accelerator: torch's own exception, or what CUDA's libraries say."""
    import torch  # noqa: PLC0415

    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or ("cuda" in said and "out of memory" in said) or "alloc_failed" in said
