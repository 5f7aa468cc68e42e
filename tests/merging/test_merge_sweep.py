"""`qwench merge --sweep`: what each point is measured as, and a real merge of a real model."""

from __future__ import annotations

import ast
import json
import math
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qwench.ops.base.errors import QwenchError
from qwench.ops.merging.evaluate import parse_eval, ranking, read_pairs
from qwench.ops.merging.options import MergeOptions, recipe_of
from qwench.ops.merging.plan import plan_merge
from qwench.ops.merging.sweep import parse_sweep, sweep
from qwench.ops.merging.view import PlannedReader
from safetensors.torch import load_file, save_file

from tests.tiny import minilm, qwen3_reranker, real_texts, tiny_bert


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("t=0:1:0.25", "t", [0, 0.25, 0.5, 0.75, 1]),
        ("t=0:1:0.1", "t", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("density=0.2,0.5", "density", [0.2, 0.5]),
        ("normalize=true,false", "normalize", [True, False]),
        ("t=0.3", "t", [0.3]),
    ],
)
def test_values_of_a_sweep(text: str, name: str, values: list) -> None:
    found = parse_sweep(text)
    assert (found.name, found.values) == (name, values)


@pytest.mark.parametrize(
    "text", ["t", "t=", "t=1:0:0.1", "t=0:1", "t=0:1:0", "t=0:1:-1", "t=a:b:c", "t=0:1:1e-9", "=1,2"]
)
def test_no_sweep(text: str) -> None:
    with pytest.raises(QwenchError) as caught:
        parse_sweep(text)
    assert caught.value.code == 2


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8), st.integers(2, 30), st.integers(0, 10**6))
def test_ranking_is_sklearns(queries: int, passages: int, seed: int) -> None:
    from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

    random = np.random.default_rng(seed)
    a, b = random.normal(size=(queries, 5)), random.normal(size=(passages, 5))
    relevant = [set(random.choice(passages, random.integers(1, passages), replace=False)) for _ in range(queries)]
    got = ranking(a, b, relevant)
    scores = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    truth = np.array([[float(i in r) for i in range(passages)] for r in relevant])
    assert math.isclose(got["ndcg@10"], ndcg_score(truth, scores, k=10), abs_tol=1e-9)
    assert math.isclose(got["recall@1"], truth[np.arange(queries), scores.argmax(1)].mean())
    one = np.array([[float(i == min(r)) for i in range(passages)] for r in relevant])
    single = ranking(a, b, [{min(r)} for r in relevant])["mrr"]
    assert math.isclose(single, label_ranking_average_precision_score(one, scores), abs_tol=1e-9)


def test_a_model_that_gives_all_texts_one_vector_has_no_merit() -> None:
    got = ranking(np.ones((2, 3)), np.ones((20, 3)), [{0}, {5}])
    assert got == {"ndcg@10": 0.0, "recall@1": 0.0, "mrr": 1 / 20}


def test_pairs_share_texts_and_queries(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "positive": "a", "negatives": ["b", "c"]},
        {"query": "q", "passage": "b"},
        {"query": "r", "positive": ["c", "d"]},
    ]
    pairs = read_pairs("\n".join(map(json.dumps, rows)), tmp_path)
    assert pairs.queries == ["q", "r"] and pairs.passages == ["a", "b", "c", "d"]
    assert pairs.relevant == [{0, 1}, {2, 3}]
    for line, words in (
        ("{}", "line 1"),
        ("no", "not JSON"),
        ('{"query": "q", "positive": 3}', "no pair"),
        ("", "no pairs"),
    ):
        with pytest.raises(QwenchError, match=words):
            read_pairs(line, tmp_path)
    with pytest.raises(QwenchError, match="not a measure"):
        parse_eval("bleu:x")


@pytest.fixture(scope="module")
def berts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("berts")
    return [tiny_bert(root / str(seed), seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"query": t[: len(t) // 2], "positive": t[len(t) // 2 :]} for t in real_texts(40, 100)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_point_is_the_merge_that_would_be_written(berts, pairs, qwench, tmp_path: Path) -> None:
    a, b = berts
    flags = ["--eval", f"retrieval:{pairs}", "--plot", tmp_path / "curve.png", "--json"]
    done = qwench("merge", a, b, "--sweep", "t=0:1:0.5", *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [p["t"] for p in found["points"]] == [0, 0.5, 1]
    ends = [{k: v for k, v in found["points"][i].items() if k != "t"} for i in (0, 2)]
    alone = [{k: v for k, v in row.items() if k != "model"} for row in found["inputs"]]
    assert ends == alone and alone[0] != alone[1]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    # The same merge, written and then read by sentence-transformers.
    done = qwench("merge", a, b, "--t", "0.5", "--out", tmp_path / "half", "-q")
    assert done.returncode == 0, done.stderr
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tmp_path / "half"), device="cpu")
    texts = parse_eval(f"retrieval:{pairs}").data
    want = ranking(model.encode(texts.queries), model.encode(texts.passages), texts.relevant)
    for name, value in want.items():
        assert math.isclose(found["points"][1][name], value, abs_tol=0.03), name


def test_tensors_in_memory_are_those_on_disk(berts, tmp_path: Path) -> None:
    from qwench.ops.merge import merge

    options = MergeOptions(tuple(map(str, berts)), str(tmp_path / "o"), t="0.3")
    reader = PlannedReader(plan_merge(recipe_of(options), options).plan)
    list(merge(options))
    stored = load_file(tmp_path / "o" / "model.safetensors")
    assert stored.keys() == reader.infos.keys()
    assert all(torch.equal(reader.load(name), tensor) for name, tensor in stored.items())


def test_loss_is_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    a, b = (qwen3_reranker(tmp_path / n, seed=i) for i, n in enumerate("ab"))
    text = "".join(real_texts(12, 200))
    (tmp_path / "text.txt").write_text(text)
    options = MergeOptions((str(a), str(b)))
    found = list(sweep(options, "t=0:1:1", f"ppl:{tmp_path / 'text.txt'}"))[-1].result
    ids = AutoTokenizer.from_pretrained(a)(text, return_tensors="pt")["input_ids"][0]
    assert len(ids) > 512
    for folder, point in ((a, found["points"][0]), (b, found["points"][1])):
        model, total = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), 0.0
        with torch.no_grad():
            for at in range(0, len(ids) - 1, 511):
                piece = ids[at : at + 512][None]
                total += float(model(piece, labels=piece).loss) * (piece.shape[1] - 1)
        assert math.isclose(point["nats_per_token"], total / (len(ids) - 1), rel_tol=1e-4)
        assert math.isclose(point["perplexity"], math.exp(point["nats_per_token"]))
    assert found["lower_is_better"] and found["best"]["nats_per_token"] == min(
        p["nats_per_token"] for p in found["points"]
    )


def test_the_best_is_written_only_where_it_is_better(berts, pairs, qwench, tmp_path: Path, monkeypatch) -> None:
    a, b = berts
    how = ["--eval", f"retrieval:{pairs}", "--best", "--out", tmp_path / "o"]
    done = qwench("merge", a, a, b, "--sweep", "t=0,1", *how)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    done = qwench("merge", a, b, "--sweep", "t=0,1", *how)
    assert done.returncode == 3 and "no gain" in done.stderr and "nothing is written" in done.stderr
    assert "recall@1" in done.stdout and "alone" in done.stdout and not (tmp_path / "o").exists()
    from qwench.ops.merging import evaluate as merge_eval

    real = merge_eval._retrieval

    def kinder(checkpoint, texts, threads):
        return {k: v + checkpoint.name.endswith("t=0.5") for k, v in real(checkpoint, texts, threads).items()}

    monkeypatch.setattr(merge_eval, "_retrieval", kinder)
    options = MergeOptions((str(a), str(b)), str(tmp_path / "o"))
    found = list(sweep(options, "t=0.2,0.5,0.8", f"retrieval:{pairs}", best=True))[-1].result
    assert found["best"]["t"] == 0.5 and found["gain"] > 0.5 and found["merged"]["method"] == "slerp"
    assert "t: 0.5" in (tmp_path / "o" / "mergekit_config.yml").read_text()
    with pytest.raises(QwenchError, match="there already"):
        next(sweep(options, "t=0.5", f"retrieval:{pairs}", best=True))


def test_sweeps_that_cannot_be(berts, pairs, tmp_path: Path) -> None:
    models = tuple(map(str, berts))
    measure = f"retrieval:{pairs}"
    for options, wanted, words in (
        (MergeOptions(models, t="0.3"), "t=0,1", "has a value"),
        (MergeOptions(models, method="linear"), "t=0,1", "no parameter `t`"),
        (MergeOptions(models, method="linear", param=("normalize=true",)), "normalize=true,false", "has a value"),
        (MergeOptions((*models, models[0] + "/.")), "t=0,1", "without a fold"),
        (MergeOptions(models), "t=0,much", "cannot be 'much'"),
    ):
        with pytest.raises(QwenchError, match=words):
            next(sweep(options, wanted, measure))
    with pytest.raises(QwenchError, match="ppl cannot run"):
        list(sweep(MergeOptions(models), "t=0,1", f"ppl:{pairs}"))


def docstrings() -> list[tuple[str, str]]:
    """(first sentence, the rest) of what Python's own library says of its functions and classes."""
    found: dict[str, str] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "test" in path.parts or "site-packages" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
                if 20 < len(first) < 200 and len(rest) > 60:
                    found.setdefault(" ".join(first.split()), " ".join(rest.split())[:300])
    return list(found.items())


def tuned(source: Path, out: Path, pairs: list[tuple[str, str]], steps: int) -> Path:
    """MiniLM after contrastive steps over pairs, other pairs of the batch as negatives."""
    from tokenizers import Tokenizer
    from torch.nn import functional as F
    from transformers import BertModel

    torch.manual_seed(0)
    # More threads wait for one another where the machine has other work, ten times longer than they compute.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = BertModel.from_pretrained(source, dtype=torch.float32).train()
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.enable_truncation(32)
    tokenizer.enable_padding()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)

    def embed(texts: list[str]) -> torch.Tensor:
        rows = tokenizer.encode_batch(texts)
        ids, mask = (torch.tensor([getattr(r, n) for r in rows]) for n in ("ids", "attention_mask"))
        hidden = model(ids, attention_mask=mask).last_hidden_state
        return F.normalize((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=1)

    for step in range(steps):
        batch = [pairs[i] for i in torch.randint(len(pairs), (16,), generator=torch.Generator().manual_seed(step))]
        scores = 20 * embed([q for q, _ in batch]) @ embed([p for _, p in batch]).T
        loss = F.cross_entropy(scores, torch.arange(len(batch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    shutil.copytree(source, out)
    stored = load_file(source / "model.safetensors")
    trained = model.state_dict()
    save_file({k: trained[k].to(v.dtype) if k in trained else v for k, v in stored.items()}, out / "model.safetensors")
    return out


@pytest.mark.slow
def test_minilm_and_its_fine_tune(qwench, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A real model, a real text: the curve between it and its fine-tune, and the winner written."""
    source, texts = minilm(), docstrings()
    assert len(texts) > 1000
    held = texts[:: len(texts) // 200]
    used = [t for i, t in enumerate(texts) if i % (len(texts) // 200)]
    tuned(source, tmp_path / "tuned", used, 200)
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps({"query": q, "positive": p}) for q, p in held))
    how = ["--sweep", "t=0:1:0.1", "--eval", f"retrieval:{tmp_path / 'pairs.jsonl'}", "--plot", tmp_path / "curve.png"]
    done = qwench("merge", source, tmp_path / "tuned", *how, "--best", "--out", tmp_path / "best", "--threads", 1)
    with capsys.disabled():
        print(f"\n{len(used)} pairs to tune with, {len(held)} held out\n{done.stdout}{done.stderr}")
    assert done.returncode in (0, 3), done.stderr
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (done.returncode == 0) == (tmp_path / "best").exists()
