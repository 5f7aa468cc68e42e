"""`--verify logits` and `qwench gates`: transformers as the witness."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.checkpoint.reader import Source
from qwench.ops.convert import ConvertOptions, convert
from qwench.ops.gates import gates

from tests import tiny
from tests.checkpoint.test_checkpoint import run
from tests.checkpoint.test_gguf import made
from tests.conftest import Run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.qwen3_reranker(tmp_path_factory.mktemp("model") / "model")


def test_logits_are_compared(tmp_path: Path) -> None:
    source = made(tmp_path / "in", "Qwen3")
    for out, options, exact in (
        # Norms near zero lose a bit when they are stored less one, as Qwen3-Next has them.
        ("gated", {"gate": "elementwise"}, False),
        ("fork", {"gate": "headwise", "gate_layout": "fork"}, False),
        ("x.gguf", {}, True),
        ("bf16", {"dtype": "bfloat16"}, False),
        ("q8.gguf", {"dtype": "q8_0"}, False),
    ):
        found = run(source, tmp_path / out, verify="logits", **options)["logits"]
        assert found["tokens"] == 64
        assert found["max_difference"] == 0 or not exact, out
        assert found["max_difference"] < 1e-5 or "dtype" in options, out
        assert found["kl"] < 0.01


def test_a_model_that_answers_differently_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwench.ops.checkpoint import gguf_plan

    source = made(tmp_path / "in", "Llama")
    monkeypatch.setattr(gguf_plan, "PERMUTED", ())
    with pytest.raises(QwenchError, match="answers differently") as caught:
        run(source, tmp_path / "x.gguf", verify="logits")
    assert caught.value.code == 3
    assert not (tmp_path / "x.gguf").exists()


def test_logits_need_the_same_question(model: Path, tmp_path: Path) -> None:
    with pytest.raises(QwenchError, match="--verify logits is for") as caught:
        list(convert(ConvertOptions(str(model), str(tmp_path / "out"), head="reranker", verify="logits")))
    assert caught.value.code == 2
    assert list(tmp_path.iterdir()) == []


def test_sinks_are_measured(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)
    text = "attention sinks are where attention goes when it has nowhere to go"
    found = list(gates(str(model), [text], str(tmp_path / "a.png")))[-1].result
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    from transformers import AutoTokenizer

    ids = torch.tensor([AutoTokenizer.from_pretrained(model).encode(text)])
    with torch.no_grad():
        wanted = stock(ids, output_attentions=True, output_hidden_states=True)
    assert found["tokens"] == ids.shape[1]
    for row, attention in zip(found["layers"], wanted.attentions, strict=True):
        shares = [attention[0, h, t, 0].item() for h in range(attention.shape[1]) for t in range(1, ids.shape[1])]
        assert row["first_token"] == pytest.approx(sum(shares) / len(shares), rel=1e-4)
        assert row["gate"] is None
    assert found["layers"][0]["largest"] == pytest.approx(wanted.hidden_states[1].abs().max().item(), rel=1e-5)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("layout", ["stock", "fork"])
def test_inserted_gates_are_half_open(
    model: Path, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(model, tmp_path / "gated", gate="headwise", gate_layout=layout)
    plain = list(gates(str(model), ["one two three"]))[-1].result["layers"]
    rows = list(gates(str(tmp_path / "gated"), ["one two three"]))[-1].result["layers"]
    assert [(r["gate"], r["closed"]) for r in rows] == [(0.5, 0.0)] * len(rows)
    assert [r["first_token"] for r in rows] == pytest.approx([r["first_token"] for r in plain], rel=1e-5)


def test_gates_from_the_shell(qwench: Run, model: Path, tmp_path: Path) -> None:
    done = qwench("gates", model, "a few words of text", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["layers"]) == Source(model).config()["num_hidden_layers"]
    done = qwench("gates", model, "a", cwd=tmp_path)
    assert (done.returncode, "no such file: `a`" in done.stderr) == (1, True)
    (tmp_path / "one.txt").write_text("a")
    done = qwench("gates", model, "one.txt", cwd=tmp_path)
    assert (done.returncode, "more than one token" in done.stderr) == (1, True)
    done = qwench("gates", model, "-", "--max-tokens", "3", input="some words on standard input", cwd=tmp_path)
    assert done.returncode == 0 and "is cut from" in done.stderr and "3 tokens of 1 texts" in done.stderr


def test_texts_count_by_their_tokens(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two texts together are the mean of both, weighted by heads times later positions."""
    monkeypatch.chdir(tmp_path)
    texts = ["one two three", "many more words than there were in the other text"]
    (tmp_path / "second.txt").write_text(texts[1])
    alone = [list(gates(str(model), [t]))[-1].result for t in texts]
    both = list(gates(str(model), [texts[0], "second.txt"]))[-1].result
    assert (both["texts"], both["tokens"]) == (2, alone[0]["tokens"] + alone[1]["tokens"])
    later = [a["tokens"] - 1 for a in alone]
    for row, a, b in zip(both["layers"], *(x["layers"] for x in alone), strict=True):
        wanted = (a["first_token"] * later[0] + b["first_token"] * later[1]) / sum(later)
        assert row["first_token"] == pytest.approx(wanted, rel=1e-6)
        assert row["largest"] == pytest.approx(max(a["largest"], b["largest"]), rel=1e-6)


def test_a_missing_matplotlib_names_the_command(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(QwenchError, match="drawing needs matplotlib") as caught:
        list(gates(str(model), ["some words"], "x.png"))
    assert "qwench[plot]" in str(caught.value.hint)
