"""What to expect of the embedded recognition model when a person speaks, for those who start the service with it.

No state. The figure: characters wrong in finals of streaming mode, clean, by `models/embedded/asr/MODEL_CARD.md`: on sentences of two
people whose other sentences training heard, and on those of a person whom it never heard. A test holds it to the card.
"""

from __future__ import annotations

NAME = "embedded"
"""What the status event ``ready`` calls it."""
EXPECTATION = "the embedded model is small: of what people say it gets about 3 of 10 characters wrong"
REMEDY = "start without --embedded: FunASR's models hear people better; 2.3 GB, downloaded once (voice-asr models pull does it beforehand)"
