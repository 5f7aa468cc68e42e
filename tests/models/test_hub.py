"""The hub, as a server of our own on 127.0.0.1 that has everything go wrong, and as a port where nobody listens."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qwench.ops.models.hub_errors import hub_error

Run = Callable[..., Any]


@pytest.fixture
def hub() -> Iterator[Callable[..., str]]:
    """`hub(status, header)` is an endpoint that answers everything so."""
    servers = []

    def serve(status: int, **headers: str) -> str:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                """Nothing on stderr."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def closed() -> str:
    """An endpoint where nobody listens."""
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{port.getsockname()[1]}"


def env(endpoint: str, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}


@pytest.mark.parametrize(
    ("status", "headers", "words"),
    [
        (404, {"X_Error_Code": "RepoNotFound"}, "the hub has no such model, or it is private: `some/model`"),
        (403, {"X_Error_Code": "GatedRepo"}, "the model is gated: `some/model`"),
        (404, {"X_Error_Code": "RevisionNotFound"}, "`some/model` has no revision: `main`"),
        (503, {}, "the hub has trouble of its own (HTTP 503) with `some/model`"),
        (429, {}, "the hub has had too many requests to give `some/model` now"),
    ],
)
def test_what_the_hub_answers_is_one_sentence(
    status: int, headers: dict, words: str, hub: Run, qwench: Run, tmp_path: Path
) -> None:
    done = qwench("inspect", "some/model", env=env(hub(status, **headers), tmp_path))
    assert done.returncode == 1 and words in " ".join(done.stderr.split()), done.stderr
    assert "hint:" in done.stderr and "unexpected" not in done.stderr


@pytest.mark.parametrize("command", [("inspect", "a/b"), ("merge", "a/b", "c/d", "--out", "out")])
def test_no_network_is_one_sentence(command: tuple[str, ...], qwench: Run, tmp_path: Path) -> None:
    done = qwench(*command, env=env(closed(), tmp_path), cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "the model is not in the local cache and the hub cannot be reached: `a/b`" in " ".join(done.stderr.split())
    assert "hf download a/b" in done.stderr and "unexpected" not in done.stderr


def test_errors_of_the_client_and_the_library_are_told_apart() -> None:
    """Whichever HTTP client the library has: the names of its classes are the same."""
    import huggingface_hub.errors as library

    try:
        import httpx2 as client
    except ImportError:
        client = pytest.importorskip("httpx")
    around = RuntimeError("around")
    around.__cause__ = client.ReadTimeout("slow")
    certificate = client.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")
    for error, words in (
        (client.ReadTimeout("slow"), "does not answer in time"),
        (client.ConnectError("no route"), "cannot be reached"),
        (client.ProxyError("407"), "the proxy refuses"),
        (around, "does not answer in time"),
        (certificate, "certificate is not accepted"),
        (ssl.SSLError("bad"), "certificate is not accepted"),
        (ConnectionResetError("reset"), "cannot be reached"),
        (library.OfflineModeIsEnabled("off"), "may not be asked"),
        (library.HFValidationError("bad id"), "no models of such a name"),
        (library.LocalEntryNotFoundError("none"), "not in the local cache"),
        (OSError(28, "No space left on device"), "failed: [Errno 28] No space left on device"),
    ):
        found = hub_error("a/b", None, error)
        assert words in found.message and found.hint and "\n" not in found.message, (error, found.message)
