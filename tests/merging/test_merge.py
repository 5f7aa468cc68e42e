"""`qwench merge`: against mergekit's own command line and float64, and what must never be lost."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from qwench.ops.merge import MergeOptions, merge
from qwench.ops.merging.arithmetic import Job, slerp
from qwench.ops.merging.methods import find_method
from qwench.ops.merging.options import recipe_of
from qwench.ops.merging.plan import MergePlan, plan_merge
from qwench.ops.merging.settings import evaluate, parse_setting
from safetensors.torch import load_file, save_file

from tests.tiny import qwen3_embedding

NAMES = ("base", "a", "b", "c")
SHAPE = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "head_dim": 16}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """dtype -> name -> folder: a base and three fine-tunes of it."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    made: dict[str, dict[str, Path]] = {}
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    weights = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    for dtype in ("float32", "bfloat16"):
        for i, name in enumerate(NAMES):
            torch.manual_seed(i)
            moved = {k: v + (0.02 * torch.randn_like(v) if i else 0) for k, v in weights.items()}
            folder = made.setdefault(dtype, {})[name] = root / dtype / name
            model.save_pretrained(folder)
            save_file(
                {k: v.to(getattr(torch, dtype)) for k, v in moved.items()},
                folder / "model.safetensors",
                {"format": "pt"},
            )
            config = json.loads((folder / "config.json").read_text()) | {"dtype": dtype}
            (folder / "config.json").write_text(json.dumps(config))
    return made


#: mergekit's command for one recipe after the other: to start it takes longer than a merge
MERGEKIT = """
import sys
from mergekit.scripts.run_yaml import main
names = sys.argv[1:]
for recipe, out in zip(names[::2], names[1::2], strict=True):
    main([recipe, out, "--no-copy-tokenizer"], standalone_mode=False)
"""


def mergekit(recipes: dict[Path, Path]) -> list[dict[str, torch.Tensor]]:
    """What mergekit makes of recipes, by output, on one thread as our workers are: sums depend on their number."""
    names = [str(path) for pair in recipes.items() for path in pair]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MERGEKIT, *names], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return [shards(out) for out in recipes.values()]


def shards(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def merged(out: Path, **options: object) -> dict[str, torch.Tensor]:
    events = list(merge(MergeOptions(out=str(out), **options)))
    assert events[-1].result["out"] == str(out)
    return shards(out)


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    """One step of bfloat16 apart at most; near zero, where sums cancel, a float32 rounding of the tensor's largest."""
    a, b = ours.double(), theirs.double()
    step = torch.maximum(a.abs(), b.abs()) * 2**-7 if ours.dtype == torch.bfloat16 else b.abs() * 1e-6
    assert ((a - b).abs() <= step + 1e-6 * b.abs().max()).all(), name


#: flags of ours, inputs
CASES = {
    "linear": ({"weight": "1,2,0.5"}, "abc"),
    "slerp": ({"t": "0.3"}, "ab"),
    "nuslerp": ({"weight": "1,2"}, "ab"),
    "multislerp": ({"weight": "1,2,1"}, "abc"),
    "task_arithmetic": ({"weight": "0.7,0.4", "base": "base"}, "ab"),
    "ties": ({"weight": "0.7,0.4", "base": "base", "param": ("density=0.4",)}, "ab"),
    "breadcrumbs": ({"weight": "0.7,0.4", "base": "base", "param": ("density=0.6", "gamma=0.05")}, "ab"),
    "model_stock": ({"base": "base"}, "abc"),
    "sce": ({"base": "base", "param": ("select_topk=0.5",)}, "ab"),
    "karcher": ({}, "abc"),
    "arcee_fusion": ({}, "ab"),
    "nearswap": ({"t": "0.01"}, "ab"),
}
OURS = ("slerp",)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_method_equals_mergekits_command(models, tmp_path: Path, dtype: str) -> None:
    names = models[dtype]
    ours: dict[str, dict[str, torch.Tensor]] = {}
    for method, (flags, inputs) in CASES.items():
        flags = dict(flags)
        if "base" in flags:
            flags["base"] = str(names["base"])
        ours[method] = merged(tmp_path / method, method=method, models=tuple(str(names[i]) for i in inputs), **flags)
    found = mergekit({tmp_path / m / "mergekit_config.yml": tmp_path / f"{m}-theirs" for m in CASES})
    for method, theirs in zip(CASES, found, strict=True):
        assert ours[method].keys() == theirs.keys(), method
        for name, tensor in theirs.items():
            got = ours[method][name]
            assert got.dtype == tensor.dtype
            if method == "ties" and dtype == "bfloat16":
                # Equal magnitudes abound in bfloat16, and which of them stay is up to mergekit's sort.
                assert tensor.numel() < 1000 or (got != tensor).float().mean() < 0.02, name
            elif method not in OURS:
                assert torch.equal(got, tensor), (method, name, (got.float() - tensor.float()).abs().max())
            else:
                assert_near(got, tensor, name)


def test_slerp_is_nearer_to_float64_than_mergekits(models) -> None:
    from mergekit.merge_methods.slerp import slerp as theirs

    a, b = (load_file(models["float32"][n] / "model.safetensors") for n in "ab")
    for name in a:
        x, y = a[name].reshape(-1), b[name].reshape(-1)
        for t in (0.1, 0.5, 0.8):
            wide = theirs(torch.tensor(t, dtype=torch.float64), x.double()[None], y.double()[None])[0]
            ours = torch.cat(list(slerp(x, y, t, torch.float32)))
            other = theirs(torch.tensor(t), x[None], y[None])[0]
            assert (ours.float() - wide).abs().max() <= (other - wide).abs().max()
            assert (ours.float() - wide).norm() <= (other - wide).norm()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.floats(0, 1), st.integers(0, 2**31), st.booleans(), st.integers(1, 3))
def test_ties_equals_mergekits(count: int, density: float, seed: int, coarse: bool, n: int) -> None:
    """Among equal magnitudes the first stay; mergekit leaves that to its sort, which is made stable here."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(n + 1, count, generator=generator)
    if coarse:
        draw = (draw * 2).round() / 2
    names = "xyz"[:n]
    parameters = {"int8_mask": False, "normalize": True, "rescale": False, "lambda": 1.0}
    parameters |= {"weight": dict(zip(names, (0.5, 0.7, 1.1), strict=False)), "density": dict.fromkeys(names, density)}
    job = Job(find_method("ties"), "w", (*names, "base"), n, parameters, torch.float32)
    assert job.streams
    stable = partial(torch.argsort, stable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "argsort", stable)
        theirs = job._mergekit(list(draw))
    assert torch.equal(torch.cat(list(job.run(list(draw)))), theirs)


def test_dare_and_della_follow_the_seed_and_nothing_else(models, tmp_path: Path) -> None:
    inputs = tuple(str(models["float32"][n]) for n in "ab")
    base = str(models["float32"]["base"])
    for method in ("dare_ties", "della"):
        how = {"method": method, "models": inputs, "base": base, "weight": "0.5", "param": ("density=0.5",)}
        one = merged(tmp_path / f"{method}1", seed=7, runtime=Runtime(threads=1), **how)
        two = merged(tmp_path / f"{method}2", seed=7, runtime=Runtime(threads=4), **how)
        other = merged(tmp_path / f"{method}3", seed=8, **how)
        assert all(torch.equal(one[k], two[k]) for k in one)
        assert any(not torch.equal(one[k], other[k]) for k in one)


RECIPES = {
    "filters": """
merge_method: slerp
models: [{model: A}, {model: B}]
base_model: A
parameters:
  t:
  - {filter: self_attn, value: [0, 0.5, 0.3, 1]}
  - {filter: mlp, value: [1, 0.2]}
  - {value: 0.4}
dtype: float32
out_dtype: bfloat16
""",
    "slices": """
merge_method: linear
slices:
- sources:
  - {model: A, layer_range: [0, 2], parameters: {weight: 0.3}}
  - {model: B, layer_range: [2, 4], parameters: {weight: [0.2, 0.9]}}
- sources:
  - {model: B, layer_range: [1, 3], parameters: {weight: 1}}
dtype: float32
out_dtype: bfloat16
""",
    "own": """
merge_method: task_arithmetic
models:
- {model: A, parameters: {weight: [0.1, 1.0]}}
- {model: B, parameters: {weight: 0.5}}
base_model: BASE
parameters: {normalize: true, lambda: 0.8}
dtype: float32
out_dtype: bfloat16
""",
}


@pytest.mark.parametrize("kind", RECIPES)
def test_recipes_mean_what_they_mean_to_mergekit(models, tmp_path: Path, kind: str) -> None:
    text = RECIPES[kind]
    for short, name in (("BASE", "base"), ("A", "a"), ("B", "b")):
        text = text.replace(f"model: {short}", f"model: {models['bfloat16'][name]}")
    (tmp_path / "r.yml").write_text(text)
    ours = merged(tmp_path / "ours", config=str(tmp_path / "r.yml"))
    theirs, again = mergekit(
        {tmp_path / "r.yml": tmp_path / "theirs", tmp_path / "ours" / "mergekit_config.yml": tmp_path / "again"}
    )
    assert ours.keys() == theirs.keys()
    layers = json.loads((tmp_path / "ours" / "config.json").read_text())["num_hidden_layers"]
    assert layers == json.loads((tmp_path / "theirs" / "config.json").read_text())["num_hidden_layers"]
    for name, tensor in theirs.items():
        assert torch.equal(again[name], tensor)
        assert_near(ours[name], tensor, name)
        assert kind == "filters" or torch.equal(ours[name], tensor), name


def test_flat_embedding_models_keep_everything(qwench, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    qwen3_embedding(a, seed=0)
    qwen3_embedding(b, seed=1)
    for t, same in ((0, a), (1, b)):
        out = tmp_path / f"t{t}"
        done = qwench("merge", a, b, "--out", out, "--t", t)
        assert done.returncode == 0, done.stderr
        want, got = load_file(same / "model.safetensors"), load_file(out / "model.safetensors")
        assert want.keys() == got.keys() and not any(k.startswith("model.") for k in got)
        assert all(torch.equal(want[k].view(torch.uint8), got[k].view(torch.uint8)) for k in want)
    out = tmp_path / "half"
    done = qwench("merge", a, b, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["dropped"] == [] and result["copied"] == 0
    files = {p.relative_to(a).as_posix() for p in a.rglob("*") if p.is_file()}
    assert files <= {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} | {"README.md"}
    from sentence_transformers import SentenceTransformer

    vectors = SentenceTransformer(str(out), device="cpu").encode(["a text", "another"])
    assert vectors.shape[0] == 2 and abs(float((vectors[0] ** 2).sum()) - 1) < 1e-4


def test_flat_and_prefixed_names_match(models, tmp_path: Path) -> None:
    a, b = (models["float32"][n] for n in "ab")
    flat = tmp_path / "flat"
    shutil.copytree(b, flat)
    bare = {k.removeprefix("model."): v for k, v in load_file(b / "model.safetensors").items()}
    save_file(bare, flat / "model.safetensors")
    one = merged(tmp_path / "one", models=(str(a), str(b)), t="0.5")
    two = merged(tmp_path / "two", models=(str(a), str(flat)), t="0.5")
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_inputs_are_left_as_they_are(models, tmp_path: Path) -> None:
    before = {n: (models["float32"][n] / "model.safetensors").read_bytes() for n in "ab"}
    merged(tmp_path / "o", models=tuple(str(models["float32"][n]) for n in "ab"), t="0.5")
    assert all((models["float32"][n] / "model.safetensors").read_bytes() == b for n, b in before.items())


@pytest.mark.parametrize("fold", ["sequential", "tree"])
def test_folding_more_than_two(models, tmp_path: Path, fold: str) -> None:
    inputs = [models["float32"][n] for n in ("a", "b", "c")]
    got = merged(tmp_path / "o", models=tuple(map(str, inputs)), weight="1,2,3", fold=fold)
    a, b, c = (load_file(p / "model.safetensors") for p in inputs)
    for name in a:
        x, y, z = (w[name].double().reshape(-1) for w in (a, b, c))
        first = torch.cat(list(slerp(x, y, 2 / 3, torch.float64)))
        wide = torch.cat(list(slerp(first, z, 0.5, torch.float64)))
        torch.testing.assert_close(got[name].reshape(-1).double(), wide, rtol=1e-5, atol=1e-7)


def test_a_trajectory_is_its_last_checkpoints_in_order(models, tmp_path: Path) -> None:
    for step, name in ((900, "a"), (1000, "b"), (1100, "c")):
        shutil.copytree(models["float32"][name], tmp_path / "run" / f"checkpoint-{step}")
    recipe = recipe_of(MergeOptions(trajectory=str(tmp_path / "run"), last=2, out="x"))
    assert [Path(m).name for m in recipe.models] == ["checkpoint-1000", "checkpoint-1100"]
    recipe = recipe_of(MergeOptions(trajectory=str(tmp_path / "run"), out="x"))
    assert [Path(m).name for m in recipe.models] == ["checkpoint-900", "checkpoint-1000", "checkpoint-1100"]
    assert recipe.fold == "sequential"
    with pytest.raises(QwenchError, match="3 checkpoints are in the run"):
        recipe_of(MergeOptions(trajectory=str(tmp_path / "run"), last=5, out="x"))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=5), st.floats(0, 1))
def test_gradients_as_mergekit_evaluates_them(values: list[float], at: float) -> None:
    from mergekit.config import evaluate_setting

    assert math.isclose(evaluate(values, "x", at), evaluate_setting("x", values, at, validate=float), abs_tol=1e-12)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0.5", 0.5),
        ("0,0.5,1", [0, 0.5, 1]),
        ("attn=0.3,mlp=0.7", [{"filter": "self_attn", "value": 0.3}, {"filter": "mlp", "value": 0.7}]),
        ("attn=0,0.5,*=1", [{"filter": "self_attn", "value": [0, 0.5]}, {"value": 1}]),
        ("true", True),
    ],
)
def test_values_of_flags(text: str, wanted: object) -> None:
    assert parse_setting(text) == wanted


def broken(folder: Path, out: Path, change) -> Path:
    shutil.copytree(folder, out)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    return out


def test_models_that_do_not_fit_are_told_apart_before_reading(models, qwench, tmp_path: Path) -> None:
    a = models["float32"]["a"]

    def fewer(w: dict) -> None:
        w["model.embed_tokens.weight"] = w["model.embed_tokens.weight"][:290].contiguous()
        del w["model.layers.1.mlp.up_proj.weight"]

    b = broken(models["float32"]["b"], tmp_path / "b", fewer)
    done = qwench("merge", a, b, "--out", tmp_path / "o")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "[300, 64]" in done.stderr and "[290, 64]" in done.stderr and "vocabularies differ" in done.stderr
    assert "lacks `model.layers.1.mlp.up_proj.weight`" in done.stderr
    assert not (tmp_path / "o").exists() and not (tmp_path / "o.part").exists()


def planned(a: Path, b: Path, tmp_path: Path) -> MergePlan:
    options = MergeOptions((str(a), str(b)), str(tmp_path / "o"), allow_mismatch=True)
    return plan_merge(recipe_of(options), options)


def test_a_tensor_one_model_lacks_is_copied_by_name_or_refused(models, tmp_path: Path) -> None:
    a = models["float32"]["a"]
    name = "model.layers.1.mlp.up_proj.weight"
    b = broken(models["float32"]["b"], tmp_path / "b", lambda w: w.pop(name))
    c = broken(models["float32"]["b"], tmp_path / "c", lambda w: w.update({"extra.weight": torch.ones(2)}))
    with pytest.raises(QwenchError, match="lacks"):
        merged(tmp_path / "no", models=(str(a), str(b)), t="0.5")
    with pytest.raises(QwenchError, match=r"lacks `extra\.weight`"):
        merged(tmp_path / "no", models=(str(a), str(c)), t="0.5")
    made = planned(a, b, tmp_path)
    assert next(o.action for o in made.plan.outputs if o.name == name).startswith("copied: only")
    made = planned(a, c, tmp_path)
    assert made.plan.dropped == {f"{c}: extra.weight": f"not in `{a}`"}


def test_a_tensor_that_all_models_lack_is_not_left_out(models, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    both = [broken(models["float32"][n], tmp_path / n, lambda w: w.pop(name)) for n in "ab"]
    with pytest.raises(QwenchError, match=r"layer 1 lacks `mlp\.up_proj\.weight`"):
        planned(*both, tmp_path)


def test_nan_is_traced_to_its_model(models, tmp_path: Path) -> None:
    name = "model.layers.2.mlp.up_proj.weight"

    def poison(w: dict) -> None:
        w[name][3, 5] = float("nan")

    b = broken(models["float32"]["b"], tmp_path / "b", poison)
    for method in ("slerp", "linear", "karcher"):
        with pytest.raises(QwenchError, match="not finite") as caught:
            merged(tmp_path / "o", models=(str(models["float32"]["a"]), str(b)), method=method, force=True)
        assert str(b) in caught.value.message and name in caught.value.message
        assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("t", ["1e308", "-1e308"])
def test_an_angle_too_large_has_no_sine(models, tmp_path: Path, t: str) -> None:
    with pytest.raises(QwenchError, match="is not finite in float32"):
        merged(tmp_path / "o", models=tuple(str(models["float32"][n]) for n in "ab"), method="slerp", t=t)


def test_wrong_words_get_a_sentence(models, qwench, tmp_path: Path) -> None:
    a, b, c = (models["float32"][n] for n in "abc")
    for args, code, words in (
        (["--method", "slep"], 2, "did you mean `slerp`"),
        (["--method", "ties"], 2, "requires a base"),
        (["--method", "linear", "--t", "0.3"], 2, "`linear` has no t"),
        (["--param", "density=1"], 2, "has no parameter `density`"),
        (["--t", "much"], 2, "cannot be 'much'"),
        (["--weight", "1,2,3", "--method", "linear"], 2, "3 values"),
        (["--base", b, "--method", "linear"], 2, "has no base"),
        (["--out-dtype", "int8"], 2, "unknown --out-dtype"),
        (["--config", tmp_path / "none.yml"], 2, "--config has all of the recipe"),
    ):
        done = qwench("merge", a, b, "--out", tmp_path / "o", *args)
        assert done.returncode == code and words in done.stderr, (args, done.stderr)
        assert "Traceback" not in done.stderr
    for out, words in ((a, "lies in the input"), (a / "inner", "lies in the input"), (a.parent, "lies in the output")):
        done = qwench("merge", a, b, "--out", out, "--force")
        assert done.returncode == 1 and words in done.stderr, done.stderr
    done = qwench("merge", a, b, c, "--t", "0.5", "--out", tmp_path / "o")
    assert done.returncode == 2 and "--weight" in done.stderr
    (tmp_path / "r.yml").write_text("merge_method: linear\nmodels: [{model: x}]\nnonsense: {}\n")
    done = qwench("merge", "--config", tmp_path / "r.yml", "--out", tmp_path / "o")
    assert done.returncode == 1 and "`nonsense`" in done.stderr
    done = qwench("merge", a, b, "--out", tmp_path / "deep" / "o")
    assert done.returncode == 1 and "make it first" in done.stderr


def test_a_disk_too_small_is_known_before_starting(models, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(QwenchError, match="there is room for"):
        merged(tmp_path / "o", models=tuple(str(models["float32"][n]) for n in "ab"))
    assert not (tmp_path / "o.part").exists()


def test_the_plan_without_writing(models, qwench, tmp_path: Path) -> None:
    a, b = (models["bfloat16"][n] for n in "ab")
    done = qwench("merge", a, b, "--out", tmp_path / "o", "--t", "attn=0.3,mlp=0,1,*=0.5", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    actions = {t["name"]: t["action"] for t in plan["tensors"]}
    assert actions["model.layers.0.self_attn.q_proj.weight"] == "merged by slerp: t 0.3"
    assert actions["model.layers.3.mlp.up_proj.weight"] == "merged by slerp: t 1"
    assert actions["model.norm.weight"] == "merged by slerp: t 0.5"
    assert all(len(t["from"]) == 2 for t in plan["tensors"]) and not (tmp_path / "o").exists()


def test_lora_gguf_and_bin_are_inputs(models, qwench, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    a, b = (models["float32"][n] for n in "ab")
    torch.manual_seed(3)
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(a), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    tuned.save_pretrained(tmp_path / "lora")
    whole = tuned.merge_and_unload().state_dict()
    got = merged(tmp_path / "l", models=(str(a), f"{a}+{tmp_path / 'lora'}"), t="1")
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(got[name], whole[name], atol=1e-6, rtol=1e-5)
    done = qwench("convert", b, tmp_path / "bin", "--to", "bin")
    assert done.returncode == 0, done.stderr
    one = merged(tmp_path / "one", models=(str(a), str(b)), t="0.5")
    two = merged(tmp_path / "two", models=(str(a), str(tmp_path / "bin")), t="0.5")
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_plot_and_report(models, qwench, tmp_path: Path) -> None:
    a, b = (models["bfloat16"][n] for n in "ab")
    done = qwench("merge", a, b, "--out", tmp_path / "o", "--plot", tmp_path / "p.png", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    x, y = (load_file(p / "model.safetensors")["model.norm.weight"].double() for p in (a, tmp_path / "o"))
    row = result["by_tensor"]["model.norm.weight"]
    assert math.isclose(row["norm_ratio"], float(y.norm() / x.norm()), rel_tol=1e-2)
    assert math.isclose(row["cosine"], float(torch.cosine_similarity(x, y, 0)), rel_tol=1e-3)
    card = (tmp_path / "o" / "README.md").read_text()
    assert "merge_method: slerp" in card and str(a) in card


def test_an_interrupted_merge_is_gone_on_with(models, tmp_path: Path, monkeypatch) -> None:
    from qwench.ops.checkpoint import writer
    from qwench.ops.merging.work import Task

    how = {"models": tuple(str(models["float32"][n]) for n in "ab"), "method": "linear", "runtime": Runtime(threads=1)}
    whole = merged(tmp_path / "whole", **how)
    monkeypatch.setattr(writer, "SYNC_BYTES", 1)
    real, count = Task.merged, 0

    def failing(self, losses):
        nonlocal count
        count += 1
        if count > len(whole) // 2:
            raise OSError(28, "No space left on device")
        yield from real(self, losses)

    monkeypatch.setattr(Task, "merged", failing)
    with pytest.raises(OSError, match="No space left"):
        merged(tmp_path / "o", **how)
    assert not (tmp_path / "o").exists() and (tmp_path / "o.part").exists()
    monkeypatch.setattr(Task, "merged", real)
    with pytest.raises(QwenchError, match="another job: --"):
        merged(tmp_path / "o", **how | {"weight": "1,3"})
    result = list(merge(MergeOptions(out=str(tmp_path / "o"), **how)))[-1].result
    assert 0 < result["resumed_bytes"] < result["bytes"]
    again = shards(tmp_path / "o")
    assert all(torch.equal(again[k], whole[k]) for k in whole)
