"""Endpointing: windows of audio -> where an utterance starts and where it ends."""
