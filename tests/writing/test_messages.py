"""What rows, templates and stop strings may say, and what is refused rather than lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.models.nets.rope import frequencies
from qwench.ops.models.template import ChatTemplate
from qwench.ops.writing.many import messages_of
from qwench.ops.writing.right import right
from qwench.ops.writing.session import Chat, ChatOptions
from qwench.ops.writing.thinking import Stream
from tokenizers import Tokenizer

from tests import tiny
from tests.conftest import Run

CHATML = (
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert messages_of({"messages": [{"role": "user", "content": parts}]}) == [{"role": "user", "content": "one two"}]
    called = {"role": "assistant", "content": None, "tool_calls": []}
    assert messages_of({"messages": [called]})[0]["content"] == ""
    assert messages_of({"prompt": "hi"}) == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "neither a prompt nor messages"),
        ({"prompt": 3}, "neither a prompt nor messages"),
        ({"messages": "hi"}, "no list of messages"),
        ({"messages": []}, "no list of messages"),
        ({"messages": [{"content": "hi"}]}, "no role"),
        ({"messages": [{"role": "user"}]}, "no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "type `image_url`"),
    ],
)
def test_messages_that_cannot_be_read_are_refused(row: dict, words: str) -> None:
    with pytest.raises(QwenchError, match=words):
        messages_of(row)


def test_a_role_that_the_template_leaves_out_is_refused() -> None:
    template = ChatTemplate(CHATML, {})
    assert "hello" in template.render([{"role": "user", "content": " hello "}])[0]
    with pytest.raises(QwenchError, match="leaves a message out: role `human`"):
        template.render([{"role": "human", "content": "hello"}])


def test_generation_marks_leave_the_text_alone() -> None:
    marked = CHATML.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert ChatTemplate(marked, {}).render(messages) == ChatTemplate(CHATML, {}).render(messages)
    assert not ChatTemplate(CHATML, {}).thinks and ChatTemplate(CHATML + "{# enable_thinking #}", {}).thinks


class Bytes:
    backend: Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Bytes:
    folder = tmp_path_factory.mktemp("bytes")
    tiny.byte_tokenizer(folder)
    found = Bytes()
    found.backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return found


@pytest.mark.parametrize("stops", [("xyz", "b"), ("b", "xyz"), ("bxyz", "b"), ("abx", "b")])
def test_the_earliest_stop_ends_the_text(tokenizer: Bytes, stops: tuple[str, ...]) -> None:
    """Whatever their order, and however many characters come at once."""
    stream = Stream(tokenizer, stops)
    stream.show("aabxyz")
    assert stream.text == ("a" if "abx" in stops else "aa")
    assert stream.stopped in stops


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(QwenchError, match="--stop"):
        Chat(ChatOptions(stops=("END", "")))


def test_reset_keeps_the_system_text_of_the_session() -> None:
    chat = Chat(ChatOptions(system="first"))
    chat.instruct("second")
    chat.messages.append({"role": "user", "content": "hi"})
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "second"}]
    chat.instruct(None)
    chat.reset()
    assert chat.messages == []


@pytest.mark.parametrize(
    ("said", "wanted", "good"),
    [
        ("it is \u22125", "-5", True),
        ("it is -5", "\u22125", True),
        ("it is 5", "-5", False),
        ("1e5 of them", 100000, True),
        ("so \\boxed{(1,2,3)}", "(1,2,3)", True),
        ("so \\boxed{(1,2,4)}", "(1,2,3)", False),
        ("1,234,567 people", "1234567", True),
        ("about 3.14.", "3.14", True),
    ],
)
def test_numbers_of_people(said: str, wanted: object, good: bool) -> None:
    assert right(said, wanted) is good


@pytest.mark.parametrize("pair", [{}, {"mscale": 0.707, "mscale_all_dim": 1.0}, {"mscale": 1.0}])
def test_yarn_is_transformers_whichever_key_says_so(pair: dict) -> None:
    from transformers import Qwen3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    shape = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "max_position_embeddings": 4096}
    yarn = {"factor": 4.0, "original_max_position_embeddings": 1024, **pair}
    wanted = Qwen3Config(**shape, rope_parameters={"rope_type": "yarn", "rope_theta": 1e6} | yarn)
    inverse, scale = ROPE_INIT_FUNCTIONS["yarn"](wanted, "cpu")
    plain = {"rope_type": "default", "rope_theta": 1e6}
    for said in (
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6} | yarn},
        {"rope_theta": 1e6, "rope_scaling": {"type": "yarn"} | yarn},
        {"rope_parameters": plain, "rope_scaling": {"rope_type": "yarn"} | yarn},
        {"rope_parameters": plain, "rope_scaling": {"type": "yarn"} | yarn},
    ):
        ours, factor = frequencies(shape | said, 16)
        assert torch.equal(ours, inverse) and factor == pytest.approx(scale, rel=1e-12)


def test_fields_that_nobody_hears_are_said(qwench: Run, tmp_path: Path) -> None:
    model = tiny.byte_decoder(tmp_path / "m")
    rows = [{"prompt": "a", "max_tokens": 3, "tools": []}, {"prompt": "b"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = qwench("chat", "-m", model, "--prompts", tmp_path / "p.jsonl", "--max-tokens", "2")
    assert done.returncode == 0 and "`tools`, `max_tokens`" in done.stderr
    (tmp_path / "p.jsonl").write_text(json.dumps(rows[1]) + "\n" + json.dumps({"messages": "hi"}) + "\n")
    done = qwench("chat", "-m", model, "--prompts", tmp_path / "p.jsonl", "--max-tokens", "2")
    assert done.returncode == 1 and "line 2" in done.stderr and done.stdout == ""


def test_a_pipe_joins_the_prompt(qwench: Run, tmp_path: Path) -> None:
    model = tiny.byte_decoder(tmp_path / "m")
    args = ("chat", "-m", model, "--max-tokens", "1", "--json", "Repeat:")
    alone, piped = (json.loads(qwench(*args, input=text).stdout) for text in ("", "more words"))
    assert piped["prompt_tokens"] > alone["prompt_tokens"]


def test_texts_of_a_model_without_a_template_begin_as_its_tokenizer_begins_them(qwench: Run, tmp_path: Path) -> None:
    model = tiny.byte_decoder(tmp_path / "m", "llama")
    args = ("chat", "-m", model, "--max-tokens", "1", "--json", "abc")
    before = json.loads(qwench(*args).stdout)["prompt_tokens"]
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    single = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    end = {"id": "<|endoftext|>", "ids": [256], "tokens": ["<|endoftext|>"]}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": end},
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert json.loads(qwench(*args).stdout)["prompt_tokens"] == before + 1
