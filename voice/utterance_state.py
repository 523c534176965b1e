"""The states of an utterance, and where an exception in each leads. Values only.

::

                +--- speech resumes ----+
                v                       |
    start -> DECODING -- pause --> PREPARING          the state that ``fail`` leads to
                | ^                                   PREPARING  -> DECODING    nothing is lost: the end is computed at the end
                | +-- REBUILDING                      DECODING   -> REBUILDING  a new stream decodes the audio again
                |     BROKEN                          REBUILDING -> BROKEN      the audio waits for the end
              end                                     FINISHING  -> RETRYING    a new stream decodes the audio again
                v                                     RETRYING   -> COMPLETING  of what was shown last
            FINISHING (RETRYING) -> COMPLETING        AWAITING   -> COMPLETING  of what was shown last
                |                 ^     v             COMPLETING -> BARE        the text as it was recognised
                +-> AWAITING -----+ CONCLUDED         BARE       -> MINIMAL     the text shown last, without tokens

AWAITING is the state of an utterance that ended and whose recogniser, a server, has not answered yet. The next utterance may begin; the
audio that the final needs is then the utterance's own.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """What is being done with the utterance."""

    DECODING = enum.auto()
    PREPARING = enum.auto()
    REBUILDING = enum.auto()
    BROKEN = enum.auto()
    FINISHING = enum.auto()
    RETRYING = enum.auto()
    AWAITING = enum.auto()
    COMPLETING = enum.auto()
    BARE = enum.auto()
    MINIMAL = enum.auto()
    CONCLUDED = enum.auto()


AFTER_FAILURE = {
    State.PREPARING: State.DECODING,
    State.DECODING: State.REBUILDING,
    State.REBUILDING: State.BROKEN,
    State.FINISHING: State.RETRYING,
    State.RETRYING: State.COMPLETING,
    State.AWAITING: State.COMPLETING,
    State.COMPLETING: State.BARE,
    State.BARE: State.MINIMAL,
}
WHILE_SPEAKING = (State.DECODING, State.PREPARING, State.REBUILDING, State.BROKEN)
