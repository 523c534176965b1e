"""What fewer bits change in what is recognised: the same speech through two conversions of one model.

    python bench/precision.py                                    # float32 beside int8, the embedded model, streaming
    python bench/precision.py --mode sliced
    python bench/precision.py --limit 20                         # a quick look: 20 utterances of each set
    python bench/precision.py --graphs-a DIR --graphs-b DIR      # graphs that are there already: any variant of the converter
    python bench/precision.py --model-dir DIR --precision-a float32 --precision-b int8

Decoded are the test sets that the model cards report (``tools/embedded_models/evaluate.py``): sentences and voices that training did not
have, clean and with the same noise at 20 and 10 dB. The speech has to be there, in ``.cache/embedded_models/speech/test``: the step
``synthesize.py`` of ``make embedded-models`` writes it. A synthesizer whose speech is missing is left out. Printed for each set:

- *CER*: character errors per reference character, of a and of b.
- *equal*: the tokens of a and b are aligned with the fewest differences; the share of the places at which both have the same token.
- *in time*: of these, the share whose starts and whose ends both lie within 60 ms, the length of a frame.
- *confidence*: mean absolute difference of their confidences.
- *ECE*: expected calibration error of a and of b, as the model cards report it.

What one conversion recognised is kept in ``.cache/precision`` under a digest of the graphs, the speech and the code, so that another
variant costs only its own decoding. Nothing is random: two runs print the same figures. A benchmark, not a test: nothing here passes or
fails.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime

REPOSITORY = Path(__file__).resolve().parent.parent
TRAINING = REPOSITORY / "tools" / "embedded_models"
sys.path[:0] = [str(REPOSITORY), str(TRAINING)]

from evaluate import (  # noqa: E402
    CONDITIONS,
    SYNTHESIZERS,
    character_errors,
    expected_calibration_error,
    in_noise,
    recognize,
    right_tokens,
    test_utterances,
)
from shards import WORKSPACE  # noqa: E402
from tqdm import tqdm  # noqa: E402

from voice.audio import SAMPLES_PER_MS  # noqa: E402
from voice.build import build_recognizer  # noqa: E402
from voice.config import Mode, load_settings  # noqa: E402
from voice.conversion.graph import Precision  # noqa: E402
from voice.conversion.paraformer import convert_paraformer, paraformer_settings  # noqa: E402
from voice.conversion.selftest import byte_precision  # noqa: E402
from voice.models.converted import OnnxModel  # noqa: E402
from voice.models.directory import describe_model, read_tokens  # noqa: E402
from voice.models.funasr_model import FunasrModel  # noqa: E402
from voice.models.loader import load_model  # noqa: E402
from voice.models.onnx_session import open_session  # noqa: E402
from voice.places import EMBEDDED  # noqa: E402
from voice.recognition.hotwords import HotwordGraphs  # noqa: E402
from voice.recognition.onnx_engine import OnnxEngine  # noqa: E402
from voice.recognition.recognizer import Recognizer  # noqa: E402
from voice.transcript import Token, join_tokens  # noqa: E402

CACHE = REPOSITORY / ".cache" / "precision"
GRAPHS = ("encoder", "decoder")
VOICES = ("seen", "held-out")
IN_TIME_SAMPLES = 60 * SAMPLES_PER_MS
TIE_BREAK = 1e-9
"""For each sample between two starts: far less than one difference over a whole utterance."""

SetName = tuple[str, str]
"""Voices, synthesizer."""


@dataclass(frozen=True)
class Sample:
    """An utterance of the reference under one condition, as both conversions recognised it."""

    text: str
    a: list[Token]
    b: list[Token]


def main() -> None:
    """Decode and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, default=EMBEDDED / "asr", help="recognition model (default: the embedded one)")
    parser.add_argument(
        "--mode", choices=get_args(Mode), default="streaming", help="how audio is cut for the recogniser (default: streaming)"
    )
    parser.add_argument("--utterances", type=int, default=60, help="of each kind of text in a set (default: 60, those of the model card)")
    parser.add_argument("--limit", type=int, help="so many utterances of each set at most, the first ones")
    for name, default in (("a", "float32"), ("b", byte_precision())):
        help_text = f"of the weights of {name} (default: {default})"
        parser.add_argument(f"--precision-{name}", choices=get_args(Precision), default=default, help=help_text)
        parser.add_argument(
            f"--graphs-{name}", type=Path, metavar="DIR", help=f"encoder.onnx and decoder.onnx of {name}, converted already"
        )
    options = parser.parse_args()
    sets = [name for name in itertools.product(VOICES, SYNTHESIZERS) if shards(name)]
    if not sets:
        remedy = "run the steps corpus.py and synthesize.py of make embedded-models SPEECH=DIR"
        sys.exit(f"there is no speech in {WORKSPACE / 'speech' / 'test'}: {remedy}")
    model = load_model(options.model_dir, "ParaformerStreaming", "cpu")
    found: dict[SetName, dict[int | None, list[Sample]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        sides = []
        for name in ("a", "b"):
            graphs = getattr(options, f"graphs_{name}")
            if graphs is None:
                graphs = Path(directory) / name
                graphs.mkdir()
                convert_paraformer(model.module, graphs, getattr(options, f"precision_{name}"))
            sides.append(Side(model, graphs, options.mode))
        for name in tqdm(sets, unit="set", disable=None):
            found[name] = recognize_set(name, sides, options.utterances, options.limit)
    print_table(found)


class Side:
    """One of the two conversions: its recogniser, and what it recognised in earlier runs."""

    def __init__(self, model: FunasrModel, graphs: Path, mode: Mode) -> None:
        self._recognizer = create_recognizer(model, graphs, mode)
        code = [*sorted((REPOSITORY / "voice" / "recognition").glob("*.py")), TRAINING / "evaluate.py", TRAINING / "augment.py"]
        files = [graphs / f"{name}.{suffix}" for name in GRAPHS for suffix in ("onnx", "weights")]
        self._key = digest([*files, *code], onnxruntime.__version__, mode)
        self._known: dict[str, list[list[object]]] = {}
        self._file = CACHE

    def open(self, name: SetName, per_kind: int) -> None:
        """Take up what is known of a set; which utterance has which number depends on ``per_kind``."""
        self._file = CACHE / f"{self._key}-{digest(shards(name), str(per_kind))}.json"
        self._known = json.loads(self._file.read_text(encoding="utf-8")) if self._file.is_file() else {}

    def close(self) -> None:
        """Keep what is known of the set."""
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(f".{id(self)}.partial")
        partial.write_text(json.dumps(self._known, ensure_ascii=False), encoding="utf-8")
        partial.replace(self._file)

    def recognize(self, key: str, samples: np.ndarray | None) -> list[Token] | None:
        """The tokens of an utterance; None where they are not known and there are no samples to find them in."""
        if key not in self._known:
            if samples is None:
                return None
            self._known[key] = [list(astuple(token)) for token in recognize(self._recognizer, samples).tokens]
        return [Token(*values) for values in self._known[key]]  # type: ignore[arg-type]


def create_recognizer(model: FunasrModel, graphs: Path, mode: Mode) -> Recognizer:
    """The recogniser that the service builds with the settings of config/default.yaml, on these graphs."""
    sessions = {name: open_session(graphs / f"{name}.onnx") for name in GRAPHS}
    description = describe_model(model.directory, "ParaformerStreaming")
    tokens = read_tokens(description.files["token_list"])
    engine = OnnxEngine(OnnxModel(model.directory, description, tokens, paraformer_settings(model), sessions))
    return build_recognizer(load_settings({}, environment={}), mode, engine, HotwordGraphs(lambda: (), tokens))


def shards(name: SetName) -> list[Path]:
    """The files of a set."""
    voices, synthesizer = name
    return sorted((WORKSPACE / "speech" / "test" / voices).glob(f"{synthesizer}-*.npz"))


def digest(files: Sequence[Path], *more: str) -> str:
    """Of the contents of files, and of some words."""
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return hashlib.sha256(" ".join([*sums, *more]).encode()).hexdigest()[:16]


def recognize_set(name: SetName, sides: Sequence[Side], per_kind: int, limit: int | None) -> dict[int | None, list[Sample]]:
    """What both made of a set, by condition."""
    found: dict[int | None, list[Sample]] = {snr_db: [] for snr_db in CONDITIONS}
    for side in sides:
        side.open(name, per_kind)
    utterances = itertools.islice(numbered_utterances(name, per_kind), limit)
    for number, text, speech, clips in tqdm(utterances, desc=" ".join(name), leave=False, disable=None):
        for snr_db in CONDITIONS:
            key = f"{number} {snr_db}"
            tokens = [side.recognize(key, None) for side in sides]
            if None in tokens:
                samples = in_noise(speech, snr_db, number, clips)
                tokens = [side.recognize(key, samples) for side in sides]
            a, b = tokens
            assert a is not None
            assert b is not None
            found[snr_db].append(Sample(text, a, b))
    for side in sides:
        side.close()
    return found


def numbered_utterances(name: SetName, per_kind: int) -> Iterator[tuple[int, str, np.ndarray, list[np.ndarray]]]:
    """(number, text, audio in the range of int16, clips for babble), numbered as evaluate.py numbers them: the noise depends on it."""
    for number, (_, text, speech, clips) in enumerate(test_utterances(*name, per_kind)):
        yield number, text, speech, clips


def align(a: Sequence[Token], b: Sequence[Token]) -> tuple[list[tuple[Token, Token]], int]:
    """Align two decodings with the fewest differences; of several ways the one that pairs tokens closest in time.

    Returns:
        The pairs of equal tokens, and the number of places: pairs, and tokens that have no partner.
    """
    costs = [[float(column) for column in range(len(b) + 1)]]
    for row, one in enumerate(a, 1):
        current = [float(row)]
        for column, other in enumerate(b, 1):
            pair = (one.text != other.text) + TIE_BREAK * abs(one.start_sample - other.start_sample)
            current.append(min(costs[-1][column - 1] + pair, costs[-1][column] + 1, current[-1] + 1))
        costs.append(current)
    equal, places, row, column = [], 0, len(a), len(b)
    while row or column:
        places += 1
        if row and costs[row][column] == costs[row - 1][column] + 1:
            row -= 1
        elif column and costs[row][column] == costs[row][column - 1] + 1:
            column -= 1
        else:
            row, column = row - 1, column - 1
            if a[row].text == b[column].text:
                equal.append((a[row], b[column]))
    return equal[::-1], places


def print_table(found: dict[SetName, dict[int | None, list[Sample]]]) -> None:
    """A row for each set and condition, then for all sets together."""
    print("| voices | synthesizer | noise | utterances | tokens | CER a | CER b | equal | in time | confidence | ECE a | ECE b |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    together: dict[int | None, list[Sample]] = {snr_db: [] for snr_db in CONDITIONS}
    for (voices, synthesizer), conditions in found.items():
        for snr_db, samples in conditions.items():
            together[snr_db] += samples
            print(row_of(f"{voices} | {synthesizer} | {noise_name(snr_db)}", samples))
    for snr_db, samples in together.items():
        print(row_of(f"all | all | {noise_name(snr_db)}", samples))
    for voices in VOICES:
        inside = [
            sample for name, conditions in found.items() if name[0] == voices for samples in conditions.values() for sample in samples
        ]
        if inside:
            print(row_of(f"{voices} | all | all", inside))
    print(row_of("**all** | all | all", list(itertools.chain(*together.values()))))


def noise_name(snr_db: int | None) -> str:
    """As the model cards write it."""
    return "clean" if snr_db is None else f"{snr_db} dB"


def row_of(name: str, samples: Sequence[Sample]) -> str:
    """The figures of some utterances as a row of the table."""
    characters = max(1, sum(len(sample.text) for sample in samples))
    error_rates, calibration_errors = [], []
    for side in ("a", "b"):
        decodings: list[tuple[str, list[Token]]] = [(sample.text, getattr(sample, side)) for sample in samples]
        errors = sum(character_errors(text, join_tokens(token.text for token in tokens)) for text, tokens in decodings)
        error_rates.append(f"{errors / characters:.2%}")
        confidences = np.array([token.confidence for _, tokens in decodings for token in tokens])
        right = np.array([each for text, tokens in decodings for each in right_tokens(text, tokens)])
        calibration_errors.append(f"{expected_calibration_error(confidences, right):.4f}" if len(right) else "–")
    equal, places = [], 0
    for sample in samples:
        pairs, here = align(sample.a, sample.b)
        equal += pairs
        places += here
    in_time = sum(max(abs(a.start_sample - b.start_sample), abs(a.end_sample - b.end_sample)) <= IN_TIME_SAMPLES for a, b in equal)
    difference = float(np.mean([abs(a.confidence - b.confidence) for a, b in equal])) if equal else 0.0
    num_tokens = sum(len(sample.a) for sample in samples)
    shares = f"{len(equal) / max(1, places):.2%} | {in_time / max(1, len(equal)):.2%} | {difference:.4f}"
    return f"| {name} | {len(samples)} | {num_tokens} | {' | '.join(error_rates)} | {shares} | {' | '.join(calibration_errors)} |"


if __name__ == "__main__":
    main()
