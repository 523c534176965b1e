"""Finalization: punctuation by FunASR's CTTransformer. Recognised text -> the same text with punctuation.

Only the punctuation comes from the model; every letter stays as the recogniser gave it (FunASR's own answer changes capitals and
spaces). FunASR always ends a text with a full stop or a question mark; it is kept only where the speaker had finished, not where the
audio was cut. No state but the weights. Worker thread. Raises ``ValueError`` for an answer that does not fit the text.
"""

from __future__ import annotations

import re

from voice.models.funasr_model import FunasrModel

PUNCTUATION = frozenset("，。？、")
_ASCII_PUNCTUATION = {"，": ",", "。": ".", "？": "?", "、": ","}
_WORD = re.compile(r"[A-Za-z0-9'.+-]+|\S")
"""What the model takes as one word: a Latin word, a number, or any other single character."""


class CtTransformer:
    """The loaded model."""

    def __init__(self, model: FunasrModel) -> None:
        """Take a loaded model."""
        self._model = model
        self._punctuation: list[str] = [mark if mark in PUNCTUATION else "" for mark in model.module.punc_list]

    def punctuate(self, text: str, *, ended: bool) -> str:
        """The text with punctuation between its words and after the last one.

        Args:
            text: recognised text without punctuation.
            ended: whether the speaker had finished; otherwise no punctuation follows the last word.

        Raises:
            ValueError: the model did not answer for each word.
        """
        spans = [match.span() for match in _WORD.finditer(text)]
        if not spans:
            return text
        marks = self._punctuation_after([text[start:end] for start, end in spans])
        if not ended:
            marks[-1] = ""
        if text.isascii():
            marks = [_ASCII_PUNCTUATION.get(mark, "") for mark in marks]
        starts = [start for start, _ in spans[1:]] + [len(text)]
        pieces = [text[: spans[0][0]]]
        for (start, end), mark, following in zip(spans, marks, starts, strict=True):
            pieces += [text[start:end], mark, text[end:following] if not mark or text.isascii() else ""]
        return "".join(pieces)

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
        marks = [self._punctuation[index] for index in results[0]["punc_array"].tolist()]
        if len(marks) != len(words):
            raise ValueError(f"the punctuation model answered with {len(marks)} punctuation marks for {len(words)} words")
        return marks
