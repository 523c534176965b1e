"""A voice assistant in a few lines: it answers what it hears, and does not hear itself. From the repository: python -m examples.assistant

It goes on when the service crashes or the microphone is replugged (voice/client.py). Flags after the command go to the service:
python -m examples.assistant --embedded --hotwords words.txt
With --wake-word 小美小美 it answers only who begins with that, and for 8 s after each answer.
"""

import shutil
import subprocess
import sys
import time

from voice.client import Abandoned, Error, Final, VoiceService


def answer(text: str) -> str:
    """Put your own here."""
    return f"现在是{time.strftime('%H点%M分')}" if "几点" in text else f"你说的是：{text}"


def say(service: VoiceService, text: str) -> None:
    print("assistant:", text, flush=True)
    service.mute()  # a service that is just being started again hears of it, too
    if shutil.which("espeak-ng"):
        subprocess.run(["espeak-ng", "-v", "cmn", "--stdin"], input=text.encode(), check=False)
    service.unmute()


def complain(error: Error) -> None:
    print("problem:", error.message, file=sys.stderr, flush=True)


with VoiceService(*(sys.argv[1:] or ["--embedded"]), on_error=complain) as service:
    service.wait_listening(600)  # the first start downloads and converts models
    for event in service:
        if isinstance(event, Final) and event.text:
            print("you:", event.text, flush=True)
            say(service, answer(event.text))
        elif isinstance(event, Abandoned):
            say(service, "对不起，请再说一遍。")
