"""Speech with wake words, for wake_words.py: `python bench/wake_speech.py 小智小智 你好小美`.

It runs in the synthesis environment of make embedded-models. For each word 100 utterances of two synthesizers, in many voices, at many
speeds and pitches: every other one the word alone, the others the word and a command behind it, with a pause of 0 to 0.5 s between. Each is
a WAV file of 16 kHz under .cache/wake/WORD, with `index.json` (text and voice of each).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import soundfile

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tools" / "embedded_models"))
from shards import SAMPLE_RATE_HZ  # noqa: E402
from synthesize import EspeakSynthesizer, KokoroSynthesizer, prepare_kokoro  # noqa: E402

TARGET = REPOSITORY / ".cache" / "wake"
COMMANDS = (
    "打开客厅的灯",
    "今天天气怎么样",
    "明天早上七点叫我起床",
    "播放音乐",
    "把空调调到二十六度",
    "关闭窗帘",
    "现在几点了",
    "声音大一点",
)
SHARES = (("kokoro", 60), ("espeak", 40))
HELD_OUT_SHARE = 0.35
"""Of the utterances in voices that the embedded model was not trained on."""
LONGEST_PAUSE_SEC = 0.5


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="WORD")
    words = parser.parse_args().words
    prepare_kokoro()
    synthesizers = {"kokoro": KokoroSynthesizer(), "espeak": EspeakSynthesizer()}
    for word in words:
        rng = random.Random(word)  # noqa: S311 -- not a secret: it makes the same speech again
        folder = TARGET / word
        folder.mkdir(parents=True, exist_ok=True)
        index = []
        for name, count in SHARES:
            for number in range(count):
                held_out = rng.random() < HELD_OUT_SHARE
                voice, factor, say = synthesizers[name].voice(rng, held_out=held_out)
                command = rng.choice(COMMANDS) if number % 2 else ""
                pause = np.zeros(int(rng.uniform(0, LONGEST_PAUSE_SEC) * SAMPLE_RATE_HZ), np.float32)
                audio = np.concatenate([say(word), pause, say(command)]) if command else say(word)
                file = f"{name}-{number:02d}.wav"
                soundfile.write(folder / file, 0.5 * audio / (np.abs(audio).max() + 1e-6), SAMPLE_RATE_HZ, subtype="PCM_16")
                index.append(
                    {"file": file, "word": word, "command": command, "voice": voice, "factor": round(factor, 2), "held_out": held_out}
                )
        (folder / "index.json").write_text(json.dumps(index, ensure_ascii=False, indent=1), encoding="utf-8")
        print(f"{word}: {len(index)} utterances in {folder}")


if __name__ == "__main__":
    main()
