"""Audio language models of transformers, asked with inputs that are made by hand.

Their processors want image and video processors, and those torchvision; a judge of speech needs neither.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..base.errors import QwenchError
from ..base.parse import parse_json
from ..checkpoint.reader import Source
from ..checkpoint.sidecars import json_of
from ..models.device import pick_device, pick_dtype
from ..models.pretrained import silence_transformers
from ..models.template import ChatTemplate, chat_files
from ..models.tokenizer import TextTokenizer
from .features import halved_tokens, log_mel, windowed_tokens


class Family(NamedTuple):
    """Class; where its config is in config.json; prefix of its weights; tokens of frames; frames must be padded."""

    network: str
    inner: str | None
    prefix: str
    tokens: Callable[[int], int]
    padded: bool = False


THINKER = "Qwen2_5OmniThinkerForConditionalGeneration"
MOE = "Qwen3OmniMoeThinkerForConditionalGeneration"
#: by model_type
FAMILIES = {
    "qwen2_5_omni": Family(THINKER, "thinker_config", "thinker.", halved_tokens),
    "qwen2_5_omni_thinker": Family(THINKER, None, "", halved_tokens),
    "qwen3_omni_moe": Family(MOE, "thinker_config", "thinker.", windowed_tokens),
    "qwen3_omni_moe_thinker": Family(MOE, None, "", windowed_tokens),
    "qwen2_audio": Family("Qwen2AudioForConditionalGeneration", None, "", halved_tokens, True),
}
#: where a sound is among the parts of a message; templates look for one name or the other
AUDIO = {"type": "audio", "audio": "sound", "audio_url": "sound"}
#: parts of whole checkpoints that speak
SPEAKERS = ("talker.", "token2wav.", "code2wav.")


@dataclass(frozen=True, slots=True)
class Heard:
    """One prompt: ids with an audio token for each of a sound's, and the frames (bands, frames) of its sounds."""

    ids: list[int]
    sounds: tuple[NDArray[np.float32], ...]


class Written(NamedTuple):
    """An answer; cut: it had no end after as many tokens as it may have."""

    text: str
    cut: bool


class Listener:
    """A checkpoint that hears one sound and writes a text.

    Args:
        folder: config.json, weights, tokenizer, chat template and preprocessor_config.json.
        heads: beginnings of weights that are not the network's, and that the caller reads.

    Raises:
        QwenchError: another kind of model, a missing file or weight, more memory than there is.
    """

    def __init__(self, folder: Path, device: str = "auto", dtype: str = "auto", heads: tuple[str, ...] = ()) -> None:
        config = parse_json(_file(folder, "config.json"), "config.json")
        kind = str(config.get("model_type") if isinstance(config, dict) else None)
        if kind not in FAMILIES:
            raise QwenchError(
                f"`{folder}` has no audio encoder that is known here: it is `{kind}`",
                "use a checkpoint of Qwen2.5-Omni, Qwen3-Omni or Qwen2-Audio",
            )
        self.family = FAMILIES[kind]
        self.extractor = _extractor(folder)
        self.tokenizer, self.template = TextTokenizer.load(folder), ChatTemplate.read(_chat_files(folder))
        self.device = pick_device(device).value
        inner = config.get(self.family.inner) or {} if self.family.inner else {}
        told = (c.get(name) for c in (config, inner) for name in ("dtype", "torch_dtype"))
        self.dtype = pick_dtype(dtype, self.device, next((str(t) for t in told if t), "float32")).value
        check_memory(folder, self.device, self.dtype)
        self.model = _network(folder, config, self.family, self.dtype, heads).to(self.device).eval()
        self.audio = int(self.model.config.audio_token_id)
        self.ends = _ends(folder, self.tokenizer, self.template)

    @property
    def rate(self) -> int:
        """Of the sounds that it takes, in Hz."""
        return int(self.extractor.sampling_rate)

    def heard(self, samples: NDArray[np.floating], text: str) -> Heard:
        """One user turn: a sound (n,) at `rate`, then a text.

        Raises:
            QwenchError: the sound is too long; the template has no audio token, or more than one.
        """
        return self.conversation([("user", [AUDIO, {"type": "text", "text": text}])], [samples], True)

    def conversation(
        self, turns: Sequence[tuple[str, list[dict[str, str]]]], sounds: Sequence[NDArray[np.floating]], opened: bool
    ) -> Heard:
        """Turns of (role, parts), with an AUDIO among the parts for every sound.

        Args:
            opened: the prompt opens an answer.

        Raises:
            QwenchError: see `heard`.
        """
        frames = tuple(log_mel(samples, self.extractor) for samples in sounds)
        counts = [self.family.tokens(f.shape[1]) for f in frames]
        if min(counts) < 1:
            raise QwenchError("the sound is too short for a single audio token", "give 0.1 s at least")
        messages = [{"role": role, "content": parts} for role, parts in turns]
        ids = self.tokenizer.ids([self.template.spoken(messages, opened)])[0]
        if (found := ids.count(self.audio)) != len(counts):
            where = "one sound is" if len(counts) == 1 else f"{len(counts)} sounds are"
            raise QwenchError(
                f"the chat template puts {found} audio tokens where {where}", "use that of the original checkpoint"
            )
        left = iter(counts)
        return Heard([t for i in ids for t in ([i] * next(left) if i == self.audio else [i])], frames)

    def inputs(self, batch: Sequence[Heard]) -> dict[str, torch.Tensor]:
        """What the model is called with; prompts are padded on the left, frames on the right."""
        longest = max(len(h.ids) for h in batch)
        every = [f for h in batch for f in h.sounds]
        whole = self.extractor.n_samples // self.extractor.hop_length
        wide = whole if self.family.padded else max(f.shape[1] for f in every)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        seen = torch.zeros_like(ids)
        frames = torch.stack([_widened(f, wide) for f in every])
        mask = torch.zeros(len(every), wide, dtype=torch.long)
        for row, one in enumerate(batch):
            ids[row, longest - len(one.ids) :] = torch.tensor(one.ids)
            seen[row, longest - len(one.ids) :] = 1
        for row, one in enumerate(every):
            mask[row, : one.shape[1]] = 1
        frames = frames.to(getattr(torch, self.dtype))
        given = {"input_ids": ids, "attention_mask": seen, "input_features": frames, "feature_attention_mask": mask}
        return {name: value.to(self.device) for name, value in given.items()}

    @torch.inference_mode()
    def logits(self, batch: Sequence[Heard]) -> torch.Tensor:
        """(rows, vocabulary) float32 of the first token of each answer."""
        return self.model(**self.inputs(batch)).logits[:, -1].float()

    @torch.inference_mode()
    def states(self, batch: Sequence[Heard]) -> list[torch.Tensor]:
        """Of every prompt (tokens, hidden) float32, the last layer's after its norm."""
        given = self.inputs(batch)
        found = self.model(**given, output_hidden_states=True).hidden_states[-1]
        return [row[-len(h.ids) :].float() for row, h in zip(found, batch, strict=True)]

    def write(
        self, batch: Sequence[Heard], max_tokens: int, temperature: float = 0.0, seeds: Sequence[int] = ()
    ) -> list[Written]:
        """The answer to each prompt: greedy, or drawn by temperature alone with a seed for each row.

        Drawn rows are asked one at a time, so that an answer depends on its own seed and on no neighbour.
        """
        if temperature:
            return [self._written([h], max_tokens, temperature, s)[0] for h, s in zip(batch, seeds, strict=True)]
        return self._written(batch, max_tokens, 0.0, 0)

    @torch.inference_mode()
    def _written(self, batch: Sequence[Heard], max_tokens: int, temperature: float, seed: int) -> list[Written]:
        from transformers import GenerationConfig

        given = self.inputs(batch)
        # The checkpoint's own defaults draw, and punish what was said before: neither is asked for.
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        how = GenerationConfig(
            max_new_tokens=max_tokens, eos_token_id=self.ends, pad_token_id=self.ends[0] if self.ends else 0, **drawn
        )
        self.model.generation_config = how
        with torch.random.fork_rng(devices=[] if self.device == "cpu" else None):
            torch.manual_seed(seed)
            made = self.model.generate(**given)
        made = made[:, given["input_ids"].shape[1] :].tolist()
        kept = [_until(row, self.ends) for row in made]
        texts = [self.tokenizer.backend.decode(ids, skip_special_tokens=False) for ids in kept]
        # A row without an end is as long as the batch; one that has ended is shorter.
        return [Written(text, len(ids) == max_tokens) for text, ids in zip(texts, kept, strict=True)]


def _until(ids: list[int], ends: list[int]) -> list[int]:
    at = next((n for n, i in enumerate(ids) if i in ends), len(ids))
    return ids[:at]


def _widened(frames: NDArray[np.float32], wide: int) -> torch.Tensor:
    """Frames with those of silence after them: 8 below the greatest logarithm, and -10 at least, in (x + 4) / 4."""
    silence = max(float(frames.max()) - 2, -1.5)
    return torch.from_numpy(np.pad(frames, ((0, 0), (0, wide - frames.shape[1])), constant_values=silence))


def _file(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise QwenchError(f"the model has no {name}: `{folder}`", "copy it from the original checkpoint") from error


def _extractor(folder: Path) -> Any:
    from transformers import WhisperFeatureExtractor

    told = parse_json(_file(folder, "preprocessor_config.json"), "preprocessor_config.json")
    names = ("feature_size", "sampling_rate", "hop_length", "chunk_length", "n_fft", "n_samples")
    known = {name: told[name] for name in names[:5] if isinstance(told, dict) and name in told}
    for name, value in known.items():
        if not (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            raise QwenchError(f"preprocessor_config.json says {name} {value!r}", "copy the original file")
    if "n_samples" in told and "chunk_length" in known:
        # Some checkpoints keep the chunk of Whisper and change what comes of it.
        known["chunk_length"] = int(told["n_samples"]) // known.get("sampling_rate", 16_000)
    return WhisperFeatureExtractor(**known)


def _ends(folder: Path, tokenizer: TextTokenizer, template: ChatTemplate) -> list[int]:
    """Ids that end an answer: those of generation_config.json, else the tokenizer's."""
    path = folder / "generation_config.json"
    told = json.loads(path.read_bytes()).get("eos_token_id") if path.is_file() else None
    if told is None and (text := template.specials.get("eos_token")):
        told = tokenizer.token_id(text)
    return [] if told is None else list(told) if isinstance(told, list) else [int(told)]


def _chat_files(folder: Path) -> dict[str, bytes]:
    """As `chat_files`; what an older processor has of its own is before the tokenizer's, which may know no sounds."""
    files = chat_files(folder)
    if "chat_template.jinja" not in files and (folder / "chat_template.json").is_file():
        told = json_of((folder / "chat_template.json").read_bytes(), "chat_template.json").get("chat_template")
        if not isinstance(told, str):
            raise QwenchError(f"chat_template.json has no template: `{folder}`", "copy the original file")
        files["chat_template.jinja"] = told.encode()
    return files


def check_memory(folder: Path, device: str, dtype: str) -> None:
    """Raises:
    QwenchError: the weights that are loaded need more memory than is free; no weights.
    """
    numbers = sum(info.numel for name, info in Source(folder).infos.items() if not name.startswith(SPEAKERS))
    need, free = numbers * (4 if dtype == "float32" else 2), _free(device)
    if free is not None and need > free:
        raise QwenchError(
            f"the model needs {need / 1e9:.1f} GB in {dtype}, and {free / 1e9:.1f} GB are free: `{folder}`",
            "use a smaller model, or a server: --engine http://HOST:PORT/v1",
        )


def _free(device: str) -> int | None:
    """Bytes, None where nobody tells."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def _network(folder: Path, config: dict[str, Any], family: Family, dtype: str, heads: tuple[str, ...]) -> Any:
    import transformers

    silence_transformers()
    kind = getattr(transformers, family.network)
    inner = config[family.inner] if family.inner else config
    try:
        made, info = kind.from_pretrained(
            folder,
            config=kind.config_class.from_dict(inner),
            dtype=getattr(torch, dtype),
            key_mapping={f"^{family.prefix}".replace(".", r"\."): ""} if family.prefix else None,
            output_loading_info=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        line = " ".join(str(error).split())[:200]
        raise QwenchError(f"the model cannot be loaded ({line}): `{folder}`", "copy it again") from error
    for what in ("missing_keys", "mismatched_keys"):
        if lost := sorted(map(str, info[what])):
            raise QwenchError(
                f"{len(lost)} weights are {what.split('_')[0]}, such as `{lost[0]}`: `{folder}`", "copy it again"
            )
    if extra := sorted(k for k in info["unexpected_keys"] if not k.startswith(SPEAKERS + heads)):
        raise QwenchError(
            f"{len(extra)} weights have no place, such as `{extra[0]}`: `{folder}`", "see its config.json"
        )
    return made
