"""The microphones that there are now: the sound server's sources, or PortAudio's input devices where no server answers.

Nothing -> ``MicrophoneInfo``. Asks each once. Raises ``AudioDeviceUnavailable`` where there is neither a server nor PortAudio.
"""

from __future__ import annotations

from voice.capture.portaudio import import_sounddevice
from voice.capture.sound_server import SoundServer
from voice.capture.sources import MicrophoneInfo, list_inputs

_TIMEOUT_SEC = 1.0


def find_microphones() -> list[MicrophoneInfo]:
    """All of them, microphones before monitors.

    Raises:
        AudioDeviceUnavailable: there is neither a sound server nor PortAudio.
    """
    sources = find_sources()
    if sources:
        return sources
    sounddevice = import_sounddevice()
    return list_inputs(sounddevice.query_devices(), sounddevice.default.device[0])


def find_sources() -> list[MicrophoneInfo] | None:
    """The sound server's; None where none answers."""
    server = SoundServer()
    try:
        return server.sources(_TIMEOUT_SEC)
    finally:
        server.close()
