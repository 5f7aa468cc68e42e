"""A small server of OpenAI's protocol on loopback, with every fault a real one has."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qwench.ops.writing.local import LocalWriter
from qwench.ops.writing.writer import Ask, Turn

#: what says the text after a prompt: all it would ever say; the stub cuts it at stops and limits, a byte a token
Brain = Callable[[dict[str, Any]], str]
Fault = Callable[["Handler"], bool]


def counting(body: dict[str, Any]) -> str:
    """Goes on counting where asked to; else a text that depends on the seed."""
    prompt = str(body.get("prompt") or body["messages"][-1]["content"])
    if prompt.endswith("1, 2, 3, 4, 5,"):
        return " 6, 7, 8"
    return f"text {body.get('seed', 0) * 7919 % 1000:03d} \n" if body.get("temperature") else "Paris."


class Stub:
    """A server that is told how to behave.

    Attributes:
        requests: (path, headers, body) of all that came; done: how many replies were sent to their end.
        faults: each takes the next request for text; True says that it has replied.
        models, owner, context: what it serves.
        choices: it heeds `n`; wraps: it puts a template around every prompt; seeds: it heeds seeds.
        known: fields it takes, None for all.
        others: end of a path -> what is replied to its body, for what is no text.
        told: what is sent of a stream, as pieces of bytes; None for an event a character.
    """

    def __init__(self, brain: Brain | LocalWriter = counting) -> None:
        self.brain = brain
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.faults: list[Fault] = []
        self.models, self.owner, self.context = ["tiny"], "stub", 4096
        self.choices = self.seeds = self.counts = True
        self.wraps = False
        self.known: set[str] | None = None
        self.others: dict[str, Callable[[dict[str, Any]], Any]] = {}
        self.gone = threading.Event()
        self.lock = threading.Lock()
        self.flying = self.most = 0
        self.patience = 20.0
        self.ids = False
        self.address = ""

    def reply(self, body: dict[str, Any], sample: int) -> dict[str, Any]:
        """A choice, with its tokens."""
        most, stops = body["max_tokens"], body.get("stop") or []
        if isinstance(self.brain, LocalWriter):
            return self._computed(body, sample)
        text = self.brain(body | {"seed": (body.get("seed") or 0) + sample + (0 if self.seeds else len(self.requests))})
        finish, at = "stop", min((n for s in stops if (n := text.find(s)) >= 0), default=len(text))
        if most < at:
            at, finish = most, "length"
        return {"text": text[:at], "finish_reason": finish, "tokens": at}

    def _computed(self, body: dict[str, Any], sample: int) -> dict[str, Any]:
        prompt, given = body["prompt"], body.get("temperature", 1)
        ask = Ask(
            **({"text": prompt} if isinstance(prompt, str) else {"ids": prompt}),
            max_tokens=body["max_tokens"],
            seed=(body.get("seed") or 0) + sample,
            sampling=(("temperature", given), ("top_p", body.get("top_p", 1)), ("top_k", body.get("top_k", 0))),
            stops=tuple(body.get("stop") or ()),
        )
        with self.lock:
            turn = next(t for t in self.brain.run([ask]) if isinstance(t, Turn))
        finish = "length" if turn.finish == "length" else "stop"
        return {"text": turn.answer, "finish_reason": finish, "tokens": turn.answer_tokens}

    def meet(self, count: int) -> None:
        """Wait until so many requests have been here at one time; 20 seconds in all, for a client that never does."""
        while self.most < count and self.patience > 0:
            self.patience -= 0.01
            time.sleep(0.01)

    def posts(self) -> list[dict[str, Any]]:
        """Bodies of the requests for text."""
        return [body for path, _, body in self.requests if path.endswith("completions")]


class Handler(BaseHTTPRequestHandler):
    """One request to the stub."""

    protocol_version = "HTTP/1.1"
    stub: Stub

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, status: int, value: Any, **headers: str) -> None:
        """A whole reply; bytes are sent as they are."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, said in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), said)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.stub.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, {}))
        if self.path.endswith("/v1/models"):
            entry = {"owned_by": self.stub.owner, "max_model_len": self.stub.context}
            self.send(200, {"data": [entry | {"id": name} for name in self.stub.models]})
        else:
            self.send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        stub, body = self.stub, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        stub.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        if other := next((say for end, say in stub.others.items() if self.path.endswith(end)), None):
            self.send(200, other(body))
            return
        if not self.path.endswith("completions"):
            self.send(404, {"detail": "Not Found"})
            return
        self.body = body
        with stub.lock:
            stub.flying += 1
            stub.most = max(stub.most, stub.flying)
            fault = stub.faults.pop(0) if stub.faults else None
        try:
            if not (fault and fault(self)):
                self.answer()
        except (BrokenPipeError, ConnectionResetError):
            stub.gone.set()
            self.close_connection = True
        finally:
            with stub.lock:
                stub.flying -= 1

    def answer(self, **change: Any) -> None:
        """What a good server says."""
        stub, body = self.stub, self.body
        unknown = set(body) - (stub.known or set(body))
        if unknown:
            return self.send(422, {"detail": f"Unexpected fields in the request: {sorted(unknown)}"})
        chat, prompt = "messages" in body, body.get("prompt", "")
        if not isinstance(prompt, str) and not stub.ids:
            return self.send(400, {"error": {"message": "prompt must be a string."}})
        made = [stub.reply(body, n) for n in range(body.get("n", 1) if stub.choices else 1)]
        size = len(prompt.encode()) if isinstance(prompt, str) else len(prompt)
        spent = sum(m["tokens"] for m in made)
        usage = {"prompt_tokens": size + 12 * (stub.wraps or chat), "completion_tokens": spent}
        if body.get("stream"):
            return self.stream(made[0], usage, chat)
        choices = [
            {"index": n, "finish_reason": m["finish_reason"]}
            | ({"message": {"role": "assistant", "content": m["text"]}} if chat else {"text": m["text"]})
            for n, m in enumerate(made)
        ]
        return self.send(200, {"choices": choices} | ({"usage": usage} if stub.counts else {}) | change)

    def events(self, made: dict[str, Any], usage: dict[str, int], chat: bool) -> Iterator[bytes]:
        """A stream: comments, an event a character, why it ended, usage, the end."""
        yield b": here it comes\r\n\r\n"
        for text, finish in [*((c, None) for c in made["text"]), ("", made["finish_reason"])]:
            said = {"delta": {"content": text}} if chat else {"text": text}
            event = {"choices": [{"index": 0, "finish_reason": finish} | said]}
            yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
        yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode()

    def stream(self, made: dict[str, Any], usage: dict[str, int], chat: bool) -> None:
        """Chunks of three bytes, so that characters are cut."""
        data = b"".join(self.events(made, usage, chat))
        self.chunks(data[n : n + 3] for n in range(0, len(data), 3))

    def chunks(self, pieces: Any) -> None:
        """A chunked reply of events."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """A client that is gone is no trouble here."""


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """The stub at `stub.address` for the time of a test."""
    server = _Server(("127.0.0.1", 0), type("Bound", (Handler,), {"stub": stub}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    stub.address = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
