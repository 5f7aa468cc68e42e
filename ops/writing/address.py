"""Where a server is, and the key to it."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from ..base.errors import QwenchError

#: hosts that no proxy is asked for
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def checked(address: str) -> str:
    """An address without its last slash.

    Raises:
        QwenchError: none, or one with a password in it.
    """
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or re.search(r"[\s\\]", address):
        raise QwenchError("--engine is no address of a server", "write http://host:port/v1", code=2)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise QwenchError(
            "--engine is an address with a password or a query, which would be told in messages",
            "put the key into the variable that --api-key-env names",
            code=2,
        )
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: who is asked."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def key_of(name: str) -> str | None:
    """The key that a variable holds; None where the usual variable is not set.

    Raises:
        QwenchError: another variable that is not set, or a key that cannot be sent; neither says what it holds.
    """
    key = os.environ.get(name, "").strip()
    # The name is not told: it may be the key itself, given by mistake.
    if not key and name != "OPENAI_API_KEY":
        raise QwenchError("the variable that --api-key-env names is not set", "export it, with the key in it", code=2)
    if not re.fullmatch(r"[!-~]*", key):
        raise QwenchError("the key has characters that no key has", "look at the variable of --api-key-env", code=2)
    return key or None
