"""What a run was made with: commit, command line, versions, device, data."""

import contextlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from minmax.runtime.config import REPOSITORY


def write_environment(path: Path, data_fingerprint: str) -> None:
    """Append to a JSON-lines file what this process runs: a resumed run keeps what it was started with."""
    commit = None
    if (git := shutil.which("git")) is not None:
        with contextlib.suppress(subprocess.CalledProcessError):
            command = [git, "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40"]
            commit = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    environment = {
        "commit": commit,
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy")},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "data": data_fingerprint,
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(environment) + "\n")
