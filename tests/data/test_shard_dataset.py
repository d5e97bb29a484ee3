"""What texts from shards promise: no text twice in an epoch, the conventions of the papers'
tables."""
import multiprocessing
import time

import numpy as np
import pytest
import torch
from test_shards import END, documents

from data import shards
from data.build_shards import Source, load_shards
from data.shard_dataset import permute
from flags import UserError


def corpus(folder, layout, block_size=16, texts=None, held_out=50):
    """A corpus of documents in several shards, the last 50 of them held out."""
    source = Source((), None, "a test", ends=True, splits={"train": "train", "val": "val"},
                    held_out=held_out)
    streams = lambda: {"all": lambda: iter(texts or documents())}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.write_shards, "__defaults__", (None, 4000, 500))
        return load_shards("test", source, layout, ["test"], streams, block_size, "bytes", None,
                           folder, workers=1)


def drawn(data, number, n, seed=7):
    """The texts of a micro-batch. -> (n, L)"""
    return data.micro_batch(number, n, seed, None)[0]


def as_text(x):
    return sorted(map(str, x.tolist()))


# ---- the order of an epoch

@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000, 65_537])
def test_the_order_of_texts_is_a_permutation_and_another_one_for_another_key(n):
    one, two = (permute(np.arange(n), n, key) for key in (1, 2))
    assert np.array_equal(np.sort(one), np.arange(n)) and np.array_equal(np.sort(two), np.arange(n))
    assert n < 8 or (one != two).mean() > 0.5


def test_the_order_is_as_good_as_random():
    """Neighbors are not near each other, and each place is equally likely: chi-square, 2,000
    keys."""
    n = 50
    places = np.stack([permute(np.arange(n), n, key) for key in range(2000)])  # (keys, n)
    counts = np.bincount(places[:, 0], minlength=n)
    assert ((counts - 40) ** 2 / 40).sum() < 49 + 4 * np.sqrt(2 * 49)
    steps = np.bincount((places[:, 1] - places[:, 0]) % n, minlength=n)[1:]  # n - 1 steps, never 0
    assert ((steps - 2000 / 49) ** 2 / (2000 / 49)).sum() < 48 + 4 * np.sqrt(2 * 48)


@pytest.mark.parametrize("layout", ["plain", "framed", "rows"])
def test_an_epoch_has_each_text_once_and_does_not_depend_on_who_draws(tmp_path, layout):
    data, n = corpus(tmp_path, layout), 4
    part = data.part("train")
    texts = len(part.documents) if layout == "rows" else len(part.ids) // data.span - 1
    one = [drawn(data, number, n) for number in range(texts // n)]
    two = [drawn(data, number, n) for rank in (0, 1) for number in range(rank, texts // n, 2)]
    assert as_text(torch.cat(one)) == as_text(torch.cat(two))
    every, later = drawn(data, 0, texts), drawn(data, 1, texts)  # two epochs
    assert torch.equal(torch.cat(one), every[:texts // n * n]) and not torch.equal(every, later)
    if layout == "rows":
        rows = data.make_rows(part, np.arange(texts))
        assert as_text(every) == as_text(later) == as_text(rows)
    else:
        words = every[:, 1:-1] if layout == "framed" else every
        stream, span = torch.from_numpy(part.ids[:].astype(np.int64)), data.span
        cuts = (stream[shift:shift + texts * span].view(texts, span) for shift in range(2 * span))
        assert any(as_text(cut) == as_text(words) for cut in cuts)  # without gap or overlap
    assert torch.equal(drawn(data, 3, n), drawn(corpus(tmp_path, layout), 3, n))


@pytest.mark.parametrize("layout", ["plain", "framed"])
def test_each_epoch_cuts_elsewhere_so_that_all_leave_no_token_out(tmp_path, layout):
    data = corpus(tmp_path, layout)
    places = np.arange(1000, dtype=np.uint16)  # each token tells where it stands
    data.part("train").ids = shards.Shards([places])
    texts, seen, cuts = 1000 // data.span - 1, set(), set()
    for epoch in range(200):
        x = drawn(data, epoch, texts)[:, 1 if layout == "framed" else 0:][:, :data.span]
        start = x[:, 0].sort().values  # (texts,)
        assert (start.diff() == data.span).all()
        assert (x - x[:, :1] == torch.arange(data.span)).all()
        seen |= {*range(start[0], start[-1] + data.span)}
        cuts.add(int(start[0]))
    assert seen == set(range(1000)) and len(cuts) == 1000 - texts * data.span + 1


def test_a_batch_may_cross_from_one_epoch_to_the_next(tmp_path):
    data = corpus(tmp_path, "rows")
    both = data.in_order("train", np.arange(240, 260), 7)  # an epoch has 250 documents
    assert torch.equal(both, torch.cat([data.in_order("train", np.arange(240, 250), 7),
                                        data.in_order("train", np.arange(250, 260), 7)]))


# ---- the layouts

def test_framed_texts_have_ends_on_either_side_and_lose_nothing_between(tmp_path):
    data = corpus(tmp_path, "framed")
    x = data.windows("val")
    assert (x[:, 0] == END).all() and (x[:, -1] == END).all() and x.shape[1] == 16
    assert np.array_equal(x[:, 1:-1].reshape(-1).numpy(), data.val[:x.shape[0] * 14])
    assert data.windows("val", 5).shape == (5, 16) and torch.equal(data.windows("val", 5)[0], x[0])
    assert data.padding(x) is None and not data.pads


def test_rows_are_documents_cut_to_the_length_and_padded_behind_their_own_end(tmp_path):
    texts = ["ab", "", "a" * 14, "b" * 15, "c" * 99] + ["train"] * 5
    data = corpus(tmp_path, "rows", texts=texts[::-1], held_out=5)
    x = data.windows("val")  # the last five, from the last to the first of texts
    a, b, c = 97, 98, 99
    assert x[4].tolist() == [END, a, b] + [END] * 13 and x[3].tolist() == [END] * 16
    assert x[2].tolist() == [END] + [a] * 14 + [END] and x[1].tolist() == [END] + [b] * 14 + [END]
    assert x[0].tolist() == [END] + [c] * 14 + [END]
    assert data.padding(x).sum(-1).tolist() == [0, 0, 0, 14, 12] and data.pads
    assert data.padding(x)[4].tolist() == [False] * 4 + [True] * 12
    assert data.bytes_per_token == (14 * 3 + 0 + 2) / (16 * 3 + 2 + 4)


def test_bits_per_byte_count_the_bytes_of_the_text_and_the_ends_as_tokens(tmp_path):
    data = corpus(tmp_path, "plain")
    size = len("".join(documents()[-50:]).encode())  # the held-out documents begin at an end
    assert data.bytes_per_token == size / len(data.val) and len(data.val) == size + 50
    assert data.parts["train"].documents == range(250)
    assert data.val[0] == ord("t") and data.train[len(data.train) - 1] == END
    framed = corpus(tmp_path, "framed")
    assert framed.bytes_per_token == data.bytes_per_token * 14 / 16
    assert framed.bytes_per_id == data.bytes_per_token


# ---- folders

def test_a_damaged_folder_is_made_again_and_a_missing_split_is_an_error(tmp_path):
    data = corpus(tmp_path, "plain")
    folder, = (path for path in tmp_path.iterdir() if path.is_dir())
    with open(folder / "all-00000.bin", "ab") as file:
        file.write(b"??")
    again = corpus(tmp_path, "plain")
    assert np.array_equal(again.val[:], data.val[:])
    (folder / "meta.json").write_text("{}")
    assert np.array_equal(corpus(tmp_path, "plain").val[:], data.val[:])
    with pytest.raises(UserError, match="no test split, only train and val"):
        data.windows("test")
    with pytest.raises(UserError, match="smaller --block_size"):
        corpus(tmp_path, "plain", block_size=10**6)


def test_processes_that_want_the_same_corpus_wait_for_the_first(tmp_path):
    def streams():
        with open(tmp_path / "began", "a") as file:
            file.write("x")
        time.sleep(1.5)
        return {split: lambda: iter(["some text "] * 50) for split in ("train", "val")}

    def load(results):
        source = Source((), None, "a test", "plain", splits={"train": "train", "val": "val"})
        data = load_shards("test", source, "plain", ["test"], streams, 16, "bytes", None, tmp_path,
                           workers=1)
        results.put(len(data.train))

    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    both = [fork.Process(target=load, args=(results,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(100)
    assert [process.exitcode for process in both] == [0, 0]
    assert [results.get(), results.get()] == [500, 500]
    assert (tmp_path / "began").read_text() == "x"
