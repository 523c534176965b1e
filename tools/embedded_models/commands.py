"""What is said to an assistant: templates with slots, and numbers, dates, times and sums of money as they are said."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

SLOT = re.compile(r"\{(\w+)\}")

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
设定{degrees}度。
想听歌曲{music}。
我要看{thing}。
帮我订一张{date}去{city}的火车票。
{date}是星期几？
{date}有什么安排？
{date}{time}在{destination}见面。
{time}去{destination}接{person}。
这个{thing}多少钱？
这个{thing}卖{money}。
一共{money}。
转{money}给{person}。
还差{money}。
今年是{year}年。
我是{year}年出生的。
我的电话号码是{digits}。
验证码是{digits}。
密码是{digits}。
房间号是{digits}。
现在是{clock}。
{clock}开始开会。
我有{number}个{thing}。
第{number}页。
第{number}个。
翻到第{number}页。
百分之{number}。
零点{digit}。
{number}点{digit}公斤。
{number}公里。
体温{temperature}度。
记一下，{message}。
写一封邮件，{message}。
搜索{music}。
搜索{city}的{destination}。
翻译成英文。
用英语怎么说？
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


def number(rng: random.Random) -> str:
    """1 to 99, as it is said."""
    return spoken(rng.randint(1, 99))


def clock_time(rng: random.Random) -> str:
    """A time of the day, as it is said."""
    minutes = rng.choice(["点", "点", "点", "点半", "点十分", "点十五分", "点二十分", "点四十五分"])
    return rng.choice(DAY_PARTS) + rng.choice(HOURS) + minutes


def digits(rng: random.Random) -> str:
    """3 to 11 digits: room numbers, codes, telephone numbers; a 1 is sometimes said yao, as in telephone numbers."""
    string = "".join(rng.choice(DIGITS) for _ in range(rng.randint(3, 11)))
    return string.replace("一", "幺") if rng.random() < 0.2 else string


def date(rng: random.Random) -> str:
    """A day of the year or of the week, as it is said."""
    if rng.random() < 0.3:
        return rng.choice(["", "下", "上", "这个"]) + rng.choice(["星期", "周"]) + rng.choice("一二三四五六")
    if rng.random() < 0.2:
        return rng.choice("今天 明天 后天 昨天 前天 周末 下个月 月底".split())
    return f"{spoken(rng.randint(1, 12))}月{spoken(rng.randint(1, 31))}{rng.choice('号日')}"


def year(rng: random.Random) -> str:
    """1900 to 2049, digit by digit."""
    return "".join(DIGITS[int(digit)] for digit in str(rng.randint(1900, 2049)))


def clock(rng: random.Random) -> str:
    """Hour and minute."""
    minutes = rng.randint(0, 59)
    tail = "整" if minutes == 0 else ("零" if minutes < 10 else "") + spoken(minutes) + rng.choice(["", "分"])
    return f"{rng.choice(DAY_PARTS)}{rng.choice(HOURS)}点{tail}"


def money(rng: random.Random) -> str:
    """A sum up to a hundred million yuan, the larger the rarer."""
    amount = int(10 ** rng.uniform(0, rng.choice([2, 3, 4, 8])))
    if rng.random() < 0.5 and amount > 100:
        amount -= amount % 10 ** (len(str(amount)) - 2)  # most sums said aloud are round
    return spoken(max(1, amount)) + rng.choice(["元", "块", "块钱", "块五", "元钱", "人民币"])


def temperature(rng: random.Random) -> str:
    """Of a body."""
    return f"三十{rng.choice('六七八九')}点{rng.choice(DIGITS)}"


FILL: dict[str, Callable[[random.Random], str]] = {
    "number": number,
    "time": clock_time,
    "degrees": lambda rng: spoken(rng.randint(16, 30)),
    "date": date,
    "year": year,
    "clock": clock,
    "money": money,
    "temperature": temperature,
    "digits": digits,
    "digit": lambda rng: rng.choice(DIGITS),
}


def command(rng: random.Random) -> str:
    """A template with its slots filled, with its marks."""
    template = rng.choices(TEMPLATES, weights=[1 + 2 * ("{" in template) for template in TEMPLATES])[0]
    return SLOT.sub(lambda match: FILL[match[1]](rng) if match[1] in FILL else rng.choice(SLOTS[match[1]]), template)


def spoken(value: int) -> str:
    """1 to 99,999,999 as it is said; 2 is liang where it counts hundreds, thousands or ten thousands."""
    if value >= 10_000:
        high, low = divmod(value, 10_000)
        head = "两" if high == 2 else spoken(high)
        return head + "万" + ("" if low == 0 else ("零" if low < 1_000 else "") + _below_ten_thousand(low, first=False))
    return _below_ten_thousand(value, first=True)


def _below_ten_thousand(value: int, *, first: bool) -> str:
    said, zero = "", False
    for unit, name in ((1_000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit, value = divmod(value, unit)
        if digit:
            said += ("零" if zero else "") + ("两" if digit == 2 and unit >= 100 else DIGITS[digit]) + name
            zero = False
        elif said:
            zero = True
    said = said[1:] if first and said.startswith("一十") else said
    return said or DIGITS[0]
