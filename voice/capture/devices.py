"""Which of PortAudio's devices is meant. Pure: its descriptions in, a choice out."""

from __future__ import annotations

from typing import Any

from voice.errors import AudioDeviceUnavailable, ConfigInvalid


def find_device(devices: Any, default_index: int, wanted: str | int | None) -> tuple[int, dict[str, Any]]:
    """Index and description of the input device that ``wanted`` names.

    Args:
        devices: ``sounddevice.query_devices()``.
        default_index: the system's input device, negative for none.
        wanted: an index, a name or a part of one (the exact name first, then the first that holds it, case ignored), None for
            the default.
    """
    inputs = [(index, dict(device)) for index, device in enumerate(devices) if device["max_input_channels"] > 0]
    names = ", ".join(f"{index} '{device['name']}'" for index, device in inputs) or "none"
    if wanted is None:
        found = [entry for entry in inputs if entry[0] == default_index] or inputs
    elif isinstance(wanted, int):
        found = [entry for entry in inputs if entry[0] == wanted]
        if not found:
            raise ConfigInvalid([f"audio.device: {wanted} is no input device; there are: {names}"])
    else:
        found = [entry for entry in inputs if entry[1]["name"] == wanted]
        found = found or [entry for entry in inputs if wanted.casefold() in entry[1]["name"].casefold()]
    if not found:
        asked = f"no input device is named like '{wanted}'" if wanted is not None else "there is no input device"
        raise AudioDeviceUnavailable(f"{asked}; there are: {names}")
    return found[0]
