"""Low-rank adapters (arXiv 2106.09685), put beside a model's products and merged in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base.errors import QwenchError

if TYPE_CHECKING:
    from torch import Tensor, nn

#: products that low-rank adapters are put beside
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapters(model: nn.Module, rank: int) -> None:
    """Put fresh adapters into a model, in float32; they alone are trained.

    Raises:
        QwenchError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise QwenchError("--method lora needs the `peft` library", "pip install 'qwench[train]'") from None
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(TARGETS)), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()


def merged(model: nn.Module) -> dict[str, Tensor]:
    """Tensors by the names they had without adapters, which are merged, on the CPU."""
    try:
        from peft.tuners.lora import LoraLayer
    except ImportError:
        layers: tuple[type, ...] = ()
    else:
        layers = (LoraLayer,)
    for layer in model.modules():
        if isinstance(layer, layers):
            layer.merge()
    return {
        name.replace(".base_layer", ""): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }
