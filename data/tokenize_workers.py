"""
Tokenize on all cores: processes that get texts and return ids, in order.

    for ids, lengths, size in tokenize(batches, job, workers=16): ...

Each worker is `python -m data.tokenize_workers`, connected by pipes. It imports no torch and does
not run the caller's script again. Results come back in the order of the batches, and at most two
batches per worker are under way. So what is written does not depend on the number of workers, and
memory does not depend on the size of the corpus.
"""
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from data.detokenize import RULES
from data.tokenizer import encode, from_json
from flags import UserError

MAX_WORKERS = 24                                 # of 70 MB each; one reader cannot feed more
COMMAND = [sys.executable, "-m", "data.tokenize_workers"]


@dataclass(frozen=True)
class Job:
    """What to do with each text: apply the rules of data/detokenize.py, encode it, append `end`."""
    encoding: str  # to_json of the Encoding
    detokenize: str = ""  # the name of the rules, or ""
    end: int | None = None  # an id, or None


def count_cores():
    """The cores that this process may use, at most MAX_WORKERS."""
    known = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    return min(MAX_WORKERS, len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1)


def tokenize_batch(job, encoding, texts):
    """-> the ids of all texts, (n,) uint16 or uint32; how many each text has, (texts,) uint32; the
    size of all texts in UTF-8 bytes"""
    tidy = RULES.get(job.detokenize, str)
    texts = [tidy(text) for text in texts]
    parts = [encode(encoding, text) for text in texts]
    if job.end is not None:
        parts = [np.append(part, np.array(job.end, part.dtype)) for part in parts]
    size = sum(len(text.encode("utf-8", "surrogateescape")) for text in texts)
    lengths = np.array([len(part) for part in parts], np.uint32)  # (texts,)
    return np.concatenate(parts), lengths, size


def tokenize(batches, job, workers=None):
    """`tokenize_batch` of each list of texts, in order. workers: 1 works in this process; None
    starts one worker per core."""
    workers = workers or count_cores()
    if workers == 1:
        encoding = from_json(job.encoding)
        yield from (tokenize_batch(job, encoding, texts) for texts in batches)
        return
    idle, started, under_way = SimpleQueue(), [], deque()
    with ThreadPoolExecutor(workers) as threads:
        try:
            for _ in range(workers):
                started.append(subprocess.Popen(COMMAND, stdin=subprocess.PIPE,
                                                stdout=subprocess.PIPE,
                                                cwd=Path(__file__).parent.parent))
                pickle.dump(job, started[-1].stdin)
                idle.put(started[-1])
            for texts in batches:
                under_way.append(threads.submit(send, idle, texts))
                if len(under_way) == 2 * workers:
                    yield unwrap(under_way.popleft().result())
            while under_way:
                yield unwrap(under_way.popleft().result())
        finally:  # also if the caller stops early
            for future in under_way:
                future.cancel()
            for worker in started:
                worker.kill()
                worker.communicate()


def send(idle, texts):
    """Send texts to an idle worker and wait. -> its result"""
    worker = idle.get()
    try:
        pickle.dump(texts, worker.stdin)
        worker.stdin.flush()
        return pickle.load(worker.stdout)
    except (OSError, EOFError):
        raise UserError(f"a tokenizing process ended unexpectedly (exit code {worker.wait()}: out "
                        f"of memory?): run again to continue behind the last complete "
                        f"shard") from None
    finally:
        idle.put(worker)  # also a dead one, so that threads that wait for a worker fail as well


def unwrap(result):
    """The result of a worker; the message of an error is raised again."""
    if isinstance(result, str):
        raise UserError(result)
    return result


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends its workers
    inbox, outbox = sys.stdin.buffer, sys.stdout.buffer
    job = pickle.load(inbox)
    encoding = from_json(job.encoding)
    while True:
        try:
            texts = pickle.load(inbox)
        except EOFError:
            return
        try:
            result = tokenize_batch(job, encoding, texts)
        except UserError as fault:
            result = str(fault)
        pickle.dump(result, outbox)
        outbox.flush()


if __name__ == "__main__":
    main()
