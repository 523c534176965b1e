"""The speaker model: `python train_speakers.py --speech DIR [--steps 1400] [--threads 1]`, on recordings of people.

A small CAM++ of FunASR's: its class with narrow layers, so the service loads and runs it as it does the large one. Its convolutional
head, three quarters of a training step, has a fixed width of 32 channels and cannot be made smaller; it is not trained, but set by hand to
hand on the filterbanks and their differences in time (`set_head`). The rest is trained from nothing to tell the training speakers apart
(additive angular margin, Deng et al. 2019); without that loss's centres it makes embeddings.

DIR is a folder with `index.tsv` (file, set, speaker, label, seconds) and its recordings, of which these sets are used: `students`
(DSPSpeech-20, MIT), `aishell` (AISHELL-1, Apache-2.0), `emotion_de` (Berlin EMO-DB), `noise` (ESC-10, CC BY).

Every speaker is three: as recorded, and resampled by 0.9 and 1.1, which moves pitch and formants as another throat would. A training
item is a few clips of one speaker with short pauses, cut to the batch's length, in a room, a channel and noise (augment.py).

Held out: TEST speakers are for figures only, DEVELOPMENT speakers set the thresholds. The checkpoint `speaker/training.pt` is written
every 100 steps, and a run that was stopped goes on from it. The weights end up in `speaker/model.pt`.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from augment import at_snr, spoil
from fbank import SHIFT, WINDOW, mel_weights
from funasr_directory import import_funasr, write_directory
from scipy.signal import resample_poly
from shards import WORKSPACE, trimmed
from torch.nn import functional

TEST = ("student_0023", "student_0113", "student_0189", "student_0260", "student_0302", "student_0345", "emodb_15", "emodb_16")
DEVELOPMENT = ("student_0040", "student_0194", "student_0228", "student_0370")
SETS = ("students", "aishell", "emotion_de")
SPEEDS = (1.0, 0.9, 1.1)
FRAMES_OF_A_BATCH = 6_240
CROP_SEC = (0.8, 2.2)
PEAK_RATE, WARM_UP_STEPS = 3e-3, 100
SCALE, MARGIN = 20.0, 0.2
CONFIG: dict[str, Any] = {
    "model": "CAMPPlus",
    "model_conf": {"feat_dim": 80, "embedding_size": 96, "growth_rate": 8, "bn_size": 2, "init_channels": 64},
}  # CAM++ as published: embedding 192, growth 32, bn_size 4, init 128


def read_speakers(speech: Path, names: tuple[str, ...] = ()) -> dict[str, list[np.ndarray]]:
    """Speaker -> clips, float32 in the range of int16, 16 kHz, without the silence around them; of ``names``, or of all."""
    speakers = defaultdict(list)
    with (speech / "index.tsv").open(encoding="utf8") as index:
        for row in csv.DictReader(index, delimiter="\t"):
            if row["set"] in SETS and (not names or row["speaker"] in names):
                speakers[row["speaker"]].append(trimmed(read_clip(speech / row["file"]), share=0.05, around=800))
    return dict(speakers)


def read_clip(path: Path) -> np.ndarray:
    """Float32 in the range of int16, 16 kHz mono."""
    audio, rate = soundfile.read(path, dtype="float32")
    if rate != 16_000 or audio.ndim != 1:
        raise SystemExit(f"{path} is not 16 kHz mono")
    return audio * 32768


def fbank_of(audio: torch.Tensor) -> torch.Tensor:
    """(rows, samples) audio in [-1, 1] -> (rows, frames, 80), as CAMPPlus.inference makes it: Povey window, mean of each bin taken off."""
    frames = audio.unfold(1, WINDOW, SHIFT)
    frames = frames - frames.mean(-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], -1)
    frames = (frames - 0.97 * previous) * torch.hann_window(WINDOW, periodic=False) ** 0.85
    energies = torch.fft.rfft(frames, 512).abs().square() @ mel_weights(1.0)
    logarithms = energies.clamp_min(torch.finfo(torch.float32).eps).log()
    return logarithms - logarithms.mean(1, keepdim=True)


class Voices:
    """Training items. State: the random generator."""

    def __init__(self, clips: dict[str, list[np.ndarray]], noises: list[np.ndarray], rng: np.random.Generator) -> None:
        """Take the clips of each training class."""
        self._classes = list(clips.values())
        self._noises = noises
        self._rng = rng

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, frames, 80) features and (rows,) class ids; all rows have the same random length."""
        rng = self._rng
        samples = int(rng.uniform(*CROP_SEC) * 16_000)
        ids = rng.integers(len(self._classes), size=max(8, FRAMES_OF_A_BATCH * SHIFT // samples))
        rows = np.stack([self._item(self._classes[i], samples) for i in ids])
        features = fbank_of(torch.from_numpy(rows / 32768))
        for row in features:  # SpecAugment (Park et al. 2019), bins only: time is short enough
            width, first = int(rng.integers(0, 9)), int(rng.integers(0, 72))
            row[:, first : first + width] = 0
        return features, torch.from_numpy(ids)

    def _item(self, clips: list[np.ndarray], samples: int) -> np.ndarray:
        rng = self._rng
        pieces, length = [], 0
        while length < samples + 800:
            clip = clips[rng.integers(len(clips))]
            pieces += [clip * np.float32(10 ** rng.uniform(-0.15, 0.15)), np.zeros(int(rng.uniform(0.01, 0.2) * 16_000), np.float32)]
            length += len(pieces[-1]) + len(pieces[-2])
        first = int(rng.integers(0, length - samples + 1))
        audio = np.concatenate(pieces)[first : first + samples]
        if rng.random() < 0.25:
            noise = np.resize(self._noises[rng.integers(len(self._noises))], samples + 16_000)
            first = int(rng.integers(16_000))
            audio = at_snr(audio, noise[first : first + samples], rng.uniform(8, 30))
        if rng.random() < 0.4:
            audio = spoil(audio, rng, clips, hardness=rng.uniform(0, 0.6))
        return np.resize(audio, samples).astype(np.float32)


def set_head(head: torch.nn.Module) -> None:
    """Make FunASR's ``FCM`` hand on its input: 10 bands, 32 channels of each, which are 4 values of 8 neighbouring bins.

    The values of a bin are x, -x, d and -d, rectified; x is the log energy and d its difference from the frame before to the frame after. A
    layer that halves the bins takes the even ones through its shortcut and the odd ones through its convolutions.
    """
    with torch.no_grad():
        for module in head.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.zero_()
            elif isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 1e-5
                module.running_var.fill_(1 - module.eps)
        head.conv1.weight[0, 0, 1, 1], head.conv1.weight[1, 0, 1, 1] = 1, -1
        for channel, sign in ((2, 1), (3, -1)):
            head.conv1.weight[channel, 0, 1, 0], head.conv1.weight[channel, 0, 1, 2] = -sign, sign
        for layer, width in ((head.layer1, 4), (head.layer2, 8)):
            for channel in range(width):
                layer[0].shortcut[0].weight[channel, channel, 0, 0] = 1
                layer[0].conv1.weight[width + channel, channel, 2, 1] = 1
                layer[0].conv2.weight[width + channel, width + channel, 1, 1] = 1
        for channel in range(16):
            head.conv2.weight[channel, channel, 1, 1] = 1
            head.conv2.weight[16 + channel, channel, 2, 1] = 1


def head_output(features: torch.Tensor) -> torch.Tensor:
    """What the head of ``set_head`` makes of (rows, frames, 80): (rows, 320, frames)."""
    values = features.transpose(1, 2)
    padded = functional.pad(values, (1, 1))
    difference = padded[..., 2:] - padded[..., :-2]
    four = torch.stack([values, -values, difference, -difference], 1).relu()  # (rows, 4, 80, frames)
    bands = four.unflatten(2, (10, 2, 2, 2))  # bin 8 b + 4 i + 2 j + k; k is parted first, in layer1
    return bands.permute(0, 3, 4, 5, 1, 2, 6).flatten(1, 5)  # channels: i, j, k, value; then the band


class Margin(torch.nn.Module):
    """Additive angular margin: the angle to the own class's centre counts as larger by ``margin``."""

    def __init__(self, width: int, classes: int) -> None:
        """Random centres."""
        super().__init__()
        self.centres = torch.nn.Parameter(torch.randn(classes, width))

    def forward(self, embeddings: torch.Tensor, targets: torch.Tensor, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, and share of the rows whose nearest centre is their own."""
        cosines = functional.linear(functional.normalize(embeddings), functional.normalize(self.centres)).clamp(-1 + 1e-6, 1 - 1e-6)
        own = torch.nn.functional.one_hot(targets, cosines.shape[1]).bool()
        logits = SCALE * torch.where(own, torch.cos(torch.acos(cosines) + margin), cosines)
        return functional.cross_entropy(logits, targets), (cosines.argmax(1) == targets).float().mean()


def training_classes(speakers: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """Every training speaker at each of SPEEDS."""
    classes = {}
    for name, clips in speakers.items():
        if name not in TEST + DEVELOPMENT:
            for speed in SPEEDS:
                ratio = 1 / Fraction(speed).limit_denominator(10)
                moved = clips if speed == 1 else [resample_poly(clip, ratio.numerator, ratio.denominator) for clip in clips]
                classes[f"{name}-{speed}"] = [np.asarray(clip, np.float32) for clip in moved]
    return classes


def build_model() -> torch.nn.Module:
    """The model with its head set, the rest at random."""
    model = import_funasr("CAMPPlus")(**CONFIG["model_conf"], memory_efficient=False)
    set_head(model.head)
    model.eval()
    probe = torch.randn(2, 50, 80)
    with torch.no_grad():
        expected = model.head(probe.transpose(1, 2))
    if not torch.allclose(head_output(probe), expected, atol=1e-4):
        raise SystemExit("the head does not hand on its input: FunASR's FCM has changed")
    return model


class Training:
    """What a checkpoint holds."""

    def __init__(self, path: Path, num_classes: int) -> None:
        """Begin, or go on from the checkpoint."""
        self._path = path
        self.step = 0
        self.model = build_model()
        self.margin = Margin(CONFIG["model_conf"]["embedding_size"], num_classes)
        self.trained = [*self.model.xvector.parameters(), *self.margin.parameters()]
        self.optimizer = torch.optim.AdamW(self.trained, lr=PEAK_RATE, weight_decay=1e-2)
        if path.exists():
            saved = torch.load(path, weights_only=True)
            self.step = saved["step"]
            for name, part in self._parts():
                part.load_state_dict(saved[name])

    def _parts(self) -> list[tuple[str, Any]]:
        return [("model", self.model), ("margin", self.margin), ("optimizer", self.optimizer)]

    def save(self) -> None:
        """Write the checkpoint."""
        torch.save({"step": self.step, **{name: part.state_dict() for name, part in self._parts()}}, self._path.with_suffix(".partial"))
        self._path.with_suffix(".partial").replace(self._path)

    def learn(self, features: torch.Tensor, targets: torch.Tensor, steps: int) -> tuple[float, float]:
        """One step of ``steps``; loss, and share of the rows whose nearest centre is their own."""
        self.step += 1
        rate = min(self.step / WARM_UP_STEPS, (steps - self.step + 1) / (steps - WARM_UP_STEPS))
        for group in self.optimizer.param_groups:
            group["lr"] = PEAK_RATE * rate
        margin = MARGIN * min(1.0, max(0.0, self.step / steps - 0.3) / 0.3)
        loss, right = self.margin(self.model.xvector(head_output(features)), targets, margin)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.xvector.parameters(), 5.0)
        self.optimizer.step()
        return float(loss.detach()), float(right)


def main() -> None:
    """Train and write the directory."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--speech", type=Path, required=True, help="folder with index.tsv and its recordings")
    arguments.add_argument("--steps", type=int, default=1400)
    arguments.add_argument("--threads", type=int, default=1)
    options = arguments.parse_args()
    folder = WORKSPACE / "speaker"
    if (folder / "model.pt").exists():
        print("speaker/model.pt is there; remove it to train again")
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    classes = training_classes(read_speakers(options.speech))
    noises = [read_clip(path) for path in sorted((options.speech / "noise").glob("*"))]
    training = Training(folder / "training.pt", len(classes))
    print(f"{sum(p.numel() for p in training.model.parameters()) / 1e6:.2f} M parameters, {len(classes)} classes", flush=True)
    voices = Voices(classes, noises, np.random.default_rng([0, training.step]))
    figures, started = [], time.monotonic()
    training.model.xvector.train()
    while training.step < options.steps:
        figures.append(training.learn(*voices.batch(), options.steps))
        if training.step % 50 == 0:
            loss, right = np.mean(figures[-50:], axis=0)
            minutes = (time.monotonic() - started) / 60
            print(f"step {training.step} {minutes:.1f} min loss {loss:.3f} nearest centre right {right:.3f}", flush=True)
        if training.step % 100 == 0:
            training.save()
    write_directory(folder, "speaker-verification", CONFIG, training.model.state_dict(), {})


if __name__ == "__main__":
    main()
