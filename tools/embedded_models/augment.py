"""What happens to speech on its way to a microphone: silence around it, a room, a channel, noise. All randomness from one generator.

Audio is float32 in the range of int16 at 16 kHz.
"""

from __future__ import annotations

import io

import numpy as np
import soundfile
import torch

SAMPLE_RATE_HZ = 16_000
NOISES = ("white", "pink", "brown", "hum", "babble", "babble")
LEVELS = (0.02, 1.3)  # factor of speech whose peak is at 0.7 of full scale: -37 to +1 dBFS, clipped


def at_snr(speech: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Speech and noise of the same length, mixed so that 10 log10(P_speech / P_noise) is `snr_db`; P_speech is taken where speech is."""
    level = speech_level(speech) * 10 ** (-snr_db / 20)
    return (speech + noise * (level / (np.sqrt(np.mean(noise**2)) + 1e-9))).astype(np.float32)


def speech_level(speech: np.ndarray) -> float:
    """Root mean square over the samples above a hundredth of the peak: silence around an utterance does not count."""
    spoken = speech[np.abs(speech) > 0.01 * np.abs(speech).max()]
    return float(np.sqrt(np.mean(spoken**2))) if len(spoken) else 1.0


def make_noise(kind: str, length: int, rng: np.random.Generator, voices: list[np.ndarray], recorded: list[np.ndarray]) -> np.ndarray:
    """Stationary noise of a spectral slope, mains hum with its harmonics, several voices at once, or one of the `recorded` noises."""
    if kind == "babble":
        mixture = np.zeros(length, np.float32)
        for _ in range(rng.integers(2, 7)):
            voice = voices[rng.integers(len(voices))].astype(np.float32)
            voice = np.pad(voice, (0, int(rng.uniform(0, 0.5) * SAMPLE_RATE_HZ)))
            level = 10 ** (rng.uniform(-8, 0) / 20) / (np.sqrt(np.mean(voice**2)) + 1e-9)
            mixture += np.resize(np.roll(voice, rng.integers(len(voice))), length) * np.float32(level)
        return mixture
    if kind == "recorded":
        noise = recorded[rng.integers(len(recorded))].astype(np.float32)
        return np.resize(np.roll(noise, rng.integers(len(noise))), length)
    if kind == "hum":
        time = np.arange(length, dtype=np.float32) / SAMPLE_RATE_HZ
        base = rng.uniform(45, 180)
        tones = [np.sin(2 * np.pi * base * k * time + rng.uniform(0, 6.28)) / k ** rng.uniform(0.3, 1.5) for k in range(1, 8)]
        return (sum(tones) + 0.1 * rng.standard_normal(length)).astype(np.float32)
    white = rng.standard_normal(length, dtype=np.float32)
    slope = {"white": 0.0, "pink": 0.5, "brown": 1.0}[kind]
    return white if slope == 0 else _filtered(white, (np.arange(1, _fft_size(length) // 2 + 2) ** -slope))


def hesitant(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A pause of 100 to 700 ms where the clip is quietest, within its middle three fifths; int16 or float."""
    window = 320
    first, last = len(clip) // 5 // window, len(clip) * 4 // 5 // window
    if last - first < 8:
        return clip
    levels = clip[: last * window].reshape(-1, window).astype(np.float32).std(1)[first:]
    quiet = np.argsort(levels)[: max(2, len(levels) // 12)]
    at = int((first + quiet[rng.integers(len(quiet))]) * window + window // 2)
    fade = np.linspace(1, 0, 160)
    before, behind = clip[:at].astype(np.float32), clip[at:].astype(np.float32)
    before[-160:] *= fade
    behind[:160] *= fade[::-1]
    return np.concatenate([before, _silence(rng, 0.1, 0.7), behind])


def place(clips: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Clips one after the other with pauses between them and silence around them."""
    pieces = [_silence(rng, 0.0, 0.5)]
    for clip in clips:
        pieces += [_silence(rng, 0.05, 0.7) if len(pieces) > 1 else _silence(rng, 0, 0), clip.astype(np.float32)]
    return np.concatenate([*pieces, _silence(rng, 0.15, 0.9)])


def spoil(
    speech: np.ndarray, rng: np.random.Generator, voices: list[np.ndarray], hardness: float, recorded: list[np.ndarray] | None = None
) -> np.ndarray:
    """Rooms, channels, codecs and noise, the more of them the higher `hardness` (0..1), clipped to int16's range.

    `voices` make the babble, `recorded` are noises.
    """
    if rng.random() < 0.15 + 0.4 * hardness:
        speech = _filtered(speech, *_room(rng))
    if rng.random() < 0.15 + 0.4 * hardness:
        speech = _filtered(speech, _channel(_fft_size(len(speech)), rng))
    speech = speech * np.float32(np.exp(rng.uniform(*np.log(LEVELS))))
    if rng.random() < 0.35 + 0.35 * hardness:
        kinds = (*NOISES, "recorded", "recorded") if recorded else NOISES
        noise = make_noise(kinds[rng.integers(len(kinds))], len(speech), rng, voices, recorded or [])
        speech = at_snr(speech, noise, rng.uniform(20 - 18 * hardness, 45))
    if rng.random() < 0.7:  # the noise of the converter; without it silence is digital, as from a virtual microphone
        speech = speech + np.float32(rng.uniform(0.3, 12)) * rng.standard_normal(len(speech), dtype=np.float32)
    speech = np.clip(speech, -32768, 32767).astype(np.float32)
    if rng.random() < 0.1 * hardness:
        speech = _coded(speech, rng)
    return speech


def _coded(speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Through a lossy codec: Opus at a low rate, or the mu-law of a telephone."""
    if rng.random() < 0.3:
        companded = np.sign(speech) * np.log1p(255 * np.abs(speech) / 32768) / np.log(256)
        levels = np.round(companded * 127) / 127
        return (np.sign(levels) * (256 ** np.abs(levels) - 1) / 255 * 32768).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, speech / 32768, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS", compression_level=rng.uniform(0.9, 1.0))
    file.seek(0)
    decoded = soundfile.read(file, dtype="float32")[0] * 32768
    return np.resize(decoded, len(speech)) if len(decoded) >= len(speech) else np.pad(decoded, (0, len(speech) - len(decoded)))


def _silence(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    return np.zeros(int(rng.uniform(low, high) * SAMPLE_RATE_HZ), np.float32)


def _fft_size(length: int) -> int:
    return 1 << (length - 1).bit_length()


def _room(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An impulse response: the direct sound, some first reflections, and a tail of noise that loses its high tones first.

    It has lost 60 dB after 0.1 to 0.8 s and is -8 to 18 dB below the direct sound: a far speaker is heard through the room most of all.
    """
    decay = rng.uniform(0.1, 0.8)
    time = np.arange(int(decay * 0.8 * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    bright, dull = (rng.standard_normal(len(time)) for _ in range(2))
    dull = np.convolve(dull, np.ones(4) / 2, mode="same")
    tail = bright * 10 ** (-3 * time / (decay * rng.uniform(0.4, 0.9))) + dull * 10 ** (-3 * time / decay)
    tail[: int(rng.uniform(0.002, 0.02) * SAMPLE_RATE_HZ)] = 0
    for _ in range(rng.integers(2, 9)):
        at = int(rng.uniform(0.001, 0.03) * SAMPLE_RATE_HZ)
        if at < len(tail):
            tail[at] += rng.choice([-1, 1]) * np.sqrt((tail**2).sum()) * rng.uniform(0.05, 0.4)
    tail *= 10 ** (-rng.uniform(-8, 18) / 20) / (np.sqrt((tail**2).sum()) + 1e-9)
    tail[0] = 1
    return np.ones(1), tail.astype(np.float32)


def _channel(size: int, rng: np.random.Generator) -> np.ndarray:
    """A gain for each frequency: a slope with a wave in it, sometimes a telephone's band or a dull microphone."""
    hz = np.linspace(0, SAMPLE_RATE_HZ / 2, size // 2 + 1)
    octaves = np.log2(np.maximum(hz, 60) / 1000)
    gain_db = rng.uniform(-4, 4) * octaves + rng.uniform(0, 5) * np.sin(octaves * rng.uniform(0.5, 3) + rng.uniform(0, 6.28))
    kind = rng.random()
    if kind < 0.3:
        gain_db = gain_db - 60 * (hz > rng.uniform(3300, 4000)) - 40 * (hz < rng.uniform(50, 300))
    elif kind < 0.45:
        gain_db = gain_db - 60 * (hz > rng.uniform(4000, 7500))
    return 10 ** (gain_db / 20)


def _filtered(audio: np.ndarray, gains: np.ndarray, impulse: np.ndarray | None = None) -> np.ndarray:
    """Through gains over the frequencies, or through an impulse response; the loudness stays as it was."""
    size = _fft_size(len(audio) + (len(impulse) if impulse is not None else 0))
    spectrum = torch.fft.rfft(torch.from_numpy(audio), size)
    factors = torch.from_numpy(gains.astype(np.float32)) if impulse is None else torch.fft.rfft(torch.from_numpy(impulse), size)
    result = torch.fft.irfft(spectrum * factors, size).numpy()[: len(audio)]
    return result * np.float32(np.sqrt(np.mean(audio**2) / (np.mean(result**2) + 1e-9)))
