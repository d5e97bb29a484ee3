"""
Commands in forks of pytest, which has loaded torch already: that saves the three CPU seconds which
a Python of its own takes to load it. Everything else is as in a process of its own.

    subprocess.run(**forked(script("train", "--help")), capture_output=True)

So they do not suit tests of how a process begins, or of its memory.
"""
import gc
import importlib
import os
import runpy
import signal
import sys
import traceback
import types
import warnings

import torch._dynamo  # noqa: F401  each optimizer would load it, in each fork

from exercises.student_copy import forget_project


def forked(command):
    """The arguments of subprocess.Popen, whose `args` are [python, FILE or -c CODE or -m MODULE,
    *words], such that a fork runs them; it calls `preexec_fn` where it would start Python."""
    return {**command, "preexec_fn": lambda: run_here(*command["args"][1:], env=command["env"])}


def run_here(first, *words, env):
    """Never returns."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # Popen waits for the end of one of them
    gc.freeze()  # nothing of pytest is collected here
    code = 1
    try:
        begin(env)
        run(first, words)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def begin(env):
    """What Python does first: environment, signals, warnings, streams, no module of the project."""
    os.environ.clear()
    os.environ.update(env)
    for number in signal.valid_signals():  # no handler of the process that forks is left
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    importlib.reload(warnings)
    sys.stdin = open(0, encoding="utf-8")
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8")
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    forget_project()


def run(first, words):
    """As __main__, in the folder where Popen has gone."""
    if first == "-m":
        name, *words = words
        sys.argv = [name, *words]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif first == "-c":
        code, *words = words
        sys.argv = ["-c", *words]
        sys.path.insert(0, os.getcwd())
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(code, vars(main))
    else:
        sys.argv = [str(first), *words]
        sys.path.insert(0, os.path.dirname(first))
        runpy.run_path(str(first), run_name="__main__")
