"""What a conversion derives is made of the plan as it stands: heads of merged weights, poolings that were dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.checkpoint.gguf_file import GgufFile
from qwench.ops.convert import ConvertOptions, convert

from tests.checkpoint.small import adapter, decoder, held, tokenizer

BASE = "base_model.model."
YES, NO = 257, 258


def run(source: Path, out: Path, **options: Any) -> dict[str, Any]:
    return list(convert(ConvertOptions(str(source), str(out), **options)))[-1].result


def judge(folder: Path, tied: bool = True) -> dict[str, torch.Tensor]:
    made = decoder(folder, tied=tied)
    tokenizer(folder, ("<|endoftext|>", "yes", "no"))
    return made


def random(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_score_rows_are_those_of_a_saved_head(tmp_path: Path) -> None:
    judge(tmp_path / "m")
    new = random(272, 32).bfloat16()
    folder = adapter(tmp_path / "a", {f"{BASE}model.embed_tokens.weight": new, f"{BASE}lm_head.weight": new.clone()})
    run(tmp_path / "m", tmp_path / "o", head="reranker", lora=(str(folder),), verify="bits")
    found = held(tmp_path / "o")
    assert torch.equal(found["score.weight"][0], new[YES].float() - new[NO].float())
    assert torch.equal(found["model.embed_tokens.weight"], new) and "lm_head.weight" not in found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("labels", [1, 2])
def test_score_rows_are_those_of_a_merged_head(tied: bool, labels: int, tmp_path: Path) -> None:
    made = judge(tmp_path / "m", tied)
    a, b = random(4, 32), random(272, 4, seed=6)
    folder = adapter(tmp_path / "a", {f"{BASE}lm_head.lora_A.weight": a, f"{BASE}lm_head.lora_B.weight": b})
    run(tmp_path / "m", tmp_path / "o", head="reranker", labels=labels, lora=(str(folder),))
    head = made["model.embed_tokens.weight" if tied else "lm_head.weight"].float() + 2 * b @ a
    want = (head[YES] - head[NO])[None] if labels == 1 else torch.stack((head[NO], head[YES]))
    found = held(tmp_path / "o")
    torch.testing.assert_close(found["score.weight"], want, atol=1e-5, rtol=1e-5)
    # The rows that make the input stay as they were: the adapter is of the other end.
    assert torch.equal(found["model.embed_tokens.weight"], made["model.embed_tokens.weight"])


def test_an_adapter_of_the_embeddings_of_an_untied_classifier_is_merged(tmp_path: Path) -> None:
    made = judge(tmp_path / "m", tied=False)
    run(tmp_path / "m", tmp_path / "c", head="reranker")
    a, b = random(4, 272), random(32, 4, seed=6)
    names = (f"{BASE}model.embed_tokens.lora_embedding_A", f"{BASE}model.embed_tokens.lora_embedding_B")
    folder = adapter(tmp_path / "a", dict(zip(names, (a, b), strict=True)))
    run(tmp_path / "c", tmp_path / "o", lora=(str(folder),), dtype="float32")
    want = made["model.embed_tokens.weight"].float() + 2 * (b @ a).T
    torch.testing.assert_close(held(tmp_path / "o")["model.embed_tokens.weight"], want, atol=1e-5, rtol=1e-5)


def test_a_reward_adapter_brings_the_score(tmp_path: Path) -> None:
    decoder(tmp_path / "m")
    row = random(1, 32)
    folder = adapter(tmp_path / "a", {f"{BASE}score.weight": row}, task_type="SEQ_CLS")
    result = run(tmp_path / "m", tmp_path / "o", head="reward", lora=(str(folder),))
    assert torch.equal(held(tmp_path / "o")["score.weight"].float(), row.bfloat16().float())
    assert not any("zeros" in note for note in result["notes"])


def test_a_classifier_with_other_rows_after_merging_is_no_language_model(tmp_path: Path) -> None:
    judge(tmp_path / "m")
    run(tmp_path / "m", tmp_path / "c", head="reranker")
    folder = adapter(tmp_path / "a", {f"{BASE}score.weight": random(1, 32)})
    with pytest.raises(QwenchError, match="not made of the yes and no rows"):
        run(tmp_path / "c", tmp_path / "o", head="lm", lora=(str(folder),))
    run(tmp_path / "c", tmp_path / "o", head="lm")
    with pytest.raises(QwenchError, match="classifier already"):
        run(tmp_path / "c", tmp_path / "o2", head="reranker")


def test_pooling_that_the_plan_drops_is_not_in_the_gguf_file(tmp_path: Path) -> None:
    judge(tmp_path / "m")
    run(tmp_path / "m", tmp_path / "e", head="embedding")
    for head, pooling in ((None, 3), ("lm", None)):
        run(tmp_path / "e", tmp_path / f"{head}.gguf", head=head)
        assert GgufFile(tmp_path / f"{head}.gguf").said.get("qwen3.pooling_type") == pooling
