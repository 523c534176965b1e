"""How context and edge change sliced mode's errors: `python sliced_grid.py [--context 2.4 3.6] [--edge 360 480] [--utterances 40]`.

On the test sets of synthesize.py, commands and digits: voices of the training, held-out voices, and three commands joined by pauses of 100
to 500 ms, which no single sentence is as hard as. Streaming on the same audio stands in the first row. The table is bench/README.md's.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from evaluate import SYNTHESIZERS, character_errors, recognize, test_utterances
from ship import EMBEDDED

from voice.build import build_recognizer
from voice.config import load_settings
from voice.models.loader import load_model
from voice.recognition.hotwords import HotwordGraphs
from voice.recognition.recognizer import Recognizer
from voice.recognition.torch_engine import TorchEngine

_BEFORE, _BEHIND = 4_800, 8_000  # the silence that test_utterances puts around each clip
Spoken = tuple[str, np.ndarray]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=float, nargs="+", default=[1.8, 2.4, 3.0, 3.6, 4.2], help="seconds")
    parser.add_argument("--edge", type=int, nargs="+", default=[240, 360, 480, 600], help="ms")
    parser.add_argument("--utterances", type=int, default=40, help="of each kind, voice set and synthesizer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = recognizers(EMBEDDED / "asr", arguments.context, arguments.edge)
    errors: Counter[tuple[str, str]] = Counter()
    characters: Counter[str] = Counter()
    for voices, synthesizer in itertools.product(("seen", "held-out"), SYNTHESIZERS):
        found = [
            (kind, text, clip) for kind, text, clip, _ in test_utterances(voices, synthesizer, arguments.utterances) if kind != "words"
        ]
        commands = [(text, clip) for kind, text, clip in found if kind == "command"]
        spoken = [(voices, text, clip) for _, text, clip in found] + [("joined", *three) for three in joined(commands)]
        for column, text, clip in spoken:
            characters[column] += len(text)
            for name, recognizer in rows.items():
                errors[name, column] += character_errors(text, recognize(recognizer, (clip / 32768).astype(np.float32)).text)
    columns = ("seen", "held-out", "joined")
    print(f"{'character error rate, %':24}", " / ".join(columns))
    for name in rows:
        print(f"{name:24}", " / ".join(f"{100 * errors[name, column] / characters[column]:4.1f}" for column in columns))


def recognizers(directory: Path, contexts: list[float], edges: list[int]) -> dict[str, Recognizer]:
    """Streaming, and sliced with each pair."""
    model = TorchEngine(load_model(directory, "ParaformerStreaming", "cpu"))
    hotwords = HotwordGraphs(lambda: (), model.vocabulary.tokens)
    rows = {"streaming": build_recognizer(load_settings({}, environment={}), "streaming", model, hotwords)}
    for context_sec, edge_ms in itertools.product(contexts, edges):
        settings = load_settings({"sliced": {"context_sec": context_sec, "edge_ms": edge_ms}}, environment={})
        rows[f"{context_sec:g} s, edge {edge_ms} ms"] = build_recognizer(settings, "sliced", model, hotwords)
    return rows


def joined(commands: list[Spoken]) -> list[Spoken]:
    """Three by three, 100 to 500 ms between them."""
    rng = np.random.default_rng(1)
    silence = np.zeros(_BEHIND, np.float32)
    result = []
    for first in range(0, len(commands) - 2, 3):
        three = commands[first : first + 3]
        clips = [clip[_BEFORE : len(clip) - _BEHIND + int(rng.integers(1_600, 8_000))] for _, clip in three]
        result.append(("".join(text for text, _ in three), np.concatenate([silence[:_BEFORE], *clips, silence])))
    return result


if __name__ == "__main__":
    main()
