"""What features of pictures depend on: tensors of a module, its configuration, how pixels come."""

import hashlib
import json
from typing import Any

import torch
from torch import nn

from tuninglab.data.images import MAX_ASPECT

# Of the way from a file to RGB: one higher where `load_image` comes to make other pixels.
CONVERSION = 2
# What configurations say of where they came from, and not of what is computed.
ORIGIN = {"transformers_version", "dtype", "torch_dtype", "processor_class", "auto_map"}
ORIGIN |= {"image_processor_type", "feature_extractor_type"}


def digest_of(module: nn.Module) -> str:
    """A sha256 over the tensors of a module with their names, formats and shapes."""
    total = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def said_of(config: Any) -> dict[str, Any]:
    """What a configuration says of the computation, as plain JSON."""
    plain = json.loads(json.dumps(config.to_dict(), default=str))
    return {k: v for k, v in sorted(plain.items()) if k not in ORIGIN and not k.startswith("_")}


def pictures_identity(image_processor: Any) -> dict[str, Any]:
    """All that decides which pixels a tower gets of a picture file, as plain JSON."""
    cropped = "shortest_edge" in image_processor.size
    return {
        "image_processor": said_of(image_processor),
        "pictures": {"conversion": CONVERSION, "max_aspect": MAX_ASPECT if cropped else None},
    }
