"""Any other encoder, through transformers' AutoModel on right-padded batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import QwenchError
from ...checkpoint.reader import Source
from ..pretrained import pretrained

if TYPE_CHECKING:
    from torch import Tensor, dtype


#: encoder-decoders of which transformers loads the encoder alone; their positions are relative, without an end
HALVES = ("t5", "mt5", "umt5")
UNLIMITED = 1 << 20


class GenericEncoder:
    """A transformers model behind the packed interface: unpack, pad right, run, pack again.

    Raises:
        QwenchError: transformers does not know the architecture, or weights are missing, new or unexpected.
    """

    def __init__(self, folder: Path, config: dict[str, Any], dtype: dtype, device: str = "cpu") -> None:
        kind = config.get("model_type")
        if config.get("is_encoder_decoder") and kind not in HALVES:
            raise QwenchError(
                f"an encoder-decoder whose encoder is not known to stand alone (model_type `{kind}`): `{folder}`",
                f"use an encoder, or one of {', '.join(HALVES)}",
            )
        auto = "AutoModelForTextEncoding" if kind in HALVES else "AutoModel"
        self.model, self.unexpected = complete_model(auto, folder, dtype, may_lack="pooler")
        self.model.to(device).eval()
        self.device, self.causal = device, False
        self.hidden_size: int = self.model.config.hidden_size
        self.max_positions: int = _positions(self.model.config)
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def hidden(self, ids: Tensor, lengths: list[int]) -> Tensor:
        """Last hidden states of a packed batch: ids (T,) int64 -> (T, hidden_size)."""
        rows, mask = _padded(ids, lengths)
        return self.model(input_ids=rows, attention_mask=mask).last_hidden_state[mask.bool()]


class GenericClassifier:
    """A transformers sequence classifier, on right-padded batches; decoders are read at their last token.

    Raises:
        QwenchError: as GenericEncoder; a missing head counts as a missing weight.
    """

    def __init__(self, folder: Path, config: dict[str, Any], dtype: dtype, device: str = "cpu") -> None:
        self.model, self.unexpected = complete_model("AutoModelForSequenceClassification", folder, dtype)
        self.model.to(device).eval()
        self.device = device
        self.max_positions: int = _positions(self.model.config)
        self.typed = int(config.get("type_vocab_size") or 0) > 1
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def logits(self, ids: Tensor, lengths: list[int], types: Tensor) -> Tensor:
        """Label logits of packed pairs: ids and types (T,) int64 -> (n, labels) float32."""
        rows, mask = _padded(ids, lengths)
        if (score := getattr(self.model, "score", None)) is not None:
            # A decoder's own class looks for a pad token, which may be none or not what these rows are padded with.
            hidden = self.model.base_model(input_ids=rows, attention_mask=mask).last_hidden_state
            return score(hidden[range(len(lengths)), [n - 1 for n in lengths]]).float()
        more = {"token_type_ids": _padded(types, lengths)[0]} if self.typed else {}
        return self.model(input_ids=rows, attention_mask=mask, **more).logits.float()


def _padded(ids: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """(n, longest) rows and their mask."""
    from torch.nn.utils.rnn import pad_sequence

    mask = pad_sequence([ids.new_ones(n) for n in lengths], batch_first=True)
    return pad_sequence(list(ids.split(lengths)), batch_first=True), mask


def complete_model(auto: str, folder: Path, dtype: dtype, may_lack: str | None = None) -> tuple[Any, list[str]]:
    """(model, names of weights it has no use for), by a transformers auto class.

    Raises:
        QwenchError: it cannot be loaded, or weights are missing and would be random.
    """
    try:
        # A .bin is unpickled with weights_only, as everywhere here.
        safe = Source(folder).reader.format != "bin"
        model, info = pretrained(auto, folder, dtype=dtype, output_loading_info=True, use_safetensors=safe)
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        line = str(error).strip().splitlines()[0][:200]
        raise QwenchError(
            f"transformers cannot load the model ({line}): `{folder}`",
            "check that config.json and weights are of one model, or download it again",
        ) from error
    for kind in ("missing_keys", "mismatched_keys"):
        # A pooling head that sentence embeddings never read may be missing without harm.
        names = sorted(str(n) for n in info[kind] if not (may_lack and may_lack in str(n)))
        if names:
            raise QwenchError(
                f"weights would be random ({kind.replace('_keys', '')}): `{names[0]}` and {len(names) - 1} more"
                f" in `{folder}`",
                "use a complete checkpoint",
            )
    return model, sorted(map(str, info["unexpected_keys"]))


def _positions(config: Any) -> int:
    """Longest input by a transformers config, whose defaults stand in for what config.json leaves out."""
    if config.model_type in HALVES:
        return UNLIMITED
    limit = int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 512)
    # RoBERTa and its kin begin counting positions after the padding index.
    offset = getattr(config, "pad_token_id", None) or 0
    return limit - offset - 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else limit
