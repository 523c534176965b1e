"""Numbers in digits: what the grammar does, and what had to be repaired in it."""

from __future__ import annotations

import pytest

from voice.finalization.number_format import NumberFormat


@pytest.fixture(scope="module")
def numbers() -> NumberFormat:
    return NumberFormat()


@pytest.mark.parametrize(
    ("words", "digits"),
    [
        ("把空调调到二十六度，好吗？", "把空调调到26度，好吗？"),
        ("温度是二十六点五度", "温度是26.5度"),
        ("负五度", "-5度"),
        ("零下五度", "零下5度"),
        ("负二十五度", "-25度"),
        ("三点半提醒我开会。", "3:30提醒我开会。"),
        ("两点一刻", "2:15"),
        ("晚上十点三刻提醒我", "晚上10:45提醒我"),
        ("下午三点十五分", "下午3:15"),
        ("早上七点零五分", "早上7:05"),
        ("十分钟", "10分钟"),
        ("我的电话是一三八零零零零一二三四。", "我的电话是13800001234。"),
        ("百分之五十", "50%"),
        ("二零二四年三月五号", "2024年三月五号"),
        ("十二月二十五号", "12月25号"),
        ("两百块钱", "200块钱"),
        ("第二十一章", "第21章"),
    ],
)
def test_numbers_become_digits(numbers: NumberFormat, words: str, digits: str) -> None:
    assert numbers.normalize(words) == digits


@pytest.mark.parametrize(
    "text",
    [
        "",
        "一点也不好",
        "三心二意",
        "十分好",
        "几十个",
        "十几个",
        "好几百人",
        "上百万",
        "千万别去",
        "打开一号灯",
        "今天是星期三",
        "我要三个苹果",
        "好的，谢谢。",
    ],
)
def test_idioms_and_small_counts_stay_words(numbers: NumberFormat, text: str) -> None:
    assert numbers.normalize(text) == text
