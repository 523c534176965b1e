"""The emotion model: `python train_emotion.py [--steps 3000] [--threads 2]`, on styles of prosody.py, actors and readers of people.py.

A small Emotion2vec of FunASR's, nine labels as emotion2vec+ has them, trained from nothing by cross entropy on the mean of its frames:
the same way through the model as its inference takes. Half of each batch are acted emotions of people (EMO-DB, German; boredom, which
emotion2vec+ has no label for, is `other`), all labels equally often; a third are the synthetic styles; a sixth are people who read Mandarin
sentences and words, `neutral`: without them such readers were `sad` for two of three. Each utterance is heard several times, by another
speaker (pitch and formants moved together, as far as training speech goes), through another room, channel and noise (augment.py); it is
cut to a common length at random and normalised as inference does. The weights end up in `emotion/model.pt`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from augment import place, spoil
from features import recorded_noises
from funasr_directory import import_funasr, write_directory
from shards import WORKSPACE, read_shard
from tqdm import tqdm

LABELS = {
    "angry": "生气/angry",
    "disgusted": "厌恶/disgusted",
    "fearful": "恐惧/fearful",
    "happy": "开心/happy",
    "neutral": "中立/neutral",
    "other": "其他/other",
    "sad": "难过/sad",
    "surprised": "吃惊/surprised",
    "<unk>": "<unk>",
}
WIDTH, BLOCKS, PRENET_BLOCKS = 128, 2, 1  # emotion2vec+ base: 768, 8, 4
BATCH = 36
PASSES, PASSES_OF_PEOPLE, PASSES_OF_READERS = 3, 12, 2
READERS = {"aishell": 750, "students": 300}  # utterances of each, of all its shards
BORED = "other"
SPEAKER_FACTORS = (0.85, 1.16)
PEAK_RATE, WARM_UP_STEPS = 1e-3, 200
CROP_SEC = (1.2, 3.6)
CONFIG: dict[str, Any] = {
    "model": "Emotion2vec",
    "model_conf": {
        "depth": BLOCKS,
        "start_drop_path_rate": 0.0,
        "end_drop_path_rate": 0.0,
        "num_heads": 4,
        "norm_eps": 1e-5,
        "norm_affine": True,
        "encoder_dropout": 0.0,
        "post_mlp_drop": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "dropout_input": 0.0,
        "layerdrop": 0.0,
        "embed_dim": WIDTH,
        "mlp_ratio": 4.0,
        "layer_norm_first": False,
        "end_of_block_targets": False,
        "clone_batch": 1,
        "normalize": True,
        "modalities": {
            "audio": {
                "type": "AUDIO",
                "prenet_depth": PRENET_BLOCKS,
                "prenet_layerdrop": 0.0,
                "prenet_dropout": 0.0,
                "start_drop_path_rate": 0.0,
                "end_drop_path_rate": 0.0,
                "num_extra_tokens": 4,
                "init_extra_token_zero": True,
                "use_alibi_encoder": True,
                "alibi_scale": 1.0,
                "learned_alibi": False,
                "alibi_max_pos": None,
                "learned_alibi_scale": True,
                "learned_alibi_scale_per_head": True,
                "learned_alibi_scale_per_layer": False,
                "num_alibi_heads": 4,
                "model_depth": BLOCKS,
                "extractor_mode": "layer_norm",
                "feature_encoder_spec": "[(64, 40, 16), (96, 8, 4), (128, 5, 5)]",  # 320 samples a frame, as emotion2vec+
                "conv_pos_width": 31,
                "conv_pos_groups": 8,
                "conv_pos_depth": 2,
                "conv_pos_pre_ln": False,
                "decoder": None,
                "local_grad_mult": 1.0,
                "ema_local_encoder": False,
            }
        },
    },
    "tokenizer": "CharTokenizer",
    "tokenizer_conf": {"unk_symbol": "<unk>", "split_with_space": True},
}


Acted = dict[str, list[np.ndarray]]
"""Label -> recordings of people."""


def read_utterances(path: Path) -> list[tuple[str, np.ndarray]]:
    """(label, int16 audio) of one part of prosody.py's or people.py's."""
    index, clips = read_shard(path)
    return [(BORED if entry["kind"] == "bored" else str(entry["kind"]), clip) for entry, clip in zip(index, clips, strict=True)]


def read_readers(rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """People who read, as recorded and as other speakers, as `read_utterances` gives them: `neutral`."""
    found = []
    for name, count in READERS.items():
        paths = sorted((WORKSPACE / "speech" / "train").glob(f"{name}-*.npz"))
        for path in paths:
            _, clips = read_shard(path)
            chosen = rng.choice(len(clips), min(len(clips), -(-count // len(paths))), replace=False)
            found += [("neutral", clips[index]) for index in chosen]
    return found


def surroundings(utterances: list[tuple[str, np.ndarray]], passes: int, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """Every utterance so many times, otherwise each time; int16."""
    voices = [clip for label, clip in utterances if label == "neutral"]
    heard = []
    for label, clip in tqdm(utterances * passes, desc="surroundings", mininterval=10):
        factor = rng.uniform(*SPEAKER_FACTORS)
        moved = np.interp(np.arange(0, len(clip) - 1, factor), np.arange(len(clip)), clip).astype(np.float32)
        audio = spoil(place([moved], rng), rng, voices, rng.uniform(0, 0.7), recorded_noises("train"))
        heard.append((label, audio.astype(np.int16)))
    return heard


def batch_of(
    styles: list[tuple[str, np.ndarray]], acted: Acted, read: list[tuple[str, np.ndarray]], rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """(BATCH, samples) normalised audio and (BATCH,) label ids; every second one is acted, every sixth one read."""
    samples = int(rng.uniform(*CROP_SEC) * 16_000)
    names, rows, targets = list(LABELS), [], []
    for number in range(BATCH):
        if number % 2:
            label = list(acted)[rng.integers(len(acted))]
            audio = acted[label][rng.integers(len(acted[label]))]
        else:
            source = styles if number % 6 else read
            label, audio = source[rng.integers(len(source))]
        first = int(rng.integers(max(1, len(audio) - samples + 1)))
        row = np.resize(audio[first : first + samples], samples).astype(np.float32)
        rows.append((row - row.mean()) / (row.std() + 1e-5))
        targets.append(names.index(label))
    return torch.from_numpy(np.stack(rows)), torch.tensor(targets)


def logits(model: torch.nn.Module, audio: torch.Tensor) -> torch.Tensor:
    """(batch, samples) -> (batch, labels), as Emotion2vec.inference goes."""
    return model.proj(model.extract_features(audio, padding_mask=None)["x"].mean(dim=1))


@torch.no_grad()
def accuracy(model: torch.nn.Module, utterances: list[tuple[str, np.ndarray]]) -> float:
    """Share of whole, clean utterances labelled as they were made."""
    model.eval()
    right, names = 0, list(LABELS)
    for label, clip in utterances:
        audio = torch.from_numpy(clip.astype(np.float32))
        audio = torch.nn.functional.layer_norm(audio, audio.shape).view(1, -1)
        right += names[int(logits(model, audio).argmax())] == label
    model.train()
    return right / len(utterances)


def main() -> None:
    """Train and write the directory."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=3000)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    folder = WORKSPACE / "emotion"
    if (folder / "model.pt").exists():
        print("emotion/model.pt is there; remove it to train again")
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    utterances, test = (read_utterances(folder / f"{part}.npz") for part in ("train", "test"))
    people, people_test = (read_utterances(folder / f"people-{part}.npz") for part in ("train", "test"))
    styles, read = surroundings(utterances, PASSES, rng), surroundings(read_readers(rng), PASSES_OF_READERS, rng)
    acted: Acted = {}
    for label, audio in surroundings(people, PASSES_OF_PEOPLE, rng):
        acted.setdefault(label, []).append(audio)
    model = import_funasr("Emotion2vec")(vocab_size=len(LABELS), **CONFIG)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(utterances)} utterances", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=1e-2)
    losses, started = [], time.monotonic()
    model.train()
    for step in tqdm(range(1, options.steps + 1), mininterval=10):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(step / WARM_UP_STEPS, (options.steps - step + 1) / (options.steps - WARM_UP_STEPS))
        audio, targets = batch_of(styles, acted, read, rng)
        loss = torch.nn.functional.cross_entropy(logits(model, audio), targets, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % 250 == 0:
            minutes = (time.monotonic() - started) / 60
            held_out = f"styles {accuracy(model, test[::7]):.3f} people {accuracy(model, people_test):.3f}"
            print(f"step {step} {minutes:.1f} min loss {np.mean(losses[-250:]):.3f} held out: {held_out}", flush=True)
    (folder / "tokens.txt").write_text("\n".join(LABELS.values()) + "\n", encoding="utf8")
    write_directory(folder, "emotion-recognition", CONFIG, model.state_dict(), {"tokenizer_conf": {"token_list": "tokens.txt"}})


if __name__ == "__main__":
    main()
