"""Speaker labels, measured: `python bench/speakers.py --speech DIR [--only calibrate|pairs|scene|service|cost]`, with the embedded model.

DIR is the folder of recordings that `tools/embedded_models/train_speakers.py` was given. All figures but `calibrate` are of its TEST
speakers, whom neither training nor the thresholds have seen; `calibrate` is of its DEVELOPMENT speakers.

- calibrate: grid of thresholds over scenes of development speakers; the pair with the most right less wrong labels, and how steep the
  logistic curve from the cosine to "it is this voice" is.
- pairs: equal error rate over all pairs of utterances of test speakers, by the length of the utterances.
- scene: 4 test speakers with 20 utterances each, in mixed order, through the service's own registry, for many draws.
- service: one such scene as a file through the service itself.
- cost: ms for an utterance, on ONNX Runtime and on torch; memory and time of a start, with and without.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import soundfile

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tools" / "embedded_models")]
from scipy.optimize import linear_sum_assignment  # noqa: E402
from train_speakers import DEVELOPMENT, TEST, read_speakers  # noqa: E402

from voice.config import load_settings  # noqa: E402
from voice.finalization.speaker_embedding import create_speaker_model  # noqa: E402
from voice.finalization.speaker_registry import MatchSettings, SpeakerRegistry, unit  # noqa: E402
from voice.models.converted import load_converted  # noqa: E402
from voice.places import EMBEDDED  # noqa: E402

RATE_HZ = 16_000
SPEAKERS_OF_A_SCENE, UTTERANCES = 4, 20
WORDS = 3
SCENES = 30
PAUSE_SEC = 0.1
MIN_SEC = 1.0

Embeddings = dict[str, list[Any]]


def utterances_of(clips: list[Any], words: int) -> list[Any]:
    """Utterances of so many clips each, with short pauses; float32, [-1, 1]. Every clip is used once."""
    pause = np.zeros(round(PAUSE_SEC * RATE_HZ), np.float32)
    groups = [clips[first : first + words] for first in range(0, len(clips) - words + 1, words)]
    return [np.concatenate([part for clip in group for part in (clip, pause)]) / 32_768 for group in groups]


def embeddings_of(model: Any, speakers: dict[str, list[Any]], words: int, *, students: bool = True) -> Embeddings:
    """Speaker -> directions of its utterances that are long enough; of the students, or of the others with a clip an utterance."""
    found = {}
    for name, clips in speakers.items():
        if name.startswith("student") == students:
            made = utterances_of(clips, words if students else 1)
            found[name] = [unit(model.embedding(each)) for each in made if len(each) >= MIN_SEC * RATE_HZ or words == 1]
    return found


def equal_error_rate(embeddings: Embeddings) -> tuple[float, float, int, int]:
    """Rate, its cosine, and the numbers of pairs of one speaker and of two."""
    owners = np.array([name for name, each in embeddings.items() for _ in each])
    matrix = np.stack([direction for each in embeddings.values() for direction in each])
    rows, columns = np.triu_indices(len(matrix), 1)
    cosines, same = (matrix @ matrix.T)[rows, columns], owners[rows] == owners[columns]
    order = np.argsort(cosines)
    missed = np.cumsum(same[order]) / same.sum()
    accepted = 1 - np.cumsum(~same[order]) / (~same).sum()
    at = int(np.argmin(np.abs(missed - accepted)))
    return float((missed[at] + accepted[at]) / 2), float(cosines[order][at]), int(same.sum()), int((~same).sum())


def scene_of(embeddings: Embeddings, rng: Any, num_speakers: int, num_utterances: int) -> list[tuple[str, Any]]:
    """(speaker, direction) in mixed order."""
    chosen = rng.choice(sorted(embeddings), num_speakers, replace=False)
    scene = [(name, embeddings[name][at]) for name in chosen for at in rng.permutation(len(embeddings[name]))[:num_utterances]]
    return [scene[at] for at in rng.permutation(len(scene))]


def score(pairs: list[tuple[str, str | None]]) -> tuple[float, float, int]:
    """Shares of right labels and of none, by the best mapping of labels to speakers, one to one; and the number of labels."""
    names, labels = sorted({name for name, _ in pairs}), sorted({label for _, label in pairs if label})
    counts = np.array([[sum(pair == (name, label) for pair in pairs) for label in labels] for name in names])
    rows, columns = linear_sum_assignment(-counts)
    return counts[rows, columns].sum() / len(pairs), sum(label is None for _, label in pairs) / len(pairs), len(labels)


def run_scene(scene: list[tuple[str, Any]], same: float, new: float) -> tuple[float, float, int]:
    """A scene through the registry."""
    registry = SpeakerRegistry(MatchSettings(same, new, 50))
    pairs = []
    for name, direction in scene:
        match = registry.assign(direction)
        pairs.append((name, match.label if match else None))
    return score(pairs)


def calibrate(model: Any, speakers: dict[str, list[Any]]) -> None:
    """Thresholds and steepness from development speakers."""
    known = embeddings_of(model, {name: speakers[name] for name in DEVELOPMENT}, WORDS)
    rate, cosine, _, _ = equal_error_rate(known)
    print(f"development: equal error rate {rate:.3f} at cosine {cosine:.2f}")
    scenes = [scene_of(known, np.random.default_rng(seed), number, UTTERANCES) for seed in range(8) for number in (2, 3, 4)]
    best = []
    for same, new in itertools.product(np.arange(0.2, 0.91, 0.05), repeat=2):
        if new <= same + 1e-9:
            results = np.array([run_scene(scene, same, new) for scene in scenes])
            right, none = results[:, 0].mean(), results[:, 1].mean()
            best.append((2 * right + none - 1, right, none, results[:, 2].mean(), same, new))
    for value, right, none, labels, same, new in sorted(best, reverse=True)[:8]:
        print(f"same {same:.2f} new {new:.2f}: right less wrong {value:.3f}, right {right:.3f}, none {none:.3f}, {labels:.1f} labels")
    cosines, own = [], []
    for name, other in itertools.product(known, repeat=2):
        for at, direction in enumerate(known[name]):
            rest = [each for place, each in enumerate(known[other]) if name != other or place != at][:5]
            cosines.append(float(np.mean(rest, axis=0) @ direction))
            own.append(name == other)
    slope, middle = logistic(np.array(cosines), np.array(own, float))
    print(f"an utterance and 5 of a voice: P(same) = 1 / (1 + exp(-{slope:.1f} (mean cosine - {middle:.2f})))")


def logistic(cosines: Any, own: Any) -> tuple[float, float]:
    """Slope and middle of the logistic curve that fits best, one's own and others weighing alike."""
    weight = np.where(own > 0, 0.5 / own.mean(), 0.5 / (1 - own.mean()))
    slope, offset = 10.0, -4.0
    for _ in range(20_000):
        error = (1 / (1 + np.exp(-(slope * cosines + offset))) - own) * weight
        slope -= 2.0 * float((error * cosines).mean())
        offset -= 2.0 * float(error.mean())
    return slope, -offset / slope


def pairs(model: Any, speakers: dict[str, list[Any]]) -> None:
    """Equal error rates."""
    test = {name: speakers[name] for name in TEST}
    for words in (1, 2, 3, 5):
        rate, cosine, same, different = equal_error_rate(embeddings_of(model, test, words))
        sec = np.mean([len(each) for name in test if name.startswith("student") for each in utterances_of(test[name], words)]) / RATE_HZ
        print(f"students, {words} words ({sec:.1f} s): equal error rate {rate:.3f} at {cosine:.2f} ({same:,} and {different:,} pairs)")
    rate, cosine, same, different = equal_error_rate(embeddings_of(model, test, 1, students=False))
    print(f"two German actors, with seven emotions: equal error rate {rate:.3f} at {cosine:.2f} ({same:,} and {different:,} pairs)")


def thresholds() -> tuple[float, float]:
    """Those of the embedded model."""
    return load_settings({"embedded": True}).speakers.thresholds(embedded=True)


def scene(model: Any, speakers: dict[str, list[Any]]) -> None:
    """Labels in scenes of test speakers."""
    known = embeddings_of(model, {name: speakers[name] for name in TEST}, WORDS)
    same, new = thresholds()
    results = [
        run_scene(scene_of(known, np.random.default_rng(seed), SPEAKERS_OF_A_SCENE, UTTERANCES), same, new) for seed in range(SCENES)
    ]
    right, none, labels = np.array(results).T
    print(
        f"{SCENES} scenes of {SPEAKERS_OF_A_SCENE} x {UTTERANCES}: right {right.mean():.3f} ({right.min():.3f} to {right.max():.3f}), "
        f"wrong {(1 - right - none).mean():.3f}, none {none.mean():.3f}, {labels.mean():.1f} labels"
    )


def service(speakers: dict[str, list[Any]]) -> None:
    """One scene through the service. Utterances in which it recognises nothing have no final, and are left out."""
    rng = np.random.default_rng(0)
    chosen = rng.choice([name for name in TEST if name.startswith("student")], SPEAKERS_OF_A_SCENE, replace=False)
    lines = [(name, each) for name in chosen for each in utterances_of(speakers[name], WORDS)[:UTTERANCES]]
    lines = [lines[at] for at in rng.permutation(len(lines))]
    gap = np.zeros(RATE_HZ + RATE_HZ // 2, np.float32)
    spans, parts, position = [], [gap], len(gap)
    for name, samples in lines:
        spans.append((position / 16, (position + len(samples)) / 16, name))
        parts += [samples, gap]
        position += len(samples) + len(gap)
    with tempfile.TemporaryDirectory() as folder:
        soundfile.write(Path(folder) / "scene.wav", np.concatenate(parts), RATE_HZ)
        finals = [each for each in run_service("--input", str(Path(folder) / "scene.wav"), "--speakers") if each["type"].endswith("final")]
    found = defaultdict(list)
    for final in finals:
        middle = (final["start_ms"] + final["end_ms"]) / 2
        owner = next((at for at, (first, last, _) in enumerate(spans) if first - 300 <= middle <= last + 300), None)
        if owner is not None:
            found[owner].append((final["speaker"] or {}).get("label"))
    labelled = [(spans[at][2], labels[0]) for at, labels in found.items()]
    right, none, labels = score(labelled)
    print(
        f"through the service: {len(lines)} utterances, {len(labelled)} with text; of these right {right:.3f}, "
        f"wrong {1 - right - none:.3f}, none {none:.3f}, {labels} labels"
    )


def run_service(*flags: str) -> list[dict[str, Any]]:
    """Events of a run."""
    command = [sys.executable, str(REPOSITORY / "asr_service_streaming.py"), "--embedded", "--no-emotion", *flags]
    done = subprocess.run(  # noqa: S603 -- our own
        command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def full_size(directory: Path) -> Any:
    """CAM++ of the published size with random weights, on ONNX Runtime."""
    from funasr_directory import import_funasr, write_directory

    from voice.conversion.convert import write_graphs
    from voice.models.directory import describe_model
    from voice.models.loader import load_model

    config = {"feat_dim": 80, "embedding_size": 192, "growth_rate": 32, "bn_size": 4, "init_channels": 128}
    weights = import_funasr("CAMPPlus")(**config).state_dict()
    write_directory(directory, "speaker-verification", {"model": "CAMPPlus", "model_conf": config}, weights, {})
    (directory / "onnx").mkdir()
    write_graphs(load_model(directory, "CAMPPlus", "cpu"), describe_model(directory, "CAMPPlus"), directory / "onnx")
    return create_speaker_model(load_converted(directory / "onnx", directory, 1), "full size")


def cost(model: Any) -> None:
    """Time of an utterance; memory and time of a start."""
    from voice.models.loader import load_model
    from voice.models.torch_setup import set_num_threads

    on_torch = create_speaker_model(load_model(EMBEDDED / "speaker", "CAMPPlus", "cpu"), "speaker")
    set_num_threads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        models = {"ONNX Runtime": model, "torch": on_torch, "full size on ONNX Runtime": full_size(Path(folder))}
        for seconds in (1, 3, 10):
            samples = (rng.standard_normal(seconds * RATE_HZ) * 0.1).astype(np.float32)
            print(f"{seconds} s of audio (median of 9, one thread): ", end="")
            for name, each in models.items():
                took = []
                for _ in range(9):
                    started = time.perf_counter()
                    each.embedding(samples)
                    took.append(time.perf_counter() - started)
                print(f"{name} {1000 * float(np.median(took)):.0f} ms; ", end="")
            print()
    wav = str(REPOSITORY / "examples" / "two_utterances.wav")
    for flags in ((), ("--speakers",)):
        code = (
            "import resource, subprocess, sys, time\nstarted = time.time()\nsubprocess.run(sys.argv[1:], check=True, capture_output=True, "
            "stdin=subprocess.DEVNULL)\nprint(time.time() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
        )
        command = [sys.executable, str(REPOSITORY / "asr_service_streaming.py"), "--embedded", "--no-emotion", "--input", wav, *flags]
        timed = [sys.executable, "-c", code, *command]
        runs = [subprocess.run(timed, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]  # noqa: S603 -- our own
        sec, mib = np.median(np.array(runs, float), axis=0)
        print(f"whole run of two_utterances.wav {' '.join(flags) or 'without'}: {sec:.1f} s, {mib:.0f} MiB (median of 3)")


def main() -> None:
    """Measure."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--speech", type=Path, required=True)
    arguments.add_argument("--only", choices=("calibrate", "pairs", "scene", "service", "cost"), action="append")
    options = arguments.parse_args()
    wanted = options.only or ["calibrate", "pairs", "scene", "service", "cost"]
    model = create_speaker_model(load_converted(EMBEDDED / "speaker" / "onnx", EMBEDDED / "speaker", 1), "speaker")
    speakers = read_speakers(options.speech, (*TEST, *DEVELOPMENT)) if wanted != ["cost"] else {}
    parts = {
        "calibrate": lambda: calibrate(model, speakers),
        "pairs": lambda: pairs(model, speakers),
        "scene": lambda: scene(model, speakers),
        "service": lambda: service(speakers),
        "cost": lambda: cost(model),
    }
    for name in wanted:
        parts[name]()


if __name__ == "__main__":
    main()
