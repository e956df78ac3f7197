"""Who may use the service: API keys and the header that carries one. Knows no route and no framework."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable

from service.errors import Unauthorized

REALM = "jina-onnx-server"
BEARER_CHALLENGE = f'Bearer realm="{REALM}"'
BASIC_CHALLENGE = f'Basic realm="{REALM}", charset="UTF-8"'  # makes a browser ask for name and password


class Keys:
    """The keys of the service, kept as digests."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Admit whoever shows one of the keys, which are ASCII."""
        self._digests = [_digest(key) for key in keys]

    def check(self, authorization: str | None, *, takes_basic: bool) -> bytes:
        """Return the digest of the key in a header `Authorization`. Raises Unauthorized.

        `takes_basic` admits HTTP Basic too: the key is the password, or the name where there is no password.
        """
        scheme, _, shown = (authorization or "").strip().partition(" ")
        schemes = {"bearer": str.strip} | ({"basic": _password} if takes_basic else {})
        key = schemes[scheme.lower()](shown) if scheme.lower() in schemes else ""
        if not key:
            is_basic = scheme.lower() == "basic" and not takes_basic
            reason = (
                "HTTP Basic is for reading alone: this needs an API key"
                if is_basic
                else "This needs an API key"
            )
            raise Unauthorized(reason, code="missing_api_key")
        digest = _digest(key)
        # Every key is compared, each in constant time: how long it takes says nothing about any of them.
        if not any([hmac.compare_digest(digest, known) for known in self._digests]):
            raise Unauthorized("The API key is not one of this server's", code="invalid_api_key")
        return digest


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="backslashreplace")).digest()


def _password(shown: str) -> str:
    try:
        name, _, password = base64.b64decode(shown.strip(), validate=True).decode().partition(":")
    except ValueError:
        return ""
    return password or name
