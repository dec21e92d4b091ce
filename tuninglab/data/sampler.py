"""Which rows are trained when: seeded, resumable, and the same for any number of processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Sampler

from tuninglab.data.orders import EACH_ONCE, Bins, FileOrder, Order, Permutation, Rows
from tuninglab.errors import UserError


class MaskedRow(int):
    """The index of a row that only fills a place: its labels are all masked (see StepSampler)."""


@dataclass(eq=False)
class StepSampler(Sampler[list[Any]]):
    """One rank's micro-batches, from the current step to the end of the epoch.

    An optimizer step takes the next `batch_size * accumulation * world_size` rows of the epoch's
    order; rank r takes its rows r, r + world_size, ... and cuts them into micro-batches. So the
    rows of a step, and with a loss normalised over the step its gradient, do not depend on how
    they are spread over processes and accumulation.

    The last step of an epoch takes the rows that are left; none is dropped, none is seen twice. All
    ranks have the same number of micro-batches: a rank without a row for its last one gets a
    `MaskedRow`, which adds nothing to the loss or to the token count.

    The position moves by `advance()` alone, not by iterating: a DataLoader draws indices ahead of
    the steps that were made, and a checkpoint must hold the latter.

    Where the order is one of bins, a bin of rows (a tuple) is to all of this what a row is
    otherwise; epochs may then differ in steps.

    Args:
        length: rows in the data set.
        batch_size: rows of a micro-batch.
        accumulation: micro-batches of a full step, on each rank.
        shuffle: in an order that depends on (seed, epoch) only; False keeps the file's order.
        order: another one than these two.

    Raises:
        ValueError: a size below 1, or a rank outside the world.
    """

    length: int
    batch_size: int
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    shuffle: bool = True
    order: Order | None = None

    def __post_init__(self):
        # From Python any value may come; the flags are checked before.
        for name in ("length", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.rank < self.world_size:
            last = self.world_size - 1
            raise ValueError(f"rank is {self.rank} of {self.world_size}; expected 0 to {last}")
        self.rows_per_step = self.batch_size * self.accumulation * self.world_size
        plain = Permutation if self.shuffle else FileOrder
        self.taken: Order = plain(self.length) if self.order is None else self.order
        self.epoch = 0
        self.step = 0  # within the epoch: steps that were made
        # Entries of epochs: to count bins is to make them.
        self._counted: dict[int, int] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the current epoch, an incomplete last one included."""
        return self.steps_in(self.epoch)

    def steps_in(self, epoch: int) -> int:
        """Optimizer steps of an epoch."""
        return -(-self._entries(epoch) // self.rows_per_step)

    def micro_batches(self, step: int) -> int:
        """Micro-batches that each rank has in a step of the current epoch."""
        rows = min(self.rows_per_step, self._entries(self.epoch) - step * self.rows_per_step)
        # The fullest rank decides for all: they meet once a micro-batch or not at all.
        return -(-rows // (self.world_size * self.batch_size))

    def entries(self) -> Rows | Bins:
        """The rows of the current epoch, or the bins, in the order of training."""
        # Made anew from two numbers, so that a checkpoint holds no list of rows.
        return self.taken.rows(self.seed, self.epoch)

    def _entries(self, epoch: int) -> int:
        if epoch not in self._counted:
            self._counted[epoch] = self.taken.count(self.seed, epoch)
        return self._counted[epoch]

    def __iter__(self) -> Iterator[list[Any]]:
        entries = self.entries()
        # From the step that is next: a resumed epoch goes on in its middle.
        for step in range(self.step, self.steps_per_epoch):
            part = entries[step * self.rows_per_step : (step + 1) * self.rows_per_step]
            rows: list[Any] = part if isinstance(part, list) else part.tolist()
            # Interleaved, so that in a last short step the ranks differ by one row at most.
            mine = rows[self.rank :: self.world_size]
            for number in range(self.micro_batches(step)):
                batch = mine[number * self.batch_size : (number + 1) * self.batch_size]
                # Any row of the step will do: it costs what its neighbours cost.
                yield batch or [MaskedRow(rows[0][0] if isinstance(rows[0], tuple) else rows[0])]

    def __len__(self) -> int:
        """Micro-batches from here to the end of the epoch."""
        return sum(self.micro_batches(step) for step in range(self.step, self.steps_per_epoch))

    def advance(self) -> None:
        """Note that an optimizer step was made; after the last one the next epoch starts."""
        self.step += 1
        # Only here: a run that stopped after the last step of an epoch goes on with the next one.
        if self.step == self.steps_per_epoch:
            self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """The position and what it depends on; the number of processes is no part of it."""
        names = ("epoch", "step", "seed", "length", "rows_per_step", "shuffle")
        state = {name: getattr(self, name) for name in names}
        if self.order is None:
            return state
        return state | {"order": self.order.said, "entries": self._entries(self.epoch)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a saved position.

        Raises:
            UserError: the data or the settings are others, so that the position means nothing.
        """
        plain = {"order": EACH_ONCE}
        state, now = plain | state, plain | self.state_dict()
        # world_size and accumulation may change: the rows of each step stay the same.
        names = {
            "length": "records in the data",
            "rows_per_step": "rows per step (batch_size * gradient_accumulation_steps * processes)",
            "seed": "seed",
            "shuffle": "shuffle",
            "order": "the order of the data",
        }
        for key, name in names.items():
            if state[key] != now[key]:
                raise UserError(
                    f"cannot resume: {name} was {state[key]}, now it is {now[key]}; go on with the "
                    "same data and settings, or start a new run"
                )
        epoch, step = int(state["epoch"]), int(state["step"])
        if step >= self.steps_in(epoch):
            raise UserError(f"cannot resume: step {step} of epoch {epoch} is beyond the data")
        self.epoch, self.step = epoch, step
