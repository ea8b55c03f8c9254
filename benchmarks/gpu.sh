#!/usr/bin/env bash
# On a machine with a CUDA device and torch, in at most eight minutes: the tests marked gpu, then the timings of gpu.py.
# Flags go to gpu.py. PYTHON names the interpreter.
set -u
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
export PYTHONPATH=$PWD
needed="import torch, torchvision, timm, av, cv2, tyro, cattrs, yaml, safetensors, filelock, tensorboard, pytest, hypothesis"
"$python" -c "$needed" || "$python" -m pip install -q -r requirements.txt pytest hypothesis || exit 1
timeout 150 "$python" -m pytest -q -m gpu tests/test_gpu.py
tests=$?
timeout 310 "$python" benchmarks/gpu.py "$@" || exit 1
exit $tests
