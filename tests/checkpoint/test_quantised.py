"""Quantised checkpoints: values to the bit against numpy, commands, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.checkpoint.cast import same_bits
from qwench.ops.checkpoint.reader import Source
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.conftest import Run

from .quantise import SCHEMES, quantised


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.byte_decoder(tmp_path_factory.mktemp("base") / "m", hidden_size=64, intermediate_size=96)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_are_the_formulas_to_the_bit(base: Path, tmp_path: Path, scheme: str, monkeypatch) -> None:
    folder = quantised(base, tmp_path / "q", scheme)
    source, want = Source(folder), load_file(tmp_path / "q-whole" / "model.safetensors")
    assert set(source.infos) == set(want) and source.quantised is not None
    assert set(source.quantised.matrices) == {n for n in want if "_proj.weight" in n}
    for name, tensor in want.items():
        assert source.infos[name].shape == tuple(tensor.shape) and source.infos[name].dtype == "bfloat16", name
        assert same_bits(source.reader.load(name), tensor), name
        source.reader.release(name)
    # And in pieces of 32 rows, as large matrices are made.
    monkeypatch.setattr("qwench.ops.checkpoint.unquantised.PIECE", 1)
    assert all(same_bits(source.reader.load(name), want[name]) for name in source.quantised.matrices)
    assert "quantization_config" not in source.config() and source.config()["dtype"] == "bfloat16"


@pytest.mark.parametrize("scheme", ["fp8 blocks", "awq"])
def test_convert(base: Path, tmp_path: Path, qwench: Run, scheme: str) -> None:
    folder, whole = quantised(base, tmp_path / "q", scheme), tmp_path / "q-whole"
    (folder / "hf_quant_config.json").write_text("{}")
    done = qwench("convert", folder, tmp_path / "same", "--verify", "bits")
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "config.json", "hf_quant_config.json"):
        assert (tmp_path / "same" / name).read_bytes() == (folder / name).read_bytes()
    done = qwench("convert", folder, tmp_path / "made", "--dtype", "bfloat16", "--verify", "bits")
    assert done.returncode == 0 and "dequantised to bfloat16: 14 matrices from" in done.stderr, done.stderr
    made, want = load_file(tmp_path / "made" / "model.safetensors"), load_file(whole / "model.safetensors")
    assert made.keys() == want.keys() and all(same_bits(made[n], want[n]) for n in want)
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "bfloat16"
    assert not (tmp_path / "made" / "hf_quant_config.json").exists()
    assert qwench("diff", folder, whole).returncode == 0
    for model in (folder, whole):
        assert qwench("convert", model, f"{model}.gguf").returncode == 0
    done = qwench("diff", tmp_path / "q.gguf", tmp_path / "q-whole.gguf", "--json")
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["same"], done.stdout


def test_inspect_chat_and_merge(base: Path, tmp_path: Path, qwench: Run) -> None:
    folder, whole = quantised(base, tmp_path / "q", "fp8 blocks"), tmp_path / "q-whole"
    seen, plain = (json.loads(qwench("inspect", m, "--json").stdout) for m in (folder, whole))
    assert seen["parameters"] == plain["parameters"] and seen["tensors"] == plain["tensors"]
    kind = "fp8 e4m3, blocks of 48x32"
    assert seen["quantised"] == [{"scheme": kind, "matrices": 14, "parameters": seen["dtypes"][kind]}]
    assert not plain["quantised"] and seen["problems"] == plain["problems"]
    assert "quantised   fp8 e4m3, blocks of 48x32: 14 matrices" in qwench("inspect", folder).stdout
    said = [qwench("chat", "-m", m, "hello", "--max-tokens", 12, "--temperature", 0) for m in (folder, whole)]
    assert said[0].returncode == 0 and said[0].stdout == said[1].stdout, said[0].stderr
    for name, model in (("a", folder), ("b", whole)):
        done = qwench("merge", model, base, "--out", tmp_path / name, "--method", "linear")
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert one.keys() == two.keys() and all(same_bits(one[n], two[n]) for n in one)
    assert "quantization_config" not in (tmp_path / "a" / "config.json").read_text()


def test_fp8_is_what_transformers_makes_of_it(base: Path, tmp_path: Path) -> None:
    """Where the rows are whole blocks; elsewhere its block size follows from the number of scales."""
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM

    folder = quantised(base, tmp_path / "q", "fp8 whole blocks")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16").state_dict()
    source = Source(folder)
    assert source.quantised is not None
    for name in source.quantised.matrices:
        assert same_bits(source.reader.load(name), theirs[name]), name


def broken(folder: Path, **change: object) -> Path:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, made in change.items():
        found = next(n for n in tensors if n.endswith(name))
        if made is None:
            del tensors[found]
        else:
            tensors[found] = made(tensors[found])
    save_file(tensors, file)
    return folder


@pytest.mark.parametrize(
    ("scheme", "change", "said"),
    [
        ("fp8 blocks", {"weight_scale_inv": None}, "is quantised and lacks its `weight_scale`"),
        ("fp8 blocks", {"weight_scale_inv": lambda t: t[:-1].clone()}, "does not fit a matrix of"),
        ("awq", {"qzeros": None}, "is quantised and lacks its `qzeros`"),
        ("awq", {"scales": lambda t: t[:, 1:].clone()}, "does not fit a matrix of"),
        ("gptq", {"g_idx": lambda t: t + 9}, "names a group that has no scale"),
        ("compressed int4", {"weight_shape": lambda t: t * 3}, "does not fit a matrix of"),
        ("compressed int4 zeros", {"weight_zero_point": lambda t: t[1:].clone()}, "does not fit a matrix of"),
        ("compressed int8 order", {"weight_g_idx": lambda t: t - 1}, "names a group that has no scale"),
        ("modelopt nvfp4", {"weight_scale_2": lambda t: torch.ones(2)}, "does not fit a matrix of"),
    ],
)
def test_parts_that_do_not_fit(base: Path, tmp_path: Path, scheme: str, change: dict, said: str) -> None:
    with pytest.raises(QwenchError, match=said):
        Source(broken(quantised(base, tmp_path / "q", scheme), **change))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "quantised with `bitsandbytes`, which cannot be read here"),
        ({"quant_method": "gptq", "bits": 3}, "`gptq` of 3 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "`awq` in the layout `gemv`"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "`gptq` in the format `marlin`"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "in the format `marlin-24`"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "`W4A8_AWQ`"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:exllamav2"}, "auto_round:exllamav2"),
        ([1], "is no object"),
        ({"bits": 4}, "a method that the config does not name"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "is no pair of sizes"),
    ],
)
def test_what_is_not_known_is_refused(base: Path, tmp_path: Path, said: object, words: str) -> None:
    folder = quantised(base, tmp_path / "q", "fp8 blocks")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": said}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(QwenchError) as found:
        Source(folder)
    assert words in found.value.message


ODD = (None, [], {}, "x", -1, 0, 3, True, 1.5, [[]], {"a": []}, {"a": {"weights": [1]}}, [{}, 2])


@pytest.mark.parametrize("scheme", ["fp8 blocks", "compressed fp8 blocks", "compressed int4 zeros", "gptq"])
def test_whatever_the_config_says(base: Path, tmp_path: Path, scheme: str) -> None:
    """A sentence or values, whatever stands under any key."""
    folder = quantised(base, tmp_path / "q", scheme)
    config = json.loads((folder / "config.json").read_text())
    said, loaded = config["quantization_config"], 0
    group = said.get("config_groups", {}).get("group_0", {}).get("weights", {})
    keys = [*said, "sparsity_config", "weight_block_size", "bits"]
    changes = [{key: odd} for key in keys for odd in ODD]
    for key, odd in itertools.product([*group, "block_structure"] if group else [], ODD):
        changes.append({"config_groups": {"group_0": {"weights": group | {key: odd}}}})
    for change in changes:
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said | change}))
        try:
            reader = Source(folder).reader
            loaded += all(reader.load(name).shape == info.shape for name, info in reader.infos.items())
        except QwenchError as error:
            assert "unexpected" not in error.message
    assert loaded


def test_a_config_that_says_more_than_the_tensors(base: Path, tmp_path: Path) -> None:
    folder = quantised(base, tmp_path / "q", "fp8 blocks")
    (folder / "model.safetensors").write_bytes((tmp_path / "q-whole" / "model.safetensors").read_bytes())
    source = Source(folder)
    assert source.quantised is None and "all of its tensors are floats" in source.problems[0]


def test_modelopts_own_file(base: Path, tmp_path: Path) -> None:
    folder = quantised(base, tmp_path / "q", "modelopt nvfp4")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    assert Source(folder).quantised is not None


def test_stacks_of_experts(tmp_path: Path) -> None:
    """Experts in one tensor: blocks, and a scale each for gate and up."""
    torch.manual_seed(0)
    q = (torch.randn(3, 12, 8) * 50).to(torch.float8_e4m3fn)
    blocks, halves = torch.rand(3, 3, 2), torch.rand(3, 2, 1)
    for name, scale, block in (("a", blocks, [4, 4]), ("b", halves, None)):
        folder = tmp_path / name
        folder.mkdir()
        said = {"quant_method": "fp8", "weight_block_size": block}
        (folder / "config.json").write_text(json.dumps({"dtype": "float32", "quantization_config": said}))
        save_file({"experts.gate_up_proj": q, "experts.gate_up_proj_scale_inv": scale}, folder / "model.safetensors")
        found = Source(folder).reader.load("experts.gate_up_proj")
        for e in range(3):
            for i in range(12):
                for j in range(8):
                    s = scale[e, i // 4, j // 4] if block else scale[e, i // 6, 0]
                    assert found[e, i, j] == q[e, i, j].float() * s
    folder = tmp_path / "oss"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "mxfp4"}}))
    codes, exponents = (torch.randint(0, n, s, dtype=torch.uint8) for n, s in ((256, (2, 5, 3, 16)), (4, (2, 5, 3))))
    save_file({"down_proj_blocks": codes, "down_proj_scales": exponents + 125}, folder / "model.safetensors")
    found, table = Source(folder).reader.load("down_proj"), [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert found.shape == (2, 5, 96)
    for e, i, j in ((0, 0, 0), (1, 4, 95), (0, 3, 33), (1, 2, 64)):
        byte = int(codes[e, i, j // 32, j % 32 // 2])
        code = byte >> 4 if j % 2 else byte & 15
        value = table[code & 7] * (-1 if code & 8 else 1)
        assert found[e, i, j].item() == value * 2.0 ** (int(exponents[e, i, j // 32]) - 2)
