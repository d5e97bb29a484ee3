"""
The contract of data/base.py, for every row of the table that needs no network: a new row is proven
by adding it to SETS. And the table itself: what it lists, what it imports.
"""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from publishers import make_lm1b, put
from test_tokenizer import ENCODINGS, SOME_TEXT

from data import DATASETS, load_data, texts, tokenize_workers
from data.base import Dataset
from data.chat import MARKS, Chat
from data.tokenizer import decode, has_subword_bytes
from flags import UserError, configure, describe, flags_of, load_row
from train import Config

ROOT = Path(__file__).parents[2]
SETS = {                                         # name: the arguments of load_data
    "toy": dict(data="toy", block_size=12),
    "sentences": dict(data="sentences", block_size=20),
    "digits": dict(data="digits", block_size=64),
    "chat": dict(data="chat", block_size=48, vocab_size=512),
    "chat, sft": dict(data="chat", block_size=160, tokenizer="bytes", sft=True),
    "names": dict(data="names", block_size=64),
    "python": dict(data="python", block_size=32, vocab_size=300),
    "sudoku4": dict(data="sudoku4", block_size=0),
    "sudoku9 in place": dict(data="sudoku9-in-place", block_size=0),
    "countdown4": dict(data="countdown4", block_size=0),
    "planning5": dict(data="planning5", block_size=0),
    "date": dict(data="date", block_size=0),
    "repair": dict(data="repair", block_size=0),
    "paraphrase": dict(data="paraphrase", block_size=0),
    "describe-spans": dict(data="describe-spans", block_size=0),
    "sat7": dict(data="sat7", block_size=0),
    "arithmetic": dict(data="arithmetic", block_size=0),
    "boolean-thoughts": dict(data="boolean-thoughts", block_size=0),
    "multiplication-thoughts": dict(data="multiplication-thoughts", block_size=0),
    "a file": dict(data="story.txt", block_size=16, tokenizer="chars"),
    "a folder-plain": dict(data="texts-plain", block_size=16, vocab_size=128),
    "a large file": dict(data="large.txt", block_size=16, tokenizer="bytes"),
    "chats": dict(data="mine.jsonl", block_size=24, tokenizer="bytes"),
    "chats, sft": dict(data="mine.jsonl", block_size=24, tokenizer="bytes", sft=True),
    "lm1b, put by hand": dict(data="lm1b", block_size=16, tokenizer="bytes"),
}


@pytest.fixture(scope="module")
def loaded():
    """Data sets that were loaded before in this file."""
    return {}


@pytest.fixture(params=SETS)
def data(request, loaded, own_cache, tmp_path, monkeypatch, small_python):
    if request.param not in loaded:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(tokenize_workers, "count_cores", lambda: 1)
        (tmp_path / "story.txt").write_text(SOME_TEXT)
        (tmp_path / "large.txt").write_text(SOME_TEXT)
        (tmp_path / "texts-plain").mkdir()
        (tmp_path / "texts-plain" / "one.txt").write_text(SOME_TEXT)
        turns = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "Yes."}]
                 for i in range(200)]
        lines = [json.dumps({"messages": messages}) for messages in turns]
        (tmp_path / "mine.jsonl").write_text("\n".join(lines))
        monkeypatch.setattr(texts, "READ_WHOLE", 1000 if "large" in request.param else 1 << 26)
        if "lm1b" in request.param:
            lines = b"".join(b"%d %s\n" % (i, b"x" * (i % 20)) for i in range(60))
            put("lm1b", own_cache, monkeypatch, make_lm1b(lines, lines))
        if request.param == "digits":
            pytest.importorskip("sklearn")
        loaded[request.param] = load_data(**SETS[request.param])
    return loaded[request.param]


# ---- the facts

def test_a_data_set_says_what_it_is(data):
    assert isinstance(data, Dataset)
    assert data.about.startswith(f"{data.name}: ") and "\n" not in data.about
    sizes = data.bytes_per_token, data.bytes_per_id  # of puzzles, which are no text, None
    assert sizes == (None, None) if data.prompted else all(0 < size < 20 for size in sizes)
    assert {"train", "val"} <= set(data.splits) and data.block_size > 0
    for fact in ("is_text", "answers", "prompted", "pads", "counts_words", "counts_bytes"):
        assert type(getattr(data, fact)) is bool, fact
    assert not data.answers or not data.counts_words
    assert data.has_language == (data.language is not None) == (
        data.name in ("toy", "sentences"))


def test_examples_and_windows_are_ids_with_what_is_given_and_classes(data):
    for x, frozen, label in (data.examples("train", 7), data.example_windows("val", 3),
                             data.micro_batch(0, 7, 1, torch.Generator().manual_seed(0))):
        n, L = x.shape
        assert n in (3, 7) and L == data.block_size and x.dtype == torch.int64
        assert x.min() >= 0 and x.max() < data.encoding.n_vocab
        assert (frozen is not None) == (data.answers or data.prompted)
        assert frozen is None or frozen.shape == x.shape and frozen.dtype == torch.bool
        assert frozen is None or not frozen.all(-1).any()
        assert (label is not None) == bool(data.classes)
        assert label is None or label.shape == (n,) and label.max() < len(data.classes)


def test_a_generator_fixes_what_is_drawn_and_windows_are_always_the_same(data):
    draw = lambda seed: data.batch("train", 9, torch.Generator().manual_seed(seed))
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert torch.equal(data.windows("val", 4), data.windows("val", 4))
    one, two = (data.micro_batch(3, 5, 7, torch.Generator().manual_seed(0))[0] for _ in range(2))
    assert torch.equal(one, two)
    assert len(data.windows("val", 2)) == 2
    state = torch.random.get_rng_state()
    data.examples("train", 3, torch.Generator().manual_seed(0))
    data.example_windows("val", 3)
    assert torch.equal(state, torch.random.get_rng_state())  # torch's own is not touched


def test_windows_are_spread_over_the_split_from_its_beginning(data):
    if data.language is None:  # texts of a language have no order
        whole, few = data.windows("val").tolist(), data.windows("val", 2).tolist()
        assert few == [whole[0], whole[-1]]
        assert data.windows("val", 10**6).tolist() == whole


def test_text_is_what_the_ids_spell(data):
    x = data.windows("val", 1)  # (1, L)
    row = x[0].tolist()
    spelled = decode(data.encoding, row)
    ends = data.answers or data.source or data.lengths(x) is not None  # they fill a text up
    assert data.text(row) == (spelled.replace(MARKS[-1], "") if ends else spelled)
    assert "_" in data.text([*row[:3], data.encoding.n_vocab])


def test_padding_is_what_stands_behind_the_end_of_a_text(data):
    x = data.windows("val")
    padding = data.padding(x)
    assert (padding is not None) == data.pads
    if data.pads:
        assert padding.shape == x.shape and padding.dtype == torch.bool
        assert padding.any() and not padding[:, 0].any()
        assert (padding[:, 1:] >= padding[:, :-1]).all()  # to the end of the text


def test_ids_are_a_split_end_to_end(data):
    for split in ("train", "val"):
        ids = data.ids(split)
        assert isinstance(ids, np.ndarray) and ids.ndim == 1 and 0 < len(ids) <= 2_000_000
        assert ids.max() < data.encoding.n_vocab
        whole = data.train if split == "train" else data.val
        assert np.array_equal(ids, whole[:len(ids)])


def test_a_split_that_it_lacks_is_an_error_in_one_line(data):
    with pytest.raises(UserError, match="has no dev split, only train and val"):
        data.example_windows("dev")


def test_bytes_per_token_are_those_of_the_scored_text(data):
    """Within a few percent: windows drop the end of a split, and topics vary."""
    if data.bytes_per_token is None:
        pytest.skip("no text")
    x, frozen, _ = data.example_windows("val")
    scored = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen  # (n, L)
    if data.pads:
        scored &= ~data.padding(x)
    if (lengths := data.lengths(x)) is not None:
        scored = torch.arange(x.shape[1]) < lengths[:, None]  # (n, L)
    size = sum(len(data.encoding.decode_bytes(row[keep].tolist()))
               for row, keep in zip(x, scored)) / int(scored.sum())
    for mark in data.encoding.special_tokens_set:
        n = int((x == data.encoding.encode_single_token(mark))[scored].sum())
        size -= n * len(mark) / int(scored.sum())
    assert size == pytest.approx(data.bytes_per_token, rel=0.05)


def test_scores_are_one_number_per_text(data):
    x, _, label = data.example_windows("val", 5)
    for what, values in data.score(x, label if label is None else label[:1]):
        assert isinstance(what, str) and values.shape == (len(x),)


def test_n_grams_of_bytes_are_counted_where_tokens_are_pieces_of_words():
    assert has_subword_bytes(ENCODINGS["bpe"]()) and has_subword_bytes(ENCODINGS["bytes"]())
    assert not has_subword_bytes(ENCODINGS["chars"]())
    assert not has_subword_bytes(ENCODINGS["words"]())
    assert not has_subword_bytes(load_data("chat", 48, "bytes").encoding)


def test_nothing_that_is_held_out_is_trained_on_wherever_texts_are_read_whole(data):
    """Chats, names, paragraphs, images, documents. Windows of a text overlap no other split."""
    if data.language is not None or data.name == "lm1b":  # fresh texts; the publisher's own splits
        return
    if data.answers or data.image_size or data.pads or data.prompted:
        parts = [set(map(tuple, data.windows(split).tolist())) for split in ("train", "val")]
    elif data.name in ("names", "python", "chat", "mine.jsonl"):
        end = {"names": "\n", "python": "\n\n"}.get(data.name, MARKS[-1])
        parts = [{" ".join(text.split()) for text in data.text(data.ids(split)).split(end)} - {""}
                 for split in ("train", "val")]
    else:
        parts = [{data.text(data.train)}, {data.text(data.val)}]
        assert SOME_TEXT.startswith(*parts[0]) and SOME_TEXT.endswith(*parts[1])
    train, val = parts
    assert train and val and not train & val


def test_the_fingerprint_of_a_text_is_that_of_what_it_holds(data):
    """So the code's own texts have none, and a copy elsewhere has the same."""
    assert (data.fingerprint is None) == (data.has_language or data.prompted)
    assert data.fingerprint is None or len(data.fingerprint) == 64


# ---- the table

def test_every_row_is_a_data_set_and_its_defaults_are_flags_of_train():
    known = Config.__dataclass_fields__
    for name in DATASETS:
        row = load_row(DATASETS, name)
        assert issubclass(row, Dataset) and set(row.defaults) <= set(known), name


def test_a_name_chooses_its_row_and_a_path_the_row_of_its_ending():
    rows = {"toy": "ToyCorpus", "text8": "PublishedCorpus", "ptb-plain": "PublishedCorpus",
            "my/chats.jsonl": "ChatFile", "my/text.txt": "Files", "": "Files"}
    assert {name: load_row(DATASETS, name).__name__ for name in rows} == rows


def test_only_chats_have_answers():
    for name in DATASETS:
        row = load_row(DATASETS, name)
        if not issubclass(row, Chat):
            with pytest.raises(UserError, match="--sft learns answers to questions"):
                row.load_answers(name, 8)


def test_the_table_imports_no_row():
    code = """if True:
        import sys
        import data
        assert not {"torch", "numpy", "tiktoken"} & set(sys.modules)
        assert not [name for name in sys.modules if name.startswith("data.")]
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_row_that_is_added_is_known_everywhere(monkeypatch):
    """To the command line, to its help, and to the message about an unknown name."""
    class Sonnets(Dataset):
        defaults = dict(block_size=14)

        @classmethod
        def load(cls, data, block_size, tokenizer="auto", vocab_size=1024, cache=None):
            return data, block_size

    monkeypatch.setitem(DATASETS, "sonnets", f"{__name__}:Sonnets")
    monkeypatch.setattr(sys.modules[__name__], "Sonnets", Sonnets, raising=False)
    assert load_data("sonnets", 14) == ("sonnets", 14)
    assert configure(Config, data="sonnets").block_size == 14
    assert all(name in describe(flags_of(Config)["data"]) for name in DATASETS if "*" not in name)
    with pytest.raises(UserError, match="did you mean 'sonnets'"):
        load_data("sonets", 14)
