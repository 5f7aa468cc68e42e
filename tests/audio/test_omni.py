"""Tiny random audio language models: token counts, frames, batches, whole checkpoints, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from qwench.ops.audio.features import halved_tokens, log_mel, windowed_tokens
from qwench.ops.audio.omni import Listener, _widened
from qwench.ops.base.errors import QwenchError

from tests.audio.tiny_listeners import TEMPLATE, checkpoint, noise


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
    # An older processor's template is before a tokenizer's, which knows no sounds.
    (folder / "chat_template.jinja").rename(folder / "jinja")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content[1].text }}"}))
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_omni", "thinker_config": told}))
    weights = {f"thinker.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    extra = {"talker.x.weight": torch.zeros(2), "token2wav.y.weight": torch.zeros(2)}
    save_file(weights | extra, folder / "model.safetensors", {"format": "pt"})
    again = Listener(folder, "cpu")
    assert torch.equal(again.logits([again.heard(noise(1.0), "Which?")]), before)
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
