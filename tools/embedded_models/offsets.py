"""How much the moment matters: `python offsets.py [--directory DIR] [--offsets 150]`.

The model hears in windows; the same speech falls into them otherwise each time somebody speaks. Every example is put through the service's
pipeline behind 0 to 60 ms of more silence, in so many steps. Printed for each example and mode: the share of offsets at which its finals
read exactly as they should, with the second pass that the embedded model has (`final.second_pass: auto`) and without, and the most frequent
wrong readings.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile
import structlog
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from voice.audio import AudioBlock  # noqa: E402
from voice.build import build_pipeline  # noqa: E402
from voice.config import Mode, load_settings  # noqa: E402
from voice.hotword_list import HotwordList  # noqa: E402
from voice.losses import LossLedger  # noqa: E402
from voice.models.weights import load_models, locate_models  # noqa: E402
from voice.output.events import FinalEvent  # noqa: E402
from voice.pipeline import Pipeline  # noqa: E402

SAMPLE_RATE_HZ = 16_000
STEP_MS = 60
BLOCK = 480


def texts(pipeline: Pipeline, samples: np.ndarray) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The finals of a recording, without punctuation: with the second pass if there is one, and without."""
    events = []
    for start in range(0, len(samples), BLOCK):
        events += pipeline.process(AudioBlock(samples[start : start + BLOCK, None], SAMPLE_RATE_HZ))
    events += pipeline.finish("end_of_input")
    finals = [event for event in events if isinstance(event, FinalEvent)]
    return tuple(final.text for final in finals), tuple(final.raw_text for final in finals)


def main() -> None:
    """Count and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--directory", type=Path, help="recognition model (default: the embedded one)")
    arguments.add_argument("--offsets", type=int, default=150)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    wanted = {"audio": {"input": "file"}, "emotion": {"enabled": False}, "final": {"punctuation_model": "off"}}
    source = {"model_dir": str(options.directory)} if options.directory else {"embedded": True}
    settings = load_settings({**wanted, **source}, environment={})
    models = load_models(locate_models(settings), settings)
    modes: tuple[Mode, ...] = ("streaming", "sliced")
    print("| example | mode | exact | without second pass | wrong readings |\n|---|---|---|---|---|")
    for path in sorted((REPOSITORY / "examples").glob("*.wav")):
        samples, _ = soundfile.read(path, dtype="float32")
        expected = tuple(path.with_suffix(".txt").read_text(encoding="utf-8").split())
        for mode in modes:
            found: Counter[tuple[str, ...]] = Counter()
            first: Counter[tuple[str, ...]] = Counter()
            for number in range(options.offsets):
                shift = round(number / options.offsets * STEP_MS / 1000 * SAMPLE_RATE_HZ)
                built = build_pipeline(settings, mode, models, ledger=LossLedger(), hotwords=HotwordList(()))
                final, raw = texts(built.pipeline, np.pad(samples, (shift, 0)))
                found[final] += 1
                first[raw] += 1
            wrong = ", ".join(f"{' '.join(reading)} ({count})" for reading, count in found.most_common(4) if reading != expected)
            shares = " | ".join(f"{100 * count[expected] / options.offsets:.1f} %" for count in (found, first))
            print(f"| {path.stem} | {mode} | {shares} | {wrong} |", flush=True)


if __name__ == "__main__":
    main()
