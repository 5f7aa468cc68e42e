"""The Writer on a model here: beginnings are gone on from exactly, given text is scored, what it cannot is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Finished
from qwench.ops.base.runtime import Runtime
from qwench.ops.chat import Chat, ChatOptions, JobOptions, many
from qwench.ops.models.hub import Checkpoint, resolve
from qwench.ops.writing import local
from qwench.ops.writing.generate import Generator, Request
from qwench.ops.writing.local import LocalWriter
from qwench.ops.writing.sampling import Sampling
from qwench.ops.writing.thinking import NON_THINKING, Stream, Think
from qwench.ops.writing.writer import ABILITIES, WAIT, Ask, Text, Turn, refuse

from tests.streams.test_parscale import logits, streamed
from tests.tiny import byte_decoder
from tests.writing.test_chat import CLOSE, END, OPEN, Scripted, causal

GREEDY = (("temperature", 0),)
HI = [{"role": "user", "content": "hi <think> there"}]


def writer(folder: Path | Checkpoint, dtype: str = "auto", **options: object) -> LocalWriter:
    named = folder if isinstance(folder, Checkpoint) else str(folder)
    made = LocalWriter(named, Runtime(device="cpu", dtype=dtype), **options)
    list(made.load())
    return made


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return byte_decoder(tmp_path_factory.mktemp("small"), "qwen3")


@pytest.fixture(scope="module")
def bytes_(small: Path) -> LocalWriter:
    """A model over bytes: no template, no tags."""
    return writer(small, slots=2)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> LocalWriter:
    """A model with Qwen3's tokenizer, template and tags."""
    return writer(causal(tmp_path_factory.mktemp("qwen"), "qwen3"))


def turns(found) -> dict[object, Turn]:
    return {(t.key, t.sample): t for t in found if isinstance(t, Turn)}


def told(qwen: LocalWriter, ids: list[int]) -> str:
    return qwen.loaded.tokenizer.backend.decode(ids, skip_special_tokens=False)


def test_weights_beside_an_adapter_are_no_model_to_write_with(tmp_path: Path) -> None:
    folder = byte_decoder(tmp_path / "m", "qwen3")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "me/base"}')
    with pytest.raises(QwenchError, match=r"an adapter, not a model.*me/base"):
        writer(folder)


@pytest.mark.parametrize("prefix", ["The answer is", " two  \n ", "no\n\n"])
def test_a_prefix_is_part_of_the_prompts_text(qwen: LocalWriter, prefix: str) -> None:
    bare, _ = qwen.loaded.template.render(HI, thinking=True)
    for budget, before in ((0, NON_THINKING), (5, "")):
        found = qwen.prepare(Ask(messages=HI, prefix=prefix, budget=budget))
        # Qwen3's own template puts the empty thought in as our text does.
        assert told(qwen, found.ids) == bare + before + prefix
        assert found.ids == qwen.loaded.tokenizer.ids([bare + before + prefix])[0]
        assert found.begun and found.exact and not found.opened
    ids = tuple(qwen.loaded.tokenizer.ids([prefix])[0])
    found = qwen.prepare(Ask(messages=HI, prefix=ids, budget=0))
    assert tuple(found.ids[-len(ids) :]) == ids and found.begun
    assert found.ids[: -len(ids)] == qwen.prepare(Ask(messages=HI, budget=0)).ids


def test_a_prefix_may_end_inside_a_thought(qwen: LocalWriter) -> None:
    tokenizer = qwen.loaded.tokenizer
    for prefix in ("<think>\nfirst, ", tuple(tokenizer.ids(["<think>\nfirst, "])[0])):
        found = qwen.prepare(Ask(messages=HI, prefix=prefix, budget=3))
        assert found.opened and found.exact and not found.begun
        assert told(qwen, found.ids).count("<think>") == 2
        turn = turns(qwen.run([Ask(1, HI, prefix=prefix, budget=3, max_tokens=2, sampling=GREEDY)]))[1, 0]
        assert turn.thinking_tokens == 3 and turn.closed_by == "budget" and turn.answer_tokens == 2
    whole = qwen.prepare(Ask(messages=HI, prefix="<think>\nso\n</think>\n\nIt", budget=0))
    assert whole.begun and not whole.opened and told(qwen, whole.ids).endswith("assistant\n<think>\nso\n</think>\n\nIt")


def test_a_template_that_opens_the_thought_is_not_doubled(qwen: LocalWriter, monkeypatch) -> None:
    real = qwen.loaded.template.render

    def opening(messages, thinking=None):
        text, end = real(messages, thinking=True)
        return text + "<think>\n", end + "<think>\n"

    monkeypatch.setattr(qwen.loaded.template, "render", opening)
    bare, _ = real(HI, thinking=True)
    for prefix, wanted, opened in (
        ("", "<think>\n", True),
        ("so", "<think>\nso", True),
        ("<think>\nso", "<think>\nso", True),
        ("<think>\nso\n</think>\n\nIt", "<think>\nso\n</think>\n\nIt", False),
    ):
        found = qwen.prepare(Ask(messages=HI, prefix=prefix))
        assert (told(qwen, found.ids), found.opened) == (bare + wanted, opened)
    found = qwen.prepare(Ask(messages=HI, prefix="It", budget=0))
    assert told(qwen, found.ids) == bare + NON_THINKING + "It" and found.begun


def test_going_on_says_the_rest(bytes_: LocalWriter) -> None:
    for text in ("once upon ", "a\n\n"):
        whole = turns(bytes_.run([Ask(0, text=text, max_tokens=20, sampling=GREEDY)]))[0, 0]
        for cut in (1, 7):
            begun = tuple(whole.generated[:cut])
            rest = turns(bytes_.run([Ask(0, text=text, prefix=begun, max_tokens=20 - cut, sampling=GREEDY)]))[0, 0]
            assert begun + tuple(rest.generated) == tuple(whole.generated)
        assert turns(bytes_.run([Ask(0, ids=list(text.encode()), max_tokens=1)]))[0, 0].prompt_tokens == len(text)


def scripted(qwen: LocalWriter, text: str, before: list[int] | None = None, **limits: object) -> Turn:
    ids = qwen.loaded.tokenizer.ids([text])[0]
    run = Generator(Scripted([*ids, END]), qwen.loaded.tokenizer, Think.of(qwen.loaded.tokenizer), [END])
    return turns(run.run([Request(0, before or [1, 2, 3], sampling=Sampling(temperature=0), **limits)]))[0, 0]


def test_nothing_is_stripped_after_a_prefix(qwen: LocalWriter) -> None:
    assert scripted(qwen, " \n Paris ").answer == "Paris "
    assert scripted(qwen, " \n Paris ", begun=True, exact=True).answer == " \n Paris "
    turn = scripted(qwen, "  so\n</think>\n\nIt", opened=True, exact=True)
    assert (turn.thinking, turn.answer) == ("  so\n", "It")
    assert scripted(qwen, "  so\n</think>\n\nIt", opened=True).thinking == "so"
    turn = scripted(qwen, "<think>\n so </think>\n\nIt", exact=True)
    assert (turn.thinking, turn.answer) == ("so", "It")
    # An answer that has begun opens no thought.
    assert OPEN not in scripted(qwen, "<think>a</think>", begun=True, exact=True).generated


def test_a_character_across_the_end_of_a_prefix(qwen: LocalWriter) -> None:
    tokenizer = qwen.loaded.tokenizer
    [ids] = tokenizer.ids(["x 𓀀 y"])
    for cut in range(1, len(ids)):
        stream = Stream(tokenizer, strip=False, after=ids[:cut])
        before = tokenizer.backend.decode(ids[:cut]).rstrip("�")
        assert before + "".join(stream.push(i) for i in ids[cut:]) + stream.flush() == "x 𓀀 y"
    assert Stream(tokenizer, after=ids[:3]).flush() == ""


def test_a_chain_of_asks_beside_others(bytes_: LocalWriter) -> None:
    """Each link's prompt holds the answer before; results are those of each alone."""
    said: dict[object, Turn] = {}
    asked: list[Ask] = []

    def ask(key: object, ids: list[int]) -> Ask:
        asked.append(Ask(key, ids=ids, max_tokens=6, sampling=GREEDY, seed=1))
        return asked[-1]

    def source():
        links, free = 0, [10, 11, 12]
        while links < 3 or free:
            if links < 3 and (not links or links - 1 in said):
                links += 1
                yield ask(links - 1, [*range(65, 75), *(said[links - 2].generated if links > 1 else ())])
            else:
                yield ask(free[0], list(range(80, 80 + free.pop(0)))) if free else WAIT

    for item in bytes_.run(source()):
        if isinstance(item, Turn):
            said[item.key] = item
    assert len(said) == 6
    for one in asked:
        assert turns(bytes_.run([one]))[one.key, 0].generated == said[one.key].generated


def test_samples_of_an_ask(bytes_: LocalWriter) -> None:
    ask = Ask("k", text="some words", samples=5, max_tokens=6, seed=3, sampling=(("temperature", 1.0),))
    found = turns(bytes_.run([ask]))
    assert set(found) == {("k", n) for n in range(5)}
    assert len({t.seed for t in found.values()}) == 5 and found["k", 0].seed == 3
    assert {t.cached_tokens for t in found.values()} == {0, 10}


def reference_logprobs(folder: Path, ids: list[int]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = logits(model, torch.tensor([ids]))[0, :-1].log_softmax(-1)
    return found.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_scores_are_transformers(small: Path, bytes_: LocalWriter) -> None:
    text = "the quick brown fox jumps over the lazy dog"
    ids = list(text.encode())
    tokens = bytes_.loaded.tokenizer.ids([text])[0]
    whole, windows, one = bytes_.score([Text("a", text), Text("b", ids=tokens, window=9), Text("c", ids=ids[:1])])
    assert (whole.key, whole.ids, one.logprobs) == ("a", tokens, []) and len(windows.logprobs) == len(tokens) - 1
    torch.testing.assert_close(torch.tensor(whole.logprobs), reference_logprobs(small, tokens), atol=1e-4, rtol=1e-4)
    for at in range(0, len(tokens) - 1, 8):
        piece = tokens[at : at + 9]
        wanted = reference_logprobs(small, piece)
        torch.testing.assert_close(torch.tensor(windows.logprobs[at : at + 8]), wanted, atol=1e-4, rtol=1e-4)
    assert whole.mean == pytest.approx(sum(whole.logprobs) / 42)


def test_scores_of_streams_are_theirs(tmp_path: Path) -> None:
    from qwench.ops.streams import modeling_parscale as parscale

    folder = streamed(tmp_path, "qwen2")
    ids = list(range(60, 85))
    [found] = writer(folder, dtype="float32").score([Text(ids=ids)])
    model = parscale.Qwen2ParScaleForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    wanted = logits(model, torch.tensor([ids]))[0, :-1].log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])
    torch.testing.assert_close(torch.tensor(found.logprobs), wanted[:, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("forks", [True, False])
def test_continuations_are_compared(small: Path, bytes_: LocalWriter, monkeypatch, forks: bool) -> None:
    monkeypatch.setattr(bytes_.loaded.engine, "forks", forks)
    ask = Ask(text="the quick ", seed=0)
    ends = ["brown fox", "b", "", "lazy", "red dog"]
    before = turns(bytes_.run([ask]))[None, 0].generated
    fed = []
    feed = bytes_.loaded.engine.feed
    monkeypatch.setattr(bytes_.loaded.engine, "feed", lambda new: fed.append(sum(map(len, new.values()))) or feed(new))
    found = bytes_.choose(ask, ends)
    prompt = bytes_.prepare(ask).ids
    assert sum(fed) == len(prompt) * (1 if forks else 2) + sum(max(len(e) - 1, 0) for e in ends)
    for n, end in enumerate(ends):
        assert found[n].key == n and len(found[n].logprobs) == len(found[n].ids) == len(end)
        if end:
            wanted = reference_logprobs(small, prompt + found[n].ids)[-len(end) :]
            torch.testing.assert_close(torch.tensor(found[n].logprobs), wanted, atol=1e-4, rtol=1e-4)
    # What the slots hold now is no longer what was written last.
    assert turns(bytes_.run([ask]))[None, 0].generated == before
    with pytest.raises(QwenchError, match="no room for a continuation"):
        bytes_.choose(ask, ["x" * 300])


def test_what_cannot_be_is_refused(bytes_: LocalWriter) -> None:
    with pytest.raises(QwenchError, match="no thinking tags"):
        bytes_.prepare(Ask(text="a", budget=5))
    with pytest.raises(QwenchError, match="no thinking tags"):
        next(bytes_.run([Ask(messages=HI, budget=5)]))
    with pytest.raises(QwenchError, match="no room for an answer"):
        bytes_.prepare(Ask(text="a" * 500))
    with pytest.raises(QwenchError, match="empty"):
        bytes_.prepare(Ask(text=""))
    full = Ask(text="a", prefix=(1,), seed=1, stops=("x",), logprobs=0, budget=5)
    needs = {"text", "prefix", "ids", "seed", "stops", "logprobs", "budget"}
    assert set(full.needs()) == needs and set(Ask(messages=HI, force_think=True).needs()) == {"messages", "force"}
    for name in (*needs, "messages", "force"):
        poor = SimpleNamespace(name="a server", can=frozenset(ABILITIES) - {name}, why={})
        ask = full if name in needs else Ask(messages=HI, force_think=True)
        with pytest.raises(QwenchError, match=f"`a server` cannot {ABILITIES[name]}"):
            refuse(poor, ask.needs())
    for wrong in (
        {},
        {"text": "a", "ids": [1]},
        {"text": "a", "samples": 0},
        {"text": "a", "max_tokens": 0},
        {"text": "a", "budget": -2},
        {"text": "a", "think_stop": "soft"},
        {"text": "a", "force_think": True},
    ):
        with pytest.raises(QwenchError):
            Ask(**wrong)
    with pytest.raises(QwenchError):
        Text(text="a", ids=[1])


def test_a_budget_of_a_session_is_not_dropped(small: Path) -> None:
    chat = Chat(ChatOptions(model=str(small), max_tokens=3, seed=1, runtime=Runtime(device="cpu")))
    list(chat.load())
    chat.budget = 7
    with pytest.raises(QwenchError, match="no thinking tags"):
        list(chat.turn("hello"))
    assert chat.messages == []
    chat.budget = -1
    assert isinstance(list(chat.turn("hello"))[-1], Finished)


def test_two_prompts_take_two_slots(small: Path, tmp_path: Path, monkeypatch) -> None:
    """64 slots of keys and values for 2 prompts took 11.9 GB of a small model."""
    seen = []
    real = local.load_causal
    monkeypatch.setattr(local, "load_causal", lambda *a, **k: seen.append(k["slots"]) or real(*a, **k))
    for prompts, slots in ((2, 2), (5, 3)):
        (tmp_path / "q.jsonl").write_text("".join(json.dumps({"prompt": f"{i}"}) + "\n" for i in range(prompts)))
        options = ChatOptions(model=str(small), slots=64 if prompts == 2 else 3, max_tokens=2)
        list(many(options, JobOptions(str(tmp_path / "q.jsonl"))))
        assert seen.pop() == slots
    (tmp_path / "q.jsonl").write_text("")
    list(many(ChatOptions(model=str(small), slots=64, max_tokens=2), JobOptions(str(tmp_path / "q.jsonl"))))
    assert seen.pop() == 1


def test_a_checkpoint_in_memory_is_written_with(small: Path) -> None:
    named = resolve(str(small))
    assert writer(named).name == named.name
    assert CLOSE not in turns(writer(named).run([Ask(text="x", max_tokens=2)]))[None, 0].generated
