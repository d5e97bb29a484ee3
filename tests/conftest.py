"""Lets tests in every folder import the code and the helpers of this folder, wherever pytest is
started."""

import gc
import os
import signal
import sys
from pathlib import Path

gc.disable()  # until all tests are collected: what that makes, a million objects, stays
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start pytest with it ignored
for folder in (Path(__file__).parent, Path(__file__).parent.parent):
    sys.path.insert(0, str(folder))


def pytest_configure(config):
    config.pluginmanager.set_blocked("logging-plugin")  # nothing here logs: a millisecond a test
    if not config.getoption("numprocesses", None):  # else it hands all tests to others
        prepare()


def prepare():
    """What a process that runs tests needs."""
    import torch

    from data import puzzles
    from once import remember_what_tests_repeat
    from runtime.device import keep_memory

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported
    for kind in (torch.cuda, torch.xpu, torch.mtia):
        if not kind.is_available():  # torch would keep each seed, with a stack trace, for later
            kind.manual_seed_all = lambda seed: None
    torch.set_num_threads(1)  # what is tiny gains nothing from a second one
    keep_memory()  # as scripts do
    remember_what_tests_repeat()
    puzzles.MANY = 100  # that every data set shows: 500 of sudoku9 take two seconds


def pytest_collection_finish():
    """From here on only what tests make is searched for rubbish, in larger portions."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()
