"""A server as a writer, against a stub: texts and budgets as here, faults each to their own end, a key that stays."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pexpect
import pytest
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Chose, Finished, Produced, Warned
from qwench.ops.base.runtime import Runtime
from qwench.ops.chat import Chat, ChatOptions, many
from qwench.ops.jobs.job import JobOptions
from qwench.ops.writing.engines import writer_of
from qwench.ops.writing.http import Client, Patience
from qwench.ops.writing.local import LocalWriter
from qwench.ops.writing.remote import RemoteWriter
from qwench.ops.writing.sse import Whole, data_of
from qwench.ops.writing.thinking import THINK_STOP
from qwench.ops.writing.writer import WAIT, Ask, Turn

from tests.tiny import byte_decoder, byte_tokenizer
from tests.writing.stub import Handler, Stub, counting, serving

GREEDY = (("temperature", 0),)
HI = ({"role": "user", "content": "Where?"},)
SECRET = "sk-not-to-be-told-7261"
QUICK = Patience(connect=2, read=1, total=6, tries=3, pause=0.01, longest=0.05, most=1 << 20)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ASKED = "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
THOUGHT, ANSWER = "It is a town. It is big, and very old", "Paris \n"


@pytest.fixture
def stub():
    with serving(Stub()) as made:
        yield made


@pytest.fixture(scope="module")
def thinker(tmp_path_factory) -> Path:
    """A tokenizer over bytes with thinking tags, and a template that thinks."""
    from tokenizers import Tokenizer

    folder = tmp_path_factory.mktemp("thinker")
    byte_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return byte_decoder(tmp_path_factory.mktemp("small"))


def writer(stub: Stub, tokenizer: Path | None = None, *, live: bool = False, patience=QUICK, **more: Any):
    runtime = Runtime(engine=stub.address, tokenizer=str(tokenizer) if tokenizer else None, **more)
    made = RemoteWriter("", runtime, live=live, patience=patience)
    made.told = {e.name: e for e in made.load() if isinstance(e, Chose)}
    stub.requests.clear()
    stub.most = 0
    return made


def turns(found) -> dict[Any, Turn]:
    return {(t.key, t.sample): t for t in found if isinstance(t, Turn)}


def thinking(body: dict[str, Any]) -> str:
    """A model that thinks THOUGHT and answers ANSWER, wherever the prompt has got to."""
    prompt = body["prompt"]
    if "<think>" not in prompt:
        return counting(body)
    said = prompt.rpartition("<think>\n")[2]
    if "</think>" in said:
        return ("" if said.endswith("\n\n") else "\n\n") + ANSWER
    return (THOUGHT + "\n</think>\n\n" + ANSWER)[len(said) :]


@pytest.mark.parametrize("live", [False, True])
def test_greedy_text_equals_the_local_engines(small: Path, live: bool) -> None:
    local = LocalWriter(str(small), Runtime(device="cpu", engine="torch"))
    list(local.load())
    asks = [
        Ask("messages", messages=HI, max_tokens=20, sampling=GREEDY),
        Ask("text", text="once upon ", max_tokens=20, sampling=GREEDY),
        Ask("prefix", text="a", prefix="b \n", max_tokens=9, sampling=GREEDY),
        Ask("ids", ids=list(b"once "), prefix=tuple(b"upon"), max_tokens=9, sampling=GREEDY),
    ]
    wanted = turns(local.run(asks))
    stop = wanted["text", 0].answer[5:7]
    asks.append(Ask("stop", text="once upon ", max_tokens=20, stops=(stop,), sampling=GREEDY))
    wanted |= turns(local.run(asks[-1:]))
    stub = Stub(local)
    stub.ids, stub.context = True, 256
    with serving(stub):
        remote = writer(stub, small, live=live)
        found = list(remote.run(asks))
    for key, turn in turns(found).items():
        same = wanted[key]
        assert (turn.answer, turn.prompt_tokens) == (same.answer, same.prompt_tokens), key
        assert turn.answer_tokens == same.answer_tokens and turn.sampling == same.sampling
        assert (turn.finish == "length") == (same.finish == "length")
        pieces = [p.text for p in found if not isinstance(p, Turn) and p.key == turn.key]
        assert "".join(pieces) == turn.answer and (len(pieces) > 1) == (live and len(turn.answer) > 1)
    assert max(len(t.answer) for t in wanted.values()) > 5


@pytest.mark.parametrize("live", [False, True])
def test_a_budget_is_two_requests(thinker: Path, live: bool) -> None:
    with serving(Stub(thinking)) as stub:
        remote = writer(stub, thinker, live=live)
        opened = ASKED + "<think>\n"
        for budget, message in ((9, None), (len(THOUGHT) - 1, "Now."), (7, "")):
            stub.requests.clear()
            ask = Ask(1, HI, budget=budget, max_tokens=5, think_message=message, stops=("s",), sampling=GREEDY)
            found = list(remote.run([ask]))
            turn, (first, second) = turns(found)[1, 0], stub.posts()
            closing = THINK_STOP if message is None else f"\n\n{message}\n</think>\n\n" if message else "\n</think>\n\n"
            assert (first["prompt"], first["max_tokens"], first["stop"]) == (opened, budget, ["</think>"])
            assert second["prompt"] == opened + THOUGHT[:budget] + closing
            assert (second["max_tokens"], second["stop"]) == (5, ["s"])
            assert (turn.closed_by, turn.thinking_tokens, turn.answer) == ("budget", budget, "Pari")
            assert turn.thinking == (THOUGHT[:budget] + closing.partition("</think>")[0]).strip()
            said = {k: "".join(p.text for p in found[:-1] if p.kind == k) for k in ("thinking", "answer")}
            assert said == {"thinking": turn.thinking, "answer": turn.answer}
        stub.requests.clear()
        turn = turns(remote.run([Ask(1, HI, budget=200, sampling=GREEDY)]))[1, 0]
        assert stub.posts()[1]["prompt"] == opened + THOUGHT + "\n</think>"
        assert (turn.closed_by, turn.thinking, turn.answer) == ("model", THOUGHT, ANSWER)
        # Without a budget a thought leaves the answer its room.
        stub.requests.clear()
        turn = turns(remote.run([Ask(1, HI, max_tokens=100, sampling=GREEDY)]))[1, 0]
        size = len((ASKED + "<think>\n").encode()) - len("<|im_start|><|im_end|><|im_start|><think>") + 4
        assert stub.posts()[0]["max_tokens"] == 4096 - size - 2 - 100 - len(THINK_STOP.encode()) + len("</think>") - 1
        assert turn.closed_by == "model"
        stub.requests.clear()
        turn = turns(remote.run([Ask(1, HI, budget=0, sampling=GREEDY)]))[1, 0]
        assert [b["prompt"] for b in stub.posts()] == [ASKED + "<think>\n\n</think>\n\n"]
        assert (turn.closed_by, turn.thinking, turn.answer) == (None, "", ANSWER)


def test_a_sentence_may_end_beyond_the_budget(thinker: Path) -> None:
    with serving(Stub(thinking)) as stub:
        remote = writer(stub, thinker)
        end = THOUGHT.index(".") + 1
        for budget, kept in ((end, end), (end - 1, end), (20, 22), (35, 38)):
            turn = turns(remote.run([Ask(1, HI, budget=budget, think_stop="sentence", sampling=GREEDY)]))[1, 0]
            wanted = (THOUGHT + "\n")[:kept]
            assert turn.thinking.startswith(wanted.strip()) and turn.thinking_tokens <= budget + max(budget // 10, 1)
            assert stub.posts()[-1]["prompt"].startswith(ASKED + "<think>\n" + wanted)
            assert turn.answer == ANSWER and turn.thinking_tokens == kept


def test_what_follows_the_last_closing_tag_is_the_answer(thinker: Path) -> None:
    cases = {
        "<think>\nso</think>\n\nyes": ("so", "yes", "model"),
        "so it is</think>yes": ("so it is", "yes", "model"),
        "<think>so and so": ("so and so", "", "model"),
        "yes": ("", "yes", None),
    }
    for text, wanted in cases.items():
        for live in (False, True):
            with serving(Stub(lambda body, text=text: text if "?" in str(body) else counting(body))) as stub:
                turn = turns(writer(stub, api="chat", live=live).run([Ask(1, HI, sampling=GREEDY)]))[1, 0]
            assert (turn.thinking, turn.answer, turn.closed_by) == wanted, (text, live)
    # A close that comes twice leaks into no answer.
    with serving(Stub(lambda b: "\n</think>\n\nyes" if "limited" in str(b) else thinking(b))) as stub:
        turn = turns(writer(stub, thinker).run([Ask(1, HI, budget=3, sampling=GREEDY)]))[1, 0]
        assert turn.answer == "yes" and "</think>" not in turn.thinking


@pytest.mark.parametrize("live", [False, True])
def test_reasoning_beside_content(stub: Stub, live: bool) -> None:
    def reply(handler: Handler) -> bool:
        said = {"role": "assistant", "content": "Paris.", "reasoning_content": "a town"}
        if live:
            events = [
                {"delta": {"reasoning": "a "}},
                {"delta": {"reasoning": "town"}},
                {"delta": {"content": "Paris."}},
            ]
            events.append({"delta": {}, "finish_reason": "stop"})
            handler.chunks(f"data:{json.dumps({'choices': [e]})}\n\n".encode() for e in events)
        else:
            handler.send(200, {"choices": [{"message": said, "finish_reason": "stop"}]})
        return True

    remote = writer(stub, api="chat", live=live)
    stub.faults.append(reply)
    found = list(remote.run([Ask(1, HI, budget=0)]))
    turn = turns(found)[1, 0]
    assert (turn.thinking, turn.answer, turn.finish) == ("a town", "Paris.", "stop")
    assert stub.posts()[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert [p.kind for p in found[:-1]] == ["thinking"] * (1 + live) + ["answer"]


def status(code: int, **headers: str):
    def fault(handler: Handler) -> bool:
        # Servers have been seen to repeat the key.
        handler.send(code, {"error": {"message": f"no {handler.headers.get('Authorization')}"}}, **headers)
        return True

    return fault


def sends(data: bytes, size: int | None = None):
    def fault(handler: Handler) -> bool:
        handler.send(200, data, **({"Content-Length": str(size)} if size else {}))
        if size:
            handler.close_connection = True
        return True

    return fault


def drops(handler: Handler) -> bool:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
    return True


def slow(seconds: float):
    def fault(handler: Handler) -> bool:
        time.sleep(seconds)
        return False

    return fault


def changed(**change: Any):
    def fault(handler: Handler) -> bool:
        handler.answer(**change)
        return True

    return fault


EMPTY = sends(b'{"choices": [{}]}')
PASSING = {
    "429": status(429),
    "429 with a pause": status(429, Retry_After="0"),
    "429 until a date": status(429, Retry_After=formatdate(time.time() - 5, usegmt=True)),
    "500": status(500),
    "503": status(503),
    "cut connection": drops,
    "cut reply": sends(b'{"choices": [{"text": "Par', 400),
    "invalid JSON": sends(b'{"choices": [{"text": "Par'),
    "not UTF-8": sends(b'{"choices": [{"text": "\xff", "finish_reason": "stop"}]}'),
    "empty choice": EMPTY,
    "no choices": changed(choices=[]),
    "no text": changed(choices=[{"finish_reason": "stop"}]),
    "no end": changed(choices=[{"text": "Par"}]),
    "an aborted answer": changed(choices=[{"text": "Par", "finish_reason": "abort"}]),
    "an error with 200": changed(error={"message": "out of memory"}),
    "late first byte": slow(1.5),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_asked_again_and_what_stays_is_a_failed_turn(stub: Stub, monkeypatch, name: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    remote = writer(stub)
    stub.faults.append(PASSING[name])
    turn = turns(remote.run([Ask(1, text="Where?", sampling=GREEDY)]))[1, 0]
    assert (turn.answer, turn.finish, turn.error, len(stub.posts())) == ("Paris.", "stop", None, 2)
    if name == "late first byte":
        return
    stub.requests.clear()
    stub.faults += [PASSING[name]] * QUICK.tries
    turn = turns(remote.run([Ask(1, text="Where?", sampling=GREEDY)]))[1, 0]
    assert (turn.answer, turn.finish, len(stub.posts())) == ("", "failed", QUICK.tries)
    assert isinstance(turn.error, QwenchError) and SECRET not in turn.error.message
    assert "3 tries" in turn.error.message and remote.name == "tiny"


ODD = [
    *("[]", "null", '"x"', "7", '{"choices": {}}', '{"choices": [null]}', '{"choices": ["a"]}', "[" * 200 + "]" * 200),
    *('{"choices": [{"text": 5, "finish_reason": "stop"}]}', '{"choices": [{"text": "a", "finish_reason": {}}]}'),
    *('{"choices": [{"message": "a", "finish_reason": "stop"}]}', '{"choices": [{"text": "a", "index": "b"}]}'),
    *('{"choices": [{"text": "a", "finish_reason": "stop", "logprobs": {"content": [{}]}}]}',),
    *('{"choices": [{"text": "a", "finish_reason": "stop", "logprobs": {"tokens": 3, "token_logprobs": 4}}]}',),
]


@pytest.mark.parametrize("live", [False, True])
def test_odd_replies_are_no_answers(stub: Stub, live: bool) -> None:
    remote = writer(stub, live=live, patience=Patience(tries=1))
    for data in ODD:
        stub.faults.append(sends(data.encode()))
        turn = turns(remote.run([Ask(1, text="Where?", sampling=GREEDY)]))[1, 0]
        assert turn.finish == "failed" and turn.error and not turn.answer, data
    good = b'{"choices": [{"text": "a", "finish_reason": "stop"}], "usage": %s}'
    for usage in (b"[]", b"3", b'{"prompt_tokens": "x", "prompt_tokens_details": 3}'):
        stub.faults.append(sends(good % usage))
        assert turns(remote.run([Ask(1, text="Where?", sampling=GREEDY)]))[1, 0].answer == "a"


def test_retry_after_is_heeded(stub: Stub) -> None:
    remote = writer(stub)
    stub.faults.append(status(429, Retry_After="1"))
    begun = time.monotonic()
    assert turns(remote.run([Ask(1, text="Where?", sampling=GREEDY)]))[1, 0].answer == "Paris."
    assert time.monotonic() - begun >= 1
    # Longer than anybody waits: said at once.
    stub.faults.append(status(503, Retry_After="3600"))
    turn = turns(remote.run([Ask(1, text="Where?", sampling=GREEDY)]))[1, 0]
    assert turn.finish == "failed" and "503" in turn.error.message and not stub.faults


def test_a_failed_request_leaves_the_others_alone(stub: Stub) -> None:
    remote = writer(stub, concurrency=1)
    stub.faults += [status(500)] * 3
    found = turns(remote.run(Ask(n, text="Where?", sampling=GREEDY) for n in range(3)))
    assert [found[n, 0].finish for n in range(3)] == ["failed", "stop", "stop"]


def test_a_huge_reply_is_not_read(stub: Stub) -> None:
    remote = writer(stub)
    stub.faults.append(sends(b'{"choices": [{"finish_reason": "stop", "text": "' + b"a" * (2 << 20) + b'"}]}'))
    turn = turns(remote.run([Ask(1, text="Where?", sampling=GREEDY)]))[1, 0]
    assert turn.finish == "failed" and f"{1 << 20} bytes" in turn.error.message and len(stub.posts()) == 1


@pytest.mark.parametrize("code", [400, 401, 404, 422])
def test_a_refusal_ends_the_run_with_the_servers_sentence(stub: Stub, monkeypatch, code: int) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    remote = writer(stub, api_key_env="MY_KEY")
    stub.faults.append(status(code))
    with pytest.raises(QwenchError, match=rf"{code}: no Bearer \[key\]") as caught:
        list(remote.run([Ask(1, text="Where?")]))
    assert SECRET not in caught.value.message and len(stub.posts()) == 1
    assert all(h["authorization"] == f"Bearer {SECRET}" for _, h, _ in stub.requests)


def test_the_key_goes_to_no_other_host(stub: Stub, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(Stub()) as other:
        remote = writer(stub)
        for to in (other.address, other.address.replace("127.0.0.1", "localhost"), f"//localhost:1/{SECRET}"):
            stub.faults.append(status(307, Location=to))
            with pytest.raises(QwenchError, match="sends on to another") as caught:
                list(remote.run([Ask(1, text="Where?")]))
            assert SECRET not in f"{caught.value.message} {caught.value.hint}"
        assert not other.requests
    # On the same host it is followed, but not for ever.
    stub.faults.append(status(308, Location="/v1/completions"))
    assert turns(remote.run([Ask(1, text="Where?", sampling=GREEDY)]))[1, 0].answer == "Paris."
    stub.faults += [status(307, Location="/v1/completions")] * 9
    with pytest.raises(QwenchError, match="from one address to the next"):
        list(remote.run([Ask(1, text="Where?")]))


@pytest.mark.parametrize(
    ("address", "key", "said"),
    [
        (f"http://user:{SECRET}@127.0.0.1/v1", "", "password"),
        (f"http://127.0.0.1/v1?key={SECRET}", "", "query"),
        (f"http://{SECRET} x/", "", "no address"),
        ("http://127.0.0.1:1/v1", f"{SECRET}\nX-Other: 1", "characters"),
        ("http://127.0.0.1:1/v1", f"{SECRET}é", "characters"),
    ],
)
def test_addresses_and_keys_that_cannot_be(monkeypatch, address: str, key: str, said: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(QwenchError, match=said) as caught:
        writer_of("", Runtime(engine=address))
    assert SECRET not in f"{caught.value.message} {caught.value.hint}"
    # The key itself in the place of the variable's name.
    with pytest.raises(QwenchError, match="not set") as caught:
        Client("http://127.0.0.1:1", SECRET.replace("-", "_"))
    assert "sk_" not in f"{caught.value.message} {caught.value.hint}"


def test_the_probe(stub: Stub, thinker: Path) -> None:
    told = {n: e.value for n, e in writer(stub, thinker).told.items()}
    assert told["model"] == "tiny" and told["context"] == 4096 and told["api"] == "completions"
    assert (told["n"], told["seed"], told["logprobs"], told["ids"]) == ("choices", "honoured", "absent", "not taken")
    stub.choices = stub.seeds = False
    remote = RemoteWriter("", Runtime(engine=stub.address), patience=QUICK)
    events = list(remote.load())
    told = {e.name: e.value for e in events if isinstance(e, Chose)}
    assert (told["n"], told["seed"]) == ("requests", "ignored")
    assert [e.kind for e in events if isinstance(e, Warned)] == ["seed"]
    assert remote.about["probe"]["n"] is False and remote.about["model"] == "tiny"
    assert stub.address not in json.dumps(remote.about)
    stub.wraps = True
    with pytest.raises(QwenchError, match="template around") as caught:
        writer(stub)
    assert "--api chat" in caught.value.hint
    stub.wraps = False
    for reply in ("1, 2, 3, 4, 5, 6", "<|im_start|>assistant\n6"):
        stub.brain = lambda body, reply=reply: reply if "5," in str(body) else counting(body)
        stub.counts = False
        with pytest.raises(QwenchError, match="does not take a prompt as it is"):
            writer(stub)
        with pytest.raises(QwenchError, match="does not go on from"):
            writer(stub, api="chat").prepare(Ask(1, HI, prefix="It"))


def test_which_model(stub: Stub) -> None:
    stub.models = ["one", "two"]
    with pytest.raises(QwenchError, match="several models: `one`, `two`") as caught:
        writer(stub)
    assert "--model" in caught.value.hint
    with pytest.raises(QwenchError, match="does not serve `three`"):
        list(RemoteWriter("three", Runtime(engine=stub.address)).load())
    remote = RemoteWriter("two", Runtime(engine=stub.address), patience=QUICK)
    list(remote.load())
    assert remote.models == ["one", "two"] and stub.posts()[-1]["model"] == "two"
    stub.models = []
    with pytest.raises(QwenchError, match="does not say what it serves"):
        writer(stub)
    with pytest.raises(QwenchError, match="cannot be reached") as caught:
        list(RemoteWriter("", Runtime(engine="http://127.0.0.1:9")).load())
    assert "start it" in caught.value.hint


def test_what_a_server_cannot_is_refused(stub: Stub, thinker: Path) -> None:
    bare = writer(stub)
    for ask, said in (
        (Ask(1, HI), "--tokenizer, or use --api chat"),
        (Ask(1, ids=[1, 2]), None),
        (Ask(1, text="a", logprobs=1), None),
        (Ask(1, text="a", budget=5), "--tokenizer"),
    ):
        with pytest.raises(QwenchError) as caught:
            bare.prepare(ask)
        assert said is None or said in caught.value.hint
    chat = writer(stub, api="chat")
    for ask in (Ask(1, HI, budget=5), Ask(1, text="a"), Ask(1, HI, force_think=True)):
        with pytest.raises(QwenchError, match="through --api chat"):
            chat.prepare(ask)
    assert json.loads(chat.shown(chat.prepare(Ask(1, HI)))) == list(HI)
    for refused in (lambda: list(chat.score([])), lambda: chat.choose(Ask(1, HI), ["a"])):
        with pytest.raises(QwenchError, match="cannot"):
            refused()
    stub.known = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "n"}
    plain = writer(stub, thinker)
    with pytest.raises(QwenchError, match="takes no --top-k"):
        plain.prepare(Ask(1, HI, sampling=(("top_k", 5),)))
    turn = turns(plain.run([Ask(1, text="a", max_tokens=3)]))[1, 0]
    assert turn.sampling.top_k == 0 and "top_k" not in stub.posts()[-1]
    # A server may not know how to count a stream.
    assert turns(writer(stub, live=True).run([Ask(1, text="a", sampling=GREEDY)]))[1, 0].answer == "Paris."
    stub.context = 60
    with pytest.raises(QwenchError, match="context of 60"):
        writer(stub, thinker).prepare(Ask(1, HI))


def test_samples_and_their_seeds(stub: Stub, thinker: Path) -> None:
    ask = Ask(1, text="Where?", samples=3, seed=5)
    found = turns(writer(stub).run([ask]))
    assert [b.get("n") for b in stub.posts()] == [3] and len({t.answer for t in found.values()}) == 3
    # Fewer choices than asked for: the others are asked for by themselves.
    remote = writer(stub)
    stub.choices = False
    found = turns(remote.run([ask]))
    assert [b.get("n") for b in stub.posts()] == [3, None, None] and sorted(found) == [(1, 0), (1, 1), (1, 2)]
    found = turns(writer(stub).run([ask]))
    assert len({b["seed"] for b in stub.posts()}) == 3 and {t.seed for t in found.values()} == {
        b["seed"] for b in stub.posts()
    }


def test_many_at_once_lazily_and_those_that_wait(stub: Stub) -> None:
    def patient(body: dict[str, Any]) -> str:
        stub.meet(3)
        return counting(body)

    remote = writer(stub, concurrency=3)
    stub.brain, taken = patient, []

    def source():
        for n in range(7):
            taken.append(n)
            yield Ask(n, text="Where?", sampling=GREEDY)

    run = remote.run(source())
    next(t for t in run if isinstance(t, Turn))
    assert len(taken) <= 4
    assert len(turns(run)) == 6 and stub.most == 3
    asked: list[int] = []

    def waiting():
        asked.append(0)
        yield Ask(0, text="Where?", sampling=GREEDY)
        yield WAIT
        asked.append(1)
        yield Ask(1, text="Where?", sampling=GREEDY)

    for item in remote.run(waiting()):
        if isinstance(item, Turn):
            assert asked == list(range(item.key + 1))
    with pytest.raises(QwenchError, match="waits"):
        list(remote.run([WAIT]))


def endless(handler: Handler) -> bool:
    def events():
        for n in range(3000):
            yield f"data: {json.dumps({'choices': [{'text': f'{n} '}]})}\n\n".encode()
            time.sleep(0.01)

    handler.chunks(events())
    return True


def test_a_stop_closes_the_connection(stub: Stub) -> None:
    remote = writer(stub, live=True)
    stub.faults.append(endless)
    run = remote.run([Ask(1, text="Where?")])
    said = [next(run).text, next(run).text]
    remote.stop()
    turn = next(t for t in run if isinstance(t, Turn))
    assert turn.finish == "user" and turn.answer.startswith("".join(said)) and stub.gone.wait(5)
    # Before the first byte too.
    stub.faults.append(slow(0.9))
    threading.Timer(0.2, remote.stop).start()
    begun = time.monotonic()
    turn = turns(remote.run([Ask(1, text="Where?")]))[1, 0]
    assert turn.finish == "user" and turn.answer == "" and time.monotonic() - begun < 0.8
    assert turns(remote.run([Ask(1, text="Where?", sampling=GREEDY)]))[1, 0].answer == "Paris."


def test_a_stream_that_breaks_off_is_no_answer(stub: Stub) -> None:
    def broken(handler: Handler) -> bool:
        handler.chunks([b'data: {"choices": [{"text": "Par"}]}\n\n'])
        return True

    def cut(handler: Handler) -> bool:
        begun = b'data: {"choices": [{"text": "Par"}]}\n\n'
        handler.send(200, begun, **{"Content-Type": "text/event-stream", "Content-Length": "99"})
        handler.close_connection = True
        return True

    def trouble(handler: Handler) -> bool:
        handler.chunks([b'data: {"choices": [{"text": "Par"}]}\n\n', b'data: {"error": "out of memory"}\n\n'])
        return True

    def garbled(handler: Handler) -> bool:
        handler.chunks([b'data: {"choices": [{"text": "Par"}]}\n\n', b"data: {]\n\n"])
        return True

    remote = writer(stub, live=True)
    for fault in (broken, cut, trouble, garbled):
        stub.faults.append(fault)
        turn = turns(remote.run([Ask(1, text="Where?")]))[1, 0]
        assert turn.finish == "failed" and turn.answer == "" and turn.error, fault
    # A server that knows no streams.
    stub.faults.append(changed(choices=[{"text": "Paris.", "finish_reason": "stop"}]))
    stub.faults.insert(0, lambda h: h.body.pop("stream") and False)
    assert turns(remote.run([Ask(1, text="Where?", sampling=GREEDY)]))[1, 0].answer == "Paris."


def test_events_wherever_they_are_cut() -> None:
    stream = ': hi\r\ndata: {"a":\ndata: "é€😀"}\r\n\r\nevent: x\r\ndata:1\r\rid: 7\n\n\ndata:  two\n\n'.encode()
    wanted = ['{"a":\n"é€😀"}', "1", " two"]
    for cut in range(len(stream)):
        for more in (cut, cut + 1, cut + 2):
            assert list(data_of([stream[:cut], stream[cut:more], stream[more:]])) == wanted, cut
    assert list(data_of([b"data: last"])) == ["last"]


def test_characters_cut_between_events() -> None:
    text = "é€😀 ok"
    data = text.encode()
    for cut in range(len(data) + 1):
        whole = Whole()
        pieces = [b"data: " + part + b"\n\n" for part in (data[:cut], data[cut:])]
        told = [whole.push(found) for found in data_of(pieces)]
        assert "".join(told) + whole.flush() == text and "�" not in "".join(told), cut
    whole = Whole()
    assert [whole.push(json.loads('"\\ud83d"')), whole.push(json.loads('"\\ude00!"'))] == ["", "😀!"]
    assert whole.push("\udce2") == "" and whole.flush() == "�"


def test_a_conversation(stub: Stub, thinker: Path, tmp_path: Path) -> None:
    stub.models, stub.brain = ["one", "two"], thinking
    runtime = Runtime(engine=stub.address, tokenizer=str(thinker))
    chat = Chat(ChatOptions("one", think_budget="6", runtime=runtime, sampling=GREEDY))
    list(chat.load())
    events = list(chat.turn("Where?"))
    report = next(e.result for e in events if isinstance(e, Finished))
    assert report["closed_by"] == "budget" and report["thinking_tokens"] == 6 and report["generated_tokens"] > 6
    assert len([e for e in events if isinstance(e, Produced)]) > 3
    assert chat.messages[-1] == {"role": "assistant", "content": ANSWER}
    list(chat.switch("two"))
    list(chat.turn("Where?"))
    assert stub.posts()[-1]["model"] == "two" and ANSWER in stub.posts()[-1]["prompt"]
    with pytest.raises(QwenchError, match="does not serve"):
        list(chat.switch("three"))
    # A failed answer is no message.
    kept = list(chat.messages)
    stub.faults += [drops] * QUICK.tries
    chat.writer._client.patience = QUICK
    with pytest.raises(QwenchError):
        list(chat.turn("Where?"))
    assert chat.messages == kept
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "Where?", "n": n}) + "\n" for n in range(5)))
    options = ChatOptions("one", think_budget="6", slots=4, runtime=runtime, sampling=GREEDY)
    found = [e.row for e in many(options, JobOptions(str(rows))) if isinstance(e, Produced)]
    assert [(r["n"], r["answer"]) for r in found] == [(n, ANSWER) for n in range(5)]
    assert "stream" not in stub.posts()[-1]


def test_the_command(qwench, stub: Stub, thinker: Path, tmp_path: Path) -> None:
    stub.brain = thinking
    server = ("chat", "--engine", stub.address, "--tokenizer", thinker, "--temperature", 0)
    env = {"OPENAI_API_KEY": SECRET, "QWENCH_DEBUG": "1"}
    done = qwench(*server, "Where?", "-v", "--think-budget", 6, "--continue", tmp_path / "t.jsonl", env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == ANSWER.rstrip("\n") and "It is" in done.stderr
    assert "model: tiny (the only one that is served)" in done.stderr and "seed: honoured" in done.stderr
    assert stub.posts()[-1]["stream"] and all(h["authorization"].endswith(SECRET) for _, h, _ in stub.requests)
    told = done.stdout + done.stderr + (tmp_path / "t.jsonl").read_text("utf-8")
    stub.faults += [status(401)]
    done = qwench(*server, "Where?", "--json", env=env)
    assert done.returncode == 1 and "[key]" in done.stderr
    told += done.stdout + done.stderr
    assert SECRET not in told and not any(SECRET in p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    for flag in (("--device", "cpu"), ("--streams", 2), ("--context", 99), ("--offline",)):
        done = qwench(*server, "Where?", *flag)
        assert done.returncode == 2 and f"the engine is a server, so {flag[0]} would do nothing" in done.stderr
    done = qwench("chat", "-m", "smollm2", "hi", "--concurrency", 2)
    assert done.returncode == 2 and "--engine is no server, so --concurrency would do nothing" in done.stderr


def test_a_session_on_a_terminal(stub: Stub, thinker: Path, tmp_path: Path) -> None:
    stub.models, stub.brain = ["one", "two"], thinking
    own = {k: v for k, v in os.environ.items() if not k.startswith("QWENCH")}
    own |= {"QWENCH_HOME": str(tmp_path), "TERM": "xterm", "NO_COLOR": "1", "OPENAI_API_KEY": SECRET}
    flags = ["--engine", stub.address, "--tokenizer", str(thinker), "-m", "one", "--think-budget", "0"]
    command = ["-m", "qwench.cli.main", "chat", *flags]
    child = pexpect.spawn(sys.executable, command, env=own, timeout=60, dimensions=(24, 100))
    child.expect("> ")
    child.sendline("/model")
    child.expect(r"one \(this one\)\s+two")
    child.sendline("/model two")
    child.expect("> ")
    child.sendline("Where?")
    child.expect("Paris")
    child.expect("> ")
    assert stub.posts()[-1]["model"] == "two"
    stub.faults.append(endless)
    child.sendline("And now?")
    child.expect("3 4 5 ")
    child.sendintr()
    child.expect("tokens")
    assert stub.gone.wait(10)
    child.sendline("Where?")
    child.expect("Paris")
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    # What was said before the stop is part of the conversation.
    assert "3 4 5 " in stub.posts()[-1]["prompt"]
