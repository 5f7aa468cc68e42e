"""Random damage to every file of a model: a command ends in success or in one sentence, soon, and in little memory."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import yaml
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from qwench.ops.convert import ConvertOptions, convert
from qwench.ops.diff import diff
from qwench.ops.inspect import inspect
from qwench.ops.merging.recipe import from_yaml
from qwench.ops.merging.settings import evaluate
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

SECONDS, BYTES = 10, 1 << 30
VALUES = [None, True, False, 0, -1, 1, 3, 2.5, 1e400, float("nan"), 1 << 31, 1 << 63, 1 << 64, 10**40, "", "x", "12"]
VALUES += [
    99_999,
    (1 << 31) - 1,
    "BF16",
    "7" * 5000,
    "\ud800",
    "\x00",
    "../x",
    [],
    [[]],
    [None],
    [0, 0],
    [-1, -1],
    [0.5],
    ["a"],
    {},
    {"a": 1},
]
SIZES = [0, 1, 31, 33, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 60, 1 << 63, (1 << 64) - 1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("fuzz") / "model")


def small_model(folder: Path) -> Path:
    """A Qwen3 of one layer with every side file, in two shards with an index; an adapter beside it."""
    folder.mkdir()
    shapes = {"model.embed_tokens.weight": (264, 32), "model.norm.weight": (32,)}
    at = "model.layers.0."
    shapes |= {f"{at}self_attn.{k}_proj.weight": (32, 32) for k in "qo"}
    shapes |= {f"{at}self_attn.{k}_proj.weight": (16, 32) for k in "kv"}
    shapes |= {f"{at}self_attn.{k}_norm.weight": (16,) for k in "qk"}
    shapes |= {f"{at}mlp.{k}_proj.weight": (32, 32) for k in ("gate", "up", "down")}
    shapes |= {f"{at}{k}_layernorm.weight": (32,) for k in ("input", "post_attention")}
    torch.manual_seed(0)
    tensors = {n: torch.randn(s) for n, s in shapes.items()}
    names, places = list(tensors), {}
    for i, part in enumerate((names[:5], names[5:]), 1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 32}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    config |= {"vocab_size": 264, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}
    config |= {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}, "eos_token_id": [256]}
    tokenizer = Tokenizer(BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "yes", "no"])
    modules = [{"path": "", "type": "models.Transformer"}, {"path": "1_Pooling", "type": "models.Pooling"}]
    sides: dict[str, Any] = {
        "model.safetensors.index.json": {"metadata": {}, "weight_map": places},
        "config.json": config,
        "tokenizer.json": json.loads(tokenizer.to_str()),
        "tokenizer_config.json": {"eos_token": {"content": "<|endoftext|>"}, "chat_template": "{{ messages }}"},
        "generation_config.json": {"eos_token_id": [256]},
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_lasttoken": True},
        "lora/adapter_config.json": {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"q_proj": 8}},
    }
    for name, value in sides.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    lora = {
        f"base_model.{at}self_attn.q_proj.lora_{k}.weight": torch.randn(s) for k, s in (("A", (2, 32)), ("B", (32, 2)))
    }
    save_file(lora, folder / "lora" / "adapter_model.safetensors")
    return folder


def places_in(value: Any, at: tuple = ()) -> Iterator[tuple]:
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places_in(inner, (*at, key))


def mutated(rng: random.Random, value: Any, values: list = VALUES) -> Any:
    """A tree with some of its nodes gone, doubled, or become something else."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 4))):
        spots = list(places_in(value))[1:]
        if not spots:
            return value
        *way, last = rng.choice(spots)
        here = value
        for key in way:
            here = here[key]
        how = rng.random()
        if how < 0.2:
            del here[last]
        elif how < 0.3 and isinstance(here, list):
            here.append(copy.deepcopy(here[last]))
        else:
            here[last] = copy.deepcopy(rng.choice(values))
    return value


def bytes_of(rng: random.Random, value: Any) -> bytes:
    """A mutated object as JSON, a few as what is hardly any."""
    how = rng.random()
    text = json.dumps(value if how < 0.15 else mutated(rng, value))
    if how < 0.7:
        return text.encode()
    if how < 0.8:
        data = bytearray(text.encode())
        for _ in range(rng.choice((1, 4))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    odd = [b"", b"null", b"[" * 90_000, b'{"a":' * 3000 + b"1" + b"}" * 3000, b"\xef\xbb\xbf" + text.encode()]
    odd += [text.encode("utf-16"), text[: len(text) // 2].encode(), b"9" * 6000]
    odd += [(text[:-1] + f', "{key}": 3}}').encode() for key in list(value)[:1] if isinstance(value, dict)]
    return rng.choice(odd)


def safetensors(rng: random.Random, model: Path, folder: Path) -> None:
    """A mutated header; where a command takes the file, the format's own library must take it too, alike."""
    shutil.copyfile(model / "config.json", folder / "config.json")
    head, at = {"__metadata__": {"format": "pt"}}, 0
    for name, kind, size, shape in (
        ("model.embed_tokens.weight", "F32", 4, [6, 4]),
        ("model.layers.0.self_attn.q_proj.weight", "BF16", 2, [4, 4]),
        ("scalar", "I64", 8, []),
        ("none", "F16", 2, [0, 3]),
    ):
        count = size * int(np.prod(shape))
        head[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + count]}
        at += count
    if rng.random() < 0.3:
        offsets = head[rng.choice(list(head)[1:])]["data_offsets"]
        by = rng.choice((-4, -1, 1, 4, 1 << 62))
        offsets[0], offsets[1] = offsets[0] + by, offsets[1] + by
        text = json.dumps(head).encode()
    else:
        text = bytes_of(rng, head)
    size = len(text) if rng.random() < 0.9 else rng.choice(SIZES)
    body = struct.pack("<Q", size) + text + bytes(at + rng.choice((0, 0, 0, 1, -1)))
    path = folder / "model.safetensors"
    path.write_bytes(body)
    found = list(inspect(str(folder), tensors=True))[-1].result
    list(diff(str(folder), str(folder)))
    list(convert(ConvertOptions(str(folder), str(folder.with_name("out")), verify="bits", runtime=Runtime(threads=1))))
    with safe_open(path, "pt") as file:
        theirs = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert {t["name"]: t["shape"] for t in found["tensor_list"]} == theirs


def sides(rng: random.Random, model: Path, folder: Path) -> None:
    """A mutated JSON file beside the weights."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    name = rng.choice([p.relative_to(model).as_posix() for p in sorted(model.rglob("*.json"))])
    (folder / name).write_bytes(bytes_of(rng, json.loads((model / name).read_text())))
    if name.startswith("lora"):
        ways: list[dict] = [{"lora": (str(folder / "lora"),)}]
    else:
        ways = [{"head": "embedding"}, {"head": "reranker"}, {"gate": "headwise"}, {"dtype": "float16"}, {"to": "gguf"}]
    how = rng.choice(ways)
    list(inspect(str(folder)))
    out = folder.with_name("out.gguf" if "to" in how else "out")
    list(convert(ConvertOptions(str(folder), str(out), **how, runtime=Runtime(threads=1))))


def gguf_file(rng: random.Random, model: Path, folder: Path) -> None:
    """Metadata of other types, shapes, stacks and offsets; or bytes of the header."""
    arch = rng.choice(("llama", "qwen3", "qwen3moe"))
    keys: dict[str, Any] = {"general.architecture": arch, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2"}
    for key, value in (
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
        ("attention.layer_norm_rms_epsilon", 1e-5),
        ("expert_count", 2),
        ("expert_used_count", 1),
        ("expert_feed_forward_length", 32),
        ("rope.scaling.type", "none"),
    ):
        keys[f"{arch}.{key}"] = value
    keys |= {"tokenizer.ggml.tokens": [*"abcdefgh"], "tokenizer.ggml.merges": ["a b"], "split.count": 0}
    keys |= {"tokenizer.ggml.token_type": [1] * 8, "tokenizer.ggml.eos_token_id": 7, "general.alignment": 32}
    shapes = {"token_embd.weight": (8, 32), "output_norm.weight": (32,), "blk.0.attn_q.weight": (32, 32)}
    shapes |= {"blk.0.ffn_up_exps.weight": (2, 32, 32), "blk.0.ffn_up.weight": (32, 32)}
    how = rng.randrange(6)
    values = [
        v for v in VALUES if isinstance(v, bool | int | str) and not (isinstance(v, int) and not 0 <= v < 1 << 32)
    ]
    values = [v for v in values if v != "\ud800"] + [["a"], [1, 2], [0.5], []]
    if how == 0:
        keys = {k: v for k, v in mutated(rng, keys, values).items() if v is not None}
    if how == 1:
        odd = [
            (),
            (0,),
            (0, 32),
            (1 << 60, 0),
            (1 << 32, 1 << 32),
            (1 << 40, 0, 0),
            (32,) * 4,
            (1,) * 9,
            (1 << 62, 0, 32),
        ]
        shapes[rng.choice(list(shapes))] = rng.choice(odd)
    head, at = [b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys))], 0
    head += [word(k) + packed(v) for k, v in keys.items()]
    for name, shape in shapes.items():
        kind = rng.choice((*range(42), 1 << 31)) if how == 2 and rng.random() < 0.5 else 0
        offset = rng.choice(SIZES) if how == 2 and rng.random() < 0.3 else at
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        head.append(word(name) + dims + struct.pack("<IQ", kind, offset))
        at += 4 * 32 * 32 * 2
    data = bytearray(b"".join(head))
    data += bytes(-len(data) % 32)
    for _ in range(rng.choice((1, 1, 5)) if how == 3 else 0):
        spot = rng.randrange(4, len(data) - 8)
        data[spot : spot + 8] = struct.pack("<Q", rng.choice(SIZES))
    if how == 4:
        deep = rng.choice((9, 3000, 50_000))
        data = bytearray(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + word("a") + struct.pack("<I", 9))
        data += struct.pack("<IQ", 9, 1) * deep + struct.pack("<IQ", 4, 0)
    path = folder / "model.gguf"
    path.write_bytes(bytes(data) + bytes(at))
    list(inspect(str(path), tensors=True))
    out = folder / rng.choice(("out", "out.gguf"))
    list(convert(ConvertOptions(str(path), str(out), runtime=Runtime(threads=1))))


def word(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def packed(value: Any) -> bytes:
    if isinstance(value, list):
        # An array is of one type: that of its first item.
        items = [v for v in value if type(v) is type(value[0])]
        kind = 8 if not items or isinstance(items[0], str) else 4 if isinstance(items[0], int) else 6
        items = [] if items and isinstance(items[0], list) else items
        each = [word(v) if kind == 8 else struct.pack("<I" if kind == 4 else "<f", v) for v in items]
        return struct.pack("<IIQ", 9, kind, len(items)) + b"".join(each)
    if isinstance(value, str):
        return struct.pack("<I", 8) + word(value)
    kind = 7 if isinstance(value, bool) else 4 if isinstance(value, int) else 6
    return struct.pack("<I" + {7: "?", 4: "I", 6: "f"}[kind], kind, value)


def recipe(rng: random.Random, model: Path, folder: Path) -> None:
    """A mutated recipe, read, and its values asked for."""
    part = {"model": "A", "parameters": {"weight": [0, 0.5, 1]}, "layer_range": [0, 1]}
    value = {
        "merge_method": "slerp",
        "slices": [{"sources": [part, part | {"model": {"model": {"path": "B"}, "lora": None}}]}],
        "base_model": "A",
        "parameters": {"t": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}]},
        "dtype": "float32",
        "tokenizer_source": "base",
    }
    plain = [v for v in VALUES if v != "\ud800"]
    data = yaml.safe_dump(mutated(rng, value, [*plain, "auto", "1e-10", {"value": 1}, [{"value": 1}, 2]])).encode()
    if rng.random() < 0.2:
        odd = [b"a: &a [*a]\n" + data, b"[" * 3000, data + b"\nmerge_method: linear", b"\xff" + data, b"x: 2020-99-01"]
        data = rng.choice([*odd, data.replace(b":", b"", 1), b"!!python/object/apply:os.system [x]", b"- 1", b""])
    path = folder / "recipe.yml"
    path.write_bytes(data)
    made = from_yaml(path)
    for parameters in made.sources(0, made.models[0]):
        for setting in parameters.values():
            evaluate(setting, "model.layers.0.mlp.up_proj.weight", 0.3)


KINDS: dict[str, Callable[[random.Random, Path, Path], None]] = {
    "safetensors": safetensors,
    "gguf": gguf_file,
    "sides": sides,
    "recipe": recipe,
}


def late(*_: object) -> None:
    raise TimeoutError(f"a case takes more than {SECONDS} s")


def campaign(kind: str, seeds: range, model: Path, folder: Path) -> dict[str, int]:
    """How many cases passed and how many were refused; anything else is the test's failure, with its seed."""
    ends = {"passed": 0, "refused": 0}
    before = signal.signal(signal.SIGALRM, late)
    try:
        for seed in seeds:
            case = folder / f"{kind}-{seed}" / "case"
            case.mkdir(parents=True)
            signal.alarm(SECONDS)
            try:
                KINDS[kind](random.Random(f"{kind} {seed}"), model, case)
                ends["passed"] += 1
            except QwenchError as error:
                assert error.message and "\n" not in error.message, (seed, error.message)
                ends["refused"] += 1
            except Exception as error:
                raise AssertionError(f"{kind} case {seed} ended in {type(error).__name__}: {error}") from error
            finally:
                signal.alarm(0)
                shutil.rmtree(case.parent)
    finally:
        signal.signal(signal.SIGALRM, before)
    return ends


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_end_in_one_sentence(kind: str, model: Path, tmp_path: Path) -> None:
    ends = campaign(kind, range(40), model, tmp_path)
    assert ends["refused"] > 5 and ends["passed"], ends


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_damaged_files(kind: str, model: Path, tmp_path: Path) -> None:
    """In a child with little room, so that a huge allocation is a failure and not the machine's end."""
    gguf.GGMLQuantizationType(0)
    child = os.fork()
    if not child:
        import resource

        held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, held + BYTES))
        status = 1
        try:
            campaign(kind, range(1000, 1000 + int(os.environ.get("QWENCH_TEST_CASES", "3000"))), model, tmp_path)
            status = 0
        except BaseException as error:
            print(error, flush=True)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
