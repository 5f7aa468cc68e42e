"""Samples of one prompt: a copied slot is a fresh prefill, the prompt is computed once, seeds are their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from qwench.ops.models.hub import resolve
from qwench.ops.models.nets import decoder
from qwench.ops.models.nets.causal import CausalDecoder
from qwench.ops.models.nets.weights import Weights
from qwench.ops.models.tokenizer import TextTokenizer
from qwench.ops.writing.generate import Generator, Request, Turn
from qwench.ops.writing.load import load_causal
from qwench.ops.writing.sampling import Sampling
from qwench.ops.writing.thinking import Think
from qwench.ops.writing.writer import WAIT, seed_of

from tests.streams.test_parscale import streamed
from tests.tiny import byte_decoder, byte_tokenizer, reference

GREEDY = Sampling(temperature=0)
PROMPT = [5, 60, 61, 7, 99, 100, 33, 8, 12, 13, 77]
KINDS = ["qwen3", "qwen3 eager", "qwen3_moe", "gated", "streams", "streams eager"]


@pytest.fixture(scope="module", params=KINDS)
def engine(request, tmp_path_factory) -> CausalDecoder:
    """Three slots of a tiny decoder."""
    kind, _, kernels = request.param.partition(" ")
    if kind == "gated":
        folder = reference("gated-headwise")
        config = json.loads((folder / "config.json").read_text())
        return CausalDecoder(config, Weights(folder, decoder.PREFIXES), torch.float32, slots=3)
    folder = tmp_path_factory.mktemp(kind)
    folder = streamed(folder, "qwen2") if kind == "streams" else byte_decoder(folder, kind)
    return load_causal(
        resolve(str(folder)), slots=3, runtime=Runtime(device="cpu", dtype="float32", kernels=kernels or "auto")
    ).engine


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("bytes")
    byte_tokenizer(folder)
    return TextTokenizer.load(folder)


def emptied(engine: CausalDecoder) -> None:
    for slot in range(engine.slots):
        engine.keep(slot, 0)


def near(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_copied_slot_is_a_fresh_prefill(engine: CausalDecoder) -> None:
    emptied(engine)
    # The prompt's beginning was there before, as in a session.
    engine.feed({0: [*PROMPT[:6], 3, 3, 3]})
    engine.keep(0, 6)
    engine.feed({0: PROMPT[6:]})
    engine.feed({2: [1, 2, 3]})
    engine.fork(0, 2)
    engine.fork(0, 1, 5)
    assert [engine.length(s) for s in range(3)] == [len(PROMPT), 5, len(PROMPT)]
    got = engine.feed({0: [21], 1: [20], 2: [20]})
    engine.keep(0, 0)
    near(engine.feed({0: [*PROMPT[:5], 20]})[0], got[1])
    emptied(engine)
    fresh = engine.feed({0: [*PROMPT, 20], 1: [*PROMPT, 21]})
    near(fresh[0], got[2])
    near(fresh[1], got[0])
    engine.fork(0, 2)
    for _ in range(8):
        tokens = [int(row.argmax()) for row in engine.feed({0: [9], 2: [9]})]
        assert tokens[0] == tokens[1]
        engine.feed({0: tokens[:1], 2: tokens[:1]})
    engine.fork(1, 1)
    assert engine.length(1) == len(PROMPT) + 1
    with pytest.raises(QwenchError, match="more than"):
        engine.feed({2: [1] * engine.context})


class Counted:
    """An engine with fewer slots, and a generator on it, that count passes and tokens."""

    def __init__(self, engine: CausalDecoder, tokenizer: TextTokenizer, slots: int = 3, forks: bool = True) -> None:
        emptied(engine)
        self.engine, self.slots, self.forks = engine, slots, forks
        self.passes = self.tokens = self.stop_at = 0
        self.generator = Generator(self, tokenizer, Think.of(tokenizer), [])

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def feed(self, new: dict[int, list[int]]) -> torch.Tensor:
        self.passes += 1
        self.generator.stopping = self.passes == self.stop_at
        self.tokens += sum(map(len, new.values()))
        return self.engine.feed(new)

    def run(self, requests) -> dict[object, Turn]:
        found = [t for t in self.generator.run(requests) if isinstance(t, Turn)]
        turns = {(t.key, t.sample): t for t in found}
        assert len(turns) == len(found)
        return turns


@pytest.mark.parametrize("samples", [3, 5])
def test_samples_share_one_prefill(engine, tokenizer, samples: int) -> None:
    run = Counted(engine, tokenizer)
    alone = run.run([Request("a", PROMPT, 6, sampling=GREEDY)])["a", 0]
    run.generator.forget()
    run.tokens = 0
    turns = run.run([Request("a", PROMPT, 6, sampling=GREEDY, samples=samples)])
    assert {k[1] for k in turns} == set(range(samples))
    assert all(t.generated == alone.generated for t in turns.values())
    # The prompt once, and of each answer all but the last token.
    assert run.tokens == len(PROMPT) + samples * 5
    assert [turns["a", i].cached_tokens for i in range(samples)] == [0] + [len(PROMPT)] * (samples - 1)
    run.tokens = 0
    again = run.run([Request("b", [*PROMPT, 44], 6, sampling=GREEDY, samples=samples)])
    # And a prompt of which slot 0 holds the beginning: what is new of it, once.
    assert run.tokens == 1 + samples * 5
    run.generator.forget()
    fresh = run.run([Request("b", [*PROMPT, 44], 6, sampling=GREEDY)])["b", 0]
    assert all(t.generated == fresh.generated for t in again.values())


def test_a_sample_does_not_depend_on_the_others(engine, tokenizer) -> None:
    warm = Sampling(temperature=1.0, top_k=0, top_p=1.0)
    run = Counted(engine, tokenizer)
    one = Request("a", PROMPT, 8, sampling=warm, seed=7)
    many = Request("a", PROMPT, 8, sampling=warm, seed=7, samples=7)
    other = Request("o", PROMPT[2:], 11, sampling=warm, seed=1, samples=2)
    first, whole, mixed = run.run([one]), run.run([many]), run.run([other, many])
    assert first["a", 0].generated == whole["a", 0].generated
    assert len({tuple(t.generated) for t in whole.values()}) > 4
    assert len({t.seed for t in whole.values()}) == 7
    for i in range(7):
        assert whole["a", i].generated == mixed["a", i].generated
        assert whole["a", i].seed == seed_of(7, i)


def test_seeds_are_stable() -> None:
    assert [seed_of(7, i) for i in range(3)] == [7, 1776908988, 231060907]
    found = {seed_of(s, i) for s in range(100) for i in range(100)}
    assert len(found) > 9990 and max(found) < 1 << 31


def test_an_engine_without_copies_computes_each(engine, tokenizer) -> None:
    run = Counted(engine, tokenizer)
    wanted = run.run([Request("a", PROMPT, 6, sampling=GREEDY)])["a", 0].generated
    run = Counted(engine, tokenizer, forks=False)
    turns = run.run([Request("a", PROMPT, 6, sampling=GREEDY, samples=4)])
    assert all(t.generated == wanted for t in turns.values())
    # The fourth goes on in a slot that holds the prompt.
    assert run.tokens == 3 * len(PROMPT) + 4 * 5


def test_samples_of_one_token_and_several_prompts(engine, tokenizer) -> None:
    run = Counted(engine, tokenizer)
    turns = run.run([Request("a", PROMPT, 1, samples=50, sampling=GREEDY)])
    assert len(turns) == 50 and run.tokens == len(PROMPT) and run.passes == 1
    run.generator.forget()
    run.tokens = 0
    turns = run.run(Request(n, PROMPT[n:], 4, samples=3, sampling=GREEDY) for n in range(4))
    assert len(turns) == 12 and run.tokens == sum(len(PROMPT) - n for n in range(4)) + 12 * 3


def chained(asked: list, links: int, others: int):
    """A source whose chain of prompts goes on from answers, beside others that wait for none."""
    said: dict[object, Turn] = {}

    def source():
        ready, free = 0, list(range(others))
        while ready < links or free:
            if ready < links and (ready == 0 or ("c", ready - 1) in said):
                before = said[("c", ready - 1)].generated if ready else []
                asked.append(Request(("c", ready), [*PROMPT, *before], 15, sampling=GREEDY))
                ready += 1
                yield asked[-1]
            elif free:
                asked.append(Request(("o", free[0]), PROMPT[free.pop(0) :], 7, sampling=GREEDY))
                yield asked[-1]
            else:
                yield WAIT

    return source(), said


def test_a_source_that_waits_leaves_no_slot_empty(engine, tokenizer) -> None:
    run = Counted(engine, tokenizer, slots=2)
    asked: list[Request] = []
    source, said = chained(asked, 3, 6)
    order = []
    for item in run.generator.run(source):
        if isinstance(item, Turn):
            said[item.key] = item
            order.append(item.key)
    assert len(order) == 9 and order.index(("o", 1)) < order.index(("c", 0))
    # One slot is the chain's, 3 x 15 passes, and 6 x 7 of the others go beside it.
    assert run.passes == 45
    for request in asked:
        run.generator.forget()
        assert run.run([request])[request.key, 0].generated == said[request.key].generated


def test_a_source_that_waits_for_nothing_is_an_error(engine, tokenizer) -> None:
    run = Counted(engine, tokenizer)
    with pytest.raises(QwenchError, match="none is being written"):
        run.run([WAIT, Request(0, PROMPT)])

    def endless():
        yield Request(0, PROMPT, 3, samples=2, sampling=GREEDY)
        while True:
            yield WAIT

    with pytest.raises(QwenchError, match="none is being written"):
        run.run(endless())
    assert len(run.run([Request(0, PROMPT, 3)])) == 1


def test_a_stop_ends_samples_too(engine, tokenizer) -> None:
    run = Counted(engine, tokenizer)
    run.stop_at = 4
    turns = run.run([Request(0, PROMPT, 50, samples=9, sampling=GREEDY)])
    assert len(turns) == 3 and {t.finish for t in turns.values()} == {"user"}


def test_llama_cpp_copies_a_sequence(qwench, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is an extra")
    from tests.writing.test_chat import causal

    (tmp_path / "m").mkdir()
    done = qwench("convert", causal(tmp_path / "m", "qwen3"), tmp_path / "m.gguf", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    engine = load_causal(
        resolve(str(tmp_path / "m.gguf")), slots=3, context=256, runtime=Runtime(engine="llama.cpp")
    ).engine
    assert engine.forks
    engine.feed({0: PROMPT, 1: [1, 2]})
    engine.swap(0, 1)
    engine.fork(1, 2)
    engine.fork(1, 0, 5)
    got = engine.feed({0: [20], 1: [21], 2: [20]})
    for slot in range(3):
        engine.keep(slot, 0)
    fresh = engine.feed({0: [*PROMPT[:5], 20], 1: [*PROMPT, 21], 2: [*PROMPT, 20]})
    torch.testing.assert_close(got, fresh, atol=2e-2, rtol=2e-2)
