"""Recognition: an utterance's audio -> ``Hypothesis``, by one stream object per utterance."""
