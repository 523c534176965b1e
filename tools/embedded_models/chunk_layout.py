"""How training lays an utterance out in chunks, and what each frame and each token may attend to.

FunASR trains the streaming classes on another layout than its own streaming inference makes (1.4.16):

- in training the first chunk begins with the first frame; `forward_chunk` begins with as many frames of nought as a chunk has right
  context, so that every border lies elsewhere, and something may fire where nothing was heard;
- in training the frames of a chunk's right context see their own chunk alone; `forward_chunk` shows them the look-back as well;
- in training a token looks back at the centre of the chunk before its own; the cache of `forward_chunk` holds the last `stride` frames
  of the latest chunk in which a token fired, right context included.

A small model does not bear the difference: it repeats characters at the borders of chunks and at the beginning. `StreamingLayout` does
as inference does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


class StreamingLayout:
    """FunASR's layout of chunks, an `overlap_chunk`, made as its streaming inference makes it."""

    def __init__(self, layout: Any) -> None:
        self._layout = layout

    def __getattr__(self, name: str) -> Any:
        """All else is the layout's."""
        return getattr(self._layout, name)

    def gen_chunk_mask(self, lengths: torch.Tensor, ind: int = 0) -> Any:
        """Lay out utterances of `lengths` frames, (batch,), in the chunk pair `ind`, behind the frames of nought."""
        self._layout.get_chunk_size(ind)
        return self._layout.gen_chunk_mask(lengths + self._lead, ind)

    def split_chunk(self, frames: torch.Tensor, lengths: torch.Tensor, chunk_outs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, frames, width) -> the same laid out in chunks, and its lengths."""
        led = torch.nn.functional.pad(frames, (0, 0, self._lead, 0))
        return self._layout.split_chunk(led, lengths + self._lead, chunk_outs)

    def remove_chunk(self, frames: torch.Tensor, lengths: torch.Tensor, chunk_outs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The way back, the frames of nought left out."""
        whole, whole_lengths = self._layout.remove_chunk(frames, lengths, chunk_outs)
        return whole[:, self._lead :], whole_lengths - self._lead

    @property
    def _lead(self) -> int:
        return self.chunk_size_cur - self.stride_cur

    def get_mask_att_chunk_encoder(self, _: Any = None, device: torch.device | str = "cpu", batch_size: int = 1, **__: Any) -> torch.Tensor:
        """(batch, frames, frames): 1 where a frame attends to another: its own chunk, and the centre of those in the look-back."""
        chunk, offset = self._places()
        behind = chunk[:, None] - chunk[None, :]
        looked_back = (behind > 0) & (behind <= self.encoder_att_look_back_factor_cur) & (offset[None, :] < self.stride_cur)
        mask = ((behind == 0) | looked_back) & (offset[:, None] >= 0) & (offset[None, :] >= 0)
        return torch.from_numpy(mask.astype(np.float32)).to(device).expand(batch_size, -1, -1)

    def token_mask(self, firings: torch.Tensor, token_counts: torch.Tensor) -> torch.Tensor:
        """What the tokens attend to.

        Args:
            firings: (batch, frames), how many tokens fire at each frame.
            token_counts: (batch,), tokens of each utterance.

        Returns:
            (batch, tokens, frames) float32: 1 in the chunk a token fires in, and in the last `stride` frames of the latest chunk before
            it in which a token fired.
        """
        chunk, offset = (torch.from_numpy(place).to(firings.device) for place in self._places())
        tokens = torch.arange(1, int(token_counts.max()) + 1, device=firings.device)
        fired_at = (firings.cumsum(1)[:, None, :] < tokens[None, :, None]).sum(-1).clamp(max=len(chunk) - 1)
        chunk_of_token = chunk[fired_at]
        numbers = torch.full((len(firings), int(chunk.max()) + 1), -1, device=firings.device).scatter(1, chunk_of_token, chunk_of_token)
        latest = torch.nn.functional.pad(numbers.cummax(1).values[:, :-1], (1, 0), value=-1)
        before = latest.gather(1, chunk_of_token)[:, :, None]
        kept = (chunk == before) & (offset >= self._lead)
        spoken = (tokens <= token_counts[:, None])[:, :, None]
        return (((chunk == chunk_of_token[:, :, None]) | kept) & (offset >= 0) & spoken).float()

    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """(frames,) twice: the chunk of each frame laid out, and its place there; negative in the padding before the chunk."""
        frames = np.arange(int(self.x_len_chunk.max()))
        return frames // self.chunk_size_pad_shift_cur, frames % self.chunk_size_pad_shift_cur - self.shfit_fsmn


class WholeUtterance:
    """Stands where FunASR's layout of chunks stands, and leaves an utterance whole: no copies of context, no masks."""

    def random_choice(self, *_: Any) -> int:
        """The chunk pair; none is used."""
        return 0

    def gen_chunk_mask(self, *_: Any) -> None:
        """No layout."""

    def split_chunk(self, frames: torch.Tensor, lengths: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The frames as they are."""
        return frames, lengths

    def remove_chunk(self, frames: torch.Tensor, lengths: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The frames as they are."""
        return frames, lengths

    def get_mask_att_chunk_encoder(self, *_: Any, **__: Any) -> None:
        """Every frame attends to every other."""

    def get_mask_chunk_predictor(self, *_: Any, **__: Any) -> None:
        """Every frame may fire."""

    def get_mask_shfit_chunk(self, _: Any, device: torch.device | None = None, batch_size: int = 1, **__: Any) -> torch.Tensor:
        """No frame is padding between chunks."""
        return torch.ones(batch_size, 1, 1, device=device)
