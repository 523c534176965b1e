"""Synthetic emotional prosody: `python prosody.py [--jobs 2]`, in the synthesis environment, after synthesize.py.

Neutral synthetic speech is taken apart by the WORLD vocoder (pitch contour, spectral envelope, aperiodicity), changed as the
literature describes each emotion's voice, and put together again. The directions of the changes are those on which these reviews
agree; the sizes are ours, large enough to hear:

- K. R. Scherer (2003), Vocal communication of emotion: a review of research paradigms. Speech Communication 40, table 4.
- P. N. Juslin, P. Laukka (2003), Communication of emotions in vocal expression and music performance. Psychological Bulletin
  129(5), table 7.
- I. R. Murray, J. L. Arnott (1993), Toward the simulation of emotion in synthetic speech. JASA 93(2), table I.

These are styles of synthetic speech. A model that tells them apart claims nothing about what a person feels.

Two labels have no emotion of their own: `other` is whispered speech, `<unk>` is no speech at all (noise). Training takes the
training voices and sentences; the test takes the held out ones. Written to `emotion/train.npz` and `emotion/test.npz`,
shards with the label as `kind` (shards.py).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from shards import SAMPLE_RATE_HZ, WORKSPACE, read_shard, write_shard
from tqdm import tqdm

LABELS = ("angry", "disgusted", "fearful", "happy", "neutral", "other", "sad", "surprised", "<unk>")
SYNTHESIZERS = ("espeak", "kokoro")
FRAME_MS = 8.0
TRAIN_PER_LABEL, TEST_PER_LABEL = 450, 60
Range = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """How a voice is changed; each figure is drawn from its range for every utterance."""

    pitch: Range = (0.94, 1.06)
    """Factor of the mean pitch."""
    span: Range = (0.9, 1.1)
    """Factor of the pitch's deviations from its mean, in semitones."""
    rate: Range = (0.94, 1.06)
    """Factor of the speaking rate."""
    tilt_db: Range = (-0.5, 0.5)
    """dB an octave above 500 Hz: effort makes the spectrum brighter, lack of it darker."""
    rise: Range = (-0.5, 0.5)
    """Semitones the pitch has risen by at the end of the utterance, over its last third."""
    tremor: Range = (0.0, 0.0)
    """Depth in semitones of a 6 to 9 Hz shake of the pitch, with half as much disorder from frame to frame."""
    dynamics: Range = (0.95, 1.05)
    """Exponent of the loudness contour: more than 1 stresses the loud syllables."""
    breath: Range = (0.0, 0.05)
    """Share of noise mixed into the voice; 1 is a whisper."""


STYLES = {
    "angry": Style((1.15, 1.4), (1.3, 1.7), (1.15, 1.4), (2.5, 4.5), (-3, -1), dynamics=(1.3, 1.7)),
    "disgusted": Style((0.68, 0.82), (1.2, 1.5), (0.62, 0.78), (-1, 1), (-4, -2), tremor=(0.8, 1.4)),
    "fearful": Style((1.35, 1.7), (0.4, 0.65), (1.2, 1.45), (-1, 0.5), (0, 1.5), tremor=(0.9, 1.6), breath=(0.1, 0.25)),
    "happy": Style((1.3, 1.55), (1.6, 2.1), (1.02, 1.15), (0.5, 1.8), (0.5, 2), dynamics=(1.05, 1.2)),
    "neutral": Style(),
    "other": Style((0.9, 1.1), (0.9, 1.1), (0.85, 1.1), breath=(1.0, 1.0)),
    "sad": Style((0.8, 0.92), (0.25, 0.5), (0.62, 0.78), (-5, -3), (-2.5, -1), dynamics=(0.7, 0.85), breath=(0.15, 0.35)),
    "surprised": Style((1.5, 1.9), (1.8, 2.4), (0.8, 0.95), (-0.5, 0.8), (6, 10), dynamics=(1.1, 1.3)),
}


def restyle(audio: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Speech in a style.

    Args:
        audio: (n,) float64, 16 kHz, full scale 1.
        style: what to change.
        rng: draws the figures.

    Returns:
        (n / rate,) float64, peak 0.7.
    """
    import pyworld

    draw = {name: rng.uniform(*getattr(style, name)) for name in Style.__dataclass_fields__}
    f0, times = pyworld.dio(audio, SAMPLE_RATE_HZ, f0_floor=60, f0_ceil=500, frame_period=FRAME_MS)
    f0 = pyworld.stonemask(audio, f0, times, SAMPLE_RATE_HZ)
    envelope = pyworld.cheaptrick(audio, f0, times, SAMPLE_RATE_HZ)
    aperiodicity = pyworld.d4c(audio, f0, times, SAMPLE_RATE_HZ)

    source = np.arange(0, len(f0) - 1, draw["rate"]).astype(int)  # frames repeated or left out
    f0, envelope, aperiodicity = f0[source], envelope[source].copy(), aperiodicity[source].copy()
    f0 = _restyled_pitch(f0, draw, rng)

    hz = np.linspace(0, SAMPLE_RATE_HZ / 2, envelope.shape[1])
    envelope *= 10 ** (draw["tilt_db"] * np.log2(np.maximum(hz, 500) / 500) / 10)
    power = envelope.sum(1, keepdims=True)
    envelope *= (power / power.max() + 1e-6) ** (draw["dynamics"] - 1)
    aperiodicity = np.clip(aperiodicity + draw["breath"], 0, 1) if draw["breath"] < 1 else np.ones_like(aperiodicity)

    spoken = pyworld.synthesize(f0, np.ascontiguousarray(envelope), aperiodicity, SAMPLE_RATE_HZ, FRAME_MS)
    return spoken / (np.abs(spoken).max() + 1e-9) * 0.7


def _restyled_pitch(f0: np.ndarray, draw: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    voiced = f0 > 0
    if not voiced.any():
        return f0
    semitones = 12 * np.log2(np.where(voiced, f0, 1))
    mean = semitones[voiced].mean()
    time = np.arange(len(f0)) * FRAME_MS / 1000
    shake = draw["tremor"] * (np.sin(2 * np.pi * rng.uniform(6, 9) * time) + 0.5 * rng.standard_normal(len(f0)))
    ending = np.clip(np.linspace(-2, 1, len(f0)), 0, 1) * draw["rise"]
    changed = mean + 12 * np.log2(draw["pitch"]) + (semitones - mean) * draw["span"] + shake + ending
    return np.where(voiced, np.clip(2 ** (changed / 12), 55, 700), 0.0)


def make_utterance(job: tuple[np.ndarray, str, str, list[int]]) -> tuple[str, str, np.ndarray]:
    """(clip, voice, label, seed) -> (label, voice, int16 audio)."""
    clip, voice, label, seed = job
    rng = np.random.default_rng(seed)
    if label == "<unk>":
        noise = np.cumsum(rng.standard_normal(len(clip))) if rng.random() < 0.4 else rng.standard_normal(len(clip))
        noise = noise - np.convolve(noise, np.ones(800) / 800, "same")
        return label, "noise", (noise / np.abs(noise).max() * rng.uniform(0.02, 0.7) * 32767).astype(np.int16)
    audio = clip.astype(np.float64) / 32768
    if not (label == "neutral" and rng.random() < 0.5):  # half the neutral ones never met the vocoder
        audio = restyle(audio, STYLES[label], rng)
    return label, voice, (audio * 32767).astype(np.int16)


def read_clips(folder: Path, needed: int) -> list[tuple[np.ndarray, str]]:
    """(clip, voice) of at least 1 s out of a set's synthetic shards, the synthesizers in turn."""
    found: dict[str, list[tuple[np.ndarray, str]]] = {name: [] for name in SYNTHESIZERS}
    for path in sorted(path for name in SYNTHESIZERS for path in folder.glob(f"{name}-*.npz")):
        clips = found[path.stem.split("-")[0]]
        if len(clips) >= needed:
            continue
        index, parts = read_shard(path)
        usable = zip(parts, index, strict=True)
        clips += [(part, entry["voice"]) for part, entry in usable if SAMPLE_RATE_HZ <= len(part) <= 5 * SAMPLE_RATE_HZ]
    turns = [clips[i % len(clips)] for i in range(needed) for clips in found.values()]
    return turns[:needed]


def main() -> None:
    """Make what is missing."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a CPU)")
    options = arguments.parse_args()
    for number, (part, folder, per_label) in enumerate((("train", "train", TRAIN_PER_LABEL), ("test", "test/held-out", TEST_PER_LABEL))):
        path = WORKSPACE / "emotion" / f"{part}.npz"
        if path.exists():
            continue
        clips = read_clips(WORKSPACE / "speech" / folder, per_label * len(LABELS))
        order = np.random.default_rng(number).permutation(len(clips))
        jobs = [(*clips[order[i]], LABELS[i % len(LABELS)], [number, i]) for i in range(len(clips))]
        with multiprocessing.Pool(options.jobs) as pool:
            made = list(tqdm(pool.imap(make_utterance, jobs, chunksize=8), total=len(jobs), desc=part))
        write_shard(path, [{"kind": label, "voice": voice} for label, voice, _ in made], [audio for _, _, audio in made])


if __name__ == "__main__":
    main()
