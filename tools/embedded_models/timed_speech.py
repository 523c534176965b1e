"""Speech whose times are known, for bench/latency.py: `python timed_speech.py`, in the synthesis environment.

Held-out sentences in the neural voice, 1.6 s of silence between them, a little noise. Written to `bench/timed_speech.flac` (16 kHz mono)
and `bench/timed_speech.json`: for each utterance `text` and `end_ms`, where each of its characters ends, from the durations that the
synthesizer spoke with.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import corpus
import numpy as np
import soundfile
from synthesize import SAMPLE_RATE_HZ, NeuralSynthesizer, resample

BENCH = Path(__file__).resolve().parents[2] / "bench"
UTTERANCES = 24
PAUSE_SEC = 1.6
FRAME_MS = 12.5  # of the synthesizer's spectrogram: 300 samples at 24 kHz
NOISE = 3e-4
SPECIAL = {"sil", "#0", "#1", "#2", "#3", "eos"}


def character_ends_ms(model: object, text: str) -> list[float]:
    """Where each character of the text just spoken ends: an initial and a final each, then a boundary."""
    symbols = [model.processor.id_to_symbol[i] for i in model.processor.text_to_sequence(text, inference=True)]  # type: ignore[attr-defined]
    output = next(d for d in model.acoustic.get_output_details() if d["dtype"] == np.int32)  # type: ignore[attr-defined]
    ends = FRAME_MS * np.cumsum(model.acoustic.get_tensor(output["index"])[0])  # type: ignore[attr-defined]
    spoken = [index for index, symbol in enumerate(symbols) if symbol not in SPECIAL]
    if len(spoken) != 2 * len(text):
        raise ValueError(f"{text}: {len(spoken)} sounds for {len(text)} characters")
    return [float(ends[index]) for index in spoken[1::2]]


def main() -> None:
    """Make both files."""
    rng, noise = random.Random("timed speech"), np.random.default_rng(0)
    synthesizer = NeuralSynthesizer()
    model = synthesizer.model
    drawn = corpus.sentences(rng, held_out=True, kinds={"command": 0.75, "digits": 0.25})
    utterances, pieces, at = [], [np.zeros(SAMPLE_RATE_HZ)], SAMPLE_RATE_HZ
    while len(utterances) < UTTERANCES:
        text = corpus.without_marks(next(drawn)[1])
        if not 4 <= len(text) <= 16:
            continue
        speech = resample(model.mel2audio(model.text2mel(text)), 24_000, SAMPLE_RATE_HZ)
        start_ms = 1000 * at / SAMPLE_RATE_HZ
        utterances.append({"text": text, "end_ms": [round(start_ms + end) for end in character_ends_ms(model, text)]})
        pieces += [speech * (0.5 / np.abs(speech).max()), np.zeros(round(PAUSE_SEC * SAMPLE_RATE_HZ))]
        at += len(pieces[-2]) + len(pieces[-1])
    audio = np.concatenate(pieces)
    soundfile.write(BENCH / "timed_speech.flac", audio + NOISE * noise.standard_normal(len(audio)), SAMPLE_RATE_HZ, subtype="PCM_16")
    lines = ",\n".join(json.dumps(utterance, ensure_ascii=False) for utterance in utterances)
    (BENCH / "timed_speech.json").write_text(f"[\n{lines}\n]\n", encoding="utf8")
    print(f"{len(utterances)} utterances, {len(audio) / SAMPLE_RATE_HZ:.0f} s")


if __name__ == "__main__":
    main()
