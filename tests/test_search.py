"""The search over scripted posteriors: how many paths it keeps, when it decides, and that a preview changes nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from voice.recognition.engine import Vocabulary
from voice.recognition.hotwords import HotwordGraph
from voice.recognition.posteriors import TokenPosteriors
from voice.recognition.search import TokenSearch
from voice.transcript import Token

VOCABULARY = Vocabulary(tuple("_一二三四五六七八九"), frozenset({0}))
NOTHING, ONE, TWO, THREE, FOUR, FIVE, SIX, SEVEN, EIGHT, NINE = range(10)
UNLIKELY = -30.0


def firing(at: int, **likely: float) -> TokenPosteriors:
    raise NotImplementedError
