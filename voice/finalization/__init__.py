"""Finalization: a recognised utterance -> the ``Transcript`` of its final, with punctuation, repairs and labels."""
