"""Lets tests in every folder import the code and the helpers of this folder, wherever pytest is
started."""

import os
import signal
import sys
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported
for kind in (torch.cuda, torch.xpu, torch.mtia):
    if not kind.is_available():  # torch would keep each seed, with a stack trace, for later
        kind.manual_seed_all = lambda seed: None
torch.set_num_threads(1)  # what is tiny gains nothing from a second one
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start pytest with it ignored
for folder in (Path(__file__).parent, Path(__file__).parent.parent):
    sys.path.insert(0, str(folder))

from data import puzzles  # noqa: E402
from runtime.device import keep_memory  # noqa: E402  as scripts do

keep_memory()
puzzles.MANY = 100  # that every data set shows: 500 of sudoku9 take two seconds
