"""Whether a server can be used, and when to say that it cannot. Pure: failures and answers with their times in, what is to be told out.

Trouble that lasts for two seconds is told once, and at the very start at once; while the connection stands only that of a server that does
not answer, or answers nonsense. It is over when an utterance is answered, or when the
connection has stood for two seconds and no utterance waits. A server that was connected and did not answer, or answered nonsense, is not
better because it can be connected again: then the connection has to stand for half a minute. Times are seconds of a monotonic clock.
"""

from __future__ import annotations

import structlog

from voice.recognition.remote.protocol import ServerNonsense
from voice.recognition.remote.server import ServerFailed, ServerSilent

_GRACE_SEC = 2.0
_DISTRUST_SEC = 30.0

log = structlog.get_logger()


class Trouble:
    """What is wrong with a server."""

    def __init__(self) -> None:
        self.is_told = False
        """Whether what is wrong now was told."""
        self._error: BaseException | None = None
        self._since = 0.0
        self._was_connected = False
        self._connected_since: float | None = None
        self._is_distrusted = False

    @property
    def stands(self) -> bool:
        """Whether the connection stands."""
        return self._connected_since is not None

    def connected(self, now: float) -> None:
        """The connection stands."""
        self._was_connected, self._connected_since = True, now

    def disconnected(self) -> None:
        """It does not, for whatever reason."""
        self._connected_since = None

    def failed(self, error: BaseException, now: float) -> None:
        """It could not be made, it broke, or what came of it was of no use."""
        if self._error is None:
            self._since, self._is_distrusted = now, False
        self._error = error
        self._is_distrusted |= isinstance(error, ServerSilent | ServerNonsense | ServerFailed)

    def answered(self) -> None:
        """An utterance was recognised: nothing is wrong."""
        if self.is_told:
            log.info("engine_restored")
        self.is_told, self._error = False, None

    def look(self, now: float, *, idle: bool) -> BaseException | None:
        """What is to be told now, if anything; ``idle``: no utterance waits."""
        if self._error is None:
            return None
        if self._connected_since is not None:
            if idle and now - self._connected_since >= (_DISTRUST_SEC if self._is_distrusted else _GRACE_SEC):
                self.answered()
                return None
            if not self._is_distrusted:
                return None
        if self.is_told or (self._was_connected and now - self._since < _GRACE_SEC):
            return None
        self.is_told = True
        return self._error
