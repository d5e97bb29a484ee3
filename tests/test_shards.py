"""What shards promise: the same bytes whoever makes them and however often they stop, little memory, no text twice."""
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data import BadInput, prepare, shards, tokenizer, workers
from data.prepare import Source
from data.sharded import permuted
from data.workers import Job

ROOT = Path(__file__).parent.parent
END = 256
BYTES = prepare.with_end(tokenizer.byte_level(), Source((), None, ""))
JOB = Job(tokenizer.to_json(BYTES), "ptb", END)


def documents(n=300):
    """Of very different lengths, among them none at all."""
    return [f"the dog 's {i} N balls " * (i % 7) + "é" * (i % 3) for i in range(n)]


def made(folder, texts=None, workers=1, **sizes):
    folder.mkdir(exist_ok=True)
    return shards.write(folder, "train", iter(documents() if texts is None else texts), JOB, workers,
                        **{"shard": 4000, "batch": 500, **sizes})


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def corpus(tmp_path, layout, block_size=16, texts=None, held_out=50):
    """A corpus of documents in several shards, the last 50 of them held out."""
    source = Source((), None, "a test", ends=True, splits={"train": "train", "val": "val"}, held_out=held_out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.write, "__defaults__", (None, 4000, 500))
        return prepare.load("test", source, layout, ["test"], lambda: {"all": lambda: iter(texts or documents())},
                            block_size, "bytes", None, tmp_path, workers=1)


# ---- writing

def test_three_workers_write_the_bytes_of_one(tmp_path):
    one, three = (made(tmp_path / str(n), workers=n) for n in (1, 3))
    assert one == three and len(one) > 3
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_the_tokens_are_those_of_the_texts_and_each_document_ends(tmp_path):
    parts = made(tmp_path)
    ids, ends = shards.open_stream(tmp_path, "train", parts, np.uint16)
    texts = [text.replace(" 's", "'s").replace(" N ", " 1 ") for text in documents()]
    assert bytes(i for i in ids[:] if i != END) == "".join(texts).encode()
    first, last = shards.bounds(ids, ends, np.arange(300))
    assert [bytes(ids[a:b - 1].astype(np.uint8)).decode() for a, b in zip(first, last)] == texts
    assert (ids[last - 1] == END).all() and last[-1] == len(ids) and (first[1:] == last[:-1]).all()
    assert sum(part["bytes"] for part in parts) == len("".join(texts).encode())


def test_empty_documents_at_the_end_make_no_empty_shard(tmp_path):
    plain = Job(JOB.encoding)                                # blank lines of WikiText: no end stands behind them
    parts = shards.write(tmp_path, "train", iter(["a" * 500] * 4 + [""] * 20_000), plain, 1, 2000, 500)
    assert len(parts) == 1 and len(shards.open_stream(tmp_path, "train", parts, np.uint16)[0]) == 2000


def test_a_run_that_was_stopped_goes_on_behind_its_last_shard_with_the_same_bytes(tmp_path):
    made(tmp_path / "whole")
    (tmp_path / "stopped").mkdir()

    def stops():
        yield from documents()[:200]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "stopped", stops())
    kept = json.loads((tmp_path / "stopped" / "train.json").read_text())
    assert not kept["whole"] and 0 < len(kept["shards"]) and not list((tmp_path / "stopped").glob("*.bin.part.*"))
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        patch.setattr(workers, "work", lambda job, encoding, texts, work=workers.work: seen.extend(texts) or work(
            job, encoding, texts))
        made(tmp_path / "stopped")
    assert seen == documents()[sum(part["documents"] for part in kept["shards"]):]
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_shard_that_was_damaged_since_is_made_again(tmp_path):
    made(tmp_path)
    good, path = contents(tmp_path), tmp_path / "train-00001.bin"
    path.write_bytes(good[path.name][:-2] + b"??")
    made(tmp_path)
    assert contents(tmp_path) == good


def test_a_full_disk_leaves_finished_shards_and_no_half_one(tmp_path, monkeypatch):
    calls, fsync = [], os.fsync

    def full(number):
        calls.append(number)
        if len(calls) > 4:                                   # two files for each shard
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)
    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(BadInput, match="2 finished shards of train are kept"):
        made(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.bin")) == ["train-00000.bin", "train-00001.bin"]
    monkeypatch.undo()
    made(tmp_path)
    made(tmp_path / "whole")
    assert {name: raw for name, raw in contents(tmp_path / "whole").items()}.items() <= {
        path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}.items()


def test_what_a_worker_cannot_encode_ends_all_with_one_line(tmp_path):
    narrow = Job(tokenizer.to_json(tokenizer.chars("ab")))
    with pytest.raises(BadInput, match="'c'"):
        list(workers.tokenised(iter([["ab"], ["abc"], ["ab"]]), narrow, workers=2))


def test_a_worker_that_dies_is_told_of_and_nobody_waits_for_it(monkeypatch):
    popen = subprocess.Popen

    def dying(args, **pipes):
        return popen([sys.executable, "-c", "import sys; sys.exit(9)"], **pipes)
    monkeypatch.setattr(workers.subprocess, "Popen", dying)
    with pytest.raises(BadInput, match="exit code 9"):
        list(workers.tokenised(iter([["ab"]] * 9), JOB, workers=2))


def test_no_more_is_read_ahead_than_two_batches_for_each_worker():
    drawn = []
    results = workers.tokenised((drawn.append(i) or ["text"] for i in range(50)), JOB, workers=2)
    next(results)
    assert len(drawn) == 4
    results.close()


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """A process tokenises 4 MB and 40 MB of text: its largest resident size may differ by some 8 MB, not by 40."""
    code = """if True:
        import resource, sys
        from pathlib import Path
        from data import readers, shards, tokenizer
        from data.workers import Job
        folder = Path(sys.argv[1])
        text = folder.with_suffix(".txt")
        with open(text, "w") as file:
            for i in range(int(sys.argv[2])):
                file.write("the old dog and the cat " * 42 + "\\n")
        job = Job(tokenizer.to_json(tokenizer.byte_level()))
        folder.mkdir()
        texts = readers.files([text], "train", 0, "strict", 1 << 18)
        parts = shards.write(folder, "train", texts, job, 1, 1 << 20, 1 << 18)
        print(sum(part["tokens"] for part in parts), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    peak = []
    for name, lines in (("small", 4000), ("large", 40_000)):
        out = subprocess.run([sys.executable, "-c", code, tmp_path / name, str(lines)], cwd=ROOT, capture_output=True,
                             text=True, check=True).stdout.split()
        assert int(out[0]) == lines * (24 * 42 + 1)
        peak.append(int(out[1]) / 1024)                      # MB
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
    assert np.array_equal(parts.cut(6, 60)[:], whole[6:60])
    assert np.array_equal(parts.cut(10, 12)[np.array([0, 1])], whole[10:12])


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000, 65_537])
def test_the_order_of_texts_is_a_permutation_and_another_one_for_another_key(n):
    one, two = (permuted(np.arange(n), n, key) for key in (1, 2))
    assert np.array_equal(np.sort(one), np.arange(n)) and np.array_equal(np.sort(two), np.arange(n))
    assert n < 8 or (one != two).mean() > 0.5


def test_the_order_is_as_good_as_chance():
    """Places of neighbours are not near each other, and every place is equally likely: chi-square over 2,000 keys."""
    n = 50
    places = np.stack([permuted(np.arange(n), n, key) for key in range(2000)])             # (keys, n)
    counts = np.bincount(places[:, 0], minlength=n)
    assert ((counts - 40) ** 2 / 40).sum() < 49 + 4 * np.sqrt(2 * 49)
    steps = np.bincount((places[:, 1] - places[:, 0]) % n, minlength=n)[1:]                # n - 1 steps, never 0
    assert ((steps - 2000 / 49) ** 2 / (2000 / 49)).sum() < 48 + 4 * np.sqrt(2 * 48)


@pytest.mark.parametrize("layout", ["plain", "framed", "rows"])
def test_an_epoch_has_each_text_once_and_does_not_depend_on_who_draws(tmp_path, layout):
    c = corpus(tmp_path, layout)
    part = c.split("train")
    texts = len(part.documents) if layout == "rows" else len(part.ids) // c.span - 1
    n = 4
    one = [c.turn(number, n, 7)[0] for number in range(texts // n)]
    two = [c.turn(number, n, 7)[0] for rank in (0, 1) for number in range(rank, texts // n, 2)]
    assert sorted(map(str, torch.cat(one).tolist())) == sorted(map(str, torch.cat(two).tolist()))
    every = c.turn(0, texts, 7)[0]
    assert torch.equal(torch.cat(one), every[:texts // n * n])
    later = c.turn(1, texts, 7)[0]            # the next epoch
    assert not torch.equal(every, later)
    if layout == "rows":
        assert sorted(map(str, every.tolist())) == sorted(map(str, later.tolist())) == sorted(
            map(str, c.rows(part, np.arange(texts)).tolist()))
    else:
        words = every[:, 1:-1] if layout == "framed" else every
        joined = {tuple(row) for row in words.tolist()}
        stream = part.ids[:].tolist()
        found = [i for i in range(len(stream) - c.span + 1) if tuple(stream[i:i + c.span]) in joined]
        assert len(found) >= texts                           # every text stands in the stream
        starts = part.ids[:].astype(np.int64)
        shift = next(s for s in range(2 * c.span) if all(
            tuple(starts[s + i * c.span:s + (i + 1) * c.span].tolist()) in joined for i in range(texts)))
        cut = [starts[shift + i * c.span:shift + (i + 1) * c.span].tolist() for i in range(texts)]
        assert sorted(cut) == sorted(words.tolist())         # consecutive, without gap or overlap
    assert torch.equal(c.turn(3, n, 7)[0], corpus(tmp_path, layout).turn(3, n, 7)[0])


@pytest.mark.parametrize("layout", ["plain", "framed"])
def test_texts_are_cut_elsewhere_in_each_epoch_so_that_no_token_is_left_out_of_all(tmp_path, layout):
    c = corpus(tmp_path, layout)
    c.split("train").ids = shards.Shards([np.arange(1000, dtype=np.uint16)])     # tokens that say where they stand
    texts, seen, cuts = 1000 // c.span - 1, set(), set()
    for epoch in range(200):
        x = c.turn(epoch, texts, 7)[0][:, 1 if layout == "framed" else 0:][:, :c.span]
        start = x[:, 0].sort().values                                            # (texts,)
        assert (start.diff() == c.span).all() and (x - x[:, :1] == torch.arange(c.span)).all()
        seen, cuts = seen | {*range(start[0], start[-1] + c.span)}, cuts | {int(start[0])}
    assert seen == set(range(1000)) and len(cuts) == 1000 - texts * c.span + 1


def test_a_batch_may_cross_from_one_epoch_to_the_next(tmp_path):
    c = corpus(tmp_path, "rows")
    both = c.in_order("train", np.arange(240, 260), 7)       # an epoch has 250 documents
    assert torch.equal(both, torch.cat([c.in_order("train", np.arange(240, 250), 7),
                                        c.in_order("train", np.arange(250, 260), 7)]))


def test_framed_texts_have_ends_on_either_side_and_lose_nothing_between(tmp_path):
    c = corpus(tmp_path, "framed")
    x = c.windows("val")
    assert (x[:, 0] == END).all() and (x[:, -1] == END).all() and x.shape[1] == 16
    assert np.array_equal(x[:, 1:-1].reshape(-1).numpy(), c.val[:x.shape[0] * 14])
    assert c.windows("val", 5).shape == (5, 16) and torch.equal(c.windows("val", 5)[0], x[0])


def test_rows_are_documents_cut_to_the_length_and_scored_to_their_own_end(tmp_path):
    texts = ["ab", "", "a" * 14, "b" * 15, "c" * 99] + ["train"] * 5
    c = corpus(tmp_path, "rows", texts=texts[::-1], held_out=5)
    x = c.windows("val")                                     # the last five, from the last to the first of texts
    a, b, cc = 97, 98, 99
    assert x[4].tolist() == [END, a, b] + [END] * 13 and x[3].tolist() == [END] * 16
    assert x[2].tolist() == [END] + [a] * 14 + [END] and x[1].tolist() == [END] + [b] * 14 + [END]
    assert x[0].tolist() == [END] + [cc] * 14 + [END]
    assert c.scored(x).sum(-1).tolist() == [16, 16, 16, 2, 4]
    assert c.bytes_per_token == (14 * 3 + 0 + 2) / (16 * 3 + 2 + 4)
    assert corpus(tmp_path, "framed").scored(x) is None


def test_bits_per_byte_count_the_bytes_of_the_text_and_the_ends_as_tokens(tmp_path):
    c = corpus(tmp_path, "plain")
    text = "".join(documents()[-50:])                        # the last documents are held out, cut where they begin
    assert c.bytes_per_token == len(text.encode()) / len(c.val) and len(c.val) == len(text.encode()) + 50
    assert c.splits["train"].documents == range(250) and c.val[0] == ord("t") and c.train[len(c.train) - 1] == END
    framed = corpus(tmp_path, "framed")
    assert framed.bytes_per_token == c.bytes_per_token * 14 / 16


def test_a_damaged_folder_is_made_again_and_an_absent_split_is_told(tmp_path):
    c = corpus(tmp_path, "plain")
    folder, = (path for path in tmp_path.iterdir() if path.is_dir())
    with open(folder / "all-00000.bin", "ab") as file:
        file.write(b"??")
    again = corpus(tmp_path, "plain")
    assert np.array_equal(again.val[:], c.val[:])
    (folder / "meta.json").write_text("{}")
    assert np.array_equal(corpus(tmp_path, "plain").val[:], c.val[:])
    with pytest.raises(BadInput, match="no test split, only train and val"):
        c.windows("test")
    with pytest.raises(BadInput, match="smaller --block_size"):
        corpus(tmp_path, "plain", block_size=10**6)


def test_processes_that_want_the_same_corpus_wait_for_the_first(tmp_path):
    code = """if True:
        import sys, time
        from data import prepare, sharded
        from data.prepare import Source
        def streams():
            open(sys.argv[1] + "/began", "a").write("x")
            time.sleep(1.5)
            return {"train": lambda: iter(["some text "] * 50), "val": lambda: iter(["more text "] * 50)}
        source = Source((), None, "a test", "plain", splits={"train": "train", "val": "val"})
        c = prepare.load("test", source, "plain", ["test"], streams, 16, "bytes", None, sys.argv[1], 1)
        print(len(c.train))
    """
    both = [subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, text=True, stdout=subprocess.PIPE)
            for _ in range(2)]
    assert [process.communicate(timeout=100)[0] for process in both] == ["500\n"] * 2
    assert (tmp_path / "began").read_text() == "x"
