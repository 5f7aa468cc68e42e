"""Readers, plans and the writer: round trips to the bit, heads, damaged files."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Finished, Warned
from qwench.ops.base.runtime import Runtime
from qwench.ops.checkpoint.cast import same_bits
from qwench.ops.checkpoint.plan import parse_size
from qwench.ops.checkpoint.reader import Source
from qwench.ops.convert import ConvertOptions, convert, plan_conversion
from qwench.ops.diff import diff
from qwench.ops.inspect import inspect
from safetensors.torch import load_file, save_file

from tests import tiny


def run(src: Path, out: Path, **options: Any) -> dict[str, Any]:
    return list(convert(ConvertOptions(str(src), str(out), **options)))[-1].result


def tensors(path: Path) -> dict[str, torch.Tensor]:
    source = Source(path)
    return {name: source.reader.load(name).clone() for name in source.infos}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert same_bits(a[name], b[name]), name


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.qwen3_reranker(tmp_path_factory.mktemp("lm") / "lm")


@st.composite
def checkpoints(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """A decoder's tensors of random shapes and dtypes: tied or not, GQA, odd vocabularies, empty and scalar ones."""
    vocab, hidden = draw(st.integers(1, 37)), draw(st.sampled_from([4, 6, 8]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    experts = draw(st.integers(0, 2))
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for i in range(draw(st.integers(1, 2))):
        shapes[f"model.layers.{i}.self_attn.q_proj.weight"] = (2 * hidden, hidden)
        shapes[f"model.layers.{i}.self_attn.k_proj.weight"] = (hidden, hidden)
        for e in range(experts):
            shapes[f"model.layers.{i}.mlp.experts.{e}.up_proj.weight"] = (3, hidden)
    if draw(st.booleans()):
        shapes["lm_head.weight"] = (vocab, hidden)
    made = {n: torch.randn(s).to(dtype) for n, s in shapes.items()}
    made["model.steps"] = torch.tensor(draw(st.integers(0, 2**40)))
    made["model.mask"] = torch.tensor([True, False, True])
    if draw(st.booleans()):
        made["model.empty"] = torch.empty(0, hidden, dtype=dtype)
    return made


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=checkpoints(), size=st.sampled_from(["100", "1kB", "5GB"]))
def test_round_trips_are_identities(
    made: dict[str, torch.Tensor], size: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rt")
    src = folder / "src"
    src.mkdir()
    save_file(made, src / "model.safetensors", {"format": "pt"})
    (src / "config.json").write_text(json.dumps({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}))
    run(src, folder / "bin", to="bin", max_shard_size=size, verify="bits")
    run(folder / "bin", folder / "safe", to="safetensors", max_shard_size=size, verify="bits")
    run(folder / "safe", folder / "one", max_shard_size="5GB")
    run(folder / "one", folder / "flat", layout="flat")
    run(folder / "flat", folder / "back", layout="prefixed")
    for name in ("bin", "safe", "one", "back"):
        assert_same(tensors(folder / name), made)
    assert_same(tensors(folder / "flat"), {n.removeprefix("model."): t for n, t in made.items()})
    # What others read is the same as what we read.
    assert_same(load_file(folder / "one" / "model.safetensors"), made)
    weights: dict[str, torch.Tensor] = {}
    for file in (folder / "bin").glob("*.bin"):
        weights |= torch.load(file, weights_only=True)
    assert_same(weights, made)


def test_transformers_reads_shards(lm: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    result = run(lm, tmp_path / "s", max_shard_size="100kB")
    assert result["shards"] > 2
    index = json.loads((tmp_path / "s" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == result["bytes"]
    for file in {*index["weight_map"].values()}:
        header = (tmp_path / "s" / file).stat().st_size
        biggest = max(Source(tmp_path / "s" / file).infos.values(), key=lambda i: i.nbytes).nbytes
        assert header < max(100_000, biggest) + 10_000
    ids = torch.arange(20)[None]
    want = AutoModelForCausalLM.from_pretrained(lm)(ids).logits
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "s")(ids).logits, want)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_casts_equal_torch(lm: Path, tmp_path: Path, dtype: str) -> None:
    result = run(lm, tmp_path / "c", dtype=dtype, verify="bits")
    want = {n: t.to(getattr(torch, dtype)) for n, t in tensors(lm).items()}
    assert_same(tensors(tmp_path / "c"), want)
    errors = [(t.double() - want[n].double()).abs().max().item() for n, t in tensors(lm).items()]
    assert result["losses"]["largest_error"] == pytest.approx(max(errors), rel=1e-6)
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["dtype"] == dtype


def test_lossy_casts_are_told(tmp_path: Path) -> None:
    values = torch.tensor([1e5, -7e4, 1e-9, 0.0, 1.0, float("inf")])
    (tmp_path / "src").mkdir()
    save_file({"w": values}, tmp_path / "src" / "model.safetensors")
    events = list(convert(ConvertOptions(str(tmp_path / "src"), str(tmp_path / "out"), dtype="float16")))
    report = events[-1].result["losses"]
    assert (report["overflow"], report["underflow"]) == (2, 1)
    assert [e.kind for e in events if isinstance(e, Warned)] == ["overflow"]


def test_tied_heads(tmp_path: Path) -> None:
    src = tiny.qwen3_reranker(tmp_path / "src")
    made = tensors(src)
    embedding = made["model.embed_tokens.weight"]
    save_file(made | {"lm_head.weight": embedding.clone()}, src / "model.safetensors", {"format": "pt"})
    result = run(src, tmp_path / "tied")
    assert [d["name"] for d in result["dropped"]] == ["lm_head.weight"]
    assert_same(tensors(tmp_path / "tied"), made)
    run(tmp_path / "tied", tmp_path / "untied", untie=True)
    assert_same(tensors(tmp_path / "untied"), made | {"lm_head.weight": embedding})
    assert json.loads((tmp_path / "untied" / "config.json").read_text())["tie_word_embeddings"] is False
    save_file(made | {"lm_head.weight": embedding + 1}, src / "model.safetensors", {"format": "pt"})
    result = run(src, tmp_path / "both")
    assert "differ" in result["notes"][0]
    assert "lm_head.weight" in tensors(tmp_path / "both")


@pytest.mark.parametrize("labels", [1, 2])
def test_reranker_becomes_a_classifier_and_back(lm: Path, tmp_path: Path, labels: int) -> None:
    from qwench.ops.models.hub import resolve
    from qwench.ops.scoring.reranker import Reranker, RerankSettings
    from transformers import AutoModelForSequenceClassification

    run(lm, tmp_path / "c", head="reranker", labels=labels, verify="bits")
    models = [Reranker(resolve(str(p)), RerankSettings(runtime=Runtime(device="cpu"))) for p in (lm, tmp_path / "c")]
    assert models[1].choices["kind"].value == "classifier"
    documents = tiny.real_texts(8)
    scores = [[s.score for s in m.score(m.question("errors"), documents)] for m in models]
    np.testing.assert_allclose(*scores, atol=1e-6)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "c")
    assert plain.num_labels == labels
    run(tmp_path / "c", tmp_path / "back", head="lm")
    assert_same(tensors(tmp_path / "back"), tensors(lm))
    changed = tensors(tmp_path / "c")
    changed["score.weight"] = changed["score.weight"] + 1
    save_file(changed, tmp_path / "c" / "model.safetensors", {"format": "pt"})
    with pytest.raises(QwenchError, match="no language model scores the same"):
        run(tmp_path / "c", tmp_path / "never", head="lm")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("layout", ["flat", "prefixed"])
def test_a_language_model_becomes_an_embedder(lm: Path, tmp_path: Path, layout: str) -> None:
    from sentence_transformers import SentenceTransformer

    run(lm, tmp_path / "e", head="embedding", layout=layout)
    from qwench.ops.models.hub import resolve
    from qwench.ops.scoring.embedder import Embedder, EmbedSettings

    embedder = Embedder(resolve(str(tmp_path / "e")), EmbedSettings(runtime=Runtime(device="cpu")))
    texts = tiny.real_texts(6)
    got = embedder.embed(embedder.query_ids(texts, embedder.layout.prompt("query")))
    want = SentenceTransformer(str(tmp_path / "e"), device="cpu").encode(texts, prompt_name="query")
    assert ((got * want).sum(1) > 0.99999).all()
    assert (tmp_path / "e" / "2_Normalize").is_dir()


def test_a_reward_head_is_a_scaffold_and_says_so(lm: Path, tmp_path: Path) -> None:
    result = run(lm, tmp_path / "r", head="reward")
    assert "until the model is trained" in result["notes"][0]
    assert not tensors(tmp_path / "r")["score.weight"].any()


def test_side_files_go_along_and_the_rest_is_named(lm: Path, tmp_path: Path) -> None:
    src = tmp_path / "src"
    shutil.copytree(lm, src)
    (src / "LICENSE").write_text("free")
    (src / "chat_template.jinja").write_text("{{ x }}")
    (src / "optimizer.pt").write_bytes(b"x")
    (src / ".git").mkdir()
    (src / ".git" / "HEAD").write_text("x")
    (src / "onnx").mkdir()
    result = run(src, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"LICENSE", "chat_template.jinja", "tokenizer.json", "config.json", "model.safetensors"} <= names
    assert result["left_out"] == ["onnx/", "optimizer.pt"]
    assert ".git" not in names
    assert not [n for n in names if "journal" in n]


def damaged(lm: Path, tmp_path: Path, change: Any) -> Path:
    shutil.copytree(lm, tmp_path / "bad")
    change(tmp_path / "bad")
    return tmp_path / "bad"


class Code:
    def __reduce__(self) -> Any:
        return print, ("code ran",)


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"w": Code()}, folder / "pytorch_model.bin")


def _index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    weight_map = {"x": "a.safetensors", "y": "gone.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _index_lies(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "a.safetensors"}}))


def _header(folder: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"1234")


def _nan(folder: Path) -> None:
    made = load_file(folder / "model.safetensors")
    made["model.norm.weight"][3] = float("nan")
    save_file(made, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_cut, "it is truncated"),
        (_pickle, "could run code"),
        (_index, "gone.safetensors"),
        (_index_lies, "says `x` is in `a.safetensors`, and it is not"),
        (_header, "has 4 bytes and its shape needs 36"),
        (_nan, "holds NaN: `model.norm.weight`"),
    ],
)
def test_damaged_inputs_are_one_sentence(
    lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, said: str
) -> None:
    bad = damaged(lm, tmp_path, change)
    before = {p: p.read_bytes() for p in bad.rglob("*") if p.is_file()}
    with pytest.raises(QwenchError, match=said):
        run(bad, tmp_path / "out", dtype="float32")
    assert "code ran" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert {p: p.read_bytes() for p in bad.rglob("*") if p.is_file()} == before


def test_the_output_may_not_touch_the_input(lm: Path, tmp_path: Path) -> None:
    src = tmp_path / "a" / "src"
    shutil.copytree(lm, src)
    for out in (src, src / "out", tmp_path / "a"):
        with pytest.raises(QwenchError, match="lies in"):
            run(src, out, force=True)
    (tmp_path / "there").mkdir()
    with pytest.raises(QwenchError, match="there already"):
        run(src, tmp_path / "there")
    run(src, tmp_path / "there", force=True)
    assert_same(tensors(tmp_path / "there"), tensors(lm))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "there"]


def test_an_interrupted_run_is_gone_on_with(lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwench.ops.checkpoint import writer

    monkeypatch.setattr(writer, "SYNC_BYTES", 1)
    plain, stopped = writer._pwrite, []

    def full(handle: int, data: memoryview, at: int) -> None:
        stopped.append(at)
        if len(stopped) > 12:
            raise OSError(28, "No space left on device")
        plain(handle, data, at)

    monkeypatch.setattr(writer, "_pwrite", full)
    with pytest.raises(OSError, match="No space"):
        run(lm, tmp_path / "out", dtype="float16", runtime=Runtime(threads=1))
    monkeypatch.setattr(writer, "_pwrite", plain)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.part").is_dir()
    for resume in (False, True):
        with pytest.raises(QwenchError, match="another job: --dtype was `float16` and is `bfloat16`"):
            run(lm, tmp_path / "out", dtype="bfloat16", resume=resume)
    result = run(lm, tmp_path / "out", dtype="float16", verify="bits")
    assert result["resumed_bytes"] > 0
    assert_same(tensors(tmp_path / "out"), {n: t.half() for n, t in tensors(lm).items()})
    assert not (tmp_path / "out.part").exists()


@pytest.mark.parametrize("journal", [None, "", '{"plan": "'])
def test_a_part_without_its_journal_is_begun_anew(lm: Path, tmp_path: Path, journal: str | None) -> None:
    part = tmp_path / "out.part"
    part.mkdir()
    (part / "model.safetensors").write_bytes(b"half")
    if journal is not None:
        (part / ".qwench-journal").write_text(journal)
    with pytest.raises(QwenchError, match="does not say what it is of"):
        run(lm, tmp_path / "out")
    run(lm, tmp_path / "out", resume=True)
    assert_same(tensors(lm), tensors(tmp_path / "out"))
    part.mkdir()
    (part / "thesis.txt").write_text("not ours")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(QwenchError, match="does not say what it is of"):
        run(lm, tmp_path / "out", resume=True)
    assert (part / "thesis.txt").exists()


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("struck", ["sync", "rename", "remove"])
def test_a_kill_at_the_very_end(
    lm: Path, tmp_path: Path, struck: str, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command ends it, and what is there is whole at any moment."""
    from qwench.ops.base import atomic
    from qwench.ops.checkpoint import staging

    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda a, b: False)
    for force in (False, True):

        def dies(*_: object) -> None:
            raise KeyboardInterrupt

        where = {"sync": (staging, "sync"), "rename": (staging, "move"), "remove": (atomic, "remove")}[struck]
        if struck == "remove" and not force:  # nothing to remove yet
            run(lm, tmp_path / "out")
            continue
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(*where, dies)
            run(lm, tmp_path / "out", dtype="float16", force=force)
        assert not (tmp_path / ".out.lock").exists()
        result = run(lm, tmp_path / "out", dtype="float16", force=force, verify="bits")
        assert force or result["resumed_bytes"] == result["bytes"]
        assert_same(tensors(tmp_path / "out"), {n: t.half() for n, t in tensors(lm).items()})
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".out", "out"))] == ["out"]


def test_a_live_run_loses_nothing(lm: Path, tmp_path: Path) -> None:
    from qwench.ops.base.lock import Lock

    part = tmp_path / "out.part"
    part.mkdir()
    (part / "model.safetensors").write_bytes(b"being written")
    with Lock(tmp_path / "out"):
        for how in ({"force": True}, {"force": True, "resume": True}):
            with pytest.raises(QwenchError, match=r"another run is at `.*out`: process \d+, `"):
                run(lm, tmp_path / "out", **how)
    assert (part / "model.safetensors").read_bytes() == b"being written"


def test_a_changed_input_and_force(lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwench.ops.checkpoint import staging

    shutil.copytree(lm, tmp_path / "src")

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(staging, "move", dies)
        run(tmp_path / "src", tmp_path / "out")
    weights = tmp_path / "src" / "model.safetensors"
    os.utime(weights, (1, 1))
    with pytest.raises(QwenchError, match=f"its input has changed since, `{weights}`"):
        run(tmp_path / "src", tmp_path / "out")
    assert run(tmp_path / "src", tmp_path / "out", force=True)["resumed_bytes"] == 0


def test_a_shard_that_was_removed_is_written_again(lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwench.ops.checkpoint import staging

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(staging, "sync", dies)
        run(lm, tmp_path / "out")
    (tmp_path / "out.part" / "model.safetensors").unlink()
    run(lm, tmp_path / "out", verify="bits")
    assert_same(tensors(lm), tensors(tmp_path / "out"))


@pytest.mark.parametrize("to", ["safetensors", "bin"])
def test_nan_is_met_again_by_a_resumed_run(lm: Path, tmp_path: Path, to: str) -> None:
    bad = damaged(lm, tmp_path, _nan)
    for resume in (False, True):
        with pytest.raises(QwenchError, match="holds NaN"):
            run(bad, tmp_path / "out", to=to, resume=resume)
        assert not (tmp_path / "out").exists()
    run(bad, tmp_path / "out", to=to, resume=True, allow_nan=True, verify="bits")
    assert_same(tensors(tmp_path / "out"), tensors(bad))


def test_a_plan_names_every_tensor(lm: Path) -> None:
    source = Source(lm)
    plan = plan_conversion(source, ConvertOptions(str(lm), "out", dtype="bfloat16", layout="flat"))
    rows = plan.to_dict()["tensors"]
    assert sorted(n for r in rows for n in r["from"]) == sorted(source.infos)
    assert all(r["bytes"] * 2 == source.infos[r["from"][0]].nbytes for r in rows)
    plan.outputs.pop()
    with pytest.raises(QwenchError, match="lose a tensor"):
        plan.check(list(source.infos))


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1 GiB", 1 << 30), ("200", 200), ("1.5kb", 1500)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "5XB", "GB", "1e9"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(QwenchError):
        parse_size(text)


def test_diff_finds_what_differs(lm: Path, tmp_path: Path) -> None:
    shutil.copytree(lm, tmp_path / "b")
    assert list(diff(str(lm), str(tmp_path / "b")))[-1].result["same"]
    made = tensors(lm)
    made["model.norm.weight"][0] += 0.5
    made["extra"] = torch.zeros(1)
    gone = made.pop("model.layers.0.mlp.up_proj.weight")
    save_file(made, tmp_path / "b" / "model.safetensors", {"format": "pt"})
    events = list(diff(str(lm), str(tmp_path / "b")))
    rows = {e.row["name"]: e.row for e in events if hasattr(e, "row")}
    assert {n: r["kind"] for n, r in rows.items()} == {
        "extra": "only_b",
        "model.layers.0.mlp.up_proj.weight": "only_a",
        "model.norm.weight": "values",
    }
    assert rows["model.norm.weight"]["largest"] == pytest.approx(0.5)
    assert not events[-1].result["same"]
    made |= {"model.layers.0.mlp.up_proj.weight": gone}
    made.pop("extra")
    flat = {n.removeprefix("model."): t for n, t in made.items()}
    save_file(flat, tmp_path / "b" / "model.safetensors", {"format": "pt"})
    result = list(diff(str(lm), str(tmp_path / "b"), tolerance=0.9))[-1].result
    assert result["same"]
    assert result["equal"] == len(made)


def test_inspect(lm: Path, tmp_path: Path) -> None:
    report = next(e.result for e in inspect(str(lm)) if isinstance(e, Finished))
    assert report["parameters"] == sum(t.numel() for t in tensors(lm).values())
    assert (report["layout"], report["head"], report["gates"]) == ("prefixed", "language model, tied", None)
    assert report["problems"] == []
    gated = tiny.reference("gated-headwise")
    assert next(iter(inspect(str(gated)))).result["gates"] == "headwise"
    assert next(iter(inspect(str(tiny.reference("parscale-p4"))))).result["streams"] == 4
    shutil.copytree(lm, tmp_path / "odd")
    config = json.loads((lm / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config | {"vocab_size": 7, "num_hidden_layers": 9}))
    problems = next(iter(inspect(str(tmp_path / "odd")))).result["problems"]
    assert len(problems) == 2
