"""The server as the settings name it, and what its failures mean to a user. Values only.

``tls_context`` raises ``ConfigInvalid`` for a file of certificates that cannot be read.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidUpgrade

from voice.errors import ConfigInvalid, describe
from voice.recognition.remote.protocol import ServerNonsense

_REFUSED = (401, 403)


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server is, and how it is trusted."""

    url: str
    token: str | None = None
    """Sent as ``Authorization: Bearer``. FunASR's servers ask for none; a proxy before them may."""
    ca: str | None = None
    """File of the certificates that may sign the server's; None: those that the system trusts."""
    insecure: bool = False
    """Whether any certificate will do."""

    @property
    def name(self) -> str:
        """The address for messages: without what may be secret behind its path."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{parts.path}"

    @property
    def is_encrypted(self) -> bool:
        """Whether nobody on the way can read along."""
        return self.url.startswith("wss:")

    @property
    def headers(self) -> dict[str, str]:
        """What goes with the request."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def tls_context(server: Server) -> ssl.SSLContext | None:
    """How the server's certificate is checked; None without TLS.

    Raises:
        ConfigInvalid: ``engine.ca`` cannot be read.
    """
    if not server.is_encrypted:
        return None
    try:
        context = ssl.create_default_context(cafile=None if server.ca is None else str(Path(server.ca).expanduser()))
    except (OSError, ssl.SSLError, RuntimeError) as error:  # RuntimeError: ~somebody who is not there
        raise ConfigInvalid([f"engine.ca: {server.ca} is no file of PEM certificates that can be read ({describe(error)})"]) from error
    if server.insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class ServerSilent(Exception):
    """The server took an utterance and does not answer."""


class ServerFailed(Exception):
    """The server said that it failed at an utterance."""


def explain(error: BaseException, server: Server) -> str:
    """What went wrong and what to do about it, in one line: ``EngineUnavailable: text``."""
    return f"EngineUnavailable: {server.name} {_reason(error, server)}"


def _reason(error: BaseException, server: Server) -> str:  # noqa: PLR0911 -- one for each kind of failure
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"has a certificate that is not trusted ({error.verify_message}): name its authority with --engine-ca FILE; "
            "--engine-insecure takes any certificate"
        )
    if isinstance(error, ssl.SSLError):
        return f"does not speak TLS as we do ({error.reason or 'SSLError'}): a server without TLS is reached by ws://"
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        remedy = "; its token belongs into VOICE_ASR__ENGINE__TOKEN" if status in _REFUSED else ""
        return f"refuses us (HTTP {status}){remedy}"
    if isinstance(error, InvalidMessage | InvalidUpgrade | InvalidHandshake):
        tls = "; a server with TLS is reached by wss://" if not server.is_encrypted else ""
        return f"does not answer as a WebSocket server{tls}"
    if isinstance(error, ServerSilent):
        return f"does not answer: {error}"
    if isinstance(error, ServerFailed):
        return "failed at an utterance: its own log says why"
    if isinstance(error, ServerNonsense):
        return f"does not speak FunASR's protocol: {error}"
    if isinstance(error, ConnectionClosed):
        return "closed the connection; it is connected again"
    if isinstance(error, TimeoutError):
        return "cannot be reached: it does not answer in time; is the address right?"
    if isinstance(error, OSError):
        tls = "; a server without TLS is reached by ws://" if server.is_encrypted and isinstance(error, ConnectionResetError) else ""
        return f"cannot be reached ({error.strerror or describe(error)}): is the server running, is the address right?{tls}"
    return f"cannot be used ({type(error).__name__})"
