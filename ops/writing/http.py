"""Requests to one server: a pool of connections, patience with what passes, and a key that never leaves.

The key goes to the server's own address alone, and into no error: what a server says of it is told without it.
"""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from weakref import WeakSet

from ..base.errors import QwenchError
from ..base.parse import json_value
from .address import LOOPBACK, checked, key_of, origin
from .sse import objects

if TYPE_CHECKING:
    from httpx2 import Response

T = TypeVar("T")
#: seconds for what a server need not compute
LISTED = 60.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server is waited for.

    Attributes:
        connect, read, total: seconds for a connection, for bytes to come, and for a request with all its tries.
        tries: of a request; pause, longest: seconds before the second try, and before any.
        most: bytes of a reply.
    """

    connect: float = 10
    read: float = 1800
    total: float = 7200
    tries: int = 6
    pause: float = 0.5
    longest: float = 60
    most: int = 64 << 20


class Failed(QwenchError):
    """A request without an answer after all tries: one row's trouble, to be asked again."""


class Refused(QwenchError):
    """The server does not take the request."""

    def __init__(self, status: int, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.status = status

    @property
    def fields(self) -> bool:
        """For what it says, not for who asks or where."""
        return self.status in (400, 422)


class Stopped(Exception):
    """`Client.stop` has ended the request."""


class _Again(Exception):
    """What may pass: the sentence, and the pause that the server asks for."""

    def __init__(self, sentence: str, after: float | None = None) -> None:
        super().__init__(sentence)
        self.after = after


class Client:
    """See the module.

    Args:
        address: http(s)://host[:port][/path]; without a path `/v1` is meant.
        key_name: the variable that holds the key.

    Raises:
        QwenchError: no address, one with a password in it, or a key that cannot be sent.
    """

    def __init__(
        self,
        address: str,
        key_name: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        patience: Patience | None = None,
    ) -> None:
        from httpx2 import Client as Pool
        from httpx2 import Limits

        self.address, self.patience = checked(address), patience or Patience()
        self._key = key_of(key_name)
        self._stopping = threading.Event()
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._pool = Pool(
            limits=Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            # A proxy that the environment names is for other machines.
            mounts={f"all://{host}": None for host in LOOPBACK},
        )

    @property
    def stopping(self) -> bool:
        """`stop` was called, and `begin` not since."""
        return self._stopping.is_set()

    def begin(self) -> None:
        """Requests may be made again."""
        self._stopping.clear()

    def stop(self) -> None:
        """End all requests where they are: connections are closed, so that the server need not go on."""
        self._stopping.set()
        for one in list(self._sockets):
            _shut(one)

    def get(self, path: str) -> Any:
        """A reply as JSON; a server that is not there is not waited for. `..` leads out of `/v1`.

        Raises:
            QwenchError, Failed, Stopped: see `post`.
        """
        return self._tried(lambda left: self._json("GET", path, None, min(left, LISTED)), present=True)

    def post(self, path: str, body: dict[str, Any], read: Callable[[Any], T], tries: int = 0) -> T:
        """What `read` makes of the reply; a ValueError of it is a reply to be asked for again.

        Args:
            tries: at most, 0 for the usual number.

        Raises:
            Refused: with the server's sentence.
            Failed: no answer after all tries.
            Stopped: see `stop`.
        """

        def once(left: float) -> T:
            try:
                return read(self._json("POST", path, body, left))
            except ValueError as error:
                raise _Again(f"sends a reply that cannot be read ({error})") from error

        return self._tried(once, tries=tries)

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The objects of a streamed reply; tried again only while nothing has come.

        Raises:
            QwenchError, Failed, Stopped: see `post`.
        """
        response = self._tried(lambda left: self._open("POST", path, body, left))
        try:
            content = self._bytes(response, time.monotonic() + self.patience.total)
            if "json" in response.headers.get("content-type", ""):
                # The server knows no streams, and has told all at once.
                found = json_value(b"".join(content))
                if not isinstance(found, dict):
                    raise ValueError("it is no object")
                yield found
            else:
                yield from objects(content)
        except (_Again, ValueError) as error:
            self._ended(str(error) if isinstance(error, _Again) else f"sends what cannot be read ({error})", error)
        finally:
            response.close()

    def close(self) -> None:
        """Give all connections back."""
        self.stop()
        self._pool.close()

    def _ended(self, sentence: str, cause: BaseException) -> NoReturn:
        if self.stopping:
            raise Stopped from cause
        absent = isinstance(cause.__cause__, _absent())
        hint = "start it, or look at the address: docs/engines.md" if absent else "run the same command again"
        raise Failed(f"the server {sentence}: `{self.address}`", hint) from cause

    def _tried(self, once: Callable[[float], T], present: bool = False, tries: int = 0) -> T:
        """Until it works: growing pauses with jitter, or those that the server asks for."""
        p, begun, made = self.patience, time.monotonic(), 0
        while True:
            if self.stopping:
                raise Stopped
            try:
                return once(begun + p.total - time.monotonic())
            except _Again as error:
                made += 1
                wait = min(p.pause * 2 ** (made - 1), p.longest) * random.uniform(0.5, 1)
                wait = wait if error.after is None else error.after
                over = made >= (tries or p.tries) or time.monotonic() - begun + wait > p.total
                if self.stopping or over or (present and isinstance(error.__cause__, _absent())):
                    tried = f" ({made} tries)" if made > 1 else ""
                    self._ended(f"{error}{tried}", error)
                if self._stopping.wait(wait):
                    raise Stopped from error

    def _json(self, method: str, path: str, body: dict[str, Any] | None, left: float) -> Any:
        end = time.monotonic() + left
        response = self._open(method, path, body, left)
        try:
            return json_value(b"".join(self._bytes(response, end)))
        except ValueError as error:
            raise _Again(f"sends a reply that is no JSON ({error})") from error
        finally:
            response.close()

    def _open(self, method: str, path: str, body: dict[str, Any] | None, left: float) -> Response:
        """A reply that has begun, status 200.

        Raises:
            QwenchError: a refusal; _Again: what may pass.
        """
        import httpx2

        p, url = self.patience, self._url(path)
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        wait = httpx2.Timeout(max(min(p.read, left), 0.01), connect=p.connect, pool=None)
        for _ in range(4):
            request = self._pool.build_request(
                method, url, json=body, headers=headers, timeout=wait, extensions={"trace": self._traced}
            )
            try:
                response = self._pool.send(request, stream=True)
            except httpx2.TransportError as error:
                raise _Again(_broken(error, p)) from error
            if not response.is_redirect:
                break
            url = self._redirected(response, url)
        else:
            raise QwenchError(f"the server sends from one address to the next: `{self.address}`")
        if response.status_code != 200:
            self._refused(response, path)
        return response

    def _url(self, path: str) -> str:
        return self.address.removesuffix("/v1") + path[2:] if path.startswith("..") else self.address + path

    def _redirected(self, response: Response, url: str) -> str:
        """Where it sends to, on the same server.

        Raises:
            QwenchError: on another: neither the key nor the prompt goes there.
        """
        import httpx2

        response.close()
        try:
            target = httpx2.URL(url).join(response.headers.get("location", ""))
        except httpx2.InvalidURL:
            raise QwenchError(f"the server sends to no address: `{self.address}`") from None
        if origin(str(target)) != origin(self.address):
            raise QwenchError(
                f"the server sends on to another, `{self._clean(target.host)}`, which is not followed: "
                f"`{self.address}`",
                "name that one as --engine, where you trust it",
            )
        return str(target)

    def _refused(self, response: Response, path: str) -> NoReturn:
        """Raise for what is no 200."""
        status = response.status_code
        try:
            text = b"".join(self._bytes(response, time.monotonic() + 30, 1 << 16)).decode("utf-8", "replace")
        except (_Again, QwenchError):
            text = ""
        finally:
            response.close()
        said = self._clean(_sentence(text))
        if status == 429 or status >= 500:
            raise _Again(f"answers {status}" + (f" ({said})" if said else ""), _after(response))
        hint = "give what it asks for"
        if status in (401, 403):
            hint = "put its key into the variable that --api-key-env names"
        elif status in (404, 405):
            hint = f"it has no {path} or no such model: --engine ends with /v1 for most servers; see --api and --model"
        raise Refused(status, f"the server refuses {path} with {status}: {said or 'no reason given'}", hint)

    def _bytes(self, response: Response, end: float, most: int | None = None) -> Iterator[bytes]:
        """The body as it comes.

        Raises:
            Failed: more of it than a reply can have.
            _Again: it breaks off, or takes too long.
        """
        import httpx2

        size, most = 0, most or self.patience.most
        try:
            for chunk in response.iter_bytes():
                size += len(chunk)
                if size > most:
                    raise Failed(f"the server sends a reply of more than {most} bytes: `{self.address}`")
                if time.monotonic() > end:
                    raise _Again(f"has not finished its reply after {self.patience.total:g} seconds")
                yield chunk
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise _Again(_broken(error, self.patience)) from error

    def _clean(self, text: str) -> str:
        """Without the key."""
        return text.replace(self._key, "[key]") if self._key else text

    def _traced(self, name: str, info: dict[str, Any]) -> None:
        """Keep every connection that is made, so that `stop` can end it while a thread waits for its bytes."""
        if name.endswith(("connect_tcp.complete", "start_tls.complete")):
            made = info["return_value"].get_extra_info("socket")
            self._sockets.add(made)
            if self.stopping:
                _shut(made)


def _absent() -> type[Exception]:
    from httpx2 import ConnectError

    return ConnectError


def _broken(error: Exception, patience: Patience) -> str:
    """A failure of the connection in words."""
    name = type(error).__name__
    if name == "ConnectTimeout":
        return f"does not take a connection within {patience.connect:g} seconds"
    if "Timeout" in name:
        return "sends nothing for too long"
    if name == "ConnectError":
        return f"cannot be reached ({error})"
    return f"breaks the connection off ({error or name})"


def _after(response: Response) -> float | None:
    """Seconds that `Retry-After` asks for, as a number or a date."""
    given = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", given):
        return float(given)
    with suppress(ValueError, TypeError):
        return max(parsedate_to_datetime(given).timestamp() - time.time(), 0)
    return None


def _sentence(text: str) -> str:
    """What a server says of an error, on one line."""
    try:
        found = json_value(text)
    except ValueError:
        found = text
    for name in ("error", "detail", "message", "msg"):
        if isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, dict):
            found = found.get(name, found)
    return " ".join((found if isinstance(found, str) else text).split())[:300]


def _shut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
