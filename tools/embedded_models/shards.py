"""Shards of speech: files of utterances that the steps hand to each other.

A shard is an npz file with `audio` (int16, 16 kHz, all utterances one after the other) and `index` (JSON: of each utterance what is known
of it, and `samples`, its number of samples).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORKSPACE = Path(__file__).resolve().parents[2] / ".cache" / "embedded_models"
SAMPLE_RATE_HZ = 16_000
_WINDOW, _SHIFT = 400, 160
_SLOWEST_SEC = 0.575  # a character


def read_shard(path: Path) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """The index of a shard and its clips, int16."""
    with np.load(path) as shard:
        index, audio = json.loads(str(shard["index"])), shard["audio"]
    return index, np.split(audio, np.cumsum([entry["samples"] for entry in index])[:-1])


def write_shard(path: Path, entries: Sequence[dict[str, Any]], clips: Sequence[np.ndarray]) -> None:
    """One shard, whole or not at all; clips are int16, or float of any scale, and then get a peak of 0.7 of full scale."""
    written = [clip if clip.dtype == np.int16 else (clip / (np.abs(clip).max() + 1e-9) * 0.7 * 32767).astype(np.int16) for clip in clips]
    index = [{**entry, "samples": len(clip)} for entry, clip in zip(entries, written, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, audio=np.concatenate(written), index=json.dumps(index, ensure_ascii=False))
    partial.rename(path)


def trimmed(audio: np.ndarray, share: float = 0.02, around: int = 640) -> np.ndarray:
    """From the first to the last 25 ms above a share of the loudest amplitude, and so many samples around them."""
    starts = np.arange(0, max(1, len(audio) - _WINDOW + 1), _SHIFT)
    energy = np.concatenate([[0.0], np.cumsum(audio.astype(np.float64) ** 2)])
    levels = energy[np.minimum(starts + _WINDOW, len(audio))] - energy[starts]
    loud = starts[levels > share**2 * levels.max()] if levels.max() > 0 else starts
    return audio[max(0, loud[0] - around) : loud[-1] + _WINDOW + around]


def says_more(text: str, clip: np.ndarray) -> bool:
    """Whether a recorded sentence says more than its label: the labels of AISHELL-1 here have lost all words in Latin letters."""
    seconds_a_character = len(clip) / SAMPLE_RATE_HZ / len(text)
    return text == "打开" or (len(text) >= 4 and seconds_a_character > _SLOWEST_SEC)
