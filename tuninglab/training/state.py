"""What changes while training: how far a run has come, and all that a checkpoint holds of it."""

import time
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tuninglab.data.sampler import StepSampler


class Counts(NamedTuple):
    """What a step holds over all processes and micro-batches; see `Batch`."""

    answer_tokens: int
    tokens: int
    samples: int
    left_out: int = 0


@dataclass
class Progress:
    """How far a run has come; saved with every checkpoint."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    # Rows whose pictures could not be read (--on_bad_picture skip).
    left_out: int = 0
    wall_s: float = 0.0
    peak_memory_mib: float = 0.0
    first_loss: float | None = None
    last_loss: float | None = None
    # Of the last validation.
    val_loss: float | None = None
    # With --keep_best, of the validation that is the best so far: after which step, what it was
    # chosen by, its loss; what the last one came to; and how many came after the best.
    best_step: int | None = None
    best_value: float | None = None
    best_val_loss: float | None = None
    last_value: float | None = None
    validations_since_best: int = 0
    # Since the last line in metrics.jsonl.
    window_loss: float = 0.0
    window_steps: int = 0
    window_s: float = 0.0
    window_tokens: int = 0

    def note(self, loss: float, counts: Counts, seconds: float) -> None:
        """Count an optimizer step: its loss, what it held, its time."""
        self.step += 1
        self.samples += counts.samples
        self.tokens += counts.tokens
        self.left_out += counts.left_out
        self.first_loss = loss if self.first_loss is None else self.first_loss
        self.last_loss = loss
        self.window_loss += loss
        self.window_steps += 1
        self.window_s += seconds
        self.window_tokens += counts.tokens

    def note_memory(self, peak_mib: float) -> None:
        """Keep the highest of what was seen, also over the starts of a resumed run."""
        self.peak_memory_mib = max(self.peak_memory_mib, peak_mib)

    @property
    def kept_val_loss(self) -> float | None:
        """The loss of the validation that a run ends with: the best, where one is chosen."""
        return self.val_loss if self.best_step is None else self.best_val_loss

    def spend(self, since: float) -> float:
        """Add the time since `since` (time.perf_counter) to `wall_s`; returns the time now."""
        now = time.perf_counter()
        self.wall_s += now - since
        return now

    def take_window(self) -> dict[str, float]:
        """Means over the steps since the last call: `loss`, `step_s`, `tokens_per_s`."""
        means = {
            "loss": self.window_loss / self.window_steps,
            "step_s": self.window_s / self.window_steps,
            "tokens_per_s": self.window_tokens / self.window_s,
        }
        self.window_loss, self.window_s = 0.0, 0.0
        self.window_steps, self.window_tokens = 0, 0
        return means


@dataclass
class TrainState:
    """All that changes while training.

    Args:
        model: the model itself, which names the parameters.
        wrapped: what computes: the model under autocast and DDP.
        optimizer: over the trainable parameters.
        schedule: of the learning rate, stepped once an optimizer step.
        sampler: where in the data the run is.
        progress: how far it has come.
        total_steps: how far it shall come.
    """

    model: nn.Module
    wrapped: nn.Module
    optimizer: Optimizer
    schedule: LambdaLR
    sampler: StepSampler
    progress: Progress
    total_steps: int = 0
