"""Any checkpoint as transformers' own model: the witness for `--verify logits` and the subject of `qwench gates`."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..checkpoint.cast import Losses
from ..checkpoint.gates import Heads, gate_kind
from ..checkpoint.reader import Source
from ..checkpoint.staging import Staging
from ..checkpoint.tensors import FLOATS
from ..checkpoint.writer import write_sides, write_tensors
from ..models.device import pick_threads
from ..models.pretrained import pretrained
from .plan import ConvertOptions, plan_conversion

if TYPE_CHECKING:
    from torch import Tensor

#: for a checkpoint with a tokenizer
TEXT = (
    "A checkpoint is a folder of tensors with a few files beside it that say how they are meant. "
    "Converting one must not change what the model answers, and the only way to know is to ask it: "
    "the capital of France is Paris, 17 times 3 is 51, and `def f(x): return x + 1` adds one."
)


@contextlib.contextmanager
def stock_model(source: Source, near: Path) -> Iterator[Any]:
    """transformers' causal language model in float32, on the CPU, with attention weights at hand.

    GGUF files and gated checkpoints of the published fork are first written in a stock layout to a temporary folder.

    Args:
        source: the checkpoint.
        near: folder on a disk with room for it.

    Raises:
        QwenchError: transformers has no causal language model for it.
    """
    import torch

    with tempfile.TemporaryDirectory(dir=near, prefix=".qwench-") as folder:
        path = source.folder
        fork = is_fork(source)
        if source.path.is_file() or fork:
            path = Path(folder) / "stock"
            _rewritten(source, path, "stock" if fork else None)
        try:
            model = pretrained("AutoModelForCausalLM", path, dtype=torch.float32, attn_implementation="eager")
        except (ValueError, OSError, KeyError) as error:
            raise QwenchError(
                f"transformers cannot load it as a language model ({str(error).splitlines()[0][:120]}): `{source.path}`"
            ) from error
        yield model.eval()


def is_fork(source: Source) -> bool:
    """Gates in q_proj of a checkpoint that calls itself qwen3: transformers would not load them."""
    config = source.config()
    q = next((i for n, i in source.infos.items() if n.endswith("layers.0.self_attn.q_proj.weight")), None)
    return config.get("model_type") == "qwen3" and q is not None and gate_kind(q.shape[0], Heads.of(config)) is not None


def _rewritten(source: Source, out: Path, gate_layout: str | None) -> None:
    options = ConvertOptions(str(source.path), str(out), to="safetensors", gate_layout=gate_layout)
    plan = plan_conversion(source, options)
    with Staging(out, plan.fingerprint(""), files=plan.files) as staging:
        for _ in write_tensors(plan, staging, Losses(), pick_threads().value, source.reader.release):
            pass
        write_sides(plan, staging.part, source.folder)
        staging.commit()


def asked_ids(source: Source, config: dict[str, Any]) -> Tensor:
    """Token ids [1, n] to ask a model with: a text where there is a tokenizer, else fixed random ones."""
    import torch

    if (source.folder / "tokenizer.json").is_file() and source.path.is_dir():
        from ..models.tokenizer import TextTokenizer

        ids = TextTokenizer.load(source.folder).ids([TEXT])[0]
        if max(ids) < config["vocab_size"]:
            return torch.tensor([ids])
    return torch.randint(config["vocab_size"], (1, 64), generator=torch.Generator().manual_seed(0))


def compare_logits(before: Source, after: Source, near: Path) -> dict[str, float]:
    """What two checkpoints answer to the same tokens.

    Returns:
        tokens; max_difference of logits; kl, the mean Kullback-Leibler divergence in nats; same_top, the share of
        positions with the same most likely token.
    """
    import torch

    ids, answers = asked_ids(before, before.config()), []
    for source in (before, after):
        with stock_model(source, near) as model, torch.no_grad():
            answers.append(model(ids).logits[0].float())
    a, b = (x[:, : min(y.shape[1] for y in answers)] for x in answers)
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    return {
        "tokens": ids.shape[1],
        "max_difference": (a - b).abs().max().item(),
        "largest_logit": a.abs().max().item(),
        "kl": max((p.exp() * (p - q)).sum(-1).mean().item(), 0.0),
        "same_top": (a.argmax(-1) == b.argmax(-1)).float().mean().item(),
    }


def alike(found: dict[str, float], wanted: str) -> bool:
    """The answers are as near as the kind of conversion lets them be.

    Args:
        found: from `compare_logits`.
        wanted: dtype asked for; `auto` changes no value.
    """
    if wanted == "auto":
        return found["max_difference"] <= 1e-4 * max(found["largest_logit"], 1.0)
    return found["kl"] <= (0.02 if wanted in FLOATS else 0.5)


def check_options(options: ConvertOptions) -> None:
    """Logits can be compared where the answer is meant to stay the same.

    Raises:
        QwenchError: it is not.
    """
    if options.lora or options.head not in (None, "lm"):
        raise QwenchError(
            "--verify logits is for conversions that keep the answers; --lora and --head change what is asked",
            "use --verify bits",
            code=2,
        )
