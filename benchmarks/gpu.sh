#!/usr/bin/env bash
# What the project does on a GPU, side by side with PyTorch, in one command that goes on where it was stopped:
#   bash benchmarks/gpu.sh [--tiny] [--results DIR]
# It needs Python 3.11 or newer with JAX and PyTorch that see the GPU, and MNIST in $VAMPVAE_DATA or the cache; no
# TensorFlow. What else is missing of requirements.txt is installed by pip, without a network from the wheels in
# PIP_FIND_LINKS if PIP_NO_INDEX is set. PYTHON chooses the interpreter.
set -euo pipefail
export KERAS_BACKEND=jax
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu.py" "$@"
