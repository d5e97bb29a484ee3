"""Witten-Bell n-grams against counting by hand."""
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

from data import load_data
from evaluation.ngram import Config, Ngrams, main, ngram_baselines, text_nats, witten_bell
from flags import configure


def brute_force(x, i, n, t, V):
    """(1.4) for the symbol x[i], word by word: counts over x[:t] and a recursion."""
    if n == 0:
        return 1 / V
    h = x[i - n + 1:i]
    after = [x[j] for j in range(n - 1, t) if x[j - n + 1:j] == h]
    shorter = brute_force(x, i, n - 1, t, V)
    kinds = len(set(after))
    return (after.count(x[i]) + kinds * shorter) / (len(after) + kinds) if after else shorter


def test_the_ngram_agrees_with_counting_by_hand():
    draw = random.Random(0)
    V, train = 4, [draw.choice([0, 0, 0, 1, 1, 2]) for _ in range(80)]  # symbol 3 never occurs
    val = [draw.randrange(V) for _ in range(20)]
    nats = witten_bell(np.array(train, np.uint16), np.array(val, np.uint16), V)
    for n in (2, 3, 4, 5, 6):
        p = [brute_force(train + val, i, n, len(train), V) for i in range(80, 100)]
        assert nats[n] == pytest.approx(-np.log(p).mean(), rel=1e-12)


def test_texts_are_read_with_nothing_before_them():
    draw = random.Random(1)
    train = [draw.choice([0, 0, 1, 2]) for _ in range(80)]
    x = np.array([[draw.randrange(4) for _ in range(5)] for _ in range(3)])
    found = text_nats(np.array(train), x, 4)
    for n in (2, 3, 6):
        for row, nats in zip(x.tolist(), found[n]):
            p = [brute_force(train + row[:i + 1], 80 + i, min(n, i + 1), 80, 4) for i in range(5)]
            assert nats == pytest.approx(-np.log(p).mean(), rel=1e-12)
    alone = [Ngrams(np.array(train), 4, 3).nats(row)[3].mean() for row in x]  # the first is a start
    assert found[3] == pytest.approx(alone, rel=1e-12)


def test_the_ngram_is_a_law():
    """Its probabilities sum to 1 after a history that occurred often, once or never."""
    for train in ([0, 1, 2, 0, 1, 2, 0, 1], [0, 0, 0, 0, 1, 0, 0, 2]):
        by_symbol = [witten_bell(np.array(train), np.array([w]), 5) for w in range(5)]
        for n in (2, 3, 4, 5, 6):
            assert sum(np.exp(-nats[n]) for nats in by_symbol) == pytest.approx(1, abs=1e-12)


# ---- beside a network

def names_of(data):
    return [name for name, *_ in ngram_baselines(data)]


def test_the_baselines_are_those_that_say_something_about_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    (tmp_path / "poem.txt").write_text("".join(f"{n} green bottles.\n" for n in range(300)))
    tokens = [f"{n}-gram of tokens" for n in range(2, 7)]
    in_bytes = [f"{n}-gram of bytes" for n in range(2, 7)]
    poem = load_data("poem.txt", 8, "bpe", 120)
    assert names_of(poem) == ["uniform over tokens", *tokens, *in_bytes]
    assert names_of(load_data("poem.txt", 8, "chars")) == ["uniform over tokens", *tokens]
    assert names_of(load_data("toy", 8)) == ["uniform over tokens", *tokens]
    few = SimpleNamespace(counts_words=False, bytes_per_id=2.0, bytes_per_token=2.0, answers=False,
                          encoding=SimpleNamespace(n_vocab=16))
    assert ngram_baselines(few) == [("uniform over tokens", math.log(16), 2.0)]
    few.answers = True  # which have no bits/byte
    assert ngram_baselines(few) == [("uniform over tokens", math.log(16), None)]
    unknown = load_data("poem.txt", 8, "bpe", 120)
    unknown.bytes_per_token = math.nan
    assert names_of(unknown) == ["uniform over tokens", *tokens]
    assert {bits for _, _, bits in ngram_baselines(unknown)} == {None}
    rows = {name: (nats, bits) for name, nats, bits in ngram_baselines(poem)}
    nats, bits = rows["3-gram of tokens"]
    assert bits == pytest.approx(nats / math.log(2) / poem.bytes_per_token)
    raw = [np.frombuffer(poem.text(poem.ids(split)).encode(), np.uint8)
           for split in ("train", "val")]
    expected = witten_bell(*raw, 256)[2] / math.log(2)
    assert rows["2-gram of bytes"] == (None, pytest.approx(expected))


def test_the_table_of_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    main(configure(Config, data="toy"))
    _, head, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("order  nats/symbol  bits/byte") and "of the first" not in head
    assert [int(row.split()[0]) for row in rows] == [1, 2, 3, 4, 5, 6]
    data = load_data("toy", 32)
    nats = witten_bell(data.ids("train"), data.ids("val"), data.encoding.n_vocab, [2])[2]
    assert float(rows[1].split()[1]) == pytest.approx(nats, abs=1e-4)
