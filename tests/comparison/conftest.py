"""A small base that the rows of a comparison load."""

import pytest
import torch

from tuninglab.comparison.workloads import Bench, FlamingoWorkload, TextWorkload, save_random


@pytest.fixture(scope="session")
def small_bases(tmp_path_factory):
    """Small workloads with their saved models."""
    made = {}
    for name, workload in (("text", TextWorkload()), ("flamingo", FlamingoWorkload())):
        made[name] = Bench(workload.small(), tmp_path_factory.mktemp(name), torch.device("cpu"))
        save_random(made[name].workload, made[name].base)
    return made
