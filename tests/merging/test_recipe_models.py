"""How recipes name models, dtypes and tokenizers, and heads that are tied in one model alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from qwench.ops.merge import MergeOptions, merge
from qwench.ops.merging.recipe import from_yaml
from qwench.ops.merging.reference import Reference, parse

from tests.checkpoint.small import adapter, decoder, held, tokenizer


def run(folder: Path, *models: str, **options: Any) -> dict[str, Any]:
    chosen = MergeOptions(tuple(str(folder / m) for m in models), str(folder / "o"), force=True, **options)
    return list(merge(chosen))[-1].result


def recipe(folder: Path, text: str) -> dict[str, Any]:
    """Merge by a recipe whose models are named after folders in `folder`."""
    for name in "ABCD":
        text = text.replace(f"${name}", str(folder / name))
    (folder / "r.yml").write_text(text)
    return run(folder, config=str(folder / "r.yml"))


BOTH = (
    "models:\n- {model: $A, parameters: {weight: 1}}\n- {model: $B, parameters: {weight: 0.5}}\nmerge_method: linear\n"
)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    for seed, name in enumerate("AB"):
        decoder(tmp_path / name, "llama", seed=seed)
    return tmp_path


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ("dtype: float16", torch.float16),
        ("dtype: float32\nout_dtype: float16", torch.float16),
        ("dtype: float32", torch.float32),
        ("", torch.bfloat16),
    ],
)
def test_a_recipes_dtype_is_that_of_the_result(lines: str, kind: torch.dtype, pair: Path) -> None:
    result = recipe(pair, BOTH + lines)
    assert {t.dtype for t in held(pair / "o").values()} == {kind}
    # The recipe that is written down says the same again.
    again = recipe(pair, result["recipe"])
    assert {t.dtype for t in held(pair / "o").values()} == {kind} and again["recipe"] == result["recipe"]


def test_models_are_named_as_mergekit_names_them(tmp_path: Path) -> None:
    for name in ("C++/m", "at@home", "l+x"):
        (tmp_path / name).mkdir(parents=True)
    plus, at, lora = (str(tmp_path / n) for n in ("C++/m", "at@home", "l+x"))
    for text, want in {
        "me/tiny": Reference("me/tiny"),
        "me/tiny@dpo": Reference("me/tiny", "dpo"),
        "me/tiny@dpo+you/lora@v1": Reference("me/tiny", "dpo", "you/lora@v1"),
        f"{plus}+{lora}": Reference(plus, None, lora),
        f"{plus}+you/lora": Reference(plus, None, "you/lora"),
        plus: Reference(plus),
        at: Reference(at),
        f"me/tiny+{lora}": Reference("me/tiny", None, lora),
    }.items():
        assert parse(text) == want, text
    for text in (f"{plus}@main", "me/tiny@", "me/tiny+"):
        with pytest.raises(QwenchError):
            parse(text)


def test_revisions_of_a_recipe_are_asked_for(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def download(name: str, revision: str | None = None, **more: Any) -> str:
        asked.append((name, revision))
        return str(pair / ("A" if revision == "dpo" else "B"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    mapping = "{model: {path: me/tiny, revision: dpo}}"
    for named in (mapping, "me/tiny@dpo", "{model: me/tiny@dpo}"):
        text = BOTH.replace("$A", named).replace("weight: 0.5", "weight: 0.0")
        (pair / "r.yml").write_text(text.replace("$B", str(pair / "B")) + "out_dtype: bfloat16\n")
        run(pair, config=str(pair / "r.yml"), runtime=Runtime(offline=True))
        found, want = held(pair / "o"), held(pair / "A")
        assert all(torch.equal(found[n], want[n]) for n in want)
        assert "me/tiny@dpo" in (pair / "o" / "mergekit_config.yml").read_text()
    assert set(asked) == {("me/tiny", "dpo")}
    for odd in ("{model: {path: x, branch: y}}", "{path: x}", "{model: x, override_architecture: Y}", "{model: [x]}"):
        (pair / "r.yml").write_text(BOTH.replace("$A", odd))
        with pytest.raises(QwenchError, match=r"in a way that is not understood|override_architecture"):
            from_yaml(pair / "r.yml")


@pytest.mark.parametrize("first", ["tied", "own"])
def test_a_tied_head_is_merged_as_the_embeddings_it_is(first: str, tmp_path: Path) -> None:
    tied = decoder(tmp_path / "tied", "llama", tied=True, dtype=torch.float32)
    own = decoder(tmp_path / "own", "llama", seed=1, dtype=torch.float32)
    second = "own" if first == "tied" else "tied"
    run(tmp_path, first, second, method="linear")
    found = held(tmp_path / "o")
    want = (own["lm_head.weight"] + tied["model.embed_tokens.weight"]) / 2
    torch.testing.assert_close(found["lm_head.weight"], want)
    rows = (own["model.embed_tokens.weight"] + tied["model.embed_tokens.weight"]) / 2
    torch.testing.assert_close(found["model.embed_tokens.weight"], rows)
    assert json.loads((tmp_path / "o" / "config.json").read_text())["tie_word_embeddings"] is False


def test_two_tied_models_stay_tied(tmp_path: Path) -> None:
    for seed, name in enumerate("AB"):
        decoder(tmp_path / name, seed=seed)
    run(tmp_path, "A", "B")
    assert "lm_head.weight" not in held(tmp_path / "o")
    assert json.loads((tmp_path / "o" / "config.json").read_text())["tie_word_embeddings"] is True


def test_another_models_tokenizer_comes_with_its_templates(pair: Path) -> None:
    for name in "AB":
        (pair / name / "chat_template.jinja").write_text(name)
    (pair / "A" / "additional_chat_templates").mkdir()
    (pair / "A" / "additional_chat_templates" / "tool.jinja").write_text("A")
    shutil.copytree(pair / "B", pair / "D")
    (pair / "D" / "chat_template.jinja").write_text("D")
    for source in "BD":
        notes = recipe(pair, BOTH + f"tokenizer_source: ${source}\n")["notes"]
        assert (pair / "o" / "chat_template.jinja").read_text() == source
        assert not (pair / "o" / "additional_chat_templates").exists()
        told = next(n for n in notes if n.startswith("`chat_template.jinja` differs"))
        assert told.endswith(f"{source}` is taken")
    recipe(pair, BOTH)
    assert (pair / "o" / "chat_template.jinja").read_text() == "A"
    assert (pair / "o" / "additional_chat_templates" / "tool.jinja").read_text() == "A"
    tokenizer(pair / "D", ("<|endoftext|>", *(f"<{n}>" for n in range(20))))
    with pytest.raises(QwenchError, match="has a token 276 and the embeddings 272 rows"):
        recipe(pair, BOTH + "tokenizer_source: $D\n")
    with pytest.raises(QwenchError, match="no such model: `C`"):
        recipe(pair, BOTH + "tokenizer_source: C\n")


def test_a_union_of_one_vocabulary_is_that_vocabulary(pair: Path) -> None:
    recipe(pair, BOTH + "tokenizer_source: union\n")
    assert (pair / "o" / "tokenizer.json").read_bytes() == (pair / "A" / "tokenizer.json").read_bytes()
    tokenizer(pair / "B", ("<|endoftext|>", "<more>"))
    with pytest.raises(QwenchError, match=r"union of different vocabularies.*<more>"):
        recipe(pair, BOTH + "tokenizer: {source: union}\n")


def test_one_module_is_the_model_and_several_are_refused(pair: Path) -> None:
    plain = recipe(pair, BOTH + "name: my merge\nparameters: {normalize: false}\n")
    want = held(pair / "o")
    assert "# my merge" in (pair / "o" / "README.md").read_text()
    assert plain["recipe"].startswith("name: my merge\n")
    inner = "".join(f"    {line}\n" for line in BOTH.splitlines()[:3])
    text = f"modules:\n  default:\n{inner}    parameters: {{normalize: false}}\nmerge_method: linear\n"
    recipe(pair, text + "parameters: {normalize: true}\n")
    found = held(pair / "o")
    assert found.keys() == want.keys() and all(torch.equal(found[n], want[n]) for n in want)
    with pytest.raises(QwenchError, match="several modules, which is not supported: text, vision"):
        recipe(pair, "modules:\n  text: {models: []}\n  vision: {models: []}\nmerge_method: linear\n")


def test_an_adapter_beside_a_folder_with_a_plus(pair: Path) -> None:
    (pair / "C++").mkdir()
    shutil.move(pair / "A", pair / "C++" / "m")
    part = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    a, b = torch.randn(4, 32), torch.randn(64, 4)
    adapter(pair / "l", {f"{part}A.weight": a, f"{part}B.weight": b})
    chosen = (f"{pair}/C++/m+{pair}/l", str(pair / "B"))
    list(merge(MergeOptions(chosen, str(pair / "o"), method="linear", weight="1,0", out_dtype="float32")))
    name = "model.layers.0.mlp.up_proj.weight"
    want = (held(pair / "C++" / "m")[name].float() + 2 * b @ a).bfloat16().float()
    torch.testing.assert_close(held(pair / "o")[name], want)
