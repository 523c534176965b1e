"""Settings: four layers merged into one, every problem of all layers listed."""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from voice.config import DEFAULT_PATH, Settings, load_settings
from voice.errors import ConfigInvalid, describe, log_fields
from voice.text_file import FileInvalid
from voice.yaml_file import read_mapping


def load(command_line: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None, path: Path | None = None) -> Settings:
    """Settings of these layers over the defaults; nothing of the test's own environment."""
    return load_settings(command_line or {}, path, environment or {})


def problems(
    command_line: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None, path: Path | None = None
) -> list[str]:
    with pytest.raises(ConfigInvalid) as caught:
        load(command_line, environment, path)
    return caught.value.problems


def about(key: str, found: list[str]) -> str:
    """The one problem that begins with ``key``."""
    (problem,) = [each for each in found if each.startswith(key)]
    return problem


@pytest.fixture
def settings_file(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# --- defaults -------------------------------------------------------------------------------------------------------


def test_the_defaults_load_and_are_the_inherited_ones():
    settings = load()
    assert (settings.chunk_sec, settings.endpoint_silence_ms, settings.chunk_size) == (0.6, 800, (0, 10, 5))
    assert settings.look_backs == (4, 1)
    assert (settings.vad.pre_roll_ms, settings.vad.max_utterance_sec, settings.emotion.max_audio_sec) == (300, 30, 15)
    assert settings.audio.input == "mic"
    assert settings.audio.channel == "mix"
    assert not settings.output.status_events


def leaves(model: type[BaseModel], prefix: str = "") -> set[str]:
    names = set()
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names |= leaves(field.annotation, f"{prefix}{name}.")
        else:
            names.add(prefix + name)
    return names


def uncommented_keys(text: str) -> tuple[set[str], list[str]]:
    """All leaf keys of a settings file of two levels, and those without a comment above them or above their group."""
    keys, bare, section, explained = set(), [], "", False
    for line in text.splitlines():
        content = line.strip()
        if content.startswith("#"):
            explained = True
        elif not content:
            explained = False
        elif content.endswith(":"):
            section, explained = content, False
        else:
            indented = line.startswith(" ")
            key = (section[:-1] + "." if indented else "") + content.partition(":")[0]
            keys.add(key)
            if not explained:
                bare.append(key)
    return keys, bare


def test_a_wake_word_in_a_locale_that_is_no_utf_8_is_read_as_utf_8():
    assert load({"wake": {"words": ["小智".encode().decode("ascii", "surrogateescape")]}}).wake.words == ("小智",)


def test_a_wake_word_that_is_given_twice_counts_once():
    assert load({"wake": {"words": ["小智小智", "hey siri", "小智小智"]}}).wake.words == ("小智小智", "hey siri")


def test_every_setting_stands_in_the_default_file_with_a_comment_above_it():
    keys, bare = uncommented_keys(DEFAULT_PATH.read_text(encoding="utf-8"))
    assert keys == leaves(Settings)
    assert bare == []


def test_a_setting_without_a_comment_would_be_noticed():
    text = "# Why.\none: 1\ntwo: 2\n\nthree: 3\naudio:\n  four: 4\n  # Why.\n  five: 5\n"
    assert uncommented_keys(text) == ({"one", "two", "three", "audio.four", "audio.five"}, ["three", "audio.four"])


def test_every_default_stands_in_the_default_file_and_none_in_the_code():
    """No setting has a default of its own, and no number stands in the module but the bounds of fields and indices."""
    with pytest.raises(ValidationError) as caught:
        Settings(())
    missing = {details["loc"][0] for details in caught.value.errors()}
    assert missing == set(Settings.model_fields)
    assert [name for name in leaves(Settings) if not is_required(name)] == []
    tree = ast.parse(Path(inspect.getfile(Settings)).read_text(encoding="utf-8"))
    allowed = {id(node) for each in ast.walk(tree) if has_bounds_or_indices(each) for node in ast.walk(each)}
    numbers = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) in (int, float)}
    outside = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and type(node.value) in (int, float) and id(node) not in allowed
    }
    assert 100 in numbers, "the walk sees the bounds of endpoint_silence_ms"
    assert outside == {0.06, 100}, "the length of a frame, and the characters that are shown of a wrong value"


def is_required(name: str) -> bool:
    model: type[BaseModel] = Settings
    *sections, key = name.split(".")
    for section in sections:
        annotation = model.model_fields[section].annotation
        assert isinstance(annotation, type)
        model = annotation
    return model.model_fields[key].is_required()


def has_bounds_or_indices(node: ast.AST) -> bool:
    return isinstance(node, ast.Subscript) or (isinstance(node, ast.Call) and ast.unparse(node.func) == "Field")


def test_what_null_means_comes_from_the_settings_too():
    vad = {"engine": "fsmn", "fitting_thresholds": {"fsmn": [0.7, 0.4]}}
    streaming = {"fitting_look_backs": {"with_left_context": [0, 1]}, "trained_chunk_sizes": [[0, 10, 5], [0, 6, 3]]}
    settings = load({"vad": vad, "streaming": streaming, "chunk_sec": 0.4, "decoder_chunk_look_back": 0})
    assert settings.vad.thresholds == (0.7, 0.4)
    assert settings.vad.fitting_thresholds["silero"] == (0.5, 0.35)
    assert settings.for_mode("streaming").chunk_size == (0, 6, 3)
    (problem,) = problems({"streaming": streaming, "chunk_size": [5, 10, 5]})
    assert problem.startswith("chunk_size: [5, 10, 5] with look-backs [0, 1]")
    assert load().vad.thresholds == (0.5, 0.35), "the next run begins with the defaults"


# --- precedence -----------------------------------------------------------------------------------------------------


def test_command_line_beats_environment_beats_file_beats_default(settings_file: Any):
    path = settings_file("endpoint_silence_ms: 500\nvad: {engine: fsmn, min_speech_ms: 60, pre_roll_ms: 100}")
    environment = {"VOICE_ASR__ENDPOINT_SILENCE_MS": "600", "VOICE_ASR__VAD__MIN_SPEECH_MS": "70"}
    settings = load({"endpoint_silence_ms": "700"}, environment, path)
    assert settings.endpoint_silence_ms == 700
    assert settings.vad.min_speech_ms == 70
    assert settings.vad.pre_roll_ms == 100
    assert settings.vad.engine == "fsmn"
    assert settings.vad.max_utterance_sec == 30
    assert load(None, environment, path).endpoint_silence_ms == 600
    assert load(None, None, path).endpoint_silence_ms == 500


def test_a_section_in_one_layer_does_not_hide_the_rest_of_it_in_another(settings_file: Any):
    settings = load({"audio": {"device": "USB"}}, {"VOICE_ASR__AUDIO__CHANNEL": "1"}, settings_file("audio: {queue_sec: 5}"))
    assert (settings.audio.device, settings.audio.channel, settings.audio.queue_sec, settings.audio.block_ms) == ("USB", 1, 5, 96)


def test_the_environment_is_read_whatever_its_case_and_foreign_variables_are_not():
    settings = load(None, {"voice_asr__vad__engine": "fsmn", "VAD__ENGINE": "nonsense", "PATH": "/bin"})
    assert settings.vad.engine == "fsmn"


def test_lists_in_the_environment_are_json():
    assert load(None, {"VOICE_ASR__CHUNK_SIZE": "[0, 8, 4]"}).chunk_size == (0, 8, 4)


def test_an_empty_settings_file_changes_nothing(settings_file: Any):
    assert load(None, None, settings_file("# nothing yet\n")) == load()


def test_null_above_takes_back_a_value_from_below(settings_file: Any):
    path = settings_file("vad: {threshold: 0.4}")
    assert load(None, None, path).vad.threshold == 0.4
    assert load({"vad": {"threshold": None}}, None, path).vad.threshold is None


# --- problems -------------------------------------------------------------------------------------------------------


def test_every_problem_of_every_layer_is_listed_with_its_key_and_what_is_allowed(settings_file: Any):
    path = settings_file("chunk_sec: 99\nvad: {engine: webrtc}\nlog: {level: loud}")
    found = problems({"audio": {"queue_sec": "0"}, "embedded": "maybe"}, {"VOICE_ASR__ENDPOINT_SILENCE_MS": "5"}, path)
    assert len(found) == 6
    assert about("chunk_sec: 99", found).endswith("allowed: 0.12..5")
    assert about("endpoint_silence_ms: '5'", found).endswith("allowed: 100..10000")
    assert about("vad.engine: 'webrtc'", found).endswith("allowed: silero, fsmn")
    assert about("audio.queue_sec: '0'", found).endswith("allowed: 1..600")
    assert about("embedded: 'maybe'", found).endswith("allowed: true, false")
    assert about("log.level: 'loud'", found).endswith("allowed: debug, info, warning, error")


@pytest.mark.parametrize(
    ("given", "key", "allowed"),
    [
        ({"encoder_chunk_look_back": 99}, "encoder_chunk_look_back", "0..50 or null"),
        ({"vad": {"threshold": 1}}, "vad.threshold", "0..1 (bounds excluded) or null"),
        ({"audio": {"channel": "left"}}, "audio.channel", "0..63 or mix"),
        ({"audio": {"sample_rate": 1.5}}, "audio.sample_rate", "4000..384000"),
        ({"emotion": {"min_confidence": float("nan")}}, "emotion.min_confidence", "0..1"),
        ({"vad": {"max_utterance_sec": float("inf")}}, "vad.max_utterance_sec", "5..300"),
        ({"chunk_sec": "fast"}, "chunk_sec", "0.12..5"),
        ({"wake": {"listen_sec": -1}}, "wake.listen_sec", "0..3600"),
        ({"wake": {"listen_sec": float("nan")}}, "wake.listen_sec", "0..3600"),
        ({"wake": {"listen_sec": 3e38}}, "wake.listen_sec", "0..3600"),
        ({"wake": {"weight": 101}}, "wake.weight", "0..100"),
        ({"wake": {"tones": "some"}}, "wake.tones", "true, false"),
        ({"wake": {"words": "小智小智"}}, "wake.words", "[text, ...]"),
        *(
            ({"wake": {"words": [word]}}, "wake.words", "2 to 32 Chinese characters or Latin letters")
            for word in ("小", "", " ", "' '", "小智1号", "小，智", "智" * 33, "小\n智", "ab\0", "\ud800\ud800")
        ),
    ],
)
def test_a_value_out_of_range_is_one_problem_that_says_what_is_allowed(given: dict[str, Any], key: str, allowed: str):
    (problem,) = problems(given)
    assert problem.startswith(f"{key}: ")
    assert problem.endswith(f"allowed: {allowed}")


def test_unknown_keys_are_problems_in_every_layer(settings_file: Any):
    path = settings_file("endpoint_silence: 800\nvad: {treshold: 0.5}")
    found = problems({"audio": {"devise": "x"}}, {"VOICE_ASR__LOG__COLOUR": "1", "VOICE_ASR__AUDIO": "{}"}, path)
    assert len(found) == 5
    assert about("endpoint_silence:", found) == "endpoint_silence: unknown setting"
    assert about("vad.treshold:", found) == "vad.treshold: unknown setting"
    assert about("audio.devise:", found) == "audio.devise: unknown setting"
    assert "unknown setting" in about("VOICE_ASR__LOG__COLOUR:", found)
    assert "unknown setting" in about("VOICE_ASR__AUDIO:", found)


def test_an_unknown_variable_alone_is_refused():
    (problem,) = problems(None, {"VOICE_ASR__ENDPOINT_SILENCE": "800"})
    assert problem.startswith("VOICE_ASR__ENDPOINT_SILENCE: unknown setting")


def test_a_variable_that_is_no_json_where_json_is_needed_is_named():
    (problem,) = problems(None, {"VOICE_ASR__CHUNK_SIZE": "0,8,4"})
    assert "VOICE_ASR__CHUNK_SIZE" in problem


def test_a_variable_that_is_no_json_does_not_hide_the_problems_of_the_others():
    found = problems(None, {"VOICE_ASR__CHUNK_SIZE": "0,8,4", "VOICE_ASR__ENDPOINT_SILENCE_MS": "5"})
    assert any("VOICE_ASR__CHUNK_SIZE" in problem for problem in found)
    assert about("endpoint_silence_ms", found).endswith("allowed: 100..10000")


def test_a_rule_over_several_settings_is_not_hidden_by_a_value_out_of_range():
    """``endpoint_silence_ms`` is wrong by itself, the other four only together."""
    found = problems(
        {
            "endpoint_silence_ms": 5,
            "embedded": True,
            "model_dir": "/models/mine",
            "chunk_size": [5, 10, 5],
            "encoder_chunk_look_back": 4,
        }
    )
    assert about("endpoint_silence_ms", found)
    assert about("embedded and model_dir", found)
    assert about("chunk_size", found)


@pytest.mark.parametrize("text", ["vad: [", "a: b: c", "\tx: 1", "key: 'open"])
def test_malformed_yaml_names_the_file_and_the_place(settings_file: Any, text: str):
    path = settings_file(text)
    (problem,) = problems(None, None, path)
    assert problem.startswith(f"{path} is not YAML")
    assert "line 1" in problem
    assert "\n" not in problem


def test_a_file_in_another_encoding_is_named(tmp_path: Path):
    path = tmp_path / "settings.yaml"
    path.write_bytes("hotwords: 客厅".encode("gbk"))
    assert problems(None, None, path) == [f"{path} is not UTF-8 text (byte 10); save it as UTF-8 (of GBK: iconv -f GBK -t UTF-8)"]


@pytest.mark.parametrize(("text", "kind"), [("- 1\n- 2", "list"), ("hello", "str"), ("3", "int")])
def test_a_file_that_holds_no_settings_is_named(settings_file: Any, text: str, kind: str):
    path = settings_file(text)
    assert problems(None, None, path) == [f"{path} holds {kind}, not a mapping"]


@pytest.mark.parametrize("text", ["1: 2", "on: true", "null: 3", "audio: {5: 6}"])
def test_a_key_that_is_no_name_is_a_problem_not_a_crash(settings_file: Any, text: str):
    assert len(problems(None, None, settings_file(text))) == 1


@pytest.mark.parametrize("text", ["audio: 5", "audio:", "audio: [mic]"])
def test_a_section_that_is_no_section_is_named(settings_file: Any, text: str):
    (problem,) = problems(None, None, settings_file(text))
    assert problem.startswith("audio: ")


LONG_PROBLEM = "1" * 5_000


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("endpoint_silence_ms: 2024-13-45", "endpoint_silence_ms: '2024-13-45' is not allowed; allowed: 100..10000"),
        ("hotwords: &a [*a]", "settings.yaml holds a value that contains itself"),
        ("endpoint_silence_ms: " + "1" * 5_000, "settings.yaml holds a number of 5,000 characters"),
        ("hotwords: " + "[" * 3_000, "settings.yaml is nested deeper than 32 levels"),
        ("hotwords: " + "{a: " * 900 + "1" + "}" * 900, "settings.yaml is nested deeper than 32 levels"),
        ("a: &a [1, 1, 1, 1]\n" + "\n".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]" for a, b in pairwise("abcdefghijkl")), "20,000 values"),
        ("hotwords: " + "[" * 30 + "]" * 30, "hotwords: [[[[[[[...]]]]]]] is not allowed; allowed: text or [text, ...]"),
        ("hotwords: {a: {b: {c: [1]}}}", "hotwords: {'a': {'b': {'c': [1]}}} is not allowed"),
        ("model_dir: [" + "x, " * 5_000 + "]", "model_dir: ['x', 'x', 'x', 'x', 'x', 'x', ...] is not allowed; allowed: text or null"),
        ("x" * 1_000 + ": 1", "xxx: unknown setting"),
    ],
)
def test_a_harmful_value_in_a_settings_file_is_one_short_problem(settings_file: Any, text: str, problem: str):
    (found,) = problems(None, None, settings_file(text))
    assert problem in found
    assert len(found) <= 300


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("ENDPOINT_SILENCE_MS", LONG_PROBLEM, "is not allowed; allowed: 100..10000"),
        ("VAD__THRESHOLD", LONG_PROBLEM, "is not allowed; allowed: 0..1 (bounds excluded) or null"),
        ("AUDIO__DEVICE", LONG_PROBLEM, "is not allowed"),
        ("CHUNK_SIZE", f"[0, {LONG_PROBLEM}, 5]", "is not JSON (ValueError: Exceeds the limit"),
        ("HOTWORDS", "[" * 100_000, "is not JSON"),
        ("CHUNK_SIZE", "[" * 100_000, "is not JSON"),
        ("CHUNK_SIZE", "[" * 900 + "]" * 900, "is nested deeper than 32 levels (environment)"),
        ("CHUNK_SIZE", '{"a":' * 200 + "1" + "}" * 200, "is nested deeper than 32 levels (environment)"),
        ("CHUNK_SIZE", "[" * 30 + "]" * 30, "is not allowed; allowed: [0..30, 1..60, 1..30]"),
        ("X" * 5_000, "1", "unknown setting (environment)"),
    ],
)
def test_a_harmful_variable_is_one_short_problem(name: str, value: str, problem: str):
    found = problems(None, {f"VOICE_ASR__{name}": value})
    assert found
    for each in found:
        assert problem in each
        assert len(each) <= 300


@pytest.mark.parametrize(
    "key", ["endpoint_silence_ms", "chunk_sec", "audio.device", "audio.sample_rate", "vad.min_rms", "model.num_threads"]
)
def test_a_number_of_five_thousand_digits_in_a_flag_is_a_problem(key: str):
    section, _, name = key.rpartition(".")
    (problem,) = problems({section: {name: LONG_PROBLEM}} if section else {name: LONG_PROBLEM})
    assert problem.startswith(f"{key}: '1111")
    assert "is not allowed" in problem


@pytest.mark.parametrize("path", ["~nosuchuser/settings.yaml", "/" + "x" * 5_000, "a\0b"])
def test_a_settings_file_that_can_be_no_path_is_a_problem(path: str):
    (problem,) = problems(None, None, Path(path))
    assert len(problem) <= 300


def test_a_settings_file_that_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        assert problems(None, None, path) == [f"{path} cannot be read (it is no regular file)"]


def test_of_many_problems_the_first_twenty_are_listed_and_the_rest_counted():
    found = ConfigInvalid([f"{number}: " + "x" * 1_000 + " is wrong" for number in range(100_000)])
    assert len(found.problems) == 21
    assert found.problems[0].startswith("0: xxx")
    assert found.problems[0].endswith("xxx is wrong")
    assert len(found.problems[0]) == 300
    assert found.problems[-1] == "... and 99,980 more"
    assert len(ConfigInvalid(["wrong"] * 20).problems) == 20


def test_a_described_error_is_one_line_of_at_most_a_thousand_characters():
    assert describe(ValueError("a\nb")) == "ValueError: a b"
    assert describe(ValueError()) == "ValueError"
    long = describe(ValueError("begin " + "x" * 7_300_000 + " end"))
    assert len(long) == 1_000
    assert long.startswith("ValueError: begin")
    assert long.endswith("end")


def test_the_log_has_an_exceptions_place_and_its_words_only_if_it_is_ours():
    def raised(error: Exception) -> Exception:
        try:
            raise error
        except Exception as caught:  # noqa: BLE001 -- any will do
            return caught

    for error, shown in (
        (ValueError("打开客厅的灯"), "ValueError"),
        (ConfigInvalid(["a: b"]), "ConfigInvalid: a: b"),
        (FileInvalid("is too long"), "FileInvalid: is too long"),
    ):
        fields = log_fields(raised(error))
        assert fields["error"] == shown
        (place,) = fields["places"]
        assert place.startswith(f"{__file__}:")
        assert place.endswith(" raised")
    assert log_fields(ValueError()) == {"error": "ValueError", "places": []}


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path):
    for path in (tmp_path / "none.yaml", tmp_path):
        (problem,) = problems(None, None, path)
        assert problem.startswith(f"{path} cannot be read")


def test_reading_the_defaults_gives_a_fresh_mapping_each_time():
    """Layers are merged into it: one run's settings must not reach the next."""
    load({"vad": {"min_speech_ms": 1}})
    assert load().vad.min_speech_ms == read_mapping(DEFAULT_PATH)["vad"]["min_speech_ms"] == 90


# --- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunk_size", "look_backs"),
    [([0, 10, 5], (4, 1)), ([0, 8, 4], (4, 1)), ([5, 10, 5], (0, 0)), ([1, 8, 4], (0, 0))],
)
def test_look_backs_default_to_what_fits_the_chunk_size(chunk_size: list[int], look_backs: tuple[int, int]):
    assert load({"chunk_size": chunk_size}).look_backs == look_backs


def test_look_backs_can_be_set_one_by_one():
    assert load({"encoder_chunk_look_back": 2}).look_backs == (2, 1)
    assert load({"decoder_chunk_look_back": 0}).look_backs == (4, 0)
    assert load({"chunk_size": [5, 10, 5], "encoder_chunk_look_back": 0}).look_backs == (0, 0)


@pytest.mark.parametrize("name", ["encoder_chunk_look_back", "decoder_chunk_look_back"])
def test_left_context_with_look_backs_is_refused_with_what_to_do(name: str):
    (problem,) = problems({"chunk_size": [5, 10, 5], name: 1})
    assert problem.startswith("chunk_size: [5, 10, 5] with look-backs")
    assert "[0, 10, 5]" in problem


@pytest.mark.parametrize("chunk_size", [[0, 10, 0], [0, 0, 5], [-1, 10, 5], [0, 10], [0, 10, 5, 1], ["a", 10, 5], 10, [0, 1_000, 5]])
def test_a_chunk_size_that_cannot_be_is_refused(chunk_size: Any):
    found = problems({"chunk_size": chunk_size})
    assert found
    assert all(problem.startswith("chunk_size: ") and "allowed: [0..30, 1..60, 1..30]" in problem for problem in found)


def test_a_right_context_of_one_frame_is_enough():
    assert load({"chunk_size": [0, 10, 1]}).chunk_size == (0, 10, 1)


@pytest.mark.parametrize(
    ("chunk_sec", "chunk_size"),
    [(0.6, (0, 10, 5)), (0.48, (0, 8, 4)), (0.12, (0, 8, 4)), (0.5, (0, 8, 4)), (0.56, (0, 10, 5)), (2.0, (0, 10, 5))],
)
def test_in_streaming_mode_chunk_sec_picks_the_nearest_trained_triple(chunk_sec: float, chunk_size: tuple[int, int, int]):
    settings = load({"chunk_sec": chunk_sec})
    assert settings.for_mode("streaming").chunk_size == chunk_size
    assert settings.for_mode("streaming").look_backs == (4, 1)
    assert settings.for_mode("sliced") == settings


@pytest.mark.parametrize("chunk_size", [(5, 10, 5), (0, 10, 5)])
def test_a_chunk_size_that_is_given_is_not_replaced_by_chunk_sec(chunk_size: tuple[int, int, int]):
    settings = load({"chunk_sec": 0.48, "chunk_size": list(chunk_size)})
    assert settings.for_mode("streaming").chunk_size == chunk_size


def test_chunk_sec_counts_as_given_in_every_layer_and_whatever_its_value(settings_file: Any):
    trained = {"streaming": {"trained_chunk_sizes": [[0, 9, 5]]}}
    assert load(trained).for_mode("streaming").chunk_size == (0, 10, 5)
    assert load({**trained, "chunk_sec": 0.6}).for_mode("streaming").chunk_size == (0, 9, 5)
    assert load(trained, {"VOICE_ASR__CHUNK_SEC": "0.6"}).for_mode("streaming").chunk_size == (0, 9, 5)
    assert load(trained, None, settings_file("chunk_sec: 0.6")).for_mode("streaming").chunk_size == (0, 9, 5)


@pytest.mark.parametrize(("given", "device"), [("3", 3), ("0", 0), (3, 3), ("USB 2", "USB 2"), ("hw:1,0", "hw:1,0"), (None, None)])
def test_a_device_of_digits_is_an_index(given: Any, device: Any):
    assert load({"audio": {"device": given}}).audio.device == device


def test_a_device_of_digits_from_the_environment_is_an_index_too():
    assert load(None, {"VOICE_ASR__AUDIO__DEVICE": "3"}).audio.device == 3


GBK_NAME = os.fsdecode("客厅".encode("gbk"))
"""As Python reads a file name that is not UTF-8 from the command line and from the environment."""
PATHS = [
    ("audio", "input"),
    ("vad", "model"),
    ("model", "name"),
    ("final", "second_pass"),
    ("final", "punctuation_model"),
    ("emotion", "model"),
    ("speakers", "model"),
    ("record", "directory"),
    ("model_dir",),
    ("hotwords",),
]


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_a_setting_that_names_a_file_takes_a_name_that_is_not_utf_8(path: tuple[str, ...]) -> None:
    layer: dict[str, Any] = {path[-1]: GBK_NAME} if len(path) == 1 else {path[0]: {path[1]: GBK_NAME}}
    for settings in (load(layer), load({}, {f"VOICE_ASR__{'__'.join(path).upper()}": GBK_NAME})):
        found: Any = settings
        for name in path:
            found = getattr(found, name)
        assert found == GBK_NAME


@pytest.mark.parametrize("path", [path for path in PATHS if path != ("model_dir",)], ids=".".join)
@pytest.mark.parametrize("value", ["", 5])
def test_a_setting_that_names_a_file_takes_text_only_and_some(path: tuple[str, ...], value: Any) -> None:
    layer = {path[-1]: value} if len(path) == 1 else {path[0]: {path[1]: value}}
    [problem] = problems(layer)
    assert problem.startswith(f"{'.'.join(path)}: {value!r} is not allowed; allowed: text")


@pytest.mark.parametrize(
    ("given", "second_pass"),
    [
        ({}, "off"),
        ({"embedded": True}, "same"),
        ({"embedded": True, "final": {"second_pass": "off"}}, "off"),
        ({"final": {"second_pass": "same"}}, "same"),
        ({"embedded": True, "model": {"engine": "ws://localhost:1"}}, "off"),
        ({"embedded": True, "model": {"engine": "ws://localhost:1"}, "final": {"second_pass": "off"}}, "off"),
    ],
)
def test_the_embedded_model_has_a_second_pass_unless_told_otherwise(given: dict[str, Any], second_pass: str) -> None:
    assert load(given).second_pass == second_pass


def test_embedded_with_a_model_directory_is_refused():
    (problem,) = problems({"embedded": True, "model_dir": "/models/mine"})
    assert "embedded" in problem
    assert "model_dir" in problem


@pytest.mark.parametrize(
    ("vad", "thresholds"),
    [
        ({}, (0.5, 0.35)),
        ({"engine": "fsmn"}, (0.8, 0.5)),
        ({"threshold": 0.2}, (0.2, 0.2)),
        ({"threshold": 0.7}, (0.7, 0.35)),
        ({"threshold": 0.6, "release_threshold": 0.6}, (0.6, 0.6)),
    ],
)
def test_thresholds_default_to_what_fits_the_engine(vad: dict[str, Any], thresholds: tuple[float, float]):
    assert load({"vad": vad}).vad.thresholds == thresholds


@pytest.mark.parametrize("vad", [{"release_threshold": 0.6}, {"threshold": 0.3, "release_threshold": 0.4}])
def test_a_release_above_the_threshold_is_refused(vad: dict[str, Any]):
    (problem,) = problems({"vad": vad})
    assert problem.startswith("vad.release_threshold")
    assert "must not be above vad.threshold" in problem


@pytest.mark.parametrize("name", ["a\nb", "a\x1eb", "a\u2028b", "\x1b[31m"])
def test_a_key_that_would_break_the_line_is_escaped(name: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load_settings({"audio": {name: 1}}, environment={})
    (problem,) = caught.value.problems
    assert problem.isprintable()
    assert problem == f"audio.{name.encode('unicode_escape').decode()}: unknown setting"
