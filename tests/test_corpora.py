"""What `--data NAME` promises: corpora of the papers, from the files of their publishers to texts as in the tables."""
import csv
import dataclasses
import functools
import http.server
import io
import json
import lzma
import os
import re
import sys
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import requests
import tiktoken
import torch

from data import BadInput, corpora, prepare, readers, shards, text, tokenizer, wordpiece, workers
from data.detokenize import RULES
from data.text import load

WIKI = " \n = Robert = \n \n The 1 @.@ 5 m tall Robert 's cats ( two ) sleep . \n"
ENDS, FILES = "<|endoftext|>", ("train", "valid", "test")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path))
    monkeypatch.setattr(workers, "cores", lambda: 1)
    monkeypatch.setattr(shards.write, "__defaults__", (None, 5000, 2000))    # small shards


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, told in members.items():
            archive.writestr(name, told)
    return out.getvalue()


def tarred(members, mode="w"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, raw in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return out.getvalue()


def papers(body):
    return json.dumps({"article_text": [body, "second ( x ) ."], "abstract_text": ["no"]}) + "\n"


def rows(*cells):
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows(cells)
    return out.getvalue().encode()


def by_hand(name, tmp_path, monkeypatch, files):
    """Put files where the download would, small ones whose hash nobody knows."""
    folder = tmp_path / "downloads" / name
    folder.mkdir(parents=True)
    for file, raw in files.items():
        (folder / file).write_bytes(raw)
    there = tuple(dataclasses.replace(file, size=None, sha256=None) for file in corpora.TABLE[name].files
                  if file.name in files)
    monkeypatch.setitem(corpora.TABLE, name, dataclasses.replace(corpora.TABLE[name], files=there))


def words(corpus, split):
    """The text of the split, without the ends that its windows put on either side."""
    return corpus.text(corpus.split(split).ids[:].tolist())


# ---- every corpus, from the publisher's format

@pytest.mark.parametrize("name", ["wikitext-2", "wikitext-103"])
def test_wikitext_is_lines_detokenised_and_joined(name, tmp_path, monkeypatch):
    inside = name + "-raw"
    archive = zipped({f"{inside}/wiki.{split}.raw": WIKI + f"of {split} \n" * 9 for split in FILES})
    by_hand(name, tmp_path, monkeypatch, {f"{name}-raw-v1.zip": archive})
    corpus = load(name, 16, "bytes")
    for split, marked in (("train", "train"), ("val", "valid"), ("test", "test")):
        wanted = " = Robert =\n The 1.5 m tall Robert's cats (two) sleep.\n" + f"of {marked}\n" * 9
        assert words(corpus, split) == wanted
    assert corpus.layout == "framed" and "two ends" in corpus.about
    assert load(name + "-plain", 16, "bytes").layout == "plain"


def test_text8_is_cut_at_ninety_and_ninety_five_million_characters(tmp_path, monkeypatch):
    assert corpora.TEXT8 == {"train": (0, 90 * 10**6), "val": (90 * 10**6, 95 * 10**6), "test": (95 * 10**6, 10**8)}
    monkeypatch.setattr(corpora, "TEXT8", {"train": (0, 90), "val": (90, 95), "test": (95, 100)})
    letters = "".join("abcdefghijklmnopqrstuvwxyz "[i * i % 27] for i in range(73)) + "abcdefghijklmnopqrstuvwxyz "
    by_hand("text8", tmp_path, monkeypatch, {"text8.zip": zipped({"text8": letters})})
    corpus = load("text8", 5)
    assert [words(corpus, split) for split in ("train", "val", "test")] == [letters[:90], letters[90:95], letters[95:]]
    assert corpus.encoding.n_vocab == 27 and corpus.layout == "plain" and corpus.bytes_per_token == 1


def test_lm1b_is_a_sentence_in_each_text_and_packed_if_asked(tmp_path, monkeypatch):
    top = "1-billion-word-language-modeling-benchmark-r13output"
    files = {f"{top}/training-monolingual.tokenized.shuffled/news.en-0000{i}-of-00100": b"Is it so ?\nIt is %d .\n" % i
             for i in (1, 2)}
    files |= {f"{top}/heldout-monolingual.tokenized.shuffled/news.en.heldout-00000-of-00050": b"Held , out .\n" * 2,
              f"{top}/README": b"not this\n"}
    by_hand("lm1b", tmp_path, monkeypatch, {f"{top}.tar.gz": tarred(files, "w:gz")})
    corpus = load("lm1b", 16, "bytes")
    x = corpus.windows("val")
    assert [corpus.text(row) for row in x.tolist()] == [ENDS + "Held, out." + ENDS * 5] * 2
    assert corpus.scored(x).sum(-1).tolist() == [12, 12] and corpus.bytes_per_token == 10 / 12
    assert [corpus.text(row).replace(ENDS, "") for row in corpus.windows("train").tolist()] == [
        "Is it so?", "It is 1.", "Is it so?", "It is 2."]
    assert "bert-base-uncased" in corpus.about and torch.equal(corpus.windows("test"), x)
    packed = load("lm1b-packed", 8, "bytes")
    assert words(packed, "val") == ("Held, out." + ENDS) * 2 and packed.layout == "framed"
    monkeypatch.setitem(corpora.TABLE, "lm1b-joined", dataclasses.replace(corpora.TABLE["lm1b-joined"],
                                                                          files=corpora.TABLE["lm1b"].files))
    assert words(load("lm1b-joined", 8, "bytes"), "val") == "Held, out." * 2
    assert corpora.known("lm1b-joined-plain") == ("lm1b-joined", "plain")


def test_openwebtext_holds_its_last_documents_out_in_the_order_of_the_archives(tmp_path, monkeypatch):
    pages = [f"page {i}\n\n\n\nand more " for i in range(12)]
    packed = [lzma.compress(tarred({f"{j}-{i}.txt": pages[j].encode() for j in (2 * i + 1, 2 * i)})) for i in range(6)]
    tars = {f"urlsf_subset0{k}.tar": tarred({f"openwebtext/{k}-{i}_data.xz": packed[3 * k + i] for i in range(3)})
            for k in range(2)}
    assert corpora.TABLE["openwebtext"].held_out == 100_000 and len(corpora.TABLE["openwebtext"].files) == 21
    by_hand("openwebtext", tmp_path, monkeypatch, tars)
    monkeypatch.setitem(corpora.TABLE, "openwebtext",
                        dataclasses.replace(corpora.TABLE["openwebtext"], held_out=3))
    corpus = load("openwebtext", 8, "bytes")
    order = [f"page {j}\n\nand more{ENDS}" for i in range(6) for j in (2 * i + 1, 2 * i)]
    assert words(corpus, "train") == "".join(order[:-3]) and words(corpus, "val") == "".join(order[-3:])
    assert corpus.bytes_per_id == len("".join(order[-3:]).replace(ENDS, "")) / len(corpus.val)


def test_fineweb_is_parquet(tmp_path, monkeypatch):
    by_hand("fineweb-edu", tmp_path, monkeypatch, {"000_00000.parquet": b"PAR1"})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(BadInput, match="pip install pyarrow"):
        load("fineweb-edu", 8, "bytes")
    monkeypatch.undo()
    arrow, table = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [f"document {i}" for i in range(700)]            # more than are read at once
    table.write_table(arrow.table({"text": texts, "id": range(700)}), tmp_path / "a.parquet")
    assert list(readers.parquet([tmp_path / "a.parquet"] * 2)) == texts * 2


def test_lambada_is_for_evaluation(tmp_path, monkeypatch):
    by_hand("lambada", tmp_path, monkeypatch, {"lambada_test.jsonl": "".join(
        json.dumps({"text": f" “ Hm , ” said {i} . "}, ensure_ascii=False) + "\n" for i in range(9)).encode()})
    corpus = load("lambada", 8, "bytes")
    assert words(corpus, "val") == words(corpus, "test") == "".join(f'\n" Hm , " said {i} .' for i in range(9))
    with pytest.raises(BadInput, match="for evaluation"):
        corpus.turn(0, 4, 1)
    assert len(corpus.beginning("train")) == 0


def test_ptb_and_the_news_and_the_papers(tmp_path, monkeypatch):
    by_hand("ptb", tmp_path, monkeypatch, {f"ptb.{split}.txt": f" the <unk> 's N N $ N of {split} \n".encode() * 3
                                           for split in FILES})
    corpus = load("ptb", 8, "bytes")
    assert words(corpus, "val") == "the ?'s 1 1 $1 of valid" * 3 and "test" in words(corpus, "test")
    by_hand("ag-news", tmp_path, monkeypatch, {
        f"{split}.csv": rows(["3", f'A "title", {split}', "And\\more"], ["1", "B", "C, D"])
        for split in ("train", "test")})
    corpus = load("ag-news", 8, "bytes")
    assert words(corpus, "val") == 'A "title", test And\\moreB C, D' and "train" in words(corpus, "train")
    for name in ("pubmed", "arxiv"):
        inside = {f"{name}-dataset/{split}.txt": papers(f"Of {split} , yes .") * 2 for split in corpora.SPLITS}
        by_hand(name, tmp_path, monkeypatch, {f"{name}-dataset.zip": zipped(inside)})
        assert words(load(name, 8, "bytes"), "val") == "Of val, yes .\nsecond (x) ." * 2


OLD = " = = Bob 's cats ( 1 @.@ 5 m ) = = \n \" He said : N dogs , 2 @,@ 000 , wo n't ' bark ' ! \" \n"


@pytest.mark.parametrize("rules, expected", [
    ("wikitext", ' == Bob\'s cats (1.5 m) ==\n"He said: 1 dogs, 2,000, wo n\'t \'bark\'!"\n'),
    ("ptb", ' = = Bob\'s cats ( 1 @.@ 5 m ) = =\n" He said : 1 dogs , 2 @,@ 000 , won\'t \' bark \' ! " \n'),
    ("lm1b", ' = = Bob\'s cats (1 @.@ 5 m) = = \n "He said: N dogs, 2 @,@ 000, wo n\'t \'bark\'!" \n'),
    ("lambada", '\n= = Bob \'s cats ( 1 @.@ 5 m ) = = \n " He said : N dogs , 2 @,@ 000 , wo n\'t \' bark \' ! "'),
    ("scientific", ' == Bob\'s cats (1.5 m) ==\n"He said: 1 dogs, 2,000, wo n\'t\'bark\'!"\n'),
])
def test_detokenisers_give_what_the_public_code_gives(rules, expected):
    """Expected: what MDLM's dataloader.py (github.com/kuleshov-group/mdlm, 06dd29f) makes of the same text."""
    assert RULES[rules](OLD) == expected


# ---- from the network to a text

def serve(folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *args: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


def test_a_corpus_comes_over_the_network_once_and_serves_every_length_and_convention(tmp_path, monkeypatch, capfd):
    (tmp_path / "web").mkdir()
    passages = "".join(json.dumps({"text": f"words {i}"}) + "\n" for i in range(50))
    (tmp_path / "web" / "lambada_test.jsonl").write_text(passages)
    server, url = serve(tmp_path / "web")
    try:
        file = corpora.File("lambada_test.jsonl", None, None, (url + "/lambada_test.jsonl",))
        monkeypatch.setitem(corpora.TABLE, "lambada", dataclasses.replace(corpora.TABLE["lambada"], files=(file,)))
        first = load("lambada", 16, "bytes")
    finally:
        server.shutdown()
        server.server_close()
    told = capfd.readouterr().err
    assert "downloading lambada_test.jsonl" in told and "preparing lambada-bytes" in told
    again = load("lambada-plain", 32, first.encoding)        # with no network: by the vocabulary of a checkpoint too
    assert np.array_equal(first.val[:], again.val[:])
    assert "no end" in load("lambada", 16, prepare.byte_level()).about


def test_offline_says_what_to_put_where_and_leaves_nothing_half(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "write", lambda *a: pytest.fail("nothing is there to write"))
    def offline(*args, **kwargs):
        raise requests.ConnectionError(OSError("no route"))
    monkeypatch.setattr("data.download.requests.get", offline)
    monkeypatch.setattr("data.download.time.sleep", lambda seconds: None)
    with pytest.raises(BadInput) as caught:
        load("ptb", 16, "bytes")
    message = str(caught.value)
    assert "ptb.train.txt" in message and str(tmp_path / "downloads" / "ptb") in message and "offline" in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith(".lock")]


def test_an_archive_that_is_no_archive_is_named(tmp_path, monkeypatch):
    by_hand("wikitext-2", tmp_path, monkeypatch, {"wikitext-2-raw-v1.zip": b"<html>sign in</html>"})
    with pytest.raises(BadInput, match="wikitext-2-raw-v1.zip cannot be read .*delete it"):
        load("wikitext-2", 16, "bytes")
    assert not list(tmp_path.rglob("meta.json"))


def test_a_name_is_close_to_the_name_that_was_meant():
    with pytest.raises(BadInput, match="did you mean 'openwebtext'"):
        load("openwebtex", 16)
    assert corpora.known("lm1b-plain") is None and corpora.known("text8-plain") is None
    assert corpora.known("arxiv-plain") == ("arxiv", "plain")


# ---- tokens

def test_bpe_and_chars_are_learnt_from_detokenised_text(tmp_path, monkeypatch):
    by_hand("ptb", tmp_path, monkeypatch, {f"ptb.{split}.txt": f" the <unk> dogs of {split} \n".encode() * 30
                                           for split in FILES})
    corpus = load("ptb", 16, "chars")
    assert corpus.encoding.n_vocab == len(set("the ? dogs of train valid test")) + 1
    assert corpus.marks == [corpus.encoding.n_vocab - 1] * 3
    corpus = load("ptb", 16, "bpe", 300)
    assert words(corpus, "val") == "the ? dogs of valid" * 30 and len(corpus.val) < 30 * 12
    corpus.encoding.encode_ordinary("日本語 é")               # every byte has a token


def test_the_words_of_bert_have_marks_of_their_own(tmp_path, monkeypatch):
    """A stand-in for its vocabulary, with what this looks at: the names of the marks."""
    top = "1-billion-word-language-modeling-benchmark-r13output"
    lines = {f"{top}/{part}-monolingual.tokenized.shuffled/n": b"ab\nabcab\n" for part in ("training", "heldout")}
    by_hand("lm1b", tmp_path, monkeypatch, {f"{top}.tar.gz": tarred(lines, "w:gz")})
    bert = wordpiece.WordPiece(["[PAD]", "a", "##b", "##c", "[CLS]", "[SEP]", "[UNK]", "##a"])
    corpus = load("lm1b", 6, bert)
    x = corpus.windows("val")
    assert x.tolist() == [[4, 1, 2, 5, 0, 0], [4, 1, 2, 3, 7, 5]]
    assert corpus.scored(x).sum(-1).tolist() == [4, 6] and "not to be compared" not in corpus.about
    assert load("lm1b-packed", 6, bert).windows("val")[0].tolist() == [4, 1, 2, 5, 1, 5]


def test_bits_per_byte_in_berts_words_count_the_bytes_of_the_text(tmp_path, monkeypatch):
    """And not those of its pieces, where "it's" has two blanks more and an unknown word five letters."""
    top = "1-billion-word-language-modeling-benchmark-r13output"
    text = b"it's\nit's a secretive word\na a a a\n"
    by_hand("lm1b", tmp_path, monkeypatch, {f"{top}.tar.gz": tarred({
        f"{top}/{part}-monolingual.tokenized.shuffled/n": text for part in ("training", "heldout")}, "w:gz")})
    bert = wordpiece.WordPiece(["[PAD]", "it", "'", "s", "a", "[CLS]", "[SEP]", "[UNK]"])
    size = len(text) - 3                                     # without line ends
    whole, packed = load("lm1b", 16, bert), load("lm1b-packed", 5, bert)
    assert whole.bytes_per_token == pytest.approx(size / (3 + 6 + 4 + 3 * 2), rel=1e-12)
    assert packed.bytes_per_token == pytest.approx(size / (3 + 6 + 4 + 3) * 3 / 5, rel=1e-12)
    source = prepare.Source((), None, "", ends=True, splits=corpora.LAST, held_out=1)
    parts = prepare.load("t", source, "framed", ["t"], lambda: {"all": lambda: iter(["a a", "a a"])}, 4, bert, None,
                         tmp_path, 1)
    assert np.isnan(parts.bytes_per_token)                   # nobody counted the bytes of its last documents


def test_a_piece_of_berts_vocabulary_may_break_lines_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "downloads" / wordpiece.NAME).mkdir(parents=True)
    (tmp_path / "downloads" / wordpiece.NAME / "vocab.txt").write_text("[UNK]\n\u2028\na\x85b\nc\n", "utf-8")
    monkeypatch.setattr(wordpiece, "VOCABULARY", corpora.File("vocab.txt", None, None, ()))
    assert wordpiece.published().n_vocab == 4 and tokenizer.encode(wordpiece.published(), "c").tolist() == [3]


@pytest.mark.skipif("TIKTOKEN_CACHE_DIR" not in os.environ, reason="TIKTOKEN_CACHE_DIR (gpt2) is not set")
def test_gpt2_ends_are_its_own(tmp_path, monkeypatch):
    by_hand("ptb", tmp_path, monkeypatch, {f"ptb.{split}.txt": b"the dogs\n" * 30 for split in FILES})
    corpus = load("ptb", 8)
    assert corpus.marks == [50256] * 3 and corpus.encoding.n_vocab == 50257
    assert corpus.windows("val")[0].tolist() == [50256, 1169, 6844, 1169, 6844, 1169, 6844, 50256]
    again = load("ptb", 8, tokenizer.from_json(tokenizer.to_json(corpus.encoding)))      # out of a checkpoint
    gpt2 = again.encoding
    longer = tiktoken.Encoding("gpt2", pat_str=gpt2._pat_str, mergeable_ranks=gpt2._mergeable_ranks,
                               special_tokens={ENDS: 50256, "[PAD]": 50257})
    assert load("ptb", 8, longer).encoding.n_vocab == 50258 and len(list(tmp_path.glob("ptb-gpt2-*/meta.json"))) == 2


# ---- the user's own large files

def test_a_large_folder_is_streamed_to_the_tokens_that_reading_it_whole_gives(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(3):
        lines = b"".join(b"the old dog %d sees\r\n\r\nit ." % j for j in range(300))
        (folder / f"{i}.txt").write_bytes(b"\xef\xbb\xbf" * i + lines)
    monkeypatch.setattr(readers.files, "__defaults__", (700,))       # characters in a piece
    monkeypatch.setattr(readers, "PIECE", 100)               # bytes at once
    whole = {kind: load(str(folder), 16, kind, 300) for kind in ("chars", "bytes")}
    monkeypatch.setattr(text, "READ_WHOLE", 1000)
    for kind, small in whole.items():
        large = load(str(folder), 16, kind, 300)
        assert isinstance(large, prepare.Sharded) and len(large.splits["train"].ids.arrays) > 1
        joined = [bytes(large.encoding.decode_bytes(large.split(s).ids[:].tolist())) for s in ("train", "val")]
        ours = [bytes(small.encoding.decode_bytes(getattr(small, s).tolist())) for s in ("train", "val")]
        assert sum(map(len, joined)) == sum(map(len, ours)) and abs(len(joined[1]) - len(ours[1])) < 100
        assert sorted(b"".join(joined)) == sorted(b"".join(ours))
    assert "3 files" in large.about
    with pytest.raises(BadInput, match="--tokenizer bytes"):
        (folder / "3.txt").write_bytes(b"\xff" * 2000)
        load(str(folder), 16, "chars")


def test_cutting_a_text_in_pieces_changes_no_token():
    long = "the old dog sees  two cats\n" * 200 + "é" * 3000 + " end"
    cut = list(readers.pieces((long[i:i + 77] for i in range(0, len(long), 77)), 500))
    assert "".join(cut) == long and max(map(len, cut)) <= 1000 and len(cut) > 10
    encoding = prepare.bpe(long, 300, prepare.EVERY_BYTE)
    ends = re.compile(r"\S$")
    whole = encoding.encode_ordinary(long[:5400])
    parts = [i for piece in readers.pieces([long[:5400]], 500) for i in encoding.encode_ordinary(piece)]
    assert parts == whole and ends.search(cut[0]) and cut[1].startswith(" ")


@pytest.mark.parametrize("place", range(12))
def test_a_file_is_cut_between_two_characters(place, tmp_path):
    raw = "aé日\r\n😀".encode()
    (tmp_path / "f").write_bytes(raw)
    with open(tmp_path / "f", "rb") as file:
        cut = readers.boundary(file, min(place, len(raw)))
    assert place <= cut <= place + 3 or cut == len(raw)
    assert raw[:cut].decode() + raw[cut:].decode() == raw.decode() and not raw[:cut].endswith(b"\r")
