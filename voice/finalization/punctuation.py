"""FunASR's CTTransformer: recognised text -> the same text with marks.

Only the marks are the model's; every letter stays the recogniser's (FunASR's own answer changes capitals and spaces). FunASR always
sets an end mark; it stays only where the speaker ended, not where the audio was cut. No state but the weights. Runs where the
finalizer runs.
"""

from __future__ import annotations

import re

from voice.models.funasr_model import FunasrModel

MARKS = frozenset("，。？、")
_ASCII_MARKS = {"，": ",", "。": ".", "？": "?", "、": ","}
_WORD = re.compile(r"[A-Za-z0-9'.+-]+|\S")
"""What the model takes as one word: a Latin word or a number, else a character."""


class CtTransformer:
    """The loaded model."""

    def __init__(self, model: FunasrModel) -> None:
        """Take a loaded model."""
        self._model = model
        self._marks: list[str] = [mark if mark in MARKS else "" for mark in model.module.punc_list]

    def punctuate(self, text: str, *, ended: bool) -> str:
        """Text with marks between and behind its words.

        Args:
            text: recognised text without marks.
            ended: whether the speaker ended there; else the text carries no end mark.
        """
        spans = [match.span() for match in _WORD.finditer(text)]
        if not spans:
            return text
        marks = self._marks_behind([text[start:end] for start, end in spans])
        if not ended:
            marks[-1] = ""
        if text.isascii():
            marks = [_ASCII_MARKS.get(mark, "") for mark in marks]
        starts = [start for start, _ in spans[1:]] + [len(text)]
        pieces = [text[: spans[0][0]]]
        for (start, end), mark, following in zip(spans, marks, starts, strict=True):
            pieces += [text[start:end], mark, text[end:following] if not mark or text.isascii() else ""]
        return "".join(pieces)

    def _marks_behind(self, words: list[str]) -> list[str]:
        results, _ = self._model.run(
            lambda: self._model.module.inference(
                [" ".join(words).lower() + " "],  # the space: FunASR would open a file of that name
                key=["utterance"],
                tokenizer=self._model.tokenizer,
                device=self._model.device,
            )
        )
        marks = [self._marks[index] for index in results[0]["punc_array"].tolist()]
        if len(marks) != len(words):
            raise ValueError(f"the punctuation model answered with {len(marks)} marks for {len(words)} words")
        return marks
