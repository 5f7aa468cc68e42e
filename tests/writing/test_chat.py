"""`qwench chat`: the decode loop against transformers, the budget by its properties, the command through a shell."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Finished, Produced
from qwench.ops.base.runtime import Runtime
from qwench.ops.chat import Chat, ChatOptions, JobOptions, many, right
from qwench.ops.models.hub import resolve
from qwench.ops.models.nets import decoder
from qwench.ops.models.nets.causal import CausalDecoder
from qwench.ops.models.nets.rope import frequencies
from qwench.ops.models.nets.weights import Weights
from qwench.ops.models.tokenizer import TextTokenizer
from qwench.ops.writing import llama_cpp
from qwench.ops.writing.generate import Generator, Request, Turn
from qwench.ops.writing.load import load_causal
from qwench.ops.writing.sampling import Sampler, Sampling
from qwench.ops.writing.thinking import THINK_STOP, Stream, Think, budget_of

from tests.tiny import SHAPE, qwen3_tokenizer, reference

GREEDY = Sampling(temperature=0)
#: the closing ids of the documentation, measured with the real tokenizer
STOP_IDS = [271, 82796, 279, 7199, 882, 553, 279, 1196, 11, 358, 614, 311, 2968, 279, 6291, 3118, 389, 279, 7274]
STOP_IDS += [5961, 1431, 624, 151668, 271]
KINDS = ["qwen3", "qwen3_moe", "llama", "qwen2"]


def causal(folder: Path, kind: str, **extra: object) -> Path:
    """A tiny random decoder with the real tokenizer and chat template."""
    from transformers import AutoConfig, AutoModelForCausalLM

    reference("qwen3-tokenizer")
    torch.manual_seed(0)
    shape = SHAPE | {
        "max_position_embeddings": 1024,
        "tie_word_embeddings": kind != "qwen3_moe",
        "eos_token_id": 151645,
    }
    if kind == "qwen3_moe":
        shape |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    if kind in ("qwen2", "llama"):
        shape |= {"num_attention_heads": 2}
    config = AutoConfig.for_model(kind, **shape | extra)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.15 if p.dim() > 1 else 1 + 0.1 * torch.randn_like(p))
    model.save_pretrained(folder)
    qwen3_tokenizer(folder, eos=False)
    shutil.copyfile(reference("qwen3-tokenizer") / "tokenizer_config.json", folder / "tokenizer_config.json")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory):
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = causal(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return get


def generator(folder: Path, slots: int = 1) -> Generator:
    loaded = load_causal(resolve(str(folder)), slots=slots, runtime=Runtime(dtype="float32"))
    return Generator(loaded.engine, loaded.tokenizer, Think.of(loaded.tokenizer), [])


def answers(found) -> dict[object, Turn]:
    return {t.key: t for t in found if isinstance(t, Turn)}


def greedy_of(folder: Path, prompts: list[list[int]], count: int, **load: object) -> list[list[int]]:
    """transformers' own greedy tokens of a left-padded batch."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **load).eval()
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        out = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return out[:, longest:].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_equal_transformers(models, kind: str) -> None:
    folder = models(kind)
    prompts = [list(range(100, 100 + n)) for n in (5, 40, 17)]
    count = 200 if kind == "qwen3" else 80
    wanted = greedy_of(folder, prompts, count)
    single = generator(folder)
    batched = generator(folder, slots=2)
    # Two slots for three prompts: the third joins while another decodes.
    turns = answers(batched.run(Request(i, p, count, sampling=GREEDY) for i, p in enumerate(prompts)))
    for i, prompt in enumerate(prompts):
        alone = answers(single.run([Request(i, prompt, count, sampling=GREEDY)]))[i]
        assert alone.generated == wanted[i]
        assert turns[i].generated == wanted[i]


def test_smollm2_answers_as_transformers_does() -> None:
    try:
        checkpoint = resolve("smollm2")
    except QwenchError as error:
        pytest.skip(error.message)
    loaded = load_causal(checkpoint, runtime=Runtime(engine="torch"))
    text = loaded.template.render([{"role": "user", "content": "What is the capital of France?"}])[0]
    think = Think.of(loaded.tokenizer)
    ids = loaded.tokenizer.ids([text])[0]
    turn = answers(Generator(loaded.engine, loaded.tokenizer, think, []).run([Request(0, ids, 40, sampling=GREEDY)]))[0]
    [wanted] = greedy_of(checkpoint.path.parent, [ids], 40, gguf_file=checkpoint.path.name)
    assert turn.generated == wanted
    assert "Paris" in turn.answer


def test_a_session_reuses_its_cache_and_changes_nothing(models) -> None:
    run = generator(models("qwen3"))
    first = list(range(200, 260))
    turn = answers(run.run([Request(0, first, 30, sampling=GREEDY)]))[0]
    for second in (first + turn.generated + [7, 8, 9], [*first[:40], 1, 2, 3], first):
        again = answers(run.run([Request(1, second, 30, sampling=GREEDY)]))[1]
        fresh = answers(generator(models("qwen3")).run([Request(1, second, 30, sampling=GREEDY)]))[1]
        assert again.cached_tokens >= 40 - 1
        assert again.generated == fresh.generated


def test_think_stop_is_the_published_ids() -> None:
    tokenizer = TextTokenizer.load(reference("qwen3-tokenizer"))
    think = Think.of(tokenizer)
    assert think.message == STOP_IDS
    assert (think.open, think.close) == (151667, 151668)
    assert THINK_STOP.endswith("</think>\n\n")


@pytest.mark.parametrize(("kind", "slots"), [("qwen3", 1), ("qwen3", 3), ("qwen3_moe", 3)])
@pytest.mark.parametrize("stop", ["hard", "sentence"])
def test_budget_properties(models, kind: str, slots: int, stop: str) -> None:
    run = generator(models(kind), slots)
    requests = [
        Request((n, seed), [151644, 872, 198, 50 + seed], 9, n, n != 0, stop, Sampling(temperature=1.0), seed)
        for n in (0, 1, 2, 7, 64, *([-1] if kind == "qwen3" else []))
        for seed in range(3 if n >= 0 else 1)  # without a limit the whole context is filled
    ]
    turns = answers(run.run(requests))
    assert len(turns) == len(requests)
    for request in requests:
        turn, n = turns[request.key], request.budget
        grace = max(n // 10, 1) if stop == "sentence" and n > 0 else 0
        if n >= 0:
            assert turn.thinking_tokens <= n + grace
        assert turn.answer_tokens == 9
        assert turn.finish == "length"
        assert 151668 not in turn.generated[turn.thinking_tokens + 1 :]
        closed = int(turn.closed_by == "model" and not turn.inserted_tokens)
        assert len(turn.generated) == turn.thinking_tokens + turn.answer_tokens + closed
        if n > 0:
            assert turn.closed_by in ("budget", "model")
            assert turn.inserted_tokens == (24 if turn.closed_by == "budget" else 0)
        if n == -1:
            assert turn.closed_by in ("length", "model")
            assert len(request.ids) + len(turn.generated) + turn.inserted_tokens <= 1024


class Scripted:
    """An engine that says given tokens, and remembers what it was fed."""

    context, slots = 5000, 1

    def __init__(self, script: list[int], vocabulary: int = 151936) -> None:
        self.script, self.vocabulary, self.fed, self.held = script, vocabulary, [], []

    def feed(self, new: dict[int, list[int]]) -> torch.Tensor:
        self.fed.append(new[0])
        self.held += new[0]
        logits = torch.zeros(1, self.vocabulary)
        token = self.script.pop(0) if self.script else 1000
        logits[0, token], logits[0, 1000] = 9.0, max(float(logits[0, 1000]), 5.0)
        if token == 1000:
            logits[0, 1000] = 9.0
        return logits

    def length(self, slot: int) -> int:
        return len(self.held)

    def keep(self, slot: int, length: int) -> None:
        del self.held[length:]

    def swap(self, a: int, b: int) -> None:
        raise AssertionError


def scripted(script: list[int], **limits: object) -> tuple[Turn, Scripted]:
    tokenizer = TextTokenizer.load(reference("qwen3-tokenizer"))
    engine = Scripted(script)
    run = Generator(engine, tokenizer, Think.of(tokenizer), [151645])
    request = Request(0, [1, 2, 151667, 3, 151668, 4], sampling=GREEDY, **limits)
    return answers(run.run([request]))[0], engine


OPEN, CLOSE, END = 151667, 151668, 151645


def test_the_model_opens_and_closes_itself() -> None:
    turn, engine = scripted([OPEN, 198, 500, CLOSE, 271, 600, END], budget=10)
    assert (turn.closed_by, turn.thinking_tokens, turn.answer_tokens, turn.finish) == ("model", 2, 2, "stop")
    assert turn.inserted_tokens == 0
    assert engine.fed[1:] == [[OPEN], [198], [500], [CLOSE], [271], [600]]


def test_the_message_goes_in_as_one_pass() -> None:
    turn, engine = scripted([OPEN, 198, 500, 501, 502], budget=2, max_tokens=3)
    assert (turn.closed_by, turn.thinking_tokens, turn.answer_tokens, turn.finish) == ("budget", 2, 3, "length")
    assert STOP_IDS in engine.fed
    assert "limited time" in turn.thinking


def test_a_natural_close_on_the_last_token_is_the_models() -> None:
    turn, engine = scripted([OPEN, 198, 500, CLOSE, 600, END], budget=2)
    assert turn.closed_by == "model"
    assert STOP_IDS not in engine.fed


def test_a_second_open_does_not_restart_the_count() -> None:
    turn, _ = scripted([OPEN, 500, OPEN, 500, 500, 500], budget=3, max_tokens=2)
    assert turn.thinking_tokens == 3


def test_a_second_close_cannot_leak() -> None:
    turn, _ = scripted([OPEN, 500, 501, CLOSE, CLOSE, 271, CLOSE, 600, END], budget=1)
    assert CLOSE not in turn.generated
    assert "</think>" not in turn.answer


def test_the_end_inside_a_thought_closes_it_and_there_is_an_answer() -> None:
    turn, engine = scripted([OPEN, 500, END, 600, END], budget=-1)
    assert (turn.closed_by, turn.finish, turn.answer_tokens) == ("model", "stop", 1)
    assert [198, CLOSE, 271] in engine.fed


def test_a_character_is_not_cut_in_two() -> None:
    tokenizer = TextTokenizer.load(reference("qwen3-tokenizer"))
    pieces = tokenizer.ids(["𓀀"])[0]
    assert len(pieces) > 1
    turn, engine = scripted([OPEN, 500, *pieces], budget=2, max_tokens=1)
    assert turn.thinking_tokens == 1
    assert turn.generated[:2] == [OPEN, 500]
    assert "�" not in turn.thinking
    at = engine.fed.index(STOP_IDS)
    assert engine.fed[at - 1] == [pieces[0]]
    assert pieces[0] not in engine.held


def test_a_sentence_is_finished_within_the_grace() -> None:
    tokenizer = TextTokenizer.load(reference("qwen3-tokenizer"))
    [[dot]] = tokenizer.ids(["."])
    words = [OPEN, *[500] * 21, dot, *[501] * 20]
    turn, _ = scripted(words, budget=20, think_stop="sentence", max_tokens=1)
    assert turn.thinking_tokens == 22
    turn, _ = scripted([OPEN, *[500] * 60], budget=20, think_stop="sentence", max_tokens=1)
    assert turn.thinking_tokens == 22


def test_stop_strings_and_their_beginnings() -> None:
    tokenizer = TextTokenizer.load(reference("qwen3-tokenizer"))
    stream = Stream(tokenizer, ("END",), strip=False)
    ids = iter(tokenizer.ids(["an E, an EN and the END here"])[0])
    text = ""
    while not stream.stopped:
        text += stream.push(next(ids))
    assert text == "an E, an EN and the "
    assert stream.stopped == "END"


def test_streamed_text_is_the_text() -> None:
    tokenizer = TextTokenizer.load(reference("qwen3-tokenizer"))
    wanted = "naïve 日本語 👩‍👩‍👧 𓀀 done\n\n  x"
    stream = Stream(tokenizer, strip=False)
    assert "".join(stream.push(i) for i in tokenizer.ids([wanted])[0]) + stream.flush() == wanted


def test_sampling_follows_its_rules() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    drawn = {Sampler(Sampling(temperature=1, top_k=2, top_p=1), s).draw(logits) for s in range(60)}
    assert drawn == {0, 1}
    assert {Sampler(Sampling(temperature=1, top_p=0.5, top_k=0), s).draw(logits) for s in range(20)} == {0}
    sampler = Sampler(Sampling(temperature=0, presence_penalty=1.5), 0)
    sampler.saw(0)
    assert sampler.draw(logits) == 1
    sampler = Sampler(Sampling(temperature=0, presence_penalty=1.5), 0, exempt=[0])
    sampler.saw(0)
    assert sampler.draw(logits) == 0
    with pytest.raises(QwenchError, match="top-p"):
        Sampling(top_p=0)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
        {"rope_type": "linear", "factor": 2.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
    ],
)
def test_rotary_kinds_equal_transformers(rope: dict) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(**SHAPE, max_position_embeddings=1024, rope_parameters=rope | {"rope_theta": 10000.0})
    wanted, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")
    found, factor = frequencies(config.to_dict(), 32)
    torch.testing.assert_close(found, wanted)
    assert factor == pytest.approx(scale)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantized_weights_are_near(models, quantize: str) -> None:
    exact, near = (
        load_causal(resolve(str(models("qwen3"))), runtime=Runtime(quantize=q, dtype="float32"))
        for q in ("none", quantize)
    )
    ids = list(range(300, 340))
    for new in (ids, [7]):
        a, b = (m.engine.feed({0: new})[0] for m in (exact, near))
        assert torch.cosine_similarity(a, b, dim=0) > (0.995 if quantize == "int8" else 0.9)


def test_names_of_efforts() -> None:
    assert [budget_of(t) for t in ("-1", "0", "low", "high", "77")] == [-1, 0, 1024, 24576, 77]
    with pytest.raises(QwenchError, match="not a thinking budget"):
        budget_of("some")


def finished(events) -> dict:
    return next(e.result for e in events if isinstance(e, Finished))


def test_a_session_undoes_saves_and_goes_on(models, tmp_path: Path) -> None:
    chat = Chat(ChatOptions(model=str(models("qwen3")), think_budget="0", max_tokens=5, seed=1, system="Be brief."))
    list(chat.load())
    first = finished(chat.turn("one"))
    second = finished(chat.turn("two </think> <|im_end|> \x1b[31m"))
    assert second["cached_tokens"] > 0
    assert chat.undo() == "two </think> <|im_end|> \x1b[31m"
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant"]
    chat.save(tmp_path / "t.jsonl")
    other = Chat(ChatOptions(model=str(models("qwen3"))))
    other.open(tmp_path / "t.jsonl")
    assert other.messages == chat.messages
    assert other.messages[-1]["content"] == first["answer"]
    with pytest.raises(QwenchError, match=r"the folder of the transcript is not there: `.*/no`"):
        chat.save(tmp_path / "no" / "t.jsonl")
    with pytest.raises(QwenchError, match="no room for"):
        list(chat.turn("word " * 250_000))
    assert chat.messages[-1]["role"] == "assistant"


def test_budget_zero_is_the_non_thinking_template(models) -> None:
    chat = Chat(ChatOptions(model=str(models("qwen3")), think_budget="0"))
    list(chat.load())
    hi = [{"role": "user", "content": "hi"}]
    request = chat.writer.prepare(chat.ask(0, hi, 0))
    assert request.ids[-4:] == [151667, 271, 151668, 271]
    assert (request.sampling.temperature, request.sampling.top_p) == (0.7, 0.8)
    chat.budget = 5
    request = chat.writer.prepare(chat.ask(0, hi, 0))
    assert request.ids[-1] == 198
    assert (request.sampling.temperature, request.sampling.top_p) == (0.6, 0.95)


def test_many_prompts_come_back_in_order(models, tmp_path: Path) -> None:
    options = ChatOptions(model=str(models("qwen3")), max_tokens=4, slots=3, seed=3, think_budget="2")
    lines = [{"id": i, "seed": "mine", "prompt": "word " * (1 + (i * 7) % 11)} for i in range(8)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = JobOptions(str(tmp_path / "q.jsonl"))
    rows = [e.row for e in many(options, job) if isinstance(e, Produced)]
    assert [r["id"] for r in rows] == list(range(8))
    assert [r["seed"] for r in rows] == list(range(3, 11)) and all(r["input_seed"] == "mine" for r in rows)
    assert all(r["answer_tokens"] <= 4 and r["thinking_tokens"] <= 2 for r in rows)
    (tmp_path / "q.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(QwenchError, match="line 1: there is neither"):
        list(many(options, job))


def test_the_command(qwench, models) -> None:
    folder = models("qwen3")
    done = qwench("chat", "--model", folder, "hello", "--max-tokens", 4, "--seed", 1, "--think-budget", 3, "--json")
    assert done.returncode == 0, done.stderr
    turn = json.loads(done.stdout)
    assert turn["answer_tokens"] <= 4
    assert turn["choices"]["device"]["reason"]
    piped = qwench("chat", "--model", folder, "--max-tokens", 4, "--seed", 1, "--think-budget", 3, input="hello\n")
    assert piped.stdout.strip() == turn["answer"].strip()
    empty = qwench("chat", "--model", folder, input="")
    assert empty.returncode == 2
    assert "empty" in empty.stderr


def test_a_model_without_tags_says_so(qwench) -> None:
    done = qwench("chat", "--model", "smollm2", "hello", "--think-budget", 64)
    assert done.returncode == 1
    assert "no thinking tags" in done.stderr or "not installed" in done.stderr


def test_swapped_slots_keep_their_sequences(models) -> None:
    ids = [[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15, 16]]
    engine = load_causal(resolve(str(models("qwen3"))), slots=3).engine
    engine.feed(dict(enumerate(ids)))
    engine.swap(0, 2)
    assert [engine.length(s) for s in range(3)] == [5, 3, 4]
    got = engine.feed({0: [20], 1: [21], 2: [22]})
    for slot, whole in enumerate(([*ids[2], 20], [*ids[1], 21], [*ids[0], 22])):
        fresh = load_causal(resolve(str(models("qwen3")))).engine
        torch.testing.assert_close(got[slot], fresh.feed({0: whole})[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("said", "wanted", "is_right"),
    [
        ("so it is 1,024.", 1024, True),
        ("first 7, then 8", 7, False),
        (r"\boxed{12} of 13", "12", True),
        ("It is Paris.", "paris", True),
        ("Parisian", "Paris", False),
        ("", "5", False),
        ("-3.50", -3.5, True),
    ],
)
def test_what_counts_as_right(said: str, wanted: object, is_right: bool) -> None:
    assert right(said, wanted) is is_right


def test_a_sweep_over_budgets(qwench, models, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} and {i}", "gold": "x"} for i in range(3)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    args = ["chat", "--model", models("qwen3"), "--force-think", "--prompts", "q.jsonl", "--sweep", "0,4,12"]
    args += ["--answer-field", "gold", "--max-tokens", "5", "--batch", "2", "--temperature", "0"]
    done = qwench(*args, "--json", "--plot", "curve.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    points = json.loads(done.stdout)["points"]
    assert [p["budget"] for p in points] == [0, 4, 12] and all(p["questions"] == 3 for p in points)
    assert [p["thinking_tokens"] <= p["budget"] for p in points] == [True] * 3
    assert points[0]["thinking_tokens"] == 0 and points[1]["cut"] == 1 and points[1]["thinking_tokens"] == 4
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    table = qwench(*args, cwd=tmp_path)
    assert len(table.stdout.splitlines()) == 4 and "accuracy" in table.stdout
    wrong = qwench(*args, "--answer-field", "nothing", cwd=tmp_path)
    assert wrong.returncode == 1 and "line 1 has no field `nothing`" in wrong.stderr
    assert qwench("chat", "--sweep", "0").returncode == 2


def test_a_question_wanders_from_model_to_model(models, tmp_path: Path) -> None:
    chat = Chat(ChatOptions(model=str(models("qwen3")), max_tokens=4, seed=1))
    list(chat.load())
    finished(chat.turn("one"))
    with pytest.raises(QwenchError):
        list(chat.switch(str(tmp_path / "none")))
    assert finished(chat.turn("two"))["answer_tokens"] == 4
    list(chat.switch(str(models("llama"))))
    assert finished(chat.turn("three"))["answer_tokens"] == 4
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 3


def test_a_full_disk_keeps_the_transcript_that_is_there(models, tmp_path: Path, monkeypatch) -> None:
    chat = Chat(ChatOptions(model="any", seed=1))
    chat.messages = [{"role": "user", "content": "one"}]
    chat.save(tmp_path / "t.jsonl")
    before = (tmp_path / "t.jsonl").read_text()
    chat.messages.append({"role": "assistant", "content": "two"})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QwenchError, match=r"the transcript cannot be written \(no space left"):
        chat.save(tmp_path / "t.jsonl")
    assert (tmp_path / "t.jsonl").read_text() == before and [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]


def test_engines_say_why(tmp_path: Path, monkeypatch) -> None:
    gguf, folder = tmp_path / "m.gguf", tmp_path / "m"
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: object())
    pick = llama_cpp.pick_engine
    assert pick("auto", gguf, "cpu", "none", None).value == "torch"
    slower = pick("auto", gguf, "cpu", "none", None, "it has experts")
    assert (slower.value, slower.reason) == ("llama.cpp", "it has experts")
    kept = pick("auto", gguf, "cpu", "none", None, "it has experts", "--dtype bfloat16")
    assert (kept.value, kept.reason) == ("torch", "--dtype bfloat16 is for it")
    assert pick("auto", gguf, "cuda", "none", None).value == "torch"
    assert pick("auto", gguf, "cpu", "int8", None).value == "torch"
    assert pick("auto", folder, "cpu", "none", None).value == "torch"
    assert "attention gates" in pick("auto", gguf, "cpu", "none", "attention gates").reason
    for engine, path, quantize in (("llama.cpp", folder, "none"), ("llama.cpp", gguf, "int8"), ("other", gguf, "none")):
        with pytest.raises(QwenchError):
            pick(engine, path, "cpu", quantize, None)
    monkeypatch.setattr(llama_cpp, "find_spec", lambda name: None)
    assert pick("auto", gguf, "cpu", "none", None).value == "torch"
    with pytest.raises(QwenchError, match="llama-cpp-python"):
        pick("llama.cpp", gguf, "cpu", "none", None)


def test_llama_cpp_says_the_same(qwench, models, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is an extra")
    path = tmp_path / "m.gguf"
    done = qwench("convert", models("qwen3"), path, "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    prompts = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15, 16], [17] * 30, [18, 19]]
    texts = {}
    for engine in ("torch", "llama.cpp"):
        loaded = load_causal(resolve(str(path)), slots=3, context=256, runtime=Runtime(engine=engine))
        g = Generator(loaded.engine, loaded.tokenizer, Think.of(loaded.tokenizer), [])
        # A random model's best two tokens may be as close as the cache's float16: the shares say what is a tie.
        wanted = [Request(i, p, max_tokens=12, budget=0, sampling=GREEDY, logprobs=2) for i, p in enumerate(prompts)]
        texts[engine] = answers(g.run(wanted))
        assert loaded.runner.value == engine
    for key, ours in texts["torch"].items():
        for a, b in zip(ours.logprobs, texts["llama.cpp"][key].logprobs, strict=True):
            if a["id"] != b["id"]:
                assert a["logprob"] - a["top"][1]["logprob"] < 0.02
                break
            assert abs(a["logprob"] - b["logprob"]) < 0.02


def test_llama_cpp_refuses_what_is_no_model(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is an extra")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(QwenchError, match=r"llama\.cpp cannot load"):
        llama_cpp.LlamaCpp(tmp_path / "bad.gguf")


@pytest.mark.parametrize("layout", ["fork", "stock"])
def test_gated_models_say_what_the_published_code_says(qwench, tmp_path: Path, layout: str) -> None:
    from safetensors.torch import load_file

    folder = reference("gated-headwise")
    expected = load_file(folder / "expected.safetensors")
    if layout == "stock":
        done = qwench("convert", folder, tmp_path / "stock", "--gate-layout", "stock")
        assert done.returncode == 0, done.stderr
        folder = tmp_path / "stock"
    config = json.loads((folder / "config.json").read_text())
    assert decoder.supports(config) is None
    for row, (ids, logits) in enumerate(zip(expected["input_ids"], expected["logits"], strict=True)):
        engine = CausalDecoder(config, Weights(folder, decoder.PREFIXES), torch.float32, slots=2)
        got = torch.cat([engine.feed({0: ids[: n + 1].tolist()[engine.length(0) :]}) for n in range(len(ids))])
        torch.testing.assert_close(got, logits, atol=2e-5, rtol=0)
        if row >= len(expected["greedy"]):
            continue
        said, logit, greedy = ids.tolist(), got[-1], expected["greedy"][row]
        while len(said) < len(greedy):
            said.append(int(logit.argmax()))
            logit = engine.feed({0: [said[-1]]})[0]
        assert said == greedy.tolist()
