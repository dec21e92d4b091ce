"""A small base that the rows of a comparison load."""

import pytest

from tuninglab.comparison.workloads import FlamingoWorkload, TextWorkload, save_random


@pytest.fixture(scope="session")
def small_bases(tmp_path_factory):
    """Small workloads with the folders of their saved models."""
    made = {}
    for name, workload in (("text", TextWorkload()), ("flamingo", FlamingoWorkload())):
        folder = tmp_path_factory.mktemp(name)
        save_random(workload.small(), folder)
        made[name] = (workload.small(), folder)
    return made
