"""Recordings of people for training and tests: `python people.py --speech DIR [--jobs 2]`, in the synthesis environment, after corpus.py.

DIR is a folder with `index.tsv` (file, set, speaker, label, seconds) and its recordings, 16 kHz mono. Few people speak there; they are
made many and say more:

- every speaker becomes others: the WORLD vocoder takes a recording apart into pitch, spectral envelope and aperiodicity, moves pitch,
  formants, rate, span of the pitch and breathiness, and puts it together again;
- words and syllables that were recorded one by one are joined into sentences of the training texts, faster than they were read, with a
  pitch that falls as in a sentence.

| name | what |
|---|---|
| aishell | sentences of two speakers (AISHELL-1), as recorded and as VARIANTS other speakers |
| words | words of one speaker (Shtooka), as recorded and as one other speaker |
| spliced | sentences joined of these words |
| syllables | sentences joined of the syllables of another speaker (audio-cmn) |
| students | twelve words by many speakers (DSPSpeech-20) |

Beside these, `speech/noise` gets recorded noises (ESC-10) and `emotion` acted emotions (Berlin EMO-DB, German).

Held out for evaluation: a tenth of the sentences and of the words by a hash of the label, HELD_OUT_STUDENTS, HELD_OUT_ACTORS, a fifth of
the noises. The Mandarin ones go to `speech/test/people`, the others to `speech/train`, in shards (shards.py). A shard that exists is not
made again.
"""

from __future__ import annotations

import argparse
import csv
import functools
import multiprocessing
import os
import random
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import corpus
import jieba
import numpy as np
import pyworld
import soundfile
from pypinyin import Style, lazy_pinyin
from shards import SAMPLE_RATE_HZ, WORKSPACE, trimmed, write_shard
from tqdm import tqdm

HELD_OUT_STUDENTS = ("student_0023", "student_0113", "student_0189")
HELD_OUT_ACTORS = ("emodb_15", "emodb_16")
FRAME_MS = 8.0
VARIANTS = 6
SPLICED, SYLLABLES = 5_000, 2_000
SHARD = 250
LONGEST_SPLICE = 18  # characters


@dataclass(frozen=True)
class Recording:
    """One recording of a person."""

    path: Path
    speaker: str
    label: str

    def samples(self) -> np.ndarray:
        """Float64 of full scale 1, without the silence around the speech."""
        audio, rate_hz = soundfile.read(self.path)
        if rate_hz != SAMPLE_RATE_HZ or audio.ndim != 1:
            raise SystemExit(f"{self.path} is not 16 kHz mono")
        return trimmed(audio)


@dataclass(frozen=True)
class Change:
    """How a voice is changed."""

    pitch: float = 1.0
    """Factor of the pitch."""
    span: float = 1.0
    """Factor of the pitch's deviations from its mean, in octaves."""
    fall: float = 0.0
    """Octaves by which the pitch falls from the beginning to the end."""
    formants: float = 1.0
    """Factor of the frequencies of the spectral envelope: of a vocal tract shorter by this factor."""
    duration: float = 1.0
    """Factor of the duration."""
    breath: float = 0.0
    """Share of noise mixed into the voice; 1 is a whisper."""


def read_recordings(speech: Path) -> dict[str, list[Recording]]:
    """Set -> recordings."""
    found = defaultdict(list)
    with (speech / "index.tsv").open(encoding="utf8") as index:
        for row in csv.DictReader(index, delimiter="\t"):
            found[row["set"]].append(Recording(speech / row["file"], row["speaker"], row["label"]))
    return dict(found)


def is_held_out(name: str, recording: Recording) -> bool:
    """Whether a recording of a set belongs to evaluation."""
    if name == "students":
        return recording.speaker in HELD_OUT_STUDENTS
    return zlib.crc32(recording.label.encode()) % 10 == 0


def other_speaker(rng: random.Random, *, duration: tuple[float, float]) -> Change:
    """Pitch and formants of somebody else; they go together, as throats do, but not strictly."""
    pitch = 2 ** rng.uniform(-0.8, 0.6)
    formants = min(max(pitch**0.25 * 2 ** rng.gauss(0, 0.08), 0.8), 1.25)
    return Change(pitch, rng.uniform(0.6, 1.5), rng.uniform(-0.05, 0.25), formants, rng.uniform(*duration), max(0.0, rng.gauss(0.03, 0.1)))


def changed(audio: np.ndarray, change: Change) -> np.ndarray:
    """The same words in another voice, float64 at SAMPLE_RATE_HZ."""
    audio = np.ascontiguousarray(audio, np.float64)
    rough, times = pyworld.dio(audio, SAMPLE_RATE_HZ, f0_floor=60, f0_ceil=500, frame_period=FRAME_MS)
    pitch = pyworld.stonemask(audio, rough, times, SAMPLE_RATE_HZ)
    envelope = pyworld.cheaptrick(audio, pitch, times, SAMPLE_RATE_HZ)
    aperiodicity = pyworld.d4c(audio, pitch, times, SAMPLE_RATE_HZ)
    voiced = pitch > 0
    if voiced.any():
        octaves = np.log2(pitch[voiced])
        middle = octaves.mean()
        falling = change.fall * (0.5 - np.flatnonzero(voiced) / len(pitch))
        pitch[voiced] = 2 ** np.clip(middle + (octaves - middle) * change.span + np.log2(change.pitch) + falling, np.log2(60), np.log2(600))
    bins = np.arange(envelope.shape[1])
    source = np.clip(bins / change.formants, 0, bins[-1])
    low = np.minimum(source.astype(int), bins[-1] - 1)
    part = source - low
    envelope = np.exp((1 - part) * np.log(envelope[:, low] + 1e-16) + part * np.log(envelope[:, low + 1] + 1e-16))
    aperiodicity = (1 - part) * aperiodicity[:, low] + part * aperiodicity[:, low + 1]
    aperiodicity = np.clip(aperiodicity + change.breath * (1 - aperiodicity), 0, 1)
    frames = np.linspace(0, len(pitch) - 1, max(2, round(len(pitch) * change.duration))).round().astype(int)
    parts = (np.ascontiguousarray(each[frames]) for each in (pitch, envelope, aperiodicity))
    return pyworld.synthesize(*parts, SAMPLE_RATE_HZ, FRAME_MS)


def joined(clips: list[np.ndarray], rng: random.Random) -> np.ndarray:
    """Clips of equal loudness one after the other: most flow into each other, some have a short pause between them."""
    joint = np.zeros(0)
    for part in clips:
        clip = part / (np.sqrt(np.mean(part**2)) + 1e-9) * 0.1 * 10 ** (rng.uniform(-2, 2) / 20)
        pause = int(rng.uniform(0.02, 0.15) * SAMPLE_RATE_HZ) if rng.random() < 0.15 else 0
        overlap = 0 if pause else min(int(rng.uniform(0.02, 0.08) * SAMPLE_RATE_HZ), len(joint), len(clip))
        fade = np.linspace(0, 1, overlap)
        middle = joint[len(joint) - overlap :] * (1 - fade) + clip[:overlap] * fade
        joint = np.concatenate([joint[: len(joint) - overlap], middle, np.zeros(pause), clip[overlap:]])
    return joint


class Splicer:
    """Sentences out of words or syllables that were recorded one by one."""

    def __init__(self, recordings: list[Recording], *, by_sound: bool) -> None:
        """``by_sound``: labels are syllables in pinyin with a tone number, not characters."""
        self._parts = {recording.label: recording for recording in recordings}
        self._by_sound = by_sound

    def parts(self, text: str) -> list[Recording] | None:
        """The recordings that say a text, or None where one is missing."""
        if self._by_sound:
            syllables = lazy_pinyin(text, style=Style.TONE3, neutral_tone_with_five=True, tone_sandhi=True, v_to_u=False)
            names = [syllable.replace("ü", "v") for syllable in syllables]
        else:
            names = []
            for word in jieba.cut(text):
                names += [word] if word in self._parts else list(word)
        return [self._parts[name] for name in names] if all(name in self._parts for name in names) else None

    def sentence(self, rng: random.Random) -> tuple[str, str, np.ndarray]:
        """(text, speaker, samples) of a random sentence, faster and in the voice of somebody else."""
        texts = (corpus.without_marks(marked) for _, marked in corpus.sentences(rng, held_out=False))
        text, parts = next((text, parts) for text in texts if 2 <= len(text) <= LONGEST_SPLICE and (parts := self.parts(text)))
        change = other_speaker(rng, duration=(0.45, 0.85))
        return text, parts[0].speaker, changed(joined([part.samples() for part in parts], rng), change)


@functools.cache
def _recordings(speech: Path) -> dict[str, list[Recording]]:
    return read_recordings(speech)


@functools.cache
def _splicer(speech: Path, name: str) -> Splicer:
    training = [each for each in _recordings(speech)[name] if not is_held_out(name, each)] if name == "words" else _recordings(speech)[name]
    return Splicer(training, by_sound=name == "syllables")


def write(path: Path, spoken: list[tuple[str, str, str, np.ndarray]]) -> None:
    """(kind, text, voice, samples) of each -> a shard."""
    write_shard(path, [{"kind": kind, "text": text, "voice": voice} for kind, text, voice, _ in spoken], [audio for *_, audio in spoken])


def make_shard(job: tuple[Path, str, int, int, Path]) -> None:
    """(folder of the recordings, name, part, variant, shard): one shard, unless it is there."""
    speech, name, part, variant, path = job
    if path.exists():
        return
    rng = random.Random(f"{name} {part} {variant}")
    if name in ("spliced", "syllables"):
        splicer = _splicer(speech, "words" if name == "spliced" else name)
        write(path, [(name, *splicer.sentence(rng)) for _ in range(SHARD)])
        return
    test = path.parent.name == "people"
    chosen = [each for each in _recordings(speech)[name] if is_held_out(name, each) == test][part * SHARD : (part + 1) * SHARD]
    entries = []
    for recording in chosen:
        audio = recording.samples()
        if variant:
            audio = changed(audio, other_speaker(rng, duration=(0.75, 1.15)))
        entries.append((name, recording.label, recording.speaker, audio))
    write(path, entries)


def write_emotions(speech: Path) -> None:
    """The acted emotions (EMO-DB), two of the ten actors for evaluation, into `emotion`."""
    for part in ("train", "test"):
        path = WORKSPACE / "emotion" / f"people-{part}.npz"
        if not path.exists():
            chosen = [each for each in _recordings(speech)["emotion_de"] if (each.speaker in HELD_OUT_ACTORS) == (part == "test")]
            write(path, [(each.label, "", each.speaker, each.samples()) for each in chosen])


def write_noises(speech: Path) -> None:
    """The recorded noises, a fifth of them for evaluation, into `speech/noise`."""
    for part in ("train", "test"):
        path = WORKSPACE / "speech" / "noise" / f"{part}.npz"
        if not path.exists():
            chosen = [each for each in _recordings(speech)["noise"] if (zlib.crc32(each.path.name.encode()) % 5 == 0) == (part == "test")]
            write(path, [("noise", "", each.label, soundfile.read(each.path)[0]) for each in chosen])


def jobs(speech: Path) -> list[tuple[Path, str, int, int, Path]]:
    """Every shard there is to make."""
    train, test = WORKSPACE / "speech" / "train", WORKSPACE / "speech" / "test" / "people"
    found = []
    for name, variants in (("aishell", VARIANTS), ("words", 1), ("students", 0)):
        counts = Counter(is_held_out(name, each) for each in _recordings(speech)[name])
        found += [(speech, name, part, 0, test / f"{name}-{part:03d}.npz") for part in range(-(-counts[True] // SHARD))]
        for part, variant in ((part, variant) for variant in range(variants + 1) for part in range(-(-counts[False] // SHARD))):
            found.append((speech, name, part, variant, train / f"{name}-{variant:02d}{part:02d}.npz"))
    for name, count in (("spliced", SPLICED), ("syllables", SYLLABLES)):
        found += [(speech, name, part, 0, train / f"{name}-{part:03d}.npz") for part in range(count // SHARD)]
    return found


def main() -> None:
    """Make every shard that is missing."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--speech", type=Path, required=True, help="folder of the recordings of people, with its index.tsv")
    arguments.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a CPU)")
    options = arguments.parse_args()
    jieba.setLogLevel("WARNING")
    todo = jobs(options.speech.resolve())
    write_noises(options.speech.resolve())
    write_emotions(options.speech.resolve())
    with multiprocessing.Pool(options.jobs) as pool:
        for _ in tqdm(pool.imap_unordered(make_shard, todo), total=len(todo), unit="shard"):
            pass


if __name__ == "__main__":
    main()
