"""Any other encoder, through transformers' AutoModel on right-padded batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import QwenchError

if TYPE_CHECKING:
    from torch import Tensor, dtype


class GenericEncoder:
    """A transformers model behind the packed interface: unpack, pad right, run, pack again.

    Raises:
        QwenchError: transformers does not know the architecture, or weights are missing, new or unexpected.
    """

    def __init__(self, folder: Path, config: dict[str, Any], dtype: dtype, device: str = "cpu") -> None:
        from transformers import AutoModel
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            self.model, info = AutoModel.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True, use_safetensors=True
            )
        except (ValueError, OSError, RuntimeError) as error:
            line = str(error).strip().splitlines()[0][:200]
            raise QwenchError(f"transformers cannot load the model ({line}): `{folder}`") from error
        # Pooling heads that sentence embeddings never read may be missing without harm.
        bad = {k: sorted(n for n in info[k] if "pooler" not in str(n)) for k in ("missing_keys", "mismatched_keys")}
        for kind, names in bad.items():
            if names:
                raise QwenchError(
                    f"weights would be random ({kind.replace('_keys', '')}): `{names[0]}` and {len(names) - 1} more"
                    f" in `{folder}`",
                    "use a complete checkpoint",
                )
        self.model.to(device).eval()
        self.device, self.causal = device, False
        self.hidden_size: int = self.model.config.hidden_size
        self.max_positions: int = _positions(config)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.unexpected = sorted(map(str, info["unexpected_keys"]))

    def hidden(self, ids: Tensor, lengths: list[int]) -> Tensor:
        """Last hidden states of a packed batch: ids (T,) int64 -> (T, hidden_size)."""
        from torch.nn.utils.rnn import pad_sequence

        rows = pad_sequence(list(ids.split(lengths)), batch_first=True)
        mask = pad_sequence([ids.new_ones(n) for n in lengths], batch_first=True)
        return self.model(input_ids=rows, attention_mask=mask).last_hidden_state[mask.bool()]


def _positions(config: dict[str, Any]) -> int:
    limit = int(config.get("max_position_embeddings") or config.get("n_positions") or 512)
    # RoBERTa and its kin begin counting positions after the padding index.
    offset = config.get("pad_token_id") or 0
    return limit - offset - 1 if config.get("model_type") in ("roberta", "xlm-roberta", "camembert", "mpnet") else limit
