"""The checkpoint that comes out: the base's tensors, the streams beside them, and files to load it with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..checkpoint.cast import pieces
from ..checkpoint.plan import Output, Plan, parse_size, shards_of
from ..checkpoint.sidecars import as_json
from ..models.nets.parallel import adapter_name
from . import modeling_parscale
from .modeling_parscale import FAMILIES

if TYPE_CHECKING:
    from torch import Tensor

MODELING = "modeling_parscale.py"
KEYS = ("parscale_n", "parscale_n_tokens", "parscale_attn_smooth")


def adapter_bytes(tensors: dict[str, Tensor], said: dict[str, Any]) -> bytes:
    """Prefixes and aggregator of one number of streams as a safetensors file; `said` are the config keys of KEYS."""
    from safetensors.torch import save

    return save(tensors, {"format": "pt", "parscale": json.dumps(said)})


def finish_plan(
    base: Plan, config: dict[str, Any], said: dict[str, Any], added: dict[str, Tensor], trained: dict[str, Tensor]
) -> None:
    """Make the plan of the base the plan of the result.

    Args:
        said: config keys of KEYS of the streams that the checkpoint is loaded with.
        added: name -> tensor of prefixes and aggregator.
        trained: name -> tensor of the decoder, where that was trained too.

    Raises:
        QwenchError: a tensor of the decoder was trained under a name that the checkpoint does not have.
    """
    names = {o.name for o in base.outputs}
    if trained and (lost := sorted(names ^ set(trained))):
        raise QwenchError(f"a trained tensor does not fit the checkpoint: `{lost[0]}`", "please report it")
    base.outputs = [_trained(o, trained[o.name]) if o.name in trained else o for o in base.outputs]
    if said["parscale_n"] > 1:
        base.outputs += [_added(name, tensor) for name, tensor in added.items()]
    family = FAMILIES[config["model_type"]]
    auto = {"AutoConfig": family.config_class, "AutoModelForCausalLM": family}
    made = config | said | {"model_type": family.config_class.model_type, "architectures": [family.__name__]}
    made["auto_map"] = {name: f"{Path(MODELING).stem}.{kind.__name__}" for name, kind in auto.items()}
    base.side["config.json"] = as_json(made)
    base.side[MODELING] = Path(modeling_parscale.__file__).read_bytes()
    base.shards = shards_of(base.outputs, parse_size("5GB"), "model", ".safetensors")


def _added(name: str, tensor: Tensor) -> Output:
    return Output(
        name, tuple(tensor.shape), "float32", (), "trained", lambda losses: pieces(name, tensor, "float32", losses)
    )


def _trained(output: Output, tensor: Tensor) -> Output:
    made = lambda losses: pieces(output.name, tensor, output.dtype, losses)  # noqa: E731
    return replace(output, action="trained", pieces=made)


def model_card(result: dict[str, Any]) -> str:
    """README.md: what was done, what it brought, how to load it."""
    base = result["model"]
    head = ["---", "tags:", "- parscale", "- qwench"]
    head += [f"base_model: {base}"] if base.count("/") == 1 and not base.startswith(("/", ".", "~")) else []
    lines = [*head, "---", "", f"# {base} with {result['streams']} parallel streams", ""]
    lines += [
        f"Made from `{base}` by `qwench parscale-recycle`: {result['init']} initialisation, "
        f"{'prefixes and aggregator alone' if result['train'] == 'added' else 'all parameters'} trained on "
        f"{result['tokens']:,} tokens of `{', '.join(result['data'])}`.",
        "",
        "Held-out loss in nats per token, on the same "
        f"{result['held_out']['tokens']:,} tokens ({result['held_out']['chosen']}):",
        "",
        "| model | loss | gain over the base |",
        "|---|---|---|",
    ]
    for row in result["losses"]:
        gain = "" if row["gain"] is None else f"{row['gain']:+.4f} ± {row['error']:.4f}"
        lines.append(f"| {row['name']} | {row['loss']:.4f} | {gain} |")
    lines += [
        "",
        result["verdict"],
        "",
        "```python",
        "from transformers import AutoModelForCausalLM",
        "",
        'model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)',
        *[f'# model.load_streams("FOLDER/{adapter_name(p)}")' for p in result["adapters"]],
        "```",
        "",
        "or `qwench chat --model FOLDER`, with `--streams N` for another number of streams.",
        "",
    ]
    return "\n".join(lines)
