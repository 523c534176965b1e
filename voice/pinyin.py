"""How Chinese characters sound: a character -> its readings in pinyin.

No state but the readings looked up last. Any thread. Raises nothing.
"""

from __future__ import annotations

import functools
import os


@functools.lru_cache(maxsize=8_192)
def syllables(character: str) -> tuple[str, ...]:
    """The readings of a character, each with its tone as a digit (5 is neutral); none for a character that is not Chinese."""
    os.environ.setdefault("PYPINYIN_NO_PHRASES", "true")  # 0.3 s and 20 MB for what single characters do not need
    from pypinyin import Style, pinyin  # noqa: PLC0415 -- only where there are words to compare

    if not "\u4e00" <= character <= "\u9fff":
        return ()
    (readings,) = pinyin(character, style=Style.TONE3, heteronym=True, neutral_tone_with_five=True)
    return tuple(readings)
