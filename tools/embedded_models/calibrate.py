"""Fit the temperature of the recognition model's posteriors and fold it into its weights: `python calibrate.py [--utterances 40]`.

Confidence should be what it says: of the tokens with 0.8, eight of ten right. Label smoothing and noise make a model less sure than it
may be; dividing its logits by a temperature corrects that without changing what it recognises (Guo et al., On Calibration of Modern
Neural Networks, 2017). It is fitted by maximum likelihood of "this token is right" over test utterances behind those that evaluate.py
takes, in voices and of sentences that training never saw, clean and with noise. The output layer is divided by it, so that whoever loads
the model, FunASR too, gets calibrated posteriors. A token that the language model chose has the posterior of the decoder, as any other.
What was folded in is kept in `recognition/temperature.json`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from evaluate import (
    CONDITIONS,
    PEOPLE,
    SYNTHESIZERS,
    expected_calibration_error,
    for_calibration,
    in_noise,
    load_engine,
    recognizers,
    right_tokens,
    test_utterances,
)
from ngrams import WEIGHT
from shards import WORKSPACE
from tqdm import tqdm

from voice.models.language_model import FILE as LANGUAGE_MODEL
from voice.recognition.posteriors import TokenPosteriors
from voice.recognition.recognizer import Recognizer
from voice.recognition.search import TokenSearch
from voice.transcript import Token

TEMPERATURES = np.exp(np.linspace(math.log(0.3), math.log(3), 47))
EVALUATED = 60
"""Utterances of each kind that evaluate.py takes: not for fitting."""


def heard(recognizer: Recognizer, per_kind: int, first: int) -> Iterator[tuple[str, list[Token]]]:
    """(reference, tokens) of held-out utterances from the number `first` of each kind on, each clean and noisy in turn."""
    sources = [(voices, name) for voices in ("seen", "held-out") for name in SYNTHESIZERS] + [("people", name) for name in PEOPLE]
    for voices, name in sources:
        counts: dict[str, int] = {}
        for number, (kind, text, speech, clips) in enumerate(tqdm(test_utterances(voices, name, first + per_kind))):
            counts[kind] = counts.get(kind, 0) + 1
            if not for_calibration(number) if voices == "people" else counts[kind] <= first:
                continue
            stream = recognizer.create_stream(0)
            stream.accept(in_noise(speech, CONDITIONS[number % len(CONDITIONS)], number, clips), provisional=False)
            yield text, list(stream.finish().tokens)


def fit(directory: Path, per_kind: int) -> float:
    """The temperature under which confidences explain best which tokens are right."""
    rows: dict[Token, tuple[np.ndarray, int]] = {}
    chosen = TokenSearch._token  # noqa: SLF001 -- where a token leaves its posteriors behind

    def recorded(self: TokenSearch, firing: TokenPosteriors, token_id: int) -> Token:
        token = chosen(self, firing, token_id)
        rows[token] = (firing.log_posteriors, token_id)
        return token

    TokenSearch._token = recorded  # type: ignore[method-assign]  # noqa: SLF001
    logits, ids, right = [], [], []
    for reference, tokens in heard(recognizers(load_engine(directory))["streaming"], per_kind, EVALUATED):
        logits += [rows[token][0] for token in tokens]
        ids += [rows[token][1] for token in tokens]
        right += right_tokens(reference, tokens)
        rows.clear()
    scores, token_ids, is_right = torch.from_numpy(np.stack(logits)), torch.tensor(ids), torch.tensor(right)
    costs = {}
    for temperature in TEMPERATURES:
        sure = torch.softmax(scores / temperature, dim=1).gather(1, token_ids[:, None])[:, 0].clamp(1e-6, 1 - 1e-6)
        costs[float(temperature)] = float(-torch.where(is_right, sure.log(), (1 - sure).log()).mean())
        error = expected_calibration_error(sure.numpy(), is_right.numpy())
        print(f"temperature {temperature:.3f}: cost {costs[float(temperature)]:.4f}, expected calibration error {error:.3f}")
    return min(costs, key=costs.__getitem__)


def weigh(path: Path, temperature: float) -> None:
    """Divide the weight of the language model, too: the search then finds the same paths as before."""
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez_compressed(path, **{**arrays, "weight": np.array(WEIGHT / temperature)})


def main() -> None:
    """Fit and fold in."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--utterances", type=int, default=40, help="of each kind, synthesizer and set of voices (default: 40)")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    folder = WORKSPACE / "recognition"
    record = folder / "temperature.json"
    if record.exists():
        print(f"{record} is there: the weights are calibrated; train_recognition.py makes them anew")
        return
    if not (folder / LANGUAGE_MODEL).exists():
        raise SystemExit(f"{folder / LANGUAGE_MODEL} is missing: run ngrams.py first")
    temperature = fit(folder, options.utterances)
    weights = torch.load(folder / "model.pt", weights_only=True)
    for name in ("decoder.output_layer.weight", "decoder.output_layer.bias"):
        weights[name] = (weights[name].float() / temperature).half()
    torch.save(weights, folder / "model.pt")
    weigh(folder / LANGUAGE_MODEL, temperature)
    record.write_text(json.dumps({"folded_in": temperature}) + "\n", encoding="utf8")
    print(f"temperature {temperature:.3f} folded into {folder / 'model.pt'}")


if __name__ == "__main__":
    main()
