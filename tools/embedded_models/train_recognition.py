"""The recognition model: `python train_recognition.py [--processes 1] [--steps 18000] [--device cpu]`.

A small ParaformerStreaming, trained from nothing with FunASR's own forward. What is added to it:

- a CTC branch of weight 0.3 while training, over syllables with their tones, of which there are far fewer than characters: the encoder
  finds its alignment much sooner, and what it learns of one character's sound serves all that sound alike; the branch is not shipped;
- `encode` honours the chunk pair that `forward` draws (FunASR's swallows it), so that both (12, 8) and (15, 10) are trained;
- four fifths of the steps hear whole utterances, which costs two thirds of chunks (FunASR lays each chunk out with its context,
  twice the frames); the others train the chunks, laid out as streaming inference does (chunk_layout.py), and every fourth step of them
  whole utterances still: the sliced mode decodes its windows so;
- beside the speech of each step the decoder learns from sentences that nobody spoke (language.py);
- the learning rate rises, stays, and falls over the last sixth of the steps; what ships is the exponential average of the weights.

The first steps hear only the mild pass of the features, the others all of them. One process has all CPUs for its threads; several
share a batch and average their gradients, for machines whose CPUs are cores. The state is saved every 500 steps and taken up again.
The weights of the moment end up in `recognition/model.pt` under FunASR's names, beside everything else its directory needs.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import language
import numpy as np
import torch
import torch.distributed
from chunk_layout import StreamingLayout, WholeUtterance
from fbank import SKIP, fbank, low_frame_rate
from funasr_directory import import_funasr, write_recognition_directory
from pypinyin import Style, lazy_pinyin, pinyin
from shards import WORKSPACE, read_shard

WIDTH, FEED_FORWARD, ENCODER_BLOCKS, DECODER_BLOCKS = 256, 1024, 9, 3  # the real model: 512, 2048, 50, 16
CONFIG: dict[str, Any] = {
    "model": "ParaformerStreaming",
    "model_conf": {
        "ctc_weight": 0.0,
        "lsm_weight": 0.1,
        "length_normalized_loss": True,
        "predictor_weight": 1.0,
        "predictor_bias": 1,
        "sampling_ratio": 0.75,
    },
    "encoder": "SANMEncoderChunkOpt",
    "encoder_conf": {
        "output_size": WIDTH,
        "attention_heads": 4,
        "linear_units": FEED_FORWARD,
        "num_blocks": ENCODER_BLOCKS,
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "input_layer": "pe_online",
        "pos_enc_class": "SinusoidalPositionEncoder",
        "normalize_before": True,
        "kernel_size": 11,
        "sanm_shfit": 0,
        "selfattention_layer_type": "sanm",
        "chunk_size": [12, 15],
        "stride": [8, 10],
        "pad_left": [0, 0],
        "encoder_att_look_back_factor": [4, 4],
        "decoder_att_look_back_factor": [1, 1],
    },
    "decoder": "ParaformerSANMDecoder",
    "decoder_conf": {
        "attention_heads": 4,
        "linear_units": FEED_FORWARD,
        "num_blocks": DECODER_BLOCKS,
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "self_attention_dropout_rate": 0.0,
        "src_attention_dropout_rate": 0.0,
        "att_layer_num": DECODER_BLOCKS,
        "kernel_size": 11,
        "sanm_shfit": 5,
    },
    "predictor": "CifPredictorV2",
    "predictor_conf": {"idim": WIDTH, "threshold": 1.0, "l_order": 1, "r_order": 1, "tail_threshold": 0.45},
    "frontend": "WavFrontendOnline",
    "frontend_conf": {
        "fs": 16000,
        "window": "hamming",
        "n_mels": 80,
        "frame_length": 25,
        "frame_shift": 10,
        "lfr_m": 7,
        "lfr_n": 6,
        "dither": 0.0,
    },
    "tokenizer": "CharTokenizer",
    "tokenizer_conf": {"unk_symbol": "<unk>", "split_with_space": True},
    "ctc_conf": {"dropout_rate": 0.0, "ctc_type": "builtin", "reduce": True, "ignore_nan_grad": True},
    "normalize": None,
}
SPEC_AUGMENT = {
    "apply_time_warp": False,
    "time_warp_window": 5,
    "time_warp_mode": "bicubic",
    "apply_freq_mask": True,
    "freq_mask_width_range": [0, 30],
    "lfr_rate": SKIP,
    "num_freq_mask": 1,
    "apply_time_mask": True,
    "time_mask_width_range": [0, 8],
    "num_time_mask": 1,
}
CTC_WEIGHT = 0.3
TEXT_WEIGHT, TEXT_SENTENCES, TEXT_FROM = 0.5, 40, 4000  # of a step, from that one on: before, no encoding is worth keeping
HEARD_FOR_TEXT = 10  # utterances of each step whose encodings are kept
PEAK_RATE, WARM_UP_STEPS, DECAY_SHARE, WEIGHT_DECAY = 1.4e-3, 1000, 1 / 6, 1e-2
WHOLE_SHARE, WHOLE_EVERY = 0.805, 4
FRAMES_PER_STEP = 1920  # of 60 ms, padding included, all processes together
SHAPE_STEPS = 8
MILD_STEPS = 1500
SAVE_EVERY = 500
AVERAGE_DECAY = 0.998


@dataclass(frozen=True)
class Item:
    """One utterance's features within a shard's array."""

    shard: np.ndarray
    first: int
    frames: int
    text: str

    @property
    def steps(self) -> int:
        """Frames of 60 ms."""
        return -(-self.frames // SKIP)

    def features(self) -> np.ndarray:
        """(steps, 560)."""
        return low_frame_rate(np.asarray(self.shard[self.first : self.first + self.frames], np.float32))


def read_items(folder: Path) -> list[Item]:
    """Every item of one pass; the arrays stay on disk."""
    items = []
    for path in sorted(folder.glob("*.json")):
        shard, first = np.load(path.with_suffix(".npy"), mmap_mode="r"), 0
        for text, frames in json.loads(path.read_text(encoding="utf8")):
            items.append(Item(shard, first, frames, text))
            first += frames
    return items


def clean_items(folder: Path, limit: int) -> list[Item]:
    """The first utterances of each shard of a test set, as they were synthesized."""
    items = []
    for path in sorted(folder.glob("*.npz")):
        index, clips = read_shard(path)
        for entry, clip in list(zip(index, clips, strict=True))[:limit]:
            frames = fbank(np.pad(clip.astype(np.float32), (3200, 6400)))
            items.append(Item(frames, 0, len(frames), str(entry["text"])))
    return items


def padded(steps: int) -> int:
    """The next multiple of SHAPE_STEPS."""
    return -(-steps // SHAPE_STEPS) * SHAPE_STEPS


def batches(items: list[Item], processes: int, rng: random.Random) -> list[list[list[Item]]]:
    """Steps in random order; each has one batch a process, of like lengths.

    Few shapes come of it: for every new one the matrix library compiles kernels.
    """
    limit = FRAMES_PER_STEP // processes
    buckets: dict[int, list[Item]] = {}
    for item in rng.sample(items, len(items)):
        buckets.setdefault(padded(item.steps), []).append(item)
    found = []
    for length, bucket in sorted(buckets.items()):
        size = max(1, limit // length)
        found += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    grouped = [found[i : i + processes] for i in range(0, len(found) - processes + 1, processes)]
    rng.shuffle(grouped)
    return grouped


def endless_batches(passes: list[list[Item]], processes: int, first_step: int) -> Iterator[list[list[Item]]]:
    """The mild pass for MILD_STEPS steps, then epochs over all of them. Seeded by the step, so that a resumed run does not repeat."""
    step = first_step
    while True:
        mild = step < MILD_STEPS
        for step_batches in batches(passes[0] if mild else list(itertools.chain(*passes)), processes, random.Random(step)):
            yield step_batches
            step += 1
            if mild and step >= MILD_STEPS:
                break


class Collator:
    """Items -> the tensors FunASR's forward takes, normalised features, lengths, token ids padded with -1, lengths; and syllables."""

    def __init__(self, tokens: list[str], mean: np.ndarray, scale: np.ndarray) -> None:
        self._id = {token: index for index, token in enumerate(tokens)}
        self._unknown = len(tokens) - 1
        self._readings = readings(tuple(tokens))
        self._syllable = {syllable: number for number, syllable in enumerate(syllables(tokens), 1)}
        self._mean, self._scale = mean.astype(np.float32), scale.astype(np.float32)

    def tokens_of(self, text: str) -> list[int]:
        """Token ids."""
        return [self._id.get(character, self._unknown) for character in text]

    def syllables_of(self, text: str) -> list[int]:
        """Ids of the syllables, of which the first is 1."""
        return [self._syllable[sound] for sound in sounds_of(text, self._readings)]

    def __call__(self, items: list[Item], device: str) -> tuple[torch.Tensor, ...]:
        """The five tensors."""
        items = sorted(items, key=lambda item: -item.steps)
        frames, labels = [item.steps for item in items], [len(item.text) for item in items]
        frames[0] = padded(frames[0])
        speech = np.zeros((len(items), max(frames), 560), np.float32)
        text = np.full((len(items), max(labels)), -1, np.int64)
        sounds = np.full((len(items), max(labels)), -1, np.int64)
        for row, item in enumerate(items):
            speech[row, : item.steps] = (item.features() - self._mean) * self._scale
            speech[row, item.steps : frames[row]] = speech[row, item.steps - 1]  # the longest one's last silence goes on
            text[row, : labels[row]] = self.tokens_of(item.text)
            sounds[row, : labels[row]] = self.syllables_of(item.text)
        tensors = (torch.from_numpy(speech), torch.tensor(frames), torch.from_numpy(text), torch.tensor(labels), torch.from_numpy(sounds))
        return tuple(tensor.to(device) for tensor in tensors)


@functools.cache
def readings(tokens: tuple[str, ...]) -> dict[str, list[str]]:
    """Every character -> the syllables that it may be read as, in pinyin with their tones, the most frequent one first."""
    characters = [token for token in tokens if len(token) == 1]
    return dict(zip(characters, pinyin(characters, style=Style.TONE3, heteronym=True, neutral_tone_with_five=True), strict=True))


def syllables(tokens: list[str]) -> list[str]:
    """Every syllable that a character may be read as."""
    return sorted({reading for each in readings(tuple(tokens)).values() for reading in each})


def sounds_of(text: str, known: dict[str, list[str]]) -> list[str]:
    """The syllable of each character as its word has it, or its most frequent one where `known` has not that one.

    The blank of CTC must not stand in for a syllable: it is no target.
    """
    spoken = lazy_pinyin(text, style=Style.TONE3, neutral_tone_with_five=True)
    return [sound if sound in known[character] else known[character][0] for character, sound in zip(text, spoken, strict=True)]


def build_model(tokens: list[str]) -> torch.nn.Module:
    """FunASR's class with the CTC branch and an `encode` that honours the drawn chunk pair."""
    base: Any = import_funasr("ParaformerStreaming")

    class TrainedParaformer(base):
        def use_chunks(self, chunks: bool) -> None:  # noqa: FBT001
            """Train (and check) over chunks, or over whole utterances."""
            if not hasattr(self, "layout"):
                self.layout = StreamingLayout(self.encoder.overlap_chunk_cls)
                self.build_scama_mask_for_cross_attention_decoder_fn = self._token_mask
            self.encoder.overlap_chunk_cls = self.layout if chunks else WholeUtterance()
            self.decoder_attention_chunk_type = "chunk" if chunks else None

        def _token_mask(self, predictor_alignments: torch.Tensor, target_length: torch.Tensor, **_: Any) -> torch.Tensor:
            return self.layout.token_mask(predictor_alignments, target_length)

        def _calc_ctc_loss(self, encoded: torch.Tensor, lengths: torch.Tensor, _: torch.Tensor, counts: torch.Tensor) -> Any:
            posteriors = self.ctc(encoded).float().log_softmax(-1).transpose(0, 1)
            sums = torch.nn.functional.ctc_loss(posteriors, self.sounds, lengths, counts, reduction="sum", zero_infinity=True)
            return sums / len(encoded), None

        def encode(self, speech: torch.Tensor, speech_lengths: torch.Tensor, ind: int = 0, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
            if self.training:
                speech, speech_lengths = self.specaug(speech, speech_lengths)
            encoded, lengths, _ = self.encoder(speech, speech_lengths, ind=ind)
            return encoded, lengths

    parts = ("encoder", "encoder_conf", "decoder", "decoder_conf", "predictor", "predictor_conf", "ctc_conf")
    model = TrainedParaformer(
        specaug="SpecAugLFR",
        specaug_conf=SPEC_AUGMENT,
        normalize=None,
        ctc="CTC",
        input_size=560,
        vocab_size=len(tokens),
        **{key: CONFIG[key] for key in parts},
        **{**CONFIG["model_conf"], "ctc_weight": CTC_WEIGHT},
    )
    model.ctc = torch.nn.Linear(WIDTH, 1 + len(syllables(tokens)))
    return model


def chunked(step: int, steps: int) -> bool:
    """Whether this step of so many trains chunks, not whole utterances."""
    return step >= WHOLE_SHARE * steps and step % WHOLE_EVERY > 0


def learning_rate(step: int, steps: int) -> float:
    """Up, along, and down to nothing over the last DECAY_SHARE of the steps."""
    return PEAK_RATE * min(step / WARM_UP_STEPS, 1.0, (steps - step) / (DECAY_SHARE * steps))


def average_gradients(parameters: list[torch.nn.Parameter], processes: int) -> None:
    """Replace each gradient by its mean over the processes, in one message."""
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    torch.distributed.all_reduce(flat)
    flat /= processes
    for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = mean.view_as(parameter)


class Training:
    """Everything a step needs and changes: model, optimizer, average of the weights, step number."""

    def __init__(self, options: argparse.Namespace, tokens: list[str], rank: int) -> None:
        self.options, self.tokens, self.rank = options, tokens, rank
        self.folder = WORKSPACE / "recognition"
        self.passes = [read_items(path) for path in sorted((WORKSPACE / "features").glob("pass-*"))]
        self.mean, self.scale = statistics(self.passes[-1])
        self.collate = Collator(tokens, self.mean, self.scale)
        torch.manual_seed(0)
        self.model = build_model(tokens).to(options.device)
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True)
        self.average = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.step = 0
        self.bank = language.SyllableBank()
        self.model.predictor.register_forward_hook(self._hear)
        path = Path(options.resume) if options.resume else self.folder / "state.pt"
        if path.exists():
            self._restore(torch.load(path, map_location=options.device))
        torch.manual_seed(1000 * self.step + rank)  # masks and samples differ between the processes

    def learn(self, items: list[Item]) -> list[float]:
        """One step on this process' share of a batch; loss, token accuracy, error of the token count, CTC loss, accuracy on text."""
        text_accuracy = 0.0
        self.model.train()
        self.model.use_chunks(chunked(self.step, self.options.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step + 1, self.options.steps)
        with torch.autocast(self.options.device.split(":")[0], dtype=torch.bfloat16):
            *inputs, self.model.sounds = self.collate(items, self.options.device)
            loss, stats, _ = self.model(*inputs)
            if self.step >= TEXT_FROM:
                self._keep_encodings(inputs[1], inputs[3])
                text_loss, text_accuracy = self._learn_language()
                loss = loss + TEXT_WEIGHT * text_loss
        self.optimizer.zero_grad()
        loss.backward()
        if self.options.processes > 1:
            average_gradients(self.parameters, self.options.processes)
        torch.nn.utils.clip_grad_norm_(self.parameters, 5.0)
        self.optimizer.step()
        self.step += 1
        if self.rank == 0:
            for name, tensor in self.model.state_dict().items():
                self.average[name].lerp_(tensor, 1 - AVERAGE_DECAY) if tensor.is_floating_point() else self.average[name].copy_(tensor)
        return [*(float(stats[key]) for key in ("loss", "acc", "loss_pre", "loss_ctc")), text_accuracy]

    def _hear(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...], outputs: tuple[torch.Tensor, ...]) -> None:
        self.heard = (inputs[0].detach(), outputs[2].detach(), outputs[0].detach())

    def _keep_encodings(self, lengths: torch.Tensor, counts: torch.Tensor) -> None:
        """For sentences that nobody spoke. Laid out in chunks, frames stand there more than once: then nothing is kept."""
        if chunked(self.step, self.options.steps):
            return
        for row in random.Random(self.step).sample(range(len(lengths)), min(HEARD_FOR_TEXT // self.options.processes, len(lengths))):
            encoded, alphas, embeddings = (each[row].cpu() for each in self.heard)
            sounds = self.model.sounds[row, : counts[row]].tolist()
            self.bank.keep(encoded[: lengths[row]], alphas[: lengths[row]], embeddings, sounds)

    def _learn_language(self) -> tuple[torch.Tensor | float, float]:
        """Loss and accuracy of the decoder on its share of TEXT_SENTENCES; nothing while most syllables were not heard yet."""
        rng = random.Random(f"{self.step} {self.rank}")
        texts = [language.sentence(rng) for _ in range(TEXT_SENTENCES // self.options.processes)]
        said = [(text, self.bank.say(self.collate.syllables_of(text), rng)) for text in texts]
        sentences = [([*self.collate.tokens_of(text), self.model.eos], spoken) for text, spoken in said if spoken]
        if len(sentences) < len(texts) / 2:
            return 0.0, 0.0
        batch = language.splice(sentences).to(self.options.device)
        mask = None
        if chunked(self.step, self.options.steps):
            mask = language.chunk_mask(batch, self.model.layout.chunk_size_cur, self.model.layout.stride_cur, rng)
        return language.decoder_loss(self.model, batch, mask)

    def save(self) -> None:
        """The state, whole or not at all, and the model directory with the averaged weights."""
        state = {"model": self.model.state_dict(), "average": self.average, "optimizer": self.optimizer.state_dict(), "step": self.step}
        torch.save(state, self.folder / "state.partial")
        (self.folder / "state.partial").rename(self.folder / "state.pt")
        decay_starts = self.options.steps * (1 - DECAY_SHARE)
        if decay_starts - SAVE_EVERY < self.step <= decay_starts:
            shutil.copy(self.folder / "state.pt", self.folder / "before-decay.pt")  # to go on from, should there be more steps
        (self.folder / "temperature.json").unlink(missing_ok=True)  # calibrate.py's: of weights that are replaced now
        write_recognition_directory(self.folder, CONFIG, self.tokens, self.mean, self.scale, self.average)

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]


def train(rank: int, options: argparse.Namespace, tokens: list[str]) -> None:
    """One process of the training; rank 0 validates, reports and saves."""
    folder = WORKSPACE / "recognition"
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.processes))
    if options.processes > 1:
        meeting = f"file://{folder / 'meeting-point'}"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.processes)
    training = Training(options, tokens, rank)
    checks = {name: clean_items(WORKSPACE / "speech" / "test" / name, 100) for name in ("seen", "held-out", "people")} if rank == 0 else {}
    if rank == 0:
        count = sum(p.numel() for name, p in training.model.named_parameters() if not name.startswith("ctc."))
        print(f"{count / 1e6:.2f} M parameters, {sum(map(len, training.passes))} items, from step {training.step}", flush=True)
    history: list[list[float]] = []
    started = time.monotonic()
    first = training.step
    for step_batches in endless_batches(training.passes, options.processes, first):
        if training.step >= options.steps:
            break
        history.append(training.learn(step_batches[rank]))
        if rank == 0 and training.step % 100 == 0:
            minutes = (time.monotonic() - started) / 60
            left = minutes / (training.step - first) * (options.steps - training.step)
            figures = "loss {:.3f} accuracy {:.3f} count error {:.3f} ctc {:.2f} text accuracy {:.3f}".format(
                *np.mean(history[-100:], axis=0)
            )
            print(f"step {training.step} of {options.steps}, {minutes:.1f} min, {left:.0f} left: {figures}", flush=True)
        if rank == 0 and (training.step % SAVE_EVERY == 0 or training.step == options.steps):
            training.save()
            found = {name: accuracy(training, items) for name, items in checks.items()}
            print("accuracy " + ", ".join(f"{name} {share:.3f}" for name, share in found.items()), flush=True)
    if options.processes > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


@torch.no_grad()
def accuracy(training: Training, items: list[Item]) -> float:
    """Token accuracy of the averaged weights on clean speech, given the right number of tokens, laid out as training goes now."""
    model = training.model
    model.use_chunks(training.step >= WHOLE_SHARE * training.options.steps)
    current = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(training.average)
    model.eval()
    ordered = sorted(items, key=lambda item: item.steps)
    parts = [training.collate(ordered[i : i + 20], training.options.device) for i in range(0, len(ordered), 20)]
    results = []
    for *inputs, model.sounds in parts:
        results.append(float(model(*inputs, decoding_ind=1)[1]["acc"]))
    model.load_state_dict(current)
    return float(np.mean(results))


def statistics(items: list[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 1 / standard deviation of the 560 dimensions over a sample of items."""
    stacked = np.concatenate([item.features() for item in items[:: max(1, len(items) // 3000)]]).astype(np.float64)
    return stacked.mean(0), 1 / np.sqrt(stacked.var(0) + 1e-8)


def main() -> None:
    """Train, from where an earlier run stopped."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--processes", type=int, default=1, help="on the CPU, which they share (default: 1)")
    arguments.add_argument("--steps", type=int, default=18_000)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--resume", help="a state to go on from (default: the latest)")
    options = arguments.parse_args()
    folder = WORKSPACE / "recognition"
    folder.mkdir(parents=True, exist_ok=True)
    tokens = ["<blank>", "<s>", "</s>", *json.loads((WORKSPACE / "characters.json").read_text(encoding="utf8")), "<unk>"]
    if options.processes > 1:
        (folder / "meeting-point").unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the processes end with this one
        torch.multiprocessing.spawn(train, (options, tokens), options.processes, daemon=True)
    else:
        train(0, options, tokens)


if __name__ == "__main__":
    main()
