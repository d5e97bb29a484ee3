"""
Tokenising on all cores: processes that get texts and give ids, in order.

    for ids, lengths, size in tokenised(batches, job, workers=16): ...

Each worker is `python -m data.workers`, fed through its pipes, and knows nothing else: it imports no torch and does
not run the caller's script again. Batches come back in the order in which they went, and only two for each worker are
under way at once: so what is written does not depend on how many there are, and neither does memory on the corpus.
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

from data import BadInput
from data.detokenize import RULES
from data.tokenizer import encode, from_json


MOST = 24                                                    # of 70 MB each; one reader feeds no more


@dataclass(frozen=True)
class Job:
    """What to do with each text: the rules of data/detokenize.py or "", then ids, then the id `end` or None."""
    encoding: str                                            # tokenizer.to_json of it
    detokenize: str = ""
    end: int | None = None


def cores():
    """How many this process may use, up to 24."""
    return min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def work(job, encoding, texts):
    """-> ids of all texts, (n,) uint16 or uint32; how many each has, (texts,) uint32; their size in UTF-8 bytes"""
    tidy = RULES.get(job.detokenize, str)
    texts = [tidy(text) for text in texts]
    parts = [encode(encoding, text) for text in texts]
    if job.end is not None:
        parts = [np.append(part, np.array(job.end, part.dtype)) for part in parts]
    size = sum(len(text.encode("utf-8", "surrogateescape")) for text in texts)
    return np.concatenate(parts), np.array([len(part) for part in parts], np.uint32), size


def tokenised(batches, job, workers=None):
    """`work` of each batch of texts, in order. workers: one does it in this process; None is one a core."""
    workers = workers or cores()
    if workers == 1:
        encoding = from_json(job.encoding)
        yield from (work(job, encoding, texts) for texts in batches)
        return
    idle, everyone, under_way = SimpleQueue(), [], deque()

    def hand_over(texts):
        worker = idle.get()
        try:
            pickle.dump(texts, worker.stdin)
            worker.stdin.flush()
            result = pickle.load(worker.stdout)
        except (OSError, EOFError):
            idle.put(worker)                                 # whoever waits for it shall fail too, not wait for ever
            raise BadInput(f"a tokenising process ended by itself (exit code {worker.wait()}: out of memory?): run "
                           f"again to go on from the last finished shard") from None
        idle.put(worker)
        return result

    with ThreadPoolExecutor(workers) as threads:
        try:
            for _ in range(workers):
                everyone.append(subprocess.Popen([sys.executable, "-m", "data.workers"], stdin=subprocess.PIPE,
                                                 stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent))
                pickle.dump(job, everyone[-1].stdin)
                idle.put(everyone[-1])
            for texts in batches:
                under_way.append(threads.submit(hand_over, texts))
                if len(under_way) == 2 * workers:
                    yield told(under_way.popleft().result())
            while under_way:
                yield told(under_way.popleft().result())
        finally:                                             # also when the caller stops in the middle
            for future in under_way:
                future.cancel()
            for worker in everyone:
                worker.kill()
                worker.communicate()


def told(result):
    if isinstance(result, str):
        raise BadInput(result)
    return result


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)             # Ctrl-C is for the parent, who then ends us
    inbox, outbox = sys.stdin.buffer, sys.stdout.buffer
    job = pickle.load(inbox)
    encoding = from_json(job.encoding)
    while True:
        try:
            texts = pickle.load(inbox)
        except EOFError:
            return
        try:
            result = work(job, encoding, texts)
        except BadInput as fault:
            result = str(fault)
        pickle.dump(result, outbox)
        outbox.flush()


if __name__ == "__main__":
    main()
