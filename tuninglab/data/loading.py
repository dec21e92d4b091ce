"""From samples to the batches of optimizer steps, through a DataLoader."""

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from tuninglab.data.batches import Batch, image_pixels
from tuninglab.data.sample import ImageSource
from tuninglab.data.sampler import StepSampler
from tuninglab.errors import UserError, WorkError


class LostWorker(WorkError):
    """A process that loads the data has ended; what it would have loaded is not there."""


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
    loader = DataLoader(
        pictures,  # pyright: ignore[reportArgumentType]
        batch_size=size,
        collate_fn=partial(image_pixels, image_processor=image_processor),
        num_workers=workers,
        worker_init_fn=_leave_interrupts,
        # As above: torch's own generator is left as it is.
        generator=torch.Generator(),
    )
    yield from loaded(loader)


def step_batches(loader: DataLoader, steps: int) -> Iterator[list[Batch]]:
    """The micro-batches of the next `steps` optimizer steps, a list each, across epochs.

    Whoever takes them moves the sampler on (`advance`) after each step.

    Raises:
        UserError: a picture can no longer be read.
    """
    sampler: Any = loader.batch_sampler
    done = 0
    while done < steps:
        batches = loaded(loader)
        for step in range(sampler.step, min(sampler.steps_per_epoch, sampler.step + steps - done)):
            yield [next(batches) for _ in range(sampler.micro_batches(step))]
            done += 1


def loaded(loader: DataLoader) -> Iterator[Any]:
    """The batches of a loader, whose mistakes are told as this process would tell them.

    Raises:
        UserError: a picture can no longer be read.
        LostWorker: a worker has ended.
    """
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", "") == signal_handling.__name__:
        # torch's own raises wherever this process stands as soon as a worker ends, in the middle
        # of an optimizer's step too. Whoever waits for a batch is told as well, within 5 s. It is
        # set once a process: by another loader, maybe.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is handler else before)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except UserError as error:
            # A worker's error comes with its traceback as text; the message is the end of it.
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from error
        # What a worker sent is fetched from it: where it has gone, that fails in other ways.
        except (RuntimeError, OSError, EOFError) as error:
            codes = _exit_codes(batches)
            if not codes:
                raise
            raise LostWorker(_how_it_ended(codes)) from error
        yield batch


def _exit_codes(batches: Any) -> set[int]:
    """Of the workers of a loader that have ended, those that end right now included."""
    workers = getattr(batches, "_workers", ())
    for worker in workers:
        worker.join(0.2)
    return {worker.exitcode for worker in workers if worker.exitcode is not None}


def _how_it_ended(codes: set[int]) -> str:
    ended = "A process that loads the data has ended"
    if -signal.SIGKILL in codes:
        return (
            f"{ended}: it was killed, as the system does where memory runs out. Take fewer "
            "--workers, or smaller pictures."
        )
    return f"{ended} without a message. The log of the system may tell why."


def _leave_interrupts(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the main one decides when to stop. SIGTERM must
    # still end a worker: it is how the main process ends those left over, and waits for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
