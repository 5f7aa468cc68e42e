"""Tiny random audio language models: token counts, frames, batches, whole checkpoints, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from qwench.ops.audio.features import halved_tokens, log_mel, windowed_tokens
from qwench.ops.audio.omni import Listener, _widened
from qwench.ops.base.errors import QwenchError

SPECIALS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|im_start|>", "<|im_end|>", "<|IMAGE|>", "<|VIDEO|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'audio' %}"
    "<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "vocab_size": 280, "max_position_embeddings": 4096}
ROPE = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10_000.0}


def tokenizer(folder: Path) -> dict[str, int]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: n for n, c in enumerate(letters)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(list(SPECIALS))
    made.save(str(folder / "tokenizer.json"))
    return {name: made.token_to_id(name) for name in SPECIALS}


def config(kind: str, ids: dict[str, int]) -> Any:
    import transformers as t

    sound = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "num_mel_bins": 128,
    }
    audio, start, end = (ids[n] for n in SPECIALS[:3])
    if kind == "qwen2_audio":
        text = {"model_type": "qwen2", **TEXT}
        return t.Qwen2AudioConfig(audio_config=sound, text_config=text, audio_token_index=audio)
    named = {"audio_token_id": audio, "audio_start_token_id": start, "audio_end_token_id": end}
    named |= {"image_token_id": ids["<|IMAGE|>"], "video_token_id": ids["<|VIDEO|>"]}
    # Real checkpoints have these too, and the package reads them without a default.
    named |= {"vision_start_token_id": ids["<|IMAGE|>"], "vision_end_token_id": ids["<|VIDEO|>"]}
    sound["output_dim"] = 48
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 4, "intermediate_size": 32, "out_hidden_size": 48}
    if kind == "qwen2_5_omni_thinker":
        indices = {f"{what}_token_index": named.pop(f"{what}_token_id") for what in ("audio", "image", "video")}
        return t.Qwen2_5OmniThinkerConfig(
            audio_config=sound | {"n_window": 100},
            vision_config=vision,
            text_config=TEXT | {"rope_scaling": ROPE, "rope_parameters": ROPE},
            **indices,
            **named,
        )
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeThinkerConfig

    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 12}
    return Qwen3OmniMoeThinkerConfig(
        audio_config=sound | {"n_window": 50, "n_window_infer": 400, "downsample_hidden_size": 32},
        vision_config=vision,
        text_config=TEXT | moe | {"rope_scaling": ROPE, "rope_parameters": ROPE},
        **named,
    )


def checkpoint(folder: Path, kind: str) -> Path:
    import transformers as t

    folder.mkdir()
    ids = tokenizer(folder)
    classes = {
        "qwen2_audio": t.Qwen2AudioForConditionalGeneration,
        "qwen2_5_omni_thinker": t.Qwen2_5OmniThinkerForConditionalGeneration,
        "qwen3_omni_moe_thinker": t.Qwen3OmniMoeThinkerForConditionalGeneration,
    }
    torch.manual_seed(0)
    made = classes[kind](config(kind, ids)).float()
    with torch.no_grad():
        for weight in made.parameters():
            # As they are drawn, a sound hardly reaches the logits.
            weight.mul_(4 if weight.dim() > 1 else 1)
    made.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids["<|im_end|>"]}))
    chunk = 30 if kind == "qwen2_audio" else 40
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": 128, "chunk_length": chunk}))
    return folder


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16_000))


def test_token_counts_are_the_packages_own() -> None:
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import _get_feat_extract_output_lengths

    frames = torch.arange(1, 3001)
    theirs = Qwen2_5OmniAudioEncoder._get_feat_extract_output_lengths(None, frames)[1].tolist()
    assert [halved_tokens(n) for n in range(1, 3001)] == theirs
    assert [windowed_tokens(n) for n in range(1, 3001)] == _get_feat_extract_output_lengths(frames).tolist()
    assert [halved_tokens(n) for n in (100, 200, 1235)] == [25, 50, 309]
    assert [windowed_tokens(n) for n in (100, 200, 1235)] == [13, 26, 161]


@pytest.mark.parametrize("samples", [1600, 1601, 15_999, 16_000, 31_999, 32_000])
def test_frames_are_those_of_the_longest_padding(samples: int) -> None:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=2)
    sound = noise(3)[:samples]
    theirs = extractor(
        sound, sampling_rate=16_000, padding="max_length", return_attention_mask=True, return_tensors="np"
    )
    frames = int(theirs["attention_mask"].sum())
    ours = log_mel(sound, extractor)
    assert ours.shape == (128, frames)
    np.testing.assert_allclose(ours, theirs["input_features"][0][:, :frames], atol=1e-4)
    # A window reaches two frames beyond the end; from there on all is silence.
    wide = _widened(ours, 200).numpy()
    np.testing.assert_allclose(wide[:, frames + 2 :], theirs["input_features"][0][:, frames + 2 :], atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "qwen2_audio"])
def test_a_batch_is_its_rows(kind: str, tmp_path: Path) -> None:
    listener = Listener(checkpoint(tmp_path / "m", kind), "cpu")
    heard = [
        listener.heard(noise(s, n), t) for n, (s, t) in enumerate(((1.0, "Which?"), (2.37, "And this one, please?")))
    ]
    assert [h.ids.count(listener.audio) for h in heard] == [listener.family.tokens(n) for n in (100, 237)]
    alone = torch.cat([listener.logits([h]) for h in heard])
    torch.testing.assert_close(listener.logits(heard), alone, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(alone[0], listener.logits([listener.heard(noise(1.0, 7), "Which?")])[0], atol=1e-3)
    assert listener.write(heard, 6) == [listener.write([h], 6)[0] for h in heard]
    drawn = listener.write(heard, 6, 1.0, (1, 2))
    assert drawn == listener.write(heard, 6, 1.0, (1, 2)) != listener.write(heard, 6, 1.0, (3, 4))


def test_a_whole_checkpoint_gives_its_thinker(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = checkpoint(tmp_path / "m", "qwen2_5_omni_thinker")
    heard = (first := Listener(folder, "cpu")).heard(noise(1.0), "Which?")
    before = first.logits([heard])
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_omni", "thinker_config": told}))
    weights = {f"thinker.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    extra = {"talker.x.weight": torch.zeros(2), "token2wav.y.weight": torch.zeros(2)}
    save_file(weights | extra, folder / "model.safetensors", {"format": "pt"})
    assert torch.equal(Listener(folder, "cpu").logits([heard]), before)
    save_file(weights | {"stranger.weight": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(QwenchError, match="have no place, such as `stranger"):
        Listener(folder, "cpu")
    weights.pop(next(name for name in weights if "audio_tower" in name))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(QwenchError, match="weights are missing, such as `"):
        Listener(folder, "cpu")


def test_what_cannot_be_heard_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", "qwen2_audio")
    listener = Listener(folder, "cpu")
    with pytest.raises(QwenchError, match=r"31\.0 s long, and the model hears 30 s"):
        listener.heard(noise(31), "Which?")
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("<|AUDIO|>", "<|AUDIO|><|AUDIO|>"))
    with pytest.raises(QwenchError, match="puts 2 audio tokens"):
        Listener(folder, "cpu").heard(noise(1), "Which?")
    (folder / "chat_template.jinja").write_text("{{ messages[0].role }}")
    with pytest.raises(QwenchError, match="leaves a message out"):
        Listener(folder, "cpu").heard(noise(1), "Which?")
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(QwenchError, match="no audio encoder"):
        Listener(folder, "cpu")
