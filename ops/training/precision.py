"""What is trained in."""

from __future__ import annotations

from ..base.errors import QwenchError
from ..models.device import Choice, pick_dtype


def training_dtype(asked: str, device: str, stored: str) -> Choice:
    """bfloat16 where the hardware computes in it, else float32.

    Args:
        asked: auto, float32 or bfloat16.
        stored: dtype of the base's matrices.

    Raises:
        QwenchError: float16, whose range training leaves.
    """
    if asked == "float16":
        raise QwenchError("float16 is too narrow to train in without loss scaling", "use bfloat16 or float32", code=2)
    if asked != "auto":
        return pick_dtype(asked, device, stored)
    found = pick_dtype("auto", device, "bfloat16")
    if found.value == "float32":
        return Choice("float32", "this device has no bfloat16 units")
    return Choice("bfloat16", f"{device} has bfloat16 units; what is trained stays in float32")
