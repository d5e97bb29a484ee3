"""What shards promise: the same bytes whoever writes them, however often they stop, in little
memory."""
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import build_shards, shards, tokenize_workers, tokenizer
from data.build_shards import Source
from data.tokenize_workers import Job
from flags import UserError

ROOT = Path(__file__).parents[2]
END = 256
BYTES = build_shards.add_end(tokenizer.byte_level(), Source((), None, ""))
JOB = Job(tokenizer.to_json(BYTES), "ptb", END)


def documents(n=300):
    """Of very different lengths; some are empty."""
    return [f"the dog 's {i} N balls " * (i % 7) + "é" * (i % 3) for i in range(n)]


def write(folder, texts=None, workers=1):
    folder.mkdir(exist_ok=True)
    texts = iter(documents() if texts is None else texts)
    return shards.write_shards(folder, "train", texts, JOB, workers, shard=4000, batch=500)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ---- writing

def test_three_workers_write_the_bytes_of_one(tmp_path):
    one, three = (write(tmp_path / str(n), workers=n) for n in (1, 3))
    assert one == three and len(one) > 3
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_the_tokens_are_those_of_the_texts_and_each_document_ends(tmp_path):
    parts = write(tmp_path)
    ids, ends = shards.open_stream(tmp_path, "train", parts, np.uint16)
    texts = [text.replace(" 's", "'s").replace(" N ", " 1 ") for text in documents()]
    assert bytes(i for i in ids[:] if i != END) == "".join(texts).encode()
    first, last = shards.document_bounds(ids, ends, np.arange(300))
    read = [bytes(ids[a:b - 1].astype(np.uint8)).decode() for a, b in zip(first, last)]
    assert read == texts
    assert (ids[last - 1] == END).all() and last[-1] == len(ids) and (first[1:] == last[:-1]).all()
    assert sum(part["bytes"] for part in parts) == len("".join(texts).encode())


def test_empty_documents_at_the_end_make_no_empty_shard(tmp_path):
    plain = Job(JOB.encoding)  # no end stands behind the blank lines of WikiText
    texts = iter(["a" * 500] * 4 + [""] * 20_000)
    parts = shards.write_shards(tmp_path, "train", texts, plain, 1, 2000, 500)
    ids, _ = shards.open_stream(tmp_path, "train", parts, np.uint16)
    assert len(parts) == 1 and len(ids) == 2000


def test_a_stopped_run_continues_behind_its_last_shard_with_the_same_bytes(tmp_path, monkeypatch):
    write(tmp_path / "whole")

    def stops():
        yield from documents()[:200]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "stopped", stops())
    kept = json.loads((tmp_path / "stopped" / "train.json").read_text())
    assert not kept["whole"] and 0 < len(kept["shards"])
    assert not list((tmp_path / "stopped").glob("*.bin.part.*"))
    seen, real = [], tokenize_workers.tokenize_batch
    spy = lambda job, encoding, texts: seen.extend(texts) or real(job, encoding, texts)
    monkeypatch.setattr(tokenize_workers, "tokenize_batch", spy)
    write(tmp_path / "stopped")
    assert seen == documents()[sum(part["documents"] for part in kept["shards"]):]
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_shard_that_was_damaged_since_is_made_again(tmp_path):
    write(tmp_path)
    good, path = contents(tmp_path), tmp_path / "train-00001.bin"
    path.write_bytes(good[path.name][:-2] + b"??")
    write(tmp_path)
    assert contents(tmp_path) == good


def test_a_full_disk_leaves_complete_shards_and_no_half_one(tmp_path, monkeypatch):
    calls, fsync = [], os.fsync

    def full(number):
        calls.append(number)
        if len(calls) > 4:  # two files per shard
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)
    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(UserError, match="2 finished shards of train are kept"):
        write(tmp_path)
    kept = sorted(path.name for path in tmp_path.glob("*.bin"))
    assert kept == ["train-00000.bin", "train-00001.bin"]
    monkeypatch.undo()
    write(tmp_path)
    write(tmp_path / "whole")
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert contents(tmp_path / "whole").items() <= made.items()


# ---- workers

def test_what_a_worker_cannot_encode_ends_everything_with_one_line():
    narrow = Job(tokenizer.to_json(tokenizer.chars("ab")))
    with pytest.raises(UserError, match="'c'"):
        list(tokenize_workers.tokenize(iter([["ab"], ["abc"], ["ab"]]), narrow, workers=2))


def test_a_worker_that_dies_is_reported_and_nobody_waits_for_it(monkeypatch):
    dying = [sys.executable, "-c", "import sys; sys.exit(9)"]
    monkeypatch.setattr(tokenize_workers, "COMMAND", dying)
    with pytest.raises(UserError, match="exit code 9"):
        list(tokenize_workers.tokenize(iter([["ab"]] * 9), JOB, workers=2))


def test_no_more_is_read_ahead_than_two_batches_per_worker():
    drawn = []
    batches = (drawn.append(i) or ["text"] for i in range(50))
    results = tokenize_workers.tokenize(batches, JOB, workers=2)
    next(results)
    assert len(drawn) == 4
    results.close()


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """A process tokenizes 4 MB and 40 MB of text: its peak memory may differ by 8 MB, not by 40."""
    code = """if True:
        import resource, sys
        from pathlib import Path
        from data import documents, shards, tokenizer
        from data.tokenize_workers import Job
        folder = Path(sys.argv[1])
        text = folder.with_suffix(".txt")
        with open(text, "w") as file:
            for i in range(int(sys.argv[2])):
                file.write("the old dog and the cat " * 42 + "\\n")
        job = Job(tokenizer.to_json(tokenizer.byte_level()))
        folder.mkdir()
        texts = documents.read_files([text], "train", 0, "strict", 1 << 18)
        parts = shards.write_shards(folder, "train", texts, job, 1, 1 << 20, 1 << 18)
        print(sum(part["tokens"] for part in parts))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # that of pytest, if it is larger
        status = Path("/proc/self/status")  # where there is one, it counts this process alone
        lines = status.read_text().splitlines() if status.exists() else []
        print(*[line.split()[1] for line in lines if line.startswith("VmHWM")] or [peak])
    """
    peak = []
    for name, lines in (("small", 4000), ("large", 40_000)):
        out = subprocess.run([sys.executable, "-c", code, tmp_path / name, str(lines)], cwd=ROOT,
                             capture_output=True, text=True, check=True).stdout.split()
        assert int(out[0]) == lines * (24 * 42 + 1)
        peak.append(int(out[1]) / 1024)  # MB
    assert peak[1] - peak[0] < 8, peak


# ---- reading

def test_several_arrays_read_like_one():
    whole = np.random.default_rng(0).integers(0, 999, 100).astype(np.uint16)
    parts = shards.Shards(np.split(whole, [7, 8, 50]))
    assert len(parts) == 100 and parts.dtype == np.uint16
    for a, b in ((0, 100), (3, 9), (8, 8), (49, 51), (90, 300), (-5, 100)):
        assert np.array_equal(parts[a:b], whole[a:b])
    where = np.arange(100).reshape(4, 25)[::-1]
    assert np.array_equal(parts[where], whole[where])
    assert np.array_equal(parts.view(6, 60)[:], whole[6:60])
    assert np.array_equal(parts.view(10, 12)[np.array([0, 1])], whole[10:12])
