"""Finalization: punctuation by a CTTransformer (Chen et al. 2020). Recognised text -> the same text with punctuation.

``CtTransformer`` runs FunASR's own model on torch, ``OnnxPunctuation`` the network that ``voice/conversion/punctuation.py`` wrote, without
torch and without FunASR. Only the punctuation comes from the model; every letter stays as the recogniser gave it (FunASR's own answer
changes capitals and spaces). FunASR always ends a text with a full stop or a question mark; it is kept only where the speaker had
finished, not where the audio was cut. No state but the weights. Worker thread. Raises ``ValueError`` for an answer that does not fit the
text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from voice.models.converted import OnnxModel
from voice.models.funasr_model import FunasrModel

PUNCTUATION = frozenset("，。？、")
_ASCII_PUNCTUATION = {"，": ",", "。": ".", "？": "?", "、": ","}
_WORD = re.compile(r"[A-Za-z0-9'.+-]+|\S")
"""What the model takes as one word: a Latin word, a number, or any other single character."""

_NONE = "_"
"""In the model's list of marks: no mark."""
_COMMA = "，"
_SENTENCE_ENDS = ("。", "？")
_TEXT_ENDS = ("。", "？", ".", "?")
"""A text that ends with one of them gets no other end."""
_NEW_WORDS = 20
"""That the network reads at a time, behind those of an unfinished sentence: FunASR's ``split_size``."""
_LONG_SENTENCE_WORDS = 200
"""A longer sentence is ended at a comma: FunASR's ``cache_pop_trigger_limit``."""
_FIRST_END = 2
"""FunASR ends no sentence before its third word."""


def create_punctuator(model: FunasrModel | OnnxModel) -> CtTransformer | OnnxPunctuation:
    """What runs a punctuation model.

    Raises:
        ValueError: its vocabulary or its marks do not fit its network.
    """
    if isinstance(model, FunasrModel):
        return CtTransformer(model)
    settings = model.settings
    unknown = (model.description.config.get("tokenizer_conf") or {}).get("unk_symbol", "<unk>")
    session = model.sessions["punctuation"]
    return OnnxPunctuation(session, model.tokens, settings["marks"], sentence_end_id=settings["sentence_end_id"], unknown=unknown)


class PunctuationNetwork(Protocol):
    """The network without the loop around it."""

    def marks_after(self, words: Sequence[int]) -> list[int]:
        """The likeliest mark after each word, as its index in the model's list of marks.

        Args:
            words: at least one, as indices in the vocabulary; the network sees all of them at once.
        """
        ...


class CtTransformer:
    """The loaded model, on torch."""

    def __init__(self, model: FunasrModel) -> None:
        """Take a loaded model."""
        self._model = model
        self._punctuation = _written(model.module.punc_list)

    def punctuate(self, text: str, *, ended: bool) -> str:
        """The text with punctuation between its words and after the last one.

        Args:
            text: recognised text without punctuation.
            ended: whether the speaker had finished; otherwise no punctuation follows the last word.

        Raises:
            ValueError: the model did not answer for each word.
        """
        return _punctuated(text, self._punctuation_after, ended=ended)

    def _punctuation_after(self, words: list[str]) -> list[str]:
        """The punctuation mark after each word, empty for none."""
        results, _ = self._model.run(
            lambda: self._model.module.inference(
                [" ".join(words).lower() + " "],  # the space: FunASR would open a file of that name
                key=["utterance"],
                tokenizer=self._model.tokenizer,
                device=self._model.device,
            )
        )
        return [self._punctuation[index] for index in results[0]["punc_array"].tolist()]


class OnnxPunctuation:
    """The converted model, on ONNX Runtime."""

    def __init__(self, session: Any, tokens: Sequence[str], marks: Sequence[str], *, sentence_end_id: int, unknown: str = "<unk>") -> None:
        """Take over the session.

        Args:
            session: of ``punctuation.onnx``.
            tokens: the vocabulary, index = id: tokens.json. One for each row of the graph's table, which a session cannot tell:
                ``num_words`` of ``voice.conversion.punctuation.punctuation_settings``.
            marks: FunASR's ``punc_list``, index = column of the logits.
            sentence_end_id: index of the mark that ends a text for which the network gave no end.
            unknown: the token that stands for words which the vocabulary lacks: ``unk_symbol`` of config.yaml's ``tokenizer_conf``.

        Raises:
            ValueError: the vocabulary lacks ``unknown``, or the marks are not as many as the network's, or lack ``sentence_end_id``.
        """
        ids = {token: index for index, token in enumerate(tokens)}
        if unknown not in ids:
            raise ValueError(f"the vocabulary lacks {unknown!r}, the token that stands for unknown ones")
        num_outputs = session.get_outputs()[0].shape[-1]
        if num_outputs != len(marks):
            raise ValueError(f"the punctuation model has {num_outputs} outputs for {len(marks)} punctuation marks")
        if not 0 <= sentence_end_id < len(marks):
            raise ValueError(f"the sentence_end_id {sentence_end_id} is none of {len(marks)} punctuation marks")
        self._network = _OnnxNetwork(session)
        self._ids = ids
        self._unknown_id = ids[unknown]
        self._marks = tuple(marks)
        self._sentence_end_id = sentence_end_id
        self._punctuation = _written(marks)

    def punctuate(self, text: str, *, ended: bool) -> str:
        """The text with punctuation between its words and after the last one.

        Args:
            text: recognised text without punctuation.
            ended: whether the speaker had finished; otherwise no punctuation follows the last word.

        Raises:
            ValueError: the model did not answer for each word.
        """
        return _punctuated(text, self._punctuation_after, ended=ended)

    def _punctuation_after(self, words: list[str]) -> list[str]:
        """The punctuation mark after each word, empty for none."""
        ids = [self._ids.get(word.lower(), self._unknown_id) for word in words]
        marks = marks_of_text(self._network, ids, words[-1], self._marks, self._sentence_end_id)
        return [self._punctuation[mark] for mark in marks]


class _OnnxNetwork:
    """A ``PunctuationNetwork`` on ONNX Runtime."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def marks_after(self, words: Sequence[int]) -> list[int]:
        (logits,) = self._session.run(["logits"], {"words": np.array([words], np.int64)})
        marks: list[int] = logits[0].argmax(axis=1).tolist()
        return marks


def marks_of_text(
    network: PunctuationNetwork, words: Sequence[int], last_word: str, marks: Sequence[str], sentence_end_id: int
) -> list[int]:
    """The mark after each word of a text of any length, as FunASR's ``CTTransformer.inference`` finds it.

    The network reads 20 more words at a time. What it answers up to the last end of a sentence is settled; the words behind it are read
    again, together with the next 20, because they may change their marks::

        text      a b c d e f g h i j k l m n o p q r s t u v w x y z ...
        1st read  |<-            20 words             ->|
                             。                             settled: a to f
        2nd read              |<-  14 again, and 20 more     ...

    Args:
        network: called once for every 20 words.
        words: at least one, as indices in the vocabulary.
        last_word: the last of them as text: where it ends with a full stop or a question mark, no mark is added.
        marks: the model's list of marks.
        sentence_end_id: index of the mark that ends a text, and a sentence that is too long.

    Returns:
        Indices in the list of marks, one for each word.
    """
    settled: list[int] = []
    for end in range(_NEW_WORDS, len(words) + _NEW_WORDS, _NEW_WORDS):
        found = network.marks_after(words[len(settled) : end])
        settled += found if end >= len(words) else _whole_sentences(found, marks, sentence_end_id)
    last_mark = marks[settled[-1]]
    text_end = (last_word + ("" if last_mark == _NONE else last_mark))[-1]
    if text_end not in _TEXT_ENDS:
        settled[-1] = sentence_end_id
    return settled


def _whole_sentences(found: list[int], marks: Sequence[str], sentence_end_id: int) -> list[int]:
    """The marks up to the last end of a sentence. The very last mark is none: the words that follow may change it."""
    ends = range(len(found) - 2, _FIRST_END - 1, -1)
    for index in ends:
        if marks[found[index]] in _SENTENCE_ENDS:
            return found[: index + 1]
    if len(found) > _LONG_SENTENCE_WORDS:
        for index in ends:
            if marks[found[index]] == _COMMA:
                return [*found[:index], sentence_end_id]
    return []


def _written(marks: Sequence[str]) -> list[str]:
    """Each mark of a model's list as it is written into a text, empty for one that is not: ``_``, ``<unk>``."""
    return [mark if mark in PUNCTUATION else "" for mark in marks]


def _punctuated(text: str, punctuation_after: Callable[[list[str]], list[str]], *, ended: bool) -> str:
    """The text with what ``punctuation_after`` gives for its words.

    Raises:
        ValueError: it did not answer for each word.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    if not spans:
        return text
    marks = punctuation_after([text[start:end] for start, end in spans])
    if len(marks) != len(spans):
        raise ValueError(f"the punctuation model answered with {len(marks)} punctuation marks for {len(spans)} words")
    if not ended:
        marks[-1] = ""
    if text.isascii():
        marks = [_ASCII_PUNCTUATION.get(mark, "") for mark in marks]
    starts = [start for start, _ in spans[1:]] + [len(text)]
    pieces = [text[: spans[0][0]]]
    for (start, end), mark, following in zip(spans, marks, starts, strict=True):
        pieces += [text[start:end], mark, text[end:following] if not mark or text.isascii() else ""]
    return "".join(pieces)
