"""Finalization: a recognised utterance -> ``Transcript`` with everything a final carries."""
