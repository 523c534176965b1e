"""What to expect of the embedded recognition model when a person speaks, for those who start the service with it.

No state. The figure: 78 % of the characters wrong, streaming, on sentences of AISHELL-1 that no training heard.
"""

from __future__ import annotations

NAME = "embedded"
"""What the status event ``ready`` calls it."""
EXPECTATION = "the embedded model is for trials: of what people say it gets about 8 of 10 characters wrong"
REMEDY = "start without --embedded: FunASR's models hear people; about 2.3 GB, downloaded once (voice-asr models pull does it beforehand)"
