"""How well the near-field gate tells a voice near the microphone from one across the room, beside a threshold on the level.

    python bench/near_field.py SPEECH                 # the tables of bench/README.md: 15 minutes
    python bench/near_field.py SPEECH --fit           # the weights of voice/endpointing/directness.py anew: 4 minutes
    python bench/near_field.py SPEECH --cost          # what a verdict and a quiet window cost

``SPEECH`` is a folder of recordings of one voice each, recorded close to it and without reverberation, with an ``index.tsv``: a row for
each file, with the columns ``file`` (below the folder), ``set`` and ``speaker``. Any format that libsndfile reads, 16 kHz mono.

Rooms are simulated with image sources (pyroomacoustics): 4.2 to 8 m long, 3.2 to 6 m wide, 2.4 to 3.2 m high, reverberation times of 0.2
to 0.8 s, absorption that rises with the frequency. The microphone stands somewhere at table height. Near voices are 0.3 to 0.6 m from it,
far ones 2.5 to 5 m. Noise is steady, white or pink, -65 to -48 dBFS in each session.

A *session* is one room, one near voice and one far voice, which take turns in random order, each turn one recording, with 1.2 s of noise
between. The near voice has a usual level of -34 to -24 dBFS for the session and a spread of 2.5 dB; the far one is 6 dB quieter on average,
equally loud, or 6 dB louder, with the same spread. The sessions go through the service's own detector: Silero, the endpointer with the
default settings, the gate. A turn has passed if an utterance began in it.

Speakers and rooms are halved: one half chooses thresholds (and ``--fit`` the weights), the other is measured. The threshold of each method
is that at which 2 % of the near turns of the first half are rejected. A benchmark, not a test: nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import csv
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyroomacoustics
import soundfile
from numpy.typing import NDArray

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from voice.audio import NO_SAMPLES, SAMPLE_RATE_HZ, Samples, ms_to_samples  # noqa: E402
from voice.endpointing import directness as measures  # noqa: E402
from voice.endpointing import near_field  # noqa: E402
from voice.endpointing.detector import Gate, SpeechDetector  # noqa: E402
from voice.endpointing.endpointer import EndpointerSettings, NearFieldLimits, SpeechEnded, SpeechStarted  # noqa: E402
from voice.endpointing.silero import SileroVad  # noqa: E402

WINDOW = 512
PAUSE_SEC = 1.2
LEVELS_DBFS = (-34.0, -24.0)
SPREAD_DB = 2.5
NOISE_DBFS = (-65.0, -48.0)
CONDITIONS_DB = {"6 dB quieter": -6.0, "equally loud": 0.0, "6 dB louder": 6.0}
REJECTED_NEAR = 0.02
TURNS = 24
ABSORPTION_HZ = (125, 250, 500, 1_000, 2_000, 4_000, 8_000)
ABSORPTION = np.array([0.75, 0.85, 0.95, 1.0, 1.05, 1.15, 1.3])
"""Of the walls, relative to that at 1 kHz: curtains, carpets and furniture take more of the high frequencies."""
ENDPOINTER = EndpointerSettings(
    threshold=0.5,
    release_threshold=0.35,
    min_speech=ms_to_samples(90),
    endpoint_silence=ms_to_samples(800),
    speculate_after=ms_to_samples(300),
    max_utterance=30 * SAMPLE_RATE_HZ,
    min_rms=0.0,
)


@dataclass(frozen=True)
class Room:
    """A room, and the way of the sound from some places near the microphone and some far from it."""

    near: tuple[Samples, ...]
    far: tuple[Samples, ...]


@dataclass(frozen=True)
class Recording:
    """One voice, without a room."""

    path: Path
    set: str
    speaker: str
    half: int
    """0 chooses, 1 is measured: all of a speaker are in one."""

    @functools.cached_property
    def samples(self) -> Samples:
        """float32, 16 kHz mono."""
        samples, rate_hz = soundfile.read(self.path, dtype="float32")
        if rate_hz != SAMPLE_RATE_HZ or samples.ndim != 1:
            raise ValueError(f"{self.path} is not 16 kHz mono")
        return samples


@dataclass(frozen=True)
class Turn:
    """A stretch of a session in which one voice speaks."""

    start: int
    end: int
    is_near: bool


@dataclass(frozen=True)
class Session:
    """What the microphone gave, with the answers of the voice activity model, and who spoke when."""

    samples: Samples
    probabilities: tuple[float, ...]
    turns: tuple[Turn, ...]


def recordings_in(folder: Path, sets: frozenset[str]) -> list[Recording]:
    """The recordings of the index that belong to these sets; every second speaker of a set is in the other half."""
    with (folder / "index.tsv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["set"] in sets]
    halves = {}
    for name in sorted(sets):
        speakers = sorted({row["speaker"] for row in rows if row["set"] == name})
        halves |= {(name, speaker): number % 2 for number, speaker in enumerate(speakers)}
    return [Recording(folder / row["file"], row["set"], row["speaker"], halves[row["set"], row["speaker"]]) for row in rows]


def room(draw: np.random.Generator, *, places: int) -> Room:
    """A room of random size and reverberation."""
    size = np.array([draw.uniform(4.2, 8), draw.uniform(3.2, 6), draw.uniform(2.4, 3.2)])
    seconds = draw.uniform(0.2, 0.8)
    surface = 2 * (size[0] * size[1] + size[0] * size[2] + size[1] * size[2])
    absorbed = 1 - np.exp(-0.161 * size.prod() / (seconds * surface))  # Eyring
    walls = np.clip(absorbed * ABSORPTION, 0.02, 0.95)
    order = min(40, int(np.ceil(seconds * 343 / size.min())))
    near = tuple(_response(draw, size, walls, order, (0.3, 0.6)) for _ in range(places))
    far = tuple(_response(draw, size, walls, order, (2.5, 5.0)) for _ in range(places))
    return Room(near, far)


def _response(
    draw: np.random.Generator, size: NDArray[np.float64], walls: NDArray[np.float64], order: int, metres: tuple[float, float]
) -> Samples:
    """The impulse response from a random place at this distance to the microphone at a random place."""
    while True:
        distance = draw.uniform(*metres)
        microphone = np.array([*(draw.uniform(0.6, side - 0.6) for side in size[:2]), draw.uniform(0.7, 1.2)])
        angle, above = draw.uniform(0, 2 * np.pi), draw.uniform(0, 0.25) if distance < 1 else draw.uniform(-0.1, 0.5)
        along = np.sqrt(distance**2 - above**2)
        source = microphone + np.array([along * np.cos(angle), along * np.sin(angle), above])
        if (source > 0.3).all() and (source < size - 0.3).all():
            break
    material = pyroomacoustics.Material({"coeffs": walls.tolist(), "center_freqs": list(ABSORPTION_HZ)})
    space = pyroomacoustics.ShoeBox(
        size, fs=SAMPLE_RATE_HZ, materials=material, max_order=order, air_absorption=True, use_rand_ism=True, max_rand_disp=0.05
    )
    space.add_source(source)
    space.add_microphone(microphone)
    space.compute_rir()
    response: Samples = np.asarray(space.rir[0][0], np.float32)
    return response


def heard(samples: Samples, response: Samples) -> Samples:
    """A recording as it sounds in a room, at a root mean square of 1 where somebody speaks."""
    size = len(samples) + len(response)
    sound = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)[: len(samples) + SAMPLE_RATE_HZ // 4]
    powers = np.square(sound[: len(sound) // WINDOW * WINDOW]).reshape(-1, WINDOW).mean(axis=1)
    return (sound / np.sqrt(powers[powers > powers.max() * 1e-3].mean())).astype(np.float32)


def noise(draw: np.random.Generator, num_samples: int) -> Samples:
    """White or pink noise of the session's level."""
    samples = draw.normal(size=num_samples)
    if draw.random() < 0.7:
        hz = np.maximum(np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ), 30)
        samples = np.fft.irfft(np.fft.rfft(samples) / np.sqrt(hz), num_samples)
    return (samples / samples.std() * amplitude(draw.uniform(*NOISE_DBFS))).astype(np.float32)


def amplitude(dbfs: float) -> float:
    """Of a level in dB."""
    return float(10 ** (dbfs / 20))


def answers(vad: SileroVad, samples: Samples) -> tuple[float, ...]:
    """The probability of speech in each window."""
    vad.reset()
    found = []
    for start in range(0, len(samples) - WINDOW + 1, WINDOW):
        following = samples[start + WINDOW : (start // WINDOW // 8 + 1) * 8 * WINDOW]
        found.append(vad.probability(samples[start : start + WINDOW], following[: len(following) // WINDOW * WINDOW]))
    return tuple(found)


# --- fitting ------------------------------------------------------------------------------------------------------------


def examples(
    recordings: list[Recording], draw: np.random.Generator, num_rooms: int
) -> Iterator[tuple[NDArray[np.float64], bool, Recording]]:
    """What the gate measures at each verdict on the first two seconds of each recording, near and far."""
    rooms = [room(draw, places=3) for _ in range(num_rooms)]
    vad = SileroVad()
    for recording in recordings:
        for is_near in (True, False):
            places = rooms[draw.integers(num_rooms)]
            response = (places.near if is_near else places.far)[draw.integers(3)]
            speech = heard(recording.samples[: 2 * SAMPLE_RATE_HZ], response) * amplitude(draw.uniform(*LEVELS_DBFS))
            signal = noise(draw, SAMPLE_RATE_HZ + len(speech))
            signal[SAMPLE_RATE_HZ:] += speech
            found: list[NDArray[np.float64]] = []

            def measure(samples: Samples, level: float, floor: NDArray[np.float64]) -> float:
                found.append(measures.features(samples, level, floor))  # noqa: B023 -- called in this turn of the loop only
                return -100.0  # rejected, so that it is judged again

            replay(signal, answers(vad, signal), ENDPOINTER, near_field.NearFieldGate(near_field.FixedLevel(-120.0), measure))
            for row in found:
                yield row, is_near, recording


def fitted(rows: NDArray[np.float64], is_near: NDArray[np.bool_], penalty: float = 0.01) -> tuple[NDArray[np.float64], float]:
    """Weights and bias of a logistic regression, by Newton's method; the penalty is on weights of features scaled to a variance of 1."""
    mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-9
    scaled = np.column_stack(((rows - mean) / scale, np.ones(len(rows))))
    penalties = np.append(np.full(rows.shape[1], penalty), 0.0)
    weights = np.zeros(scaled.shape[1])
    for _ in range(30):
        odds = 1 / (1 + np.exp(-scaled @ weights))
        gradient = scaled.T @ (odds - is_near) / len(rows) + penalties * weights
        curvature = (scaled * (odds * (1 - odds))[:, np.newaxis]).T @ scaled / len(rows) + np.diag(penalties + 1e-9)
        weights -= np.linalg.solve(curvature, gradient)
    return weights[:-1] / scale, float(weights[-1] - (weights[:-1] / scale) @ mean)


# --- measuring ----------------------------------------------------------------------------------------------------------


class Replay:
    """Gives answers that were computed before."""

    window_samples = WINDOW

    def __init__(self, probabilities: tuple[float, ...]) -> None:
        self._probabilities = iter(probabilities)

    def probability(self, window: Samples, following: Samples) -> float:
        """The next one."""
        del window, following
        return next(self._probabilities)

    def reset(self) -> None:
        """Nothing to forget."""


def replay(samples: Samples, probabilities: tuple[float, ...], settings: EndpointerSettings, gate: Gate | None) -> list[tuple[int, int]]:
    """Where utterances begin and end, in samples."""
    detector = SpeechDetector(Replay(probabilities), settings, gate)
    decisions = []
    for index in range(len(probabilities)):
        start = index * WINDOW
        decisions += detector.accept(start, samples[start : start + WINDOW], NO_SAMPLES)
    decisions += detector.end(len(probabilities) * WINDOW, "end_of_input")
    starts = [decision.start_sample for decision in decisions if isinstance(decision, SpeechStarted)]
    ends = [decision.end_sample for decision in decisions if isinstance(decision, SpeechEnded)]
    return list(zip(starts, ends, strict=True))


def sessions(recordings: list[Recording], rooms: list[Room], draw: np.random.Generator, number: int, far_db: float) -> list[Session]:
    """Sessions in which a near and a far voice take turns; the same ones for the same ``draw``, but for the level of the far voice."""
    speakers = sorted({(recording.set, recording.speaker) for recording in recordings})
    vad = SileroVad()
    made = []
    for _ in range(number):
        places, pair = rooms[draw.integers(len(rooms))], draw.permutation(len(speakers))[:2]
        spoken = [[recording for recording in recordings if (recording.set, recording.speaker) == speakers[who]] for who in pair]
        usual_dbfs = draw.uniform(*LEVELS_DBFS)
        pieces, turns, at = [np.zeros(SAMPLE_RATE_HZ, np.float32)], [], SAMPLE_RATE_HZ
        for _ in range(TURNS):
            is_near = bool(draw.random() < 0.5)
            choice = spoken[0 if is_near else 1]
            response = (places.near if is_near else places.far)[draw.integers(len(places.near))]
            level_dbfs = usual_dbfs + draw.normal(0, SPREAD_DB) + (0.0 if is_near else far_db)
            speech = heard(choice[draw.integers(len(choice))].samples, response) * amplitude(level_dbfs)
            turns.append(Turn(at, at + len(speech), is_near))
            pieces += [speech, np.zeros(round(PAUSE_SEC * SAMPLE_RATE_HZ), np.float32)]
            at += len(speech) + len(pieces[-1])
        samples = np.concatenate(pieces)
        samples += noise(draw, len(samples))
        made.append(Session(samples, answers(vad, samples), tuple(turns)))
    return made


def overlapped(recordings: list[Recording], rooms: list[Room], draw: np.random.Generator, number: int, far_db: float) -> list[Session]:
    """Sessions in which a far voice speaks without a pause and a near one begins over it after 2 to 6 s: the one turn that counts."""
    speakers = sorted({(recording.set, recording.speaker) for recording in recordings})
    vad = SileroVad()
    made = []
    for _ in range(number):
        places, pair = rooms[draw.integers(len(rooms))], draw.permutation(len(speakers))[:2]
        near, far = ([recording for recording in recordings if (recording.set, recording.speaker) == speakers[who]] for who in pair)
        usual_dbfs = draw.uniform(*LEVELS_DBFS)
        voice = near[draw.integers(len(near))].samples
        start = SAMPLE_RATE_HZ + round(draw.uniform(2, 6) * SAMPLE_RATE_HZ)
        telly = NO_SAMPLES
        while len(telly) < start + len(voice):
            telly = np.concatenate((telly, trimmed(far[draw.integers(len(far))].samples)))
        samples = np.concatenate((np.zeros(SAMPLE_RATE_HZ, np.float32), heard(telly, places.far[0]) * amplitude(usual_dbfs + far_db)))
        speech = heard(trimmed(voice), places.near[0]) * amplitude(usual_dbfs)
        speech = speech[: len(samples) - start]
        samples[start : start + len(speech)] += speech
        samples += noise(draw, len(samples))
        made.append(Session(samples, answers(vad, samples), (Turn(start, start + len(speech), is_near=True),)))
    return made


def trimmed(samples: Samples) -> Samples:
    """Without the silence at both ends."""
    loud = np.flatnonzero(np.abs(samples) > np.abs(samples).max() * 0.05)
    return samples[loud[0] : loud[-1]]


class Remembered:
    """``directness``, computed once for the same audio and noise: thresholds are tried on the same sessions."""

    def __init__(self) -> None:
        self._known: dict[int, float] = {}

    def __call__(self, samples: Samples, level: float, floor: NDArray[np.float64]) -> float:
        """As ``directness``."""
        key = hash((samples.tobytes(), level, floor.tobytes()))
        if key not in self._known:
            self._known[key] = measures.directness(samples, level, floor)
        return self._known[key]


REMEMBERED = Remembered()


@dataclass(frozen=True)
class Method:
    """A way to reject speech."""

    name: str
    gate: Callable[[float], Gate | None]
    threshold: float | None
    """None is chosen on the first half."""
    between: tuple[float, float] = (-90.0, -10.0)
    is_rms: bool = False

    def utterances(self, session: Session, threshold: float) -> list[tuple[int, int]]:
        """Where utterances begin and end in a session."""
        settings = replace(ENDPOINTER, min_rms=amplitude(threshold)) if self.is_rms else ENDPOINTER
        return replay(session.samples, session.probabilities, settings, self.gate(threshold))

    def passed(self, session: Session, threshold: float) -> list[tuple[Turn, bool]]:
        """Each turn in which there is speech, and whether it was let through: a near one with its beginning."""
        found = starts_in(session, replay(session.samples, session.probabilities, ENDPOINTER, None))
        begun = starts_in(session, self.utterances(session, threshold))
        results = []
        for turn in session.turns:
            if found[turn]:
                latest = found[turn][0] + SAMPLE_RATE_HZ // 2 if turn.is_near else turn.end + SAMPLE_RATE_HZ
                results.append((turn, any(start <= latest for start in begun[turn])))
        return results


def starts_in(session: Session, spans: list[tuple[int, int]]) -> dict[Turn, list[int]]:
    """Where the utterances begin that begin in each turn, with 0.3 s around it."""
    slack = round(0.3 * SAMPLE_RATE_HZ)
    return {turn: [start for start, _ in spans if turn.start - slack <= start < turn.end + slack] for turn in session.turns}


def unheard(method: Method, made: list[Session], threshold: float) -> tuple[float, int]:
    """Share of the near voices that begin over a far one whose beginning, with half a second of tolerance, is in no utterance."""
    missed = []
    for session in made:
        (turn,) = session.turns
        latest = turn.start + SAMPLE_RATE_HZ // 2
        missed.append(not any(start <= latest < end for start, end in method.utterances(session, threshold)))
    return float(np.mean(missed)), len(missed)


def shares(method: Method, made: list[Session], threshold: float) -> tuple[float, float, int, int]:
    """Share of near turns that are rejected and of far turns that pass, and the number of each."""
    results = [result for session in made for result in method.passed(session, threshold)]
    near = [passed for turn, passed in results if turn.is_near]
    far = [passed for turn, passed in results if not turn.is_near]
    return 1 - float(np.mean(near)), float(np.mean(far)) if far else 0.0, len(near), len(far)


def chosen(method: Method, made: list[Session]) -> float:
    """The highest threshold at which so few near turns of the first half are rejected; where none is low enough, the lowest."""
    low, high = method.between
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (middle, high) if shares(method, made, middle)[0] <= REJECTED_NEAR else (low, middle)
    return low


class DirectnessAlone:
    """A limit on directness, of any level."""

    def __init__(self, limit: float) -> None:
        self._limits = NearFieldLimits(-120.0, limit)

    def limits(self, level_dbfs: float) -> NearFieldLimits:
        """The same for all speech."""
        del level_dbfs
        return self._limits

    def learn(self, found: object) -> None:
        """Nothing is learned."""


def gated(reference: near_field.Reference) -> Gate:
    """The gate of the service with these limits."""
    return near_field.NearFieldGate(reference, REMEMBERED)


METHODS = (
    Method("RMS 0.01", lambda _: None, -40.0, is_rms=True),
    Method("RMS, chosen", lambda _: None, None, is_rms=True),
    Method("gate, a number, chosen", lambda threshold: gated(near_field.FixedLevel(threshold)), None),
    Method("gate, directness alone, chosen", lambda threshold: gated(DirectnessAlone(threshold)), None, (-8.0, 4.0)),
    Method("gate, `auto`", lambda _: gated(near_field.LearntLevel()), 0.0),
)


def table(title: str, recordings: list[Recording], seed: int, num_sessions: int, num_rooms: int) -> None:
    """Measure all methods and print rows of a table."""
    rooms = [[room(draw, places=3) for _ in range(num_rooms)] for draw in map(np.random.default_rng, (seed, seed + 1))]
    halves = [[recording for recording in recordings if recording.half == half] for half in (0, 1)]
    first = sessions(halves[0], rooms[0], np.random.default_rng(seed + 2), num_sessions, 0.0)
    thresholds = {method.name: chosen(method, first) if method.threshold is None else method.threshold for method in METHODS}
    made = {name: sessions(halves[1], rooms[1], np.random.default_rng(seed + 3), num_sessions, db) for name, db in CONDITIONS_DB.items()}
    over = {
        name: overlapped(halves[1], rooms[1], np.random.default_rng(seed + 4), num_sessions * 4, db) for name, db in CONDITIONS_DB.items()
    }
    print(f"\n{title}: {num_sessions} sessions and {num_rooms} rooms in each half\n")
    print("| method | threshold | far voice | near rejected | far passes | near over far: not heard |\n|---|---|---|---|---|---|")
    for method in METHODS:
        threshold = thresholds[method.name]
        for condition, these in made.items():
            rejected, passes, num_near, num_far = shares(method, these, threshold)
            missed, num_over = unheard(method, over[condition], threshold)
            counts = f"{rejected:.1%} of {num_near} | {passes:.1%} of {num_far} | {missed:.1%} of {num_over}"
            print(f"| {method.name} | {'' if method.threshold == 0 else f'{threshold:.1f}'} | {condition} | {counts} |", flush=True)


def cost() -> None:
    """Print what the gate computes with."""
    draw = np.random.default_rng(0)
    speech, floor = draw.normal(0, 0.05, SAMPLE_RATE_HZ).astype(np.float32), np.full(6, 1e-6)
    for name, call in (
        ("a verdict on 0.5 s", lambda: measures.directness(speech[: SAMPLE_RATE_HZ // 2], 0.0025, floor)),
        ("a verdict on 1 s", lambda: measures.directness(speech, 0.0025, floor)),
        ("a window without speech", lambda: measures.NoiseFloor().accept(speech[:WINDOW])),
    ):
        spent = []
        for _ in range(200):
            started = time.process_time()
            call()
            spent.append(time.process_time() - started)
        print(f"{name}: {np.median(spent) * 1000:.2f} ms of processor time")


def fit(recordings: list[Recording], num_rooms: int) -> None:
    """Print the weights for voice/endpointing/directness.py."""
    draw = np.random.default_rng(100)
    first = [recording for recording in recordings if recording.half == 0]
    found = list(examples([first[index] for index in draw.permutation(len(first))], draw, num_rooms))
    weights, bias = fitted(np.array([row for row, _, _ in found]), np.array([is_near for _, is_near, _ in found]))
    print(f"{len(found)} verdicts on {len(first)} recordings of {len({each.speaker for each in first})} speakers in {num_rooms} rooms")
    print("WEIGHTS =", ", ".join(f"{weight:.4g}" for weight in weights))
    print(f"BIAS = {bias:.4g}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("speech", type=Path, help="folder of recordings with an index.tsv")
    parser.add_argument("--fit", action="store_true", help="print weights")
    parser.add_argument("--cost", action="store_true", help="print what a verdict costs")
    parser.add_argument("--sessions", type=int, default=16, help="sessions of each condition (default: 16)")
    parser.add_argument("--rooms", type=int, default=20, help="rooms of each half (default: 20)")
    arguments = parser.parse_args()
    recordings = recordings_in(arguments.speech, frozenset(("aishell", "emotion_de", "students")))
    sentences = [recording for recording in recordings if recording.set != "students"]
    if arguments.cost:
        cost()
    elif arguments.fit:
        fit(sentences, arguments.rooms)
    else:
        table("Sentences", sentences, 1, arguments.sessions, arguments.rooms)
        words = [recording for recording in recordings if recording.set == "students"]
        table("Single words", words, 11, arguments.sessions, arguments.rooms)


if __name__ == "__main__":
    main()
