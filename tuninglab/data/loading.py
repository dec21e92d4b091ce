"""From samples to the batches of optimizer steps, through a DataLoader."""

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tuninglab.data.batches import Batch, image_pixels
from tuninglab.data.sample import ImageSource
from tuninglab.data.sampler import StepSampler
from tuninglab.errors import UserError


def make_loader(
    dataset: Dataset, collator: Callable[[Any], Any], sampler: StepSampler, workers: int = 0
) -> DataLoader:
    """Build a loader of a sampler's micro-batches, made by `workers` processes (0: this one)."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=workers,
        worker_init_fn=_leave_interrupts,
        pin_memory=torch.cuda.is_available(),
        # Starting an epoch draws a seed; from torch's generator, a resumed run would draw once
        # more than an uninterrupted one and see other dropout.
        generator=torch.Generator().manual_seed(sampler.seed),
    )


def picture_batches(
    pictures: Sequence[ImageSource], image_processor: Any, size: int, workers: int = 0
) -> Iterator[Tensor]:
    """Pictures as the vision tower reads them, (N, F=1, 3, H, W), at most `size` at a time.

    Raises:
        UserError: a picture cannot be read.
    """
    batches = iter(
        DataLoader(
            pictures,  # pyright: ignore[reportArgumentType]
            batch_size=size,
            collate_fn=partial(image_pixels, image_processor=image_processor),
            num_workers=workers,
            worker_init_fn=_leave_interrupts,
            # As above: torch's own generator is left as it is.
            generator=torch.Generator(),
        )
    )
    for _ in range(0, len(pictures), size):
        yield _next(batches)


def step_batches(loader: DataLoader, steps: int) -> Iterator[list[Batch]]:
    """The micro-batches of the next `steps` optimizer steps, a list each, across epochs.

    Whoever takes them moves the sampler on (`advance`) after each step.

    Raises:
        UserError: a picture can no longer be read.
    """
    sampler: Any = loader.batch_sampler
    done = 0
    while done < steps:
        batches = iter(loader)
        for step in range(sampler.step, min(sampler.steps_per_epoch, sampler.step + steps - done)):
            yield [_next(batches) for _ in range(sampler.micro_batches(step))]
            done += 1


def _next(batches: Iterator[Any]) -> Any:
    try:
        return next(batches)
    except UserError as error:
        # A worker's error comes with its traceback as text; the message is the end of it.
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from error


def _leave_interrupts(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the main one decides when to stop. SIGTERM must
    # still end a worker: it is how the main process ends those left over, and waits for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
