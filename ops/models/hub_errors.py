"""What goes wrong between here and the hub, as sentences: the hub library's errors and its HTTP client's, in one table.

Classes are told apart by name: the client is requests, httpx or httpx2 by version of the library, and none is imported.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..base.errors import QwenchError

_LATER = "try again later, or name a local folder"
#: class name -> (sentence, next step); the first row that an error or its causes have decides
KINDS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("GatedRepoError",), "the model is gated: `{name}`", "accept its terms on the hub, then `hf auth login`"),
    (("DisabledRepoError",), "the hub has taken the model down: `{name}`", "use another model, or a local folder"),
    (
        ("RevisionNotFoundError", "RevisionResolutionError"),
        "`{name}` has no revision: `{revision}`",
        "leave out --revision for the newest",
    ),
    (
        ("RepositoryNotFoundError",),
        "the hub has no such model, or it is private: `{name}`",
        "check the spelling; for a private one, `hf auth login`",
    ),
    (("HFValidationError",), "the hub has no models of such a name: `{name}`", "write org/model"),
    (
        ("SSLError", "SSLCertVerificationError"),
        "the hub's certificate is not accepted, so `{name}` is not fetched: {line}",
        "check the clock and the proxy; SSL_CERT_FILE names another bundle of certificates",
    ),
    (("ProxyError",), "the proxy refuses to reach the hub for `{name}`: {line}", "check HTTPS_PROXY and NO_PROXY"),
    (
        ("TimeoutException", "Timeout", "TimeoutError"),
        "the hub does not answer in time for `{name}`",
        "run the same command to go on; HF_HUB_DOWNLOAD_TIMEOUT=60 waits longer",
    ),
    (
        ("OfflineModeIsEnabled",),
        "the model is not in the local cache and the hub may not be asked: `{name}`",
        "unset HF_HUB_OFFLINE, or name a local folder",
    ),
    (
        ("ConnectionError", "NetworkError", "TransportError"),
        "the model is not in the local cache and the hub cannot be reached: `{name}`",
        "run `hf download {name}` while online, or name a local folder",
    ),
)
#: HTTP status -> the same; 500 stands for what is above it
STATUS = {
    401: ("the hub wants to know who asks for `{name}`", "`hf auth login`"),
    403: ("the hub does not let you have `{name}`", "ask its owner, or `hf auth login` with another token"),
    404: ("the hub's copy of `{name}` lacks a file", "check the name and the revision"),
    407: ("the proxy wants a password to fetch `{name}`", "put it into HTTPS_PROXY"),
    429: (
        "the hub has had too many requests to give `{name}` now",
        "wait some minutes; `hf auth login` raises the limit",
    ),
    500: ("the hub has trouble of its own (HTTP {status}) with `{name}`", _LATER),
}


def hub_error(name: str, revision: str | None, error: BaseException) -> QwenchError:
    """The sentence for an error on the way to a model of the hub.

    Args:
        name: hub id.
        revision: that was asked for.
        error: anything the hub library, its HTTP client or the system raised.
    """
    if isinstance(error, QwenchError):
        return error
    chain = list(_causes(error))
    names = {c.__name__ for e in chain for c in type(e).__mro__}
    line = next((" ".join(str(e).split())[:200] for e in reversed(chain) if str(e).strip()), type(error).__name__)
    if any(mark in line for mark in ("CERTIFICATE_VERIFY_FAILED", "[SSL")):
        names.add("SSLError")
    status = next((s for e in chain if isinstance(s := _status(e), int)), None)
    found = next(((sentence, hint) for kinds, sentence, hint in KINDS[:5] if names & set(kinds)), None)
    if found is None and status is not None:
        found = STATUS.get(500 if status >= 500 else status)
    found = found or next(((sentence, hint) for kinds, sentence, hint in KINDS if names & set(kinds)), None)
    if found is None and "LocalEntryNotFoundError" in names:
        found = ("the model is not in the local cache: `{name}`", "run `hf download {name}` while online")
    sentence, hint = found or ("the download of `{name}` failed: {line}", "run the same command to go on")
    said = {"name": name, "revision": revision or "main", "line": line, "status": status}
    return QwenchError(sentence.format(**said), hint.format(**said))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
