"""Parallel streams over stock decoders: the published outputs, and properties that hold whatever the weights are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from qwench.ops.checkpoint.reader import Source
from qwench.ops.conversion.plan import ConvertOptions, plan_conversion
from qwench.ops.models.hub import resolve
from qwench.ops.models.nets.causal import CausalDecoder
from qwench.ops.streams import modeling_parscale as parscale
from qwench.ops.streams.model import added_parameters, build, check_family, equals_base, give_streams
from qwench.ops.training.train import trainee
from qwench.ops.writing.load import load_causal
from safetensors.torch import load_file, save_file

from tests.tiny import byte_decoder, byte_tokenizer, reference

KINDS = ["qwen2", "qwen3", "qwen3_moe", "llama"]
TEXT = torch.randint(256, (2, 19), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=KINDS)
def base(request, tmp_path_factory) -> Path:
    """A tiny decoder of each family."""
    return byte_decoder(tmp_path_factory.mktemp(request.param) / "base", request.param)


def one(folder: Path):
    """The model with one stream, and its config."""
    source = Source(folder)
    plan = plan_conversion(source, ConvertOptions(str(folder), "", to="safetensors"))
    return build(source.config(), plan, "float32", "cpu").eval(), source.config()


def with_streams(folder: Path, streams: int = 3, tokens: int = 5, smooth: float = 0.1):
    """The model with random prefixes as large as real keys, and a random aggregator."""
    model, _ = one(folder)
    give_streams(
        model, streams, TEXT[:, :tokens].repeat(2, 1), init="random", smooth=smooth, prefix_only=streams == 1, seed=0
    )
    made = torch.Generator().manual_seed(3)
    for _, p in added_parameters(model):
        p.data = torch.empty(p.shape).normal_(0, 0.7 if p.dim() > 1 else 0.1, generator=made)
    return model.eval()


def streamed(folder: Path, kind: str, **extra: object) -> Path:
    """A ParScale checkpoint with random prefixes over a tiny decoder."""
    base = byte_decoder(folder / "base", kind, **extra)
    with_streams(base).save_pretrained(folder / "streams")
    byte_tokenizer(folder / "streams")
    return folder / "streams"


def logits(model, ids: torch.Tensor, **more: object) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **more).logits


@pytest.mark.parametrize("name", ["parscale-p4", "parscale-p1"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_published_outputs(name: str, attention: str) -> None:
    folder = reference(name)
    wanted = load_file(folder / "expected.safetensors")
    model, info = parscale.Qwen2ParScaleForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(logits(model.eval(), wanted["input_ids"]), wanted["logits"], atol=1e-5, rtol=0)
    mask = wanted["attention_mask_padded"]
    real = wanted["logits_padded_row1"]
    padded = logits(model, wanted["input_ids"], attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    torch.testing.assert_close(padded[1, -len(real) :], real, atol=1e-5, rtol=0)
    prompt = wanted["greedy"][:, :-24]
    for cache in ("dynamic", "static"):
        made = model.generate(prompt, max_new_tokens=24, do_sample=False, eos_token_id=None, cache_implementation=cache)
        assert torch.equal(made, wanted["greedy"])


def test_published_checkpoint_in_our_engine(tmp_path: Path) -> None:
    folder = reference("parscale-p4")
    wanted = load_file(folder / "expected.safetensors")
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    byte_tokenizer(tmp_path)
    engine = load_causal(resolve(str(tmp_path)), slots=2, runtime=Runtime(device="cpu", dtype="float32")).engine
    ids = wanted["greedy"][0].tolist()
    found = engine.feed({0: ids[:-24], 1: wanted["input_ids"][1].tolist()})
    torch.testing.assert_close(found[1], wanted["logits"][1, -1], atol=1e-5, rtol=0)
    for token in ids[-24:]:
        assert found[0].argmax() == token
        found = engine.feed({0: [token]})


def test_one_stream_is_the_base_to_the_bit(base: Path) -> None:
    model, config = one(base)
    assert equals_base(model, config, TEXT[:1])
    assert not model.config._attn_implementation.startswith("parscale")
    assert not list(added_parameters(model))


def test_a_difference_from_the_base_is_seen(base: Path) -> None:
    model, config = one(base)
    config = config | {"rms_norm_eps": 0.1}
    assert not equals_base(model, config, TEXT[:1])


def test_incremental_is_full_is_chunked(base: Path) -> None:
    model = with_streams(base)
    full = logits(model, TEXT)
    for cuts in ([1] * TEXT.shape[1], [7, 5, 7], [18, 1]):
        from transformers import DynamicCache, StaticCache

        for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=32)):
            parts = []
            for ids in TEXT.split(cuts, 1):
                parts.append(logits(model, ids, past_key_values=cache, use_cache=True))
            torch.testing.assert_close(torch.cat(parts, 1), full, atol=5e-5, rtol=0)


def test_late_tokens_do_not_reach_earlier_ones(base: Path) -> None:
    model = with_streams(base)
    changed = TEXT.clone()
    changed[:, 11] = (changed[:, 11] + 1) % 256
    before, after = logits(model, TEXT), logits(model, changed)
    torch.testing.assert_close(after[:, :11], before[:, :11], atol=1e-6, rtol=0)
    assert (after[:, 11:] - before[:, 11:]).abs().max() > 1e-3


def test_left_padding_changes_nothing(base: Path) -> None:
    model = with_streams(base)
    ids = torch.cat((torch.zeros(2, 4, dtype=torch.long), TEXT), 1)
    mask = torch.ones_like(ids)
    mask[:, :4] = 0
    padded = logits(model, ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    torch.testing.assert_close(padded[:, 4:], logits(model, TEXT), atol=2e-5, rtol=0)


def test_a_prefix_of_a_prompt_is_the_prompt(base: Path) -> None:
    model, _ = one(base)
    prompt, text = TEXT[:1, :6], TEXT[:1, 6:]
    wanted = logits(model, TEXT[:1])[:, 6:]
    for streams in (1, 3):
        give_streams(
            model,
            streams,
            prompt.repeat(streams, 1),
            init="prompts",
            smooth=0.1,
            prefix_only=streams == 1,
            seed=0,
        )
        torch.testing.assert_close(logits(model.eval(), text), wanted, atol=1e-5, rtol=0)
    # Streams with prompts of their own are the average of the base's last hidden states.
    give_streams(model, 2, TEXT[:, :6], init="prompts", smooth=0.0, prefix_only=False, seed=0)
    mixed = logits(model, text)
    give_streams(model, 1, prompt, init="prompts", smooth=0.0, prefix_only=False, seed=0)
    apart = [logits(model, torch.cat((head, text), 1))[:, 6:] for head in TEXT[:, None, :6]]
    torch.testing.assert_close(mixed, torch.stack(apart).mean(0), atol=1e-5, rtol=0)


def test_weights_of_streams_as_the_paper_has_them(base: Path) -> None:
    model = with_streams(base, smooth=0.2)
    with torch.no_grad():
        hidden = model.model.run_streams(input_ids=TEXT).last_hidden_state.double()
        _, weights = model.model.aggregate(hidden.float())
    first, _, last = model.model.aggregate_layer
    for b, s in ((0, 0), (1, 18)):
        x = torch.stack([hidden[p * 2 + b, s] for p in range(3)])
        # Feature h * P + p: unit by unit, stream by stream.
        flat = torch.tensor([x[p, h].item() for h in range(32) for p in range(3)], dtype=torch.float64)
        z = first.weight.double() @ flat + first.bias.double()
        z = last.weight.double() @ (z * z.sigmoid()) + last.bias.double()
        wanted = z.softmax(0) * 0.8 + 0.2 / 3
        torch.testing.assert_close(weights[b, s].double(), wanted, atol=1e-6, rtol=0)
    assert weights.min() >= 0.2 / 3 - 1e-6


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_gradients_are_the_same_under_checkpointing(kind: str, tmp_path: Path) -> None:
    folder = byte_decoder(tmp_path / "base", kind)
    found = []
    for checkpointing in (False, True):
        model = with_streams(folder).train()
        model.requires_grad_(False)
        for _, p in added_parameters(model):
            p.requires_grad_(True)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trainee(model, None)(TEXT)["loss"].backward()
        found.append({n: p.grad for n, p in added_parameters(model)})
    assert all(g.abs().max() > 0 for g in found[0].values())
    for name, grad in found[0].items():
        assert torch.equal(grad, found[1][name]), name


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_beams_keep_their_streams(kind: str, tmp_path: Path) -> None:
    model = with_streams(byte_decoder(tmp_path / "base", kind))
    kept = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model.generate(TEXT, **kept), model.generate(TEXT, use_cache=False, **kept))


def test_missing_tensors_of_a_plain_checkpoint_are_the_streams_alone(base: Path) -> None:
    _, config = one(base)
    family = parscale.FAMILIES[config["model_type"]]
    made = family.config_class(**{k: v for k, v in config.items() if k not in ("model_type", "architectures")})
    made.parscale_n, made.parscale_n_tokens = 4, 5
    model, info = family.from_pretrained(base, config=made, output_loading_info=True)
    wanted = {f"model.layers.{i}.self_attn.prefix_{n}" for i in range(2) for n in "kv"}
    wanted |= {f"model.aggregate_layer.{i}.{n}" for i in (0, 2) for n in ("weight", "bias")}
    assert set(info["missing_keys"]) == wanted and not info["unexpected_keys"]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert 0 < model.model.layers[0].self_attn.prefix_k.std() < 0.1


def test_our_engine_says_what_transformers_says(base: Path, tmp_path: Path) -> None:
    model = with_streams(base)
    for n, _ in added_parameters(model):
        assert parscale.is_added(n)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((base / name).read_bytes())
    loaded = load_causal(resolve(str(tmp_path)), slots=3, runtime=Runtime(device="cpu", dtype="float32"))
    engine, texts = loaded.engine, [TEXT[0].tolist(), TEXT[1, :9].tolist(), TEXT[1].tolist()]
    wanted = [logits(model, torch.tensor([t]))[0] for t in texts]

    def same(found: torch.Tensor, *places: tuple[int, int]) -> None:
        for row, (text, at) in zip(found, places, strict=True):
            torch.testing.assert_close(row, wanted[text][at], atol=2e-5, rtol=0)

    same(engine.feed({0: texts[0][:5], 2: texts[2][:17]}), (0, 4), (2, 16))
    same(engine.feed({0: texts[0][5:14], 1: texts[1][:8], 2: texts[2][17:18]}), (0, 13), (1, 7), (2, 17))
    same(engine.feed({0: texts[0][14:15], 1: texts[1][8:9], 2: texts[2][18:19]}), (0, 14), (1, 8), (2, 18))
    engine.swap(0, 2)
    same(engine.feed({2: texts[0][15:16]}), (0, 15))
    engine.keep(2, 3)
    same(engine.feed({2: texts[0][3:7]}), (0, 6))
    alone = load_causal(resolve(str(tmp_path)), streams=1, runtime=Runtime(device="cpu", dtype="float32")).engine
    assert type(alone) is CausalDecoder
    plain, _ = one(base)
    torch.testing.assert_close(alone.feed({0: texts[0]})[0], logits(plain, TEXT[:1])[0, -1], atol=2e-5, rtol=0)


def test_flash_attention_gets_the_prefix_and_a_mask_as_long(tmp_path: Path, monkeypatch) -> None:
    model = with_streams(byte_decoder(tmp_path / "base"))
    seen = {}

    def flash(module, q, k, v, mask, **more):
        seen["k"], seen["mask"] = k, mask
        return torch.zeros(len(q), q.shape[2], q.shape[1], q.shape[3]), None

    get = parscale.ALL_ATTENTION_FUNCTIONS.get_interface
    monkeypatch.setattr(
        parscale.AttentionInterface,
        "get_interface",
        lambda self, n, d: flash if n == "flash_attention_2" else get(n, d),
    )
    attention = model.model.layers[0].self_attn
    q, k = torch.zeros(6, 4, 7, 16), torch.randn(6, 2, 7, 16)
    mask = torch.ones(6, 7, dtype=torch.long)
    mask[:, :2] = 0
    parscale._prefixed("flash_attention_2")(attention, q, k, k, mask)
    assert seen["mask"].tolist() == [[1] * 5 + [0, 0] + [1] * 5] * 6
    assert torch.equal(seen["k"][3, :, :5], attention.prefix_k[1]) and torch.equal(seen["k"][:, :, 5:], k)
    with pytest.raises(ValueError, match="cannot take a prefix"):
        model.set_attn_implementation("flex_attention")


def test_streams_are_changed_over_one_decoder(tmp_path: Path) -> None:
    from qwench.ops.streams.save import adapter_bytes

    folder = byte_decoder(tmp_path / "base")
    wide = with_streams(folder, streams=4, tokens=3)
    file = tmp_path / "p4.safetensors"
    said = {"parscale_n": 4, "parscale_n_tokens": 3, "parscale_attn_smooth": 0.1}
    file.write_bytes(adapter_bytes({n: p.detach() for n, p in added_parameters(wide)}, said))
    model = with_streams(folder, streams=2)
    model.load_streams(file)
    assert torch.equal(logits(model, TEXT), logits(wide, TEXT))
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="no adapter"):
        model.load_streams(file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "gpt2"}, "parallel streams are for"),
        ({"model_type": "qwen3_parscale"}, "parallel streams already"),
        ({"use_sliding_window": True, "sliding_window": 8}, "sliding windows"),
    ],
)
def test_models_without_streams_are_refused(change: dict, said: str, tmp_path: Path) -> None:
    config = Source(byte_decoder(tmp_path / "base")).config()
    check_family(config)
    with pytest.raises(QwenchError, match=said):
        check_family(config | change)
