"""A corpus of 100 GB is read as one of 1 GB is: files with holes take no space."""
import time

import numpy as np
import pytest
import torch

from data.shard_dataset import Sharded, Split
from data.shards import Shards, open_stream
from data.tokenizer import byte_level

SHARD = 100_000_000  # tokens, 200 MB


def holes(folder, shards):
    """A corpus of files with holes: 200 MB each, and 8 tokens that are none. -> Sharded"""
    folder.mkdir()
    for i in range(shards):
        with open(folder / f"train-{i:05d}.bin", "wb") as file:
            file.truncate(2 * SHARD)
            for place in (0, SHARD - 4):  # the ends of each shard say which one it is
                file.seek(2 * place)
                file.write(np.full(4, i + 1, np.uint16).tobytes())
        np.full(1, SHARD, np.uint32).tofile(folder / f"train-{i:05d}.ends")
    parts = [{"tokens": SHARD, "documents": 1}] * shards
    ids, ends = open_stream(folder, "train", parts, np.uint16)
    split = Split(ids, ids, ends, range(shards))
    val = Split(ids.view(0, 10_000), ids, ends, range(1))
    return Sharded("holes", "holes", byte_level(), {"train": split, "val": val}, "plain", None,
                   10_000, 1024)


def own_memory():
    """Bytes of this process that no file backs; None where nobody tells."""
    try:
        lines = open("/proc/self/status").read().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), None)


def draw(data, batches=30):
    """-> seconds for each of a few batches of 32 texts of 1,024 tokens, at random places"""
    began = time.process_time()
    for number in range(batches):
        data.micro_batch(number, 32, 7, None)
    return (time.process_time() - began) / batches


def test_texts_of_100_gb_take_the_time_and_the_memory_of_texts_of_one(tmp_path):
    small, large = holes(tmp_path / "small", 5), holes(tmp_path / "large", 500)
    assert 2 * len(large.train) == 100e9
    for data in (small, large):
        draw(data, 3)  # warm up
    before = own_memory()
    times = {data: min(draw(data) for _ in range(3)) for data in (small, large)}
    after = own_memory()
    assert times[large] < 5 * times[small] + 1e-3
    assert before is None or after - before < 20e6
    x = large.micro_batch(10**6, 32, 7, None)[0]  # (32, 1024)
    assert x.shape == (32, 1024) and x.dtype == torch.int64 and x.max() <= 500
    ends = large.train.windows(np.array([SHARD * 7 - 4, SHARD * 499]), 8)  # (2, 8)
    assert ends.tolist() == [[7] * 4 + [8] * 4, [500] * 4 + [0] * 4]


@pytest.mark.parametrize("width", [1, 3, 7, 25])
def test_windows_are_what_indices_give(width):
    """Within a shard, across two and across many."""
    generator = np.random.default_rng(0)
    ids = Shards([generator.integers(0, 9, n).astype(np.uint16) for n in (5, 1, 9, 2, 11)])
    start = generator.integers(0, 28 - width + 1, 50)  # (50,)
    assert np.array_equal(ids.windows(start, width), ids[start[:, None] + np.arange(width)])
    assert ids.windows(start, width).dtype == np.uint16
