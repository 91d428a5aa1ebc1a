"""Bearer tokens: who may use the server."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence

from starlette.requests import HTTPConnection

from speechkit.errors import InputError

SCHEMES = ("bearer", "token")  # Deepgram's clients say Token


class Auth:
    """Whether a request brings a token that is known; without tokens everybody may come.

    A token is read from the header ``Authorization: Bearer ...``, or, for browsers, which cannot send headers, from
    the websocket's subprotocols ``bearer, TOKEN``. Never from the address, which proxies and browsers keep.

    Args:
        tokens: those that are known.

    Raises:
        InputError: one is shorter than 16 characters or cannot be sent by every client.
    """

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        self._digests = []
        for token in tokens:
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{16,}", token):  # RFC 9110's `token`: a subprotocol is one
                raise InputError(
                    "a token must have at least 16 characters, of letters, digits and !#$%&'*+.^_`|~- (browsers send "
                    "no others)"
                )
            self._digests.append(_digest(token))

    @property
    def open(self) -> bool:
        """Whether everybody may come."""
        return not self._digests

    def owner(self, request: HTTPConnection) -> bytes | None:
        """What tells the holder of one token from that of another; None for those who may not come."""
        if self.open:
            return b""
        given = _digest(_token(request.headers.get("authorization", ""), subprotocols(request)))
        found = None
        for digest in self._digests:  # all of them, in the same time whichever it is
            if hmac.compare_digest(given, digest):
                found = digest
        return found


def subprotocols(request: HTTPConnection) -> list[str]:
    """What a websocket's client offers."""
    return list(request.scope.get("subprotocols") or [])


def accepted(offered: Sequence[str]) -> str | None:
    """The subprotocol to answer with: that which came with the token, as browsers insist on one of theirs."""
    return next((name for name in offered if name.lower() in SCHEMES or name == "realtime"), None)


def _token(header: str, offered: Sequence[str]) -> str:
    scheme, _, token = header.partition(" ")
    if scheme.lower() in SCHEMES and token:
        return token.strip()
    for name, following in zip(offered, offered[1:], strict=False):
        if name.lower() in SCHEMES:
            return following
    prefix = "openai-insecure-api-key."  # as OpenAI's browser clients do
    return next((name.removeprefix(prefix) for name in offered if name.startswith(prefix)), "")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
