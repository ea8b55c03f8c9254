"""Settings of all tests: small machines run them in parallel, so each process gets one torch thread."""

import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
TASKS = ("classification",)

# The scripts of a task import their neighbours by name, as they do when started from the shell.
sys.path[:0] = [str(REPOSITORY / task) for task in TASKS]


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    torch.set_num_threads(1)
