"""Capture: a microphone, a file or a pipe -> ``AudioBlock`` -> ``AudioChunk`` at 16 kHz."""
