"""Voice ASR service: microphone in, recognised Mandarin out as JSON lines. See README.md for the way through it."""

__version__ = "0.1.0"
