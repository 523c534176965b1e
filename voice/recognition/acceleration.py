"""What makes a loaded Paraformer faster on a CPU without changing what it computes.

Called once, by the owner of the model, which it changes in place. Measured in bench/README.md: a chunk of the full-size model is mostly
matrix products of 15 rows with weights that do not fit a cache, and small operations around them.
"""

from __future__ import annotations

from typing import Any

import torch

_ROWS = 15
"""Rows the weights are packed for: a chunk with its look-ahead. Other counts work, too."""
_FIRST_POSITIONS = 1024


class PackedLinear(torch.nn.Module):
    """A linear layer whose weights are laid out for oneDNN; equal to ``torch.nn.Linear`` but for rounding (2e-6)."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        # What torch's own compiler emits for a frozen linear layer on a CPU; the public mkldnn modules convert every input.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.data, _ROWS)  # noqa: SLF001
        self._bias = None if linear.bias is None else linear.bias.data

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """float32, (..., in_features) -> (..., out_features)."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")  # noqa: SLF001
        return result


class RememberedPositions(torch.nn.Module):
    """FunASR's ``StreamSinusoidalPositionEncoder``, whose table it computes anew at every chunk: 14 ms after a minute of speech."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self._encoder = encoder
        self._table: torch.Tensor | None
        self.register_buffer("_table", None, persistent=False)  # moves with the model

    def forward(self, frames: torch.Tensor, cache: dict[str, Any]) -> torch.Tensor:
        """Add the encodings of the positions that follow ``cache["start_idx"]``, and advance it."""
        start = cache["start_idx"]
        end = cache["start_idx"] = start + frames.shape[1]
        if self._table is None or end > self._table.shape[1]:
            positions = torch.arange(1, max(_FIRST_POSITIONS, 2 * end) + 1)[None]
            self._table = self._encoder.encode(positions, frames.shape[2], frames.dtype).to(frames.device)
        return frames + self._table[:, start:end]


def accelerate(model: Any, *, pack: bool) -> None:
    """Change a ``ParaformerStreaming`` in place; the second time it finds nothing to do. The predictor stays as it is.

    CIF decides with a threshold where a token fires: its own layers keep FunASR's rounding.

    Args:
        model: the torch module, on its device.
        pack: lay linear layers out for oneDNN; for large models on a CPU. A small one's weights stay in the cache as they are.
    """
    if type(model.encoder.embed).__name__ == "StreamSinusoidalPositionEncoder":
        model.encoder.embed = RememberedPositions(model.encoder.embed)
    if pack and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        for part in (model.encoder, model.decoder):
            _pack_linears(part)


def _pack_linears(module: torch.nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is torch.nn.Linear:
            setattr(module, name, PackedLinear(child))
        else:
            _pack_linears(child)
