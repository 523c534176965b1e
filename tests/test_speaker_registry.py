"""Which voice an utterance is of: embeddings in, labels out; no model, no file."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from voice.finalization.side_model import VoicePrint
from voice.finalization.speaker_registry import (
    KnownSpeaker,
    MatchSettings,
    SpeakerRegistry,
    UnknownSpeaker,
    clean_name,
    label_of,
    unit,
)

SAME, NEW = 0.6, 0.4
SIZE = 32


def registry(max_speakers: int = 50, speakers: tuple[KnownSpeaker, ...] = ()) -> SpeakerRegistry:
    return SpeakerRegistry(MatchSettings(SAME, NEW, max_speakers), speakers)


def axis(index: int, scale: float = 1.0) -> NDArray[np.float32]:
    """A voice of its own: at a right angle to all others."""
    vector = np.zeros(SIZE, np.float32)
    vector[index] = scale
    return vector


def at_cosine(cosine: float, index: int = 0, other: int = SIZE - 1) -> NDArray[np.float32]:
    """An utterance with this cosine to voice ``index``."""
    return axis(index, cosine) + axis(other, math.sqrt(1 - cosine**2))


def labels(known: SpeakerRegistry, embeddings: list[NDArray[np.float32]]) -> list[str | None]:
    matches = [known.assign(each) for each in embeddings]
    return [match and match.label for match in matches]


def test_voices_are_labelled_in_the_order_in_which_they_come_up():
    assert labels(registry(), [axis(3), axis(1), axis(3), axis(2), axis(1), axis(3)]) == ["A", "B", "A", "C", "B", "A"]


def test_the_length_of_an_embedding_does_not_count():
    assert labels(registry(), [axis(0, 1e-20), axis(0, 1e15), axis(1, 3e38), axis(1)]) == ["A", "A", "B", "B"]


@pytest.mark.parametrize(
    ("cosine", "label"), [(1.0, "A"), (SAME + 1e-4, "A"), (SAME - 1e-4, None), (NEW + 1e-4, None), (NEW - 1e-4, "B"), (-1.0, "B")]
)
def test_between_the_thresholds_nothing_is_said(cosine: float, label: str | None):
    assert labels(registry(), [axis(0), at_cosine(cosine)]) == ["A", label]


def test_a_cosine_at_a_threshold_is_above_it():
    """Of two vectors at a right angle it is 0 exactly."""
    at_same = SpeakerRegistry(MatchSettings(same_threshold=0, new_threshold=-0.5, max_speakers=9))
    at_new = SpeakerRegistry(MatchSettings(same_threshold=0.5, new_threshold=0, max_speakers=9))
    assert labels(at_same, [axis(0), axis(1)]) == ["A", "A"]
    assert labels(at_new, [axis(0), axis(1)]) == ["A", None]


def test_an_utterance_between_the_thresholds_changes_nothing():
    known = registry()
    known.assign(axis(0))
    before, changes = known.speakers[0].centroid.copy(), (known.num_changes, known.num_moves)
    assert known.assign(at_cosine(0.5)) is None
    assert np.array_equal(known.speakers[0].centroid, before)
    assert (known.num_changes, known.num_moves) == changes


def test_the_nearest_of_several_voices_is_taken():
    known = registry()
    labels(known, [axis(0), axis(1), axis(2)])
    near_second = axis(0, 0.62) + axis(1, 0.75)  # above the threshold for both
    match = known.assign(near_second)
    assert match is not None
    assert match.label == "B"


def test_an_utterance_is_compared_with_all_utterances_of_a_voice_and_not_with_their_common_direction():
    """Two utterances of a voice lie 0.7 apart by their cosine; a third has 0.57 to either, and 0.62 to their direction."""
    known = SpeakerRegistry(MatchSettings(same_threshold=0.6, new_threshold=0.5, max_speakers=9))
    first, second = axis(0), axis(0, 0.7) + axis(1, math.sqrt(0.51))
    across = (0.57 - 0.57 * 0.7) / math.sqrt(0.51)
    third = axis(0, 0.57) + axis(1, across) + axis(2, math.sqrt(1 - 0.57**2 - across**2))
    assert float(unit(third) @ unit(first + second)) > 0.61
    assert labels(known, [first, second, third]) == ["A", "A", None]
    assert np.allclose(known.speakers[0].centroid, (unit(first) + unit(second)) / 2)


def test_a_centroid_never_vanishes():
    known = SpeakerRegistry(MatchSettings(same_threshold=-1, new_threshold=-1, max_speakers=9))
    assert labels(known, [axis(0), axis(0, -1)]) == ["A", "A"]
    assert float(np.abs(known.speakers[0].centroid).sum()) > 0


def test_a_centroid_follows_its_voice():
    """Utterances that drift step by step stay one voice, though the last is far from the first."""
    known = registry()
    drift = [at_cosine(math.cos(angle)) for angle in np.linspace(0, 1.2, 25)]
    assert labels(known, drift) == ["A"] * 25
    assert float(unit(known.speakers[0].centroid) @ unit(drift[0])) < 0.9
    assert known.speakers[0].num_utterances == 25


def test_a_voice_heard_a_thousand_times_still_follows():
    speaker = KnownSpeaker("A", None, unit(axis(0)), 1_000_000)
    known = registry(speakers=(speaker,))
    for _ in range(60):
        known.assign(at_cosine(0.8))
    assert float(unit(known.speakers[0].centroid) @ unit(at_cosine(0.8))) > 0.95


@pytest.mark.parametrize(
    "hostile",
    [np.zeros(SIZE), np.full(SIZE, np.nan), np.full(SIZE, np.inf), np.zeros(0), np.ones((2, SIZE)), np.float32(1)],
    ids=["zero", "NaN", "infinite", "empty", "two", "scalar"],
)
def test_an_embedding_without_a_direction_is_refused_and_changes_nothing(hostile: NDArray[np.float32]):
    known = registry()
    with pytest.raises(ValueError, match="no direction"):
        known.assign(hostile)
    assert known.speakers == ()
    assert labels(known, [axis(0)]) == ["A"]


def test_an_embedding_of_another_size_changes_nothing():
    known = registry()
    known.assign(axis(0))
    with pytest.raises(ValueError, match="size"):
        known.assign(np.ones(SIZE + 1, np.float32))
    assert len(known.speakers) == 1


def test_no_more_speakers_are_opened_than_allowed():
    known = registry(max_speakers=2)
    assert labels(known, [axis(0), axis(1), axis(2), axis(0), axis(3)]) == ["A", "B", None, "A", None]
    assert len(known.speakers) == 2


def test_without_room_for_anybody_nobody_is_opened():
    assert labels(registry(max_speakers=0), [axis(0), axis(0)]) == [None, None]


def test_confidences_are_sure_where_cosines_are():
    known = registry()
    first = known.assign(axis(0))
    sure, less = known.assign(at_cosine(0.95)), registry()
    less.assign(axis(0))
    unsure, new = less.assign(at_cosine(0.61)), less.assign(axis(5))
    assert first is not None
    assert sure is not None
    assert unsure is not None
    assert new is not None
    assert first.confidence == 1.0
    assert 0.5 < unsure.confidence < sure.confidence < 1
    assert 0.9 < new.confidence < 1, "far from everybody: surely new"


def test_a_voice_has_no_text_form():
    known = registry()
    known.assign(at_cosine(0.123456))
    known.rename("A", "妈妈")
    shown = f"{known.speakers[0]!r} {VoicePrint(at_cosine(0.123456))!r}"
    assert "0.12" not in shown
    assert "妈妈" not in shown


def test_labels_go_on_after_z():
    assert [label_of(index) for index in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]
    many = SpeakerRegistry(MatchSettings(SAME, NEW, 100))
    one_hot = np.eye(30, dtype=np.float32)
    assert labels(many, list(one_hot))[24:28] == ["Y", "Z", "AA", "AB"]


def test_a_label_that_an_earlier_run_gave_is_not_given_again():
    kept = (KnownSpeaker("B", "妈妈", unit(axis(0)), 3),)
    known = registry(speakers=kept)
    with pytest.raises(UnknownSpeaker):
        known.rename("A", "爸爸")
    assert labels(known, [axis(1), axis(0), axis(2)]) == ["A", "B", "C"]


def test_a_name_comes_with_later_matches_and_can_be_taken_away():
    known = registry()
    labels(known, [axis(0), axis(1)])
    known.rename("B", "爸爸")
    known.rename("A", "妈妈")
    assert [speaker.name for speaker in known.speakers] == ["妈妈", "爸爸"]
    named = known.assign(axis(0))
    known.rename("A", None)
    nameless = known.assign(axis(0))
    assert named is not None
    assert nameless is not None
    assert (named.name, nameless.name) == ("妈妈", None)
    with pytest.raises(UnknownSpeaker):
        known.rename("C", "爸爸")


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("妈妈", "妈妈"),
        ("  Li   Lei\t", "Li Lei"),
        ("a\nb\r\0c", "a b c"),
        ("\x1b[31mred\x07", "[31mred"),
        ("\u202eevil\u2066\u200b", "evil"),
        ("e\u0301", "é"),
        ("\ud800x", "x"),
        ("x" * 64, "x" * 64),
        ("x" * 65, None),
        ("", None),
        (" \n\u200b", None),
    ],
)
def test_names_are_cleaned_and_bounded(given: str, cleaned: str | None):
    found = clean_name(given)
    assert found == cleaned
    assert found is None or clean_name(found) == found, "a clean name stays as it is"
