"""Mutants planted by hand: constants, and faults that the tests of this project once did not notice."""

from __future__ import annotations

from dataclasses import dataclass

LOSSES, ENDPOINTER, SEARCH = "voice/losses.py", "voice/endpointing/endpointer.py", "voice/recognition/search.py"
UTTERANCE, PIPELINE = "voice/utterance.py", "voice/pipeline.py"
SLICED, STREAMING = "voice/recognition/sliced.py", "voice/recognition/streaming.py"
INTAKE, DETECTOR, SILERO = "voice/intake.py", "voice/endpointing/detector.py", "voice/endpointing/silero.py"
SILERO_THREADS = "voice_activity.py::test_silero_starts_no_thread_and_imports_neither_torch_nor_its_package"


@dataclass(frozen=True)
class Planted:
    """One change of a source file."""

    name: str
    path: str
    old: str
    """Stands once in the file."""
    new: str
    tests: tuple[str, ...]
    """``losses.py`` for tests/test_losses.py."""


PLANTED = (
    # What a review planted, of which most once survived
    Planted(
        "a rebuilt stream keeps no committed tokens",
        UTTERANCE,
        "self._kept, self._stream = self._shown.committed, None",
        "self._kept, self._stream = (), None",
        ("utterance.py",),
    ),
    Planted(
        "the voice activity model is not reset at a gap",
        PIPELINE,
        "            self._detector.reset()\n",
        "",
        ("pipeline.py",),
    ),
    Planted(
        "the detector's reset does not reach the model",
        DETECTOR,
        '        """Forget the signal so far: the next window does not follow it."""\n        self._vad.reset()',
        '        """Forget the signal so far: the next window does not follow it."""',
        ("pipeline.py",),
    ),
    Planted(
        "an utterance's audio may begin before the end of the last one's",
        PIPELINE,
        "max(started.start_sample - pre_roll, self._last_fed, self._intake.signal_start)",
        "max(started.start_sample - pre_roll, self._intake.signal_start)",
        ("pipeline.py",),
    ),
    Planted(
        "pre-roll may reach behind a gap",
        PIPELINE,
        "max(started.start_sample - pre_roll, self._last_fed, self._intake.signal_start)",
        "max(started.start_sample - pre_roll, self._last_fed)",
        ("pipeline.py",),
    ),
    Planted(
        "no time passes for what was lost before skipped audio",
        INTAKE,
        "        self._skip(missing)\n        self._resampler.accept(block)\n        self._resampler.flush()\n",
        "        self._resampler.accept(block)\n        self._resampler.flush()\n",
        ("intake.py",),
    ),
    Planted(
        "what was lost before skipped audio is not counted",
        INTAKE,
        "        self._todo += settled\n        self._skip(missing)\n",
        "        self._skip(missing)\n",
        ("intake.py",),
    ),
    Planted(
        "a late loss begins no episode",
        LOSSES,
        "                self._episode_end = now + here\n",
        "                if not report.late:\n                    self._episode_end = now + here\n",
        ("losses.py",),
    ),
    Planted(
        "a late loss moves the end of its episode by its length",
        LOSSES,
        "                self._episode_end = now + here\n",
        "                self._episode_end = now + here + late\n",
        ("losses.py",),
    ),
    Planted(
        "a token may end behind the speech",
        UTTERANCE,
        "return tuple(replace(token, end_sample=speech_end) if",
        "return tuple(token if",
        ("utterance.py",),
    ),
    Planted("two paths of a search are kept", SEARCH, "_MAX_PATHS = 32", "_MAX_PATHS = 2", ("search.py",)),
    Planted("fifteen paths of a search are kept", SEARCH, "_MAX_PATHS = 32", "_MAX_PATHS = 15", ("search.py",)),
    Planted(
        "Silero has threads of its own",
        SILERO,
        "        options.intra_op_num_threads = options.inter_op_num_threads = 1\n",
        "        options.intra_op_num_threads = options.inter_op_num_threads = 2\n",
        (SILERO_THREADS,),
    ),
    Planted(
        "a copy of a sliced stream forgets that tokens waited",
        SLICED,
        "other._window, other._pending, other._waited = self._window, self._pending, self._waited",
        "other._window, other._pending = self._window, self._pending",
        ("sliced.py",),
    ),
    # Constants
    Planted("an episode is longer", LOSSES, "_EPISODE_SAMPLES = SAMPLE_RATE_HZ", "_EPISODE_SAMPLES = SAMPLE_RATE_HZ + 1", ("losses.py",)),
    Planted("an episode is shorter", LOSSES, "_EPISODE_SAMPLES = SAMPLE_RATE_HZ", "_EPISODE_SAMPLES = SAMPLE_RATE_HZ - 1", ("losses.py",)),
    Planted(
        "a cut is sought in more audio",
        ENDPOINTER,
        "CUT_SEARCH_SAMPLES = 2 * SAMPLE",
        "CUT_SEARCH_SAMPLES = 3 * SAMPLE",
        ("endpointer.py",),
    ),
    Planted(
        "a cut is sought in less audio",
        ENDPOINTER,
        "CUT_SEARCH_SAMPLES = 2 * SAMPLE",
        "CUT_SEARCH_SAMPLES = 1 * SAMPLE",
        ("endpointer.py",),
    ),
    Planted("fifteen tokens are tried", SEARCH, "_NUM_LIKELIEST = 16", "_NUM_LIKELIEST = 15", ("search.py",)),
    Planted("seventeen tokens are tried", SEARCH, "_NUM_LIKELIEST = 16", "_NUM_LIKELIEST = 17", ("search.py",)),
    Planted(
        "a failed retry is tried again for ever",
        UTTERANCE,
        "State.RETRYING: State.COMPLETING,",
        "State.RETRYING: State.RETRYING,",
        ("utterance.py",),
    ),
    Planted(
        "a failed preparation costs a stream",
        UTTERANCE,
        "State.PREPARING: State.DECODING,",
        "State.PREPARING: State.REBUILDING,",
        ("utterance.py",),
    ),
    Planted(
        "a failed final is a partial's failure",
        UTTERANCE,
        "State.REBUILDING, State.BROKEN)",
        "State.REBUILDING, State.BROKEN, State.FINISHING)",
        ("utterance.py",),
    ),
    Planted("a late loss is older", PIPELINE, "_LATE_SAMPLES = 2 * SAMPLE", "_LATE_SAMPLES = 3 * SAMPLE", ("pipeline.py",)),
    Planted("a late loss is younger", PIPELINE, "_LATE_SAMPLES = 2 * SAMPLE", "_LATE_SAMPLES = 1 * SAMPLE", ("pipeline.py",)),
    Planted("less slack in time", SLICED, "_TIME_SLACK_SAMPLES = 2 * FRAME", "_TIME_SLACK_SAMPLES = 1 * FRAME", ("sliced.py",)),
    Planted("more slack in time", SLICED, "_TIME_SLACK_SAMPLES = 2 * FRAME", "_TIME_SLACK_SAMPLES = 3 * FRAME", ("sliced.py",)),
    Planted("less is unreliable", SLICED, "_CUT_SAMPLES = 8 * FRAME", "_CUT_SAMPLES = 7 * FRAME", ("sliced.py",)),
    Planted("more is unreliable", SLICED, "_CUT_SAMPLES = 8 * FRAME", "_CUT_SAMPLES = 9 * FRAME", ("sliced.py",)),
    Planted("sliced mode has another name", SLICED, "funasr.paraformer-zh-streaming", "funasr.paraformer", ("sliced.py",)),
    Planted("streaming mode has another name", STREAMING, "funasr.streaming.paraformer-zh", "funasr.paraformer", ("streaming.py",)),
)
