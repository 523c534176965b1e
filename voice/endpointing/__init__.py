"""Endpointing: ``AudioChunk`` -> where speech starts and where an utterance ends."""
