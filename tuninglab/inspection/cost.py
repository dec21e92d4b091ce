"""What one training step costs: the memory it needs, the arithmetic it does, what it sends."""

from dataclasses import dataclass
from typing import NamedTuple


class Shape(NamedTuple):
    """The batch of one forward pass on one process.

    Args:
        rows: B.
        tokens: T, of the longest row: the others are padded to it.
        answer_tokens: on which the loss falls, over all rows.
        pictures: M, of the row that has most: the others are padded to it.
        frames: F of each.
        documents: how many are packed into each row; 0: rows are not packed.
    """

    rows: int
    tokens: int
    answer_tokens: int
    pictures: int = 1
    frames: int = 1
    documents: int = 0


@dataclass(frozen=True)
class Cost:
    """What a step costs each process.

    Args:
        held: bytes that are there before a step begins, by what they are: `vision_encoder bfloat16`
            (weights by part and number format), `LoRA`, `optimizer`, `process` (on a CPU: the
            interpreter and its libraries).
        step: bytes that the step adds at its highest moment, by what they are: `gradients`,
            `activations: attention`, `logits`, `pictures`, `workspace` ...
        operations: floating-point (or whole-number) operations of the products, two for each
            multiply-add, by the number format they are made in: fp32, bf16, fp16, int8.
        moved: bytes that all operations read and write.
        sent: bytes that the process sends to others, a step.
        streamed: of the bytes moved, those that kernels of ours read and write in one go.
        calls: operations, however small: each takes some time.
    """

    held: dict[str, int]
    step: dict[str, int]
    operations: dict[str, float]
    moved: float
    sent: int = 0
    streamed: float = 0.0
    calls: int = 0

    @property
    def peak(self) -> int:
        """Bytes at the highest moment of a step."""
        return sum(self.held.values()) + sum(self.step.values())
