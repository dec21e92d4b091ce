"""A frozen token table in int8, whose rows are dequantised when they are looked up."""

import torch
from torch import Tensor, nn

from tuninglab.int8.linear import Int8Weight
from tuninglab.int8.rows import frozen, quantise_rows, scale_rows


class Int8Embedding(Int8Weight):
    """A frozen copy of an embedding; `weight` is int8 (V, D), `weight_scale` float32 (V,)."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        table = embedding.weight.detach()
        # No numbers, but a format that casts change: the one that rows come out in. It is first,
        # because transformers takes the first float parameter's format for that of a model.
        self.like = frozen(torch.empty(0, dtype=table.dtype, device=table.device))
        self.weight, self.weight_scale = map(frozen, quantise_rows(table))
        self.num_embeddings, self.embedding_dim = table.shape

    def forward(self, input_ids: Tensor) -> Tensor:
        """Ids (...) -> rows (..., D)."""
        ids = input_ids.flatten()
        rows = scale_rows(self.weight[ids], self.weight_scale[ids], None, self.like.dtype)
        return rows.view(*input_ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{self.num_embeddings}, {self.embedding_dim}, int8"
