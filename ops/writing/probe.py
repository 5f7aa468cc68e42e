"""What a server is able to do, found by asking it once: releases differ, so that no table could tell."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from ..base.errors import QwenchError
from ..base.events import Chose, Event, Warned
from ..models.texts import Texts
from .http import Client, Failed, Refused
from .reply import Part, parts_of, usage_of

T = TypeVar("T")
Steps = Generator[Event, None, T]
PATHS = {"completions": "/completions", "chat": "/chat/completions"}
#: fields that are not the protocol's own, at values that change nothing
EXTRAS = {"top_k": 20, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}
#: who owns a model's entry -> where the server tells more, and under which keys
MORE = {
    "vllm": ("../version", ("version",)),
    "sglang": ("../get_server_info", ("version",)),
    "llamacpp": ("../props", ("build_info",)),
}
#: keys of a model's entry that tell its context
CONTEXTS = ("max_model_len", "context_length", "max_context_length", "context_window", "n_ctx")
ROLES = ("<|im_start|>", "<|start_header_id|>", "<|assistant|>", "[INST]", "### Assistant", "assistant\n", "Assistant:")
PLAINER = "the server takes no top_k and min_p: answers are drawn by temperature and top_p alone"
#: tokens enough to say the beginning once more
MOST = 24
SHORT, PREFIX, LONG = "0,", "1, 2, 3, 4, 5,", "Once upon a"


@dataclass(frozen=True, slots=True)
class Served:
    """The model that is asked.

    Attributes:
        owner: who the server says it is owned by, which is how servers are told apart.
        models: all names that are served.
        context: in tokens, 0 where the server does not tell.
    """

    name: str
    models: tuple[str, ...]
    owner: str = ""
    context: int = 0
    version: str = ""


@dataclass(slots=True)
class Findings:
    """What the probe found.

    Attributes:
        prefix: a given beginning is gone on from; n: several choices a request; seed: it is heeded; logprobs, ids:
            of tokens, as prompts; extras: fields beyond the protocol's are taken; bare: a field is needed so that
            no token is put before the prompt; tokenize: whether there is an endpoint for that.
    """

    prefix: bool = True
    n: bool = False
    seed: bool = False
    logprobs: bool = False
    ids: bool = False
    extras: bool = True
    bare: bool = False
    tokenize: bool = False


def served(client: Client, asked: str) -> Steps[Served]:
    """The model to ask: the one that is named, or the only one.

    Raises:
        QwenchError: none or several, or not the one that is named; see `Client.get`.
    """
    reply = client.get("/models")
    listed = reply.get("data") if isinstance(reply, dict) else None
    entries = [
        e for e in (listed if isinstance(listed, list) else []) if isinstance(e, dict) and isinstance(e.get("id"), str)
    ]
    names = tuple(e["id"] for e in entries)
    told = ", ".join(f"`{n}`" for n in names[:20])
    if not asked and len(names) != 1:
        what = f"serves several models: {told}" if names else "does not say what it serves"
        raise QwenchError(f"the server {what}: `{client.address}`", "name one with --model")
    if asked and names and asked not in names:
        raise QwenchError(f"the server does not serve `{asked}`: `{client.address}`", f"it serves {told}")
    name = asked or names[0]
    entry = next((e for e in entries if e["id"] == name), {})
    owner = str(entry.get("owned_by") or "")
    version, context = "", _context(entry)
    if owner in MORE:
        path, keys = MORE[owner]
        with suppress(QwenchError):
            more = client.get(path)
            more = more if isinstance(more, dict) else {}
            version = next((str(more[k]) for k in keys if k in more), "")
            context = context or _context(more.get("default_generation_settings"))
    yield Chose("engine", client.address, " ".join(filter(None, (owner or "a server", version))))
    yield Chose("model", name, "asked for" if asked else "the only one that is served")
    return Served(name, names or (name,), owner, context, version)


def _context(entry: Any) -> int:
    found = entry if isinstance(entry, dict) else {}
    return next((found[k] for k in CONTEXTS if isinstance(found.get(k), int) and found[k] > 0), 0)


class Probe:
    """Questions to a server about itself.

    Args:
        texts: the model's tokenizer, None where it is not known.
    """

    def __init__(self, client: Client, model: str, api: str, texts: Texts | None) -> None:
        self.client, self.model, self.api, self.texts = client, model, api, texts
        self.found, self._tries = Findings(), 0

    def run(self) -> Steps[Findings]:
        """All of it; yields what was found.

        Raises:
            QwenchError: the server does not take prompts as they are, and the other `--api` is named.
        """
        found = self.found
        yield from (self._raw if self.api == "completions" else self._messages)()
        found.n = self._choices()
        yield Chose("n", "choices" if found.n else "requests", "two choices asked for in one request")
        first, second = (self._text(LONG, 12, temperature=1.0, seed=7) for _ in range(2))
        found.seed = first == second
        yield Chose("seed", "honoured" if found.seed else "ignored", "the same seed twice")
        if not found.seed:
            yield Warned("seed", "seed: ignored: the server gives two answers for one seed, so no run can be repeated")
        asked = {"logprobs": 1} if self.api == "completions" else {"logprobs": True, "top_logprobs": 1}
        found.logprobs = bool(self._able(lambda: self._ask(LONG, 1, **asked)[0].logprobs))
        yield Chose("logprobs", "present" if found.logprobs else "absent", "asked for with one token")
        body = {"model": self.model, "prompt": SHORT, "content": SHORT}
        found.tokenize = bool(self._able(lambda: self.client.post("../tokenize", body, lambda v: "tokens" in v, 2)))
        yield Chose("tokenize", "present" if found.tokenize else "absent", "asked for")
        return found

    def _raw(self) -> Steps[None]:
        """Prompts are taken as they are: neither wrapped in a template nor answered from their beginning.

        With a template around it, a prompt of two characters has more tokens than bytes.
        """
        try:
            short = self._counted(SHORT, 1, **EXTRAS)
        except Refused as error:
            if error.status in (404, 405):
                raise QwenchError(error.message, "use --api chat, where the server has that alone") from error
            if not error.fields:
                raise
            self.found.extras = False
            short = self._counted(SHORT, 1)
            yield Warned("sampling", PLAINER)
        short = yield from self._unwrapped(short)
        long = self._counted(SHORT + PREFIX, MOST)
        text = long[1].lstrip()
        count = _difference(short[0], long[0])
        wanted = self._count(SHORT + PREFIX) - self._count(SHORT) if self.texts else None
        grown = count is None or (count == wanted if wanted is not None else 0 < count <= len(PREFIX))
        if not grown or text.startswith(PREFIX) or text.startswith(ROLES):
            why = "repeats the prompt" if grown and text.startswith(PREFIX) else "does not go on from it"
            raise self._templated(why)
        reason = "a beginning is gone on from" if count is not None else "the reply goes on; tokens are not counted"
        yield Chose("api", "completions", reason)
        if self.texts:
            ids = self.texts.tokenizer.ids([SHORT + PREFIX])[0]
            self.found.ids = self._able(lambda: self._counted(ids, 1)[0]) == len(ids)
        yield Chose("ids", "taken" if self.found.ids else "not taken", "a prompt given as tokens")

    def _unwrapped(self, short: tuple[int | None, str]) -> Steps[tuple[int | None, str]]:
        """The short prompt's count, once no token is put before it that the template brings itself."""
        count, most = short[0], len(SHORT) + 2
        if count is None or not self.texts:
            if count is not None and count > most:
                raise self._templated("puts a template around it")
            return short
        wanted, added = self._count(SHORT), len(self.texts.tokenizer.before)
        if count > max(most, wanted + added):
            raise self._templated("puts a template around it")
        if count > wanted and self._able(lambda: self._counted(SHORT, 1, add_special_tokens=False)[0]) == wanted:
            self.found.bare = True
            return self._counted(SHORT, 1)
        if count != wanted:
            yield Warned(
                "tokenizer",
                f"the server counts {count} tokens where the tokenizer counts {wanted}: is `{self.texts.name}` the "
                "model's own? name it with --tokenizer",
            )
        return short

    def _templated(self, why: str) -> QwenchError:
        return QwenchError(
            f"the server does not take a prompt as it is, it {why}: `{self.client.address}`",
            "use --api chat, or a server that leaves prompts alone",
        )

    def _messages(self) -> Steps[None]:
        """Whether the beginning of an answer is gone on from; not all servers know how."""
        try:
            self._ask(SHORT, 1, **EXTRAS)
        except Refused as error:
            if not error.fields:
                raise
            self.found.extras = False
            self._ask(SHORT, 1)
            yield Warned("sampling", PLAINER)
        messages = [{"role": "user", "content": "Count from 1 to 9."}, {"role": "assistant", "content": PREFIX}]
        body = {"continue_final_message": True, "add_generation_prompt": False, "messages": messages}
        part = self._able(lambda: self._ask(SHORT, MOST, **body)[0])
        text = part.text.lstrip() if part else PREFIX
        self.found.prefix = not (text.startswith(PREFIX) or text.startswith(ROLES))
        yield Chose("api", "chat", "asked for: the server's own template")
        yield Chose("prefix", "gone on from" if self.found.prefix else "not gone on from", "an assistant's beginning")

    def _choices(self) -> bool:
        """Two choices for `n: 2`, and not the same one twice."""
        parts = self._able(lambda: self._ask(LONG, 12, temperature=1.0, seed=7, n=2)) or []
        return len(parts) == 2 and parts[0].text != parts[1].text

    def _able(self, ask: Any) -> Any:
        """What it gives, None where the server knows no such thing."""
        self._tries = 2
        try:
            return ask()
        except Failed:
            return None
        except Refused as error:
            if error.status in (401, 403):
                raise
            return None
        finally:
            self._tries = 0

    def _count(self, text: str) -> int:
        return len(self.texts.tokenizer.ids([text])[0]) if self.texts else 0

    def _body(self, prompt: Any, most: int, fields: dict[str, Any]) -> dict[str, Any]:
        given = {"prompt": prompt} if self.api == "completions" else {"messages": [{"role": "user", "content": prompt}]}
        bare = {"add_special_tokens": False} if self.found.bare else {}
        return {"model": self.model, "max_tokens": most, "temperature": 0} | given | bare | fields

    def _ask(self, prompt: Any, most: int, **fields: Any) -> list[Part]:
        return self.client.post(PATHS[self.api], self._body(prompt, most, fields), parts_of, self._tries)

    def _text(self, prompt: str, most: int, **fields: Any) -> str:
        part = self._ask(prompt, most, **fields)[0]
        return part.thought + part.text

    def _counted(self, prompt: Any, most: int, **fields: Any) -> tuple[int | None, str]:
        """(tokens of the prompt as the server counts them, the reply)."""

        def read(value: Any) -> tuple[int | None, str]:
            text = parts_of(value)[0].text
            return usage_of(value).prompt, text

        return self.client.post(PATHS[self.api], self._body(prompt, most, fields), read, self._tries)


def _difference(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else other - one
