"""Training features: `python features.py [--jobs 2] [--passes 3]`.

Every pass hears each shard of training speech in other surroundings: one to three utterances after each other, warped in frequency
(another speaker), with silence, a room, a channel and noise (augment.py). Pass 0 is mild, the others are not. Written per shard, to
`features/pass-<n>/`: `<shard>.npy` ((frames, 80) float16, all items one after the other) and `<shard>.json` ([text, frames] of each).
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import torch
from augment import hesitant, place, spoil
from fbank import fbank
from shards import WORKSPACE, read_shard, says_more
from tqdm import tqdm

WARPS = (0.9, 1.1)
# Within a pass: the more natural a voice and the wider its text, the oftener it is heard.
REPEATS = {"espeak": 1, "kokoro": 3, "aishell": 3, "words": 2, "spliced": 2, "syllables": 1, "students": 2}
HESITATION = 0.25  # share of the clips with a pause inside
UTTERANCES = (1, 1, 1, 1, 1, 1, 1, 2, 2, 3)  # one of these numbers, after each other in one item
LONGEST_SEC = 14


@functools.cache
def recorded_noises(part: str) -> list[np.ndarray]:
    """The noises that people.py put aside for `train` or `test`, int16."""
    path = WORKSPACE / "speech" / "noise" / f"{part}.npz"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run people.py first")
    return read_shard(path)[1]


@functools.cache
def incomplete_labels() -> frozenset[str]:
    """Labels of sentences that say more, by the recordings as they were made."""
    shards = [read_shard(path) for path in (WORKSPACE / "speech" / "train").glob("aishell-00*.npz")]
    pairs = ((str(entry["text"]), clip) for index, clips in shards for entry, clip in zip(index, clips, strict=True))
    return frozenset(text for text, clip in pairs if says_more(text, clip))


def make_features(job: tuple[Path, int, Path]) -> None:
    """One shard in one pass, unless it is there."""
    source, number, target = job
    if target.with_suffix(".json").exists():
        return
    torch.set_num_threads(1)
    rng = np.random.default_rng([number, *target.name.encode()])
    index, clips = read_shard(source)
    if source.stem.startswith("aishell"):
        kept = [number for number, entry in enumerate(index) if entry["text"] not in incomplete_labels()]
        index, clips = [index[number] for number in kept], [clips[number] for number in kept]
    items, features = [], []
    for first in range(len(clips)):
        chosen = [first, *(int(rng.integers(len(clips))) for _ in range(rng.choice(UTTERANCES) - 1))]
        while sum(len(clips[i]) for i in chosen) > (LONGEST_SEC - 2) * 16_000 and len(chosen) > 1:
            chosen.pop()
        spoken = [hesitant(clips[i], rng) if rng.random() < HESITATION else clips[i] for i in chosen]
        audio = spoil(place(spoken, rng), rng, clips, 0.0 if number == 0 else 1.0, recorded_noises("train"))
        frames = fbank(audio, rng.uniform(*WARPS))
        items.append(["".join(str(index[i]["text"]) for i in chosen), len(frames)])
        features.append(frames.astype(np.float16))
    target.parent.mkdir(parents=True, exist_ok=True)
    np.save(target.with_suffix(".npy"), np.concatenate(features))
    target.with_suffix(".json").write_text(json.dumps(items, ensure_ascii=False), encoding="utf8")


def main() -> None:
    """Make what is missing."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a CPU)")
    arguments.add_argument("--passes", type=int, default=3, help="how often each utterance is heard, otherwise each time (default: 3)")
    options = arguments.parse_args()
    shards = sorted((WORKSPACE / "speech" / "train").glob("*.npz"))
    jobs = [
        (path, number, WORKSPACE / "features" / f"pass-{number}" / f"{path.stem}-{repeat}")
        for number in range(options.passes)
        for path in shards
        for repeat in range(REPEATS[path.stem.split("-")[0]])
    ]
    with multiprocessing.Pool(options.jobs) as pool:
        for _ in tqdm(pool.imap_unordered(make_features, jobs), total=len(jobs), unit="shard"):
            pass


if __name__ == "__main__":
    main()
