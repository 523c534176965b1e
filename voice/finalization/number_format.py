"""Finalization: inverse text normalization. Recognised text -> the same text with its numbers in digits.

二十六度 -> 26度, 三点半 -> 3:30, 百分之五十 -> 50%. The grammar is that of WeTextProcessing, in the package ``wetext``. This module
repairs what was seen wrong in its output: ° for 度, min for 分钟, negative degrees of one digit left in characters, am and pm after
the time instead of 上午 before it, dates with slashes, quarters of an hour read as decimals, and idioms such as 十分好 and 几十 read as
numbers. No state but the grammar. Worker thread.
"""

from __future__ import annotations

import re

_DIGITS = {character: str(digit) for digit, character in enumerate("零一二三四五六七八九")} | {"两": "2"}
_NUMBER = "零一二两三四五六七八九十百千万亿"
_MARK = "\ue000"
"""A character of the private use area. The grammar neither reads nor drops it, so the text before it and after it stays apart."""
_QUARTERS = {"一": "十五", "三": "四十五"}
_QUARTER = re.compile("(?<=点)([一三])刻")
_DAYTIME = re.compile("(凌晨|清晨|早上|早晨|上午|中午|下午|傍晚|晚上|夜里|半夜)")
_DATE = re.compile("(?<=[年月])")
_IDIOM = re.compile(f"(?<![{_NUMBER}点])十分(?![{_NUMBER}钟之])|[好几数]十|十[几多来]|[上成]百|[上成]千")
_MINUTES = re.compile("(?<=[0-9])min")
_FEW_DEGREES = re.compile("(零下|负)([一二两三四五六七八九])(?=度)")


class NumberFormat:
    """The loaded grammar."""

    def __init__(self) -> None:
        from wetext import Normalizer  # noqa: PLC0415 -- it loads 40 MB of grammars

        self._normalizer = Normalizer(lang="zh", operator="itn")

    def normalize(self, text: str, *, ended: bool = True) -> str:
        """The text with its numbers in digits; with punctuation or without; empty text stays empty."""
        del ended  # numbers are written alike wherever the text ends
        text = _QUARTER.sub(lambda match: _QUARTERS[match[1]] + "分", text)
        words: list[str] = []

        def hide(match: re.Match[str]) -> str:
            words.append(match[0])
            return _MARK + chr(ord(_MARK) + len(words))

        hidden = _IDIOM.sub(hide, _DAYTIME.sub(hide, text))
        found = self._normalizer.normalize(_DATE.sub(_MARK, hidden)) if hidden else ""
        for index, word in enumerate(words, 1):
            found = found.replace(chr(ord(_MARK) + index), word)
        found = _MINUTES.sub("分钟", found.replace(_MARK, "").replace("°", "度"))
        return _FEW_DEGREES.sub(lambda match: ("-" if match[1] == "负" else match[1]) + _DIGITS[match[2]], found)
