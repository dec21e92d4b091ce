"""A process that loads the data may be killed at any time: it is said, and nothing is torn."""

import os
import signal
import time

import pytest
from torch.utils.data import DataLoader, Dataset

from tuninglab.data.loading import LostWorker, loaded


class Killing(Dataset):
    def __init__(self, number):
        self.number = number

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            os.kill(os.getpid(), self.number)
            time.sleep(60)
        return index


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGKILL, "was killed.*memory runs out.*--workers"), (signal.SIGTERM, "has ended")],
)
def test_a_killed_worker_is_told_between_batches_and_nowhere_else(number, said):
    before = signal.getsignal(signal.SIGCHLD)
    # Another loader of this process may have left torch's own, which raises anywhere.
    before = signal.SIG_DFL if "torch" in getattr(before, "__module__", "") else before
    batches = loaded(DataLoader(Killing(number), batch_size=1, num_workers=1))
    with pytest.raises(LostWorker, match=said):
        for _ in batches:
            assert signal.getsignal(signal.SIGCHLD) is before
            # Where a step would be made, and nothing may come in between.
            time.sleep(0.3)
