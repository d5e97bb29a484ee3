"""What `--data NAME` promises: corpora of the papers, from the files of their publishers to
texts."""
import dataclasses
import functools
import http.server
import json
import lzma
import os
import sys
import threading

import numpy as np
import pytest
import requests
import tiktoken
import torch
from publishers import (
    FILES,
    LM1B,
    make_csv,
    make_lm1b,
    make_paper,
    make_ptb,
    make_tar,
    make_zip,
    put,
)

from data import corpora, documents, load_data, shards, tokenize_workers, tokenizer, wordpiece
from data.build_shards import Source, load_shards
from data.detokenize import RULES
from flags import UserError

END = "<|endoftext|>"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(tokenize_workers, "count_cores", lambda: 1)
    monkeypatch.setattr(shards.write_shards, "__defaults__", (None, 5000, 2000))


@pytest.fixture
def publish(own_cache, monkeypatch):
    """publish(name, {file: bytes}) puts files where the download of a corpus would be."""
    return lambda name, files: put(name, own_cache, monkeypatch, files)


def words(data, split):
    """The text of the split, without the ends that its windows put on either side."""
    return data.text(data.part(split).ids[:].tolist())


# ---- every corpus, from the publisher's format

WIKI = " \n = Robert = \n \n The 1 @.@ 5 m tall Robert 's cats ( two ) sleep . \n"


@pytest.mark.parametrize("name", ["wikitext-2", "wikitext-103"])
def test_wikitext_is_lines_detokenized_and_joined(name, publish):
    members = {f"{name}-raw/wiki.{split}.raw": WIKI + f"of {split} \n" * 9 for split in FILES}
    publish(name, {f"{name}-raw-v1.zip": make_zip(members)})
    data = load_data(name, 16, "bytes")
    for split, file in (("train", "train"), ("val", "valid"), ("test", "test")):
        expected = " = Robert =\n The 1.5 m tall Robert's cats (two) sleep.\n" + f"of {file}\n" * 9
        assert words(data, split) == expected
    assert data.layout == "framed" and "two ends" in data.about
    assert load_data(name + "-plain", 16, "bytes").layout == "plain"


def test_text8_is_cut_at_ninety_and_ninety_five_million_characters(publish, monkeypatch):
    million = 10**6
    assert corpora.TEXT8 == {"train": (0, 90 * million), "val": (90 * million, 95 * million),
                             "test": (95 * million, 100 * million)}
    small = {"train": (0, 90), "val": (90, 95), "test": (95, 100)}
    monkeypatch.setattr(corpora, "TEXT8", small)
    alphabet = "abcdefghijklmnopqrstuvwxyz "
    letters = "".join(alphabet[i * i % 27] for i in range(73)) + alphabet
    publish("text8", {"text8.zip": make_zip({"text8": letters})})
    data = load_data("text8", 5)
    assert [words(data, split) for split in small] == [letters[a:b] for a, b in small.values()]
    assert data.encoding.n_vocab == 27 and data.layout == "plain" and data.bytes_per_token == 1


def test_lm1b_is_a_sentence_per_text_and_packed_if_asked(publish, monkeypatch):
    more = {f"{LM1B}/training-monolingual.tokenized.shuffled/news.en-00002-of-00100":
            b"Is it so ?\nIt is 2 .\n", f"{LM1B}/README": b"not this\n"}
    publish("lm1b", make_lm1b(b"Is it so ?\nIt is 1 .\n", b"Held , out .\n" * 2, **more))
    data = load_data("lm1b", 16, "bytes")
    x = data.windows("val")
    assert [data.text(row) for row in x.tolist()] == [END + "Held, out." + END * 5] * 2
    assert (~data.padding(x)).sum(-1).tolist() == [12, 12] and data.bytes_per_token == 10 / 12
    assert [data.text(row).replace(END, "") for row in data.windows("train").tolist()] == [
        "Is it so?", "It is 1.", "Is it so?", "It is 2."]
    assert "bert-base-uncased" in data.about and torch.equal(data.windows("test"), x)
    packed = load_data("lm1b-packed", 8, "bytes")
    assert words(packed, "val") == ("Held, out." + END) * 2 and packed.layout == "framed"
    files = corpora.CORPORA["lm1b"].files
    joined = dataclasses.replace(corpora.CORPORA["lm1b-joined"], files=files)
    monkeypatch.setitem(corpora.CORPORA, "lm1b-joined", joined)
    assert words(load_data("lm1b-joined", 8, "bytes"), "val") == "Held, out." * 2
    assert corpora.find_corpus("lm1b-joined-plain") == ("lm1b-joined", "plain")


def test_openwebtext_holds_out_its_last_documents_in_order_of_the_archives(publish, monkeypatch):
    pages = [f"page {i}\n\n\n\nand more " for i in range(12)]
    texts = [{f"{j}-{i}.txt": pages[j].encode() for j in (2 * i + 1, 2 * i)} for i in range(6)]
    packed = [lzma.compress(make_tar(members)) for members in texts]
    tars = {f"urlsf_subset0{k}.tar": make_tar({f"openwebtext/{k}-{i}_data.xz": packed[3 * k + i]
                                               for i in range(3)}) for k in range(2)}
    source = corpora.CORPORA["openwebtext"]
    assert source.held_out == 100_000 and len(source.files) == 21
    publish("openwebtext", tars)
    small = dataclasses.replace(corpora.CORPORA["openwebtext"], held_out=3)
    monkeypatch.setitem(corpora.CORPORA, "openwebtext", small)
    data = load_data("openwebtext", 8, "bytes")
    order = [f"page {j}\n\nand more{END}" for i in range(6) for j in (2 * i + 1, 2 * i)]
    train, val = "".join(order[:-3]), "".join(order[-3:])
    assert words(data, "train") == train and words(data, "val") == val
    assert data.bytes_per_id == len(val.replace(END, "")) / len(data.val)


def test_fineweb_is_parquet(publish, tmp_path, monkeypatch):
    publish("fineweb-edu", {"000_00000.parquet": b"PAR1"})
    with monkeypatch.context() as patch, pytest.raises(UserError, match="pip install pyarrow"):
        patch.setitem(sys.modules, "pyarrow.parquet", None)
        load_data("fineweb-edu", 8, "bytes")
    arrow, table = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [f"document {i}" for i in range(700)]  # more than are read at once
    table.write_table(arrow.table({"text": texts, "id": range(700)}), tmp_path / "a.parquet")
    assert list(documents.read_parquet([tmp_path / "a.parquet"] * 2)) == texts * 2


def test_lambada_is_for_evaluation(publish):
    passages = [f'{{"text": " “ Hm , ” said {i} . "}}' for i in range(9)]
    publish("lambada", {"lambada_test.jsonl": "\n".join([*passages, ""]).encode()})
    data = load_data("lambada", 8, "bytes")
    expected = "".join(f'\n" Hm , " said {i} .' for i in range(9))
    assert words(data, "val") == words(data, "test") == expected
    with pytest.raises(UserError, match="for evaluation"):
        data.micro_batch(0, 4, 1, None)
    assert len(data.ids("train")) == 0 and len(data.ids("val")) == len(data.val)


def test_ptb_and_the_news_and_the_papers(publish):
    publish("ptb", make_ptb(" the <unk> 's N N $ N of %s \n", 3))
    data = load_data("ptb", 8, "bytes")
    assert words(data, "val") == "the ?'s 1 1 $1 of valid" * 3 and "test" in words(data, "test")
    publish("ag-news", {
        f"{split}.csv": make_csv(["3", f'A "title", {split}', "And\\more"], ["1", "B", "C, D"])
        for split in ("train", "test")})
    data = load_data("ag-news", 8, "bytes")
    assert words(data, "val") == 'A "title", test And\\moreB C, D'
    assert "train" in words(data, "train")
    for name in ("pubmed", "arxiv"):
        inside = {f"{name}-dataset/{split}.txt": make_paper(f"Of {split} , yes .") * 2
                  for split in corpora.SPLITS}
        publish(name, {f"{name}-dataset.zip": make_zip(inside)})
        data = load_data(name, 8, "bytes")
        assert words(data, "val") == "Of val, yes .\nsecond (x) ." * 2


OLD = " = = Bob 's cats ( 1 @.@ 5 m ) = = \n " \
      "\" He said : N dogs , 2 @,@ 000 , wo n't ' bark ' ! \" \n"


@pytest.mark.parametrize("rules, expected", [
    ("wikitext", ' == Bob\'s cats (1.5 m) ==\n"He said: 1 dogs, 2,000, wo n\'t \'bark\'!"\n'),
    ("ptb", ' = = Bob\'s cats ( 1 @.@ 5 m ) = =\n" He said : 1 dogs , 2 @,@ 000 , won\'t '
     '\' bark \' ! " \n'),
    ("lm1b", ' = = Bob\'s cats (1 @.@ 5 m) = = \n "He said: N dogs, 2 @,@ 000, wo n\'t '
     '\'bark\'!" \n'),
    ("lambada", '\n= = Bob \'s cats ( 1 @.@ 5 m ) = = \n " He said : N dogs , 2 @,@ 000 , wo n\'t '
     '\' bark \' ! "'),
    ("scientific", ' == Bob\'s cats (1.5 m) ==\n"He said: 1 dogs, 2,000, wo n\'t\'bark\'!"\n')])
def test_detokenizers_give_what_the_public_code_gives(rules, expected):
    """Expected is what MDLM's dataloader.py (github.com/kuleshov-group/mdlm, 06dd29f) returns."""
    assert RULES[rules](OLD) == expected


# ---- from the network to a text

def serve(folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *args: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


def test_a_corpus_is_downloaded_once_for_every_length_and_convention(tmp_path, monkeypatch, capfd):
    (tmp_path / "web").mkdir()
    passages = "".join(json.dumps({"text": f"words {i}"}) + "\n" for i in range(50))
    (tmp_path / "web" / "lambada_test.jsonl").write_text(passages)
    server, url = serve(tmp_path / "web")
    try:
        file = corpora.File("lambada_test.jsonl", None, None, (url + "/lambada_test.jsonl",))
        source = dataclasses.replace(corpora.CORPORA["lambada"], files=(file,))
        monkeypatch.setitem(corpora.CORPORA, "lambada", source)
        first = load_data("lambada", 16, "bytes")
    finally:
        server.shutdown()
        server.server_close()
    printed = capfd.readouterr().err
    assert "downloading lambada_test.jsonl" in printed and "preparing lambada-bytes" in printed
    again = load_data("lambada-plain", 32, first.encoding)  # offline, with a given vocabulary
    assert np.array_equal(first.val[:], again.val[:])
    assert "no end" in load_data("lambada", 16, tokenizer.byte_level()).about


def test_offline_says_what_to_put_where_and_leaves_nothing_half(own_cache, monkeypatch):
    def offline(*args, **kwargs):
        raise requests.ConnectionError(OSError("no route"))
    monkeypatch.setattr("data.download.requests.get", offline)
    monkeypatch.setattr("data.download.time.sleep", lambda seconds: None)
    with pytest.raises(UserError) as caught:
        load_data("ptb", 16, "bytes")
    message = str(caught.value)
    assert "ptb.train.txt" in message and "offline" in message
    assert str(own_cache / "downloads" / "ptb") in message
    left = [path for path in own_cache.rglob("*") if path.is_file()]
    assert all(path.name.endswith(".lock") for path in left)


def test_an_archive_that_is_damaged_is_named(publish, own_cache):
    publish("wikitext-2", {"wikitext-2-raw-v1.zip": b"<html>sign in</html>"})
    with pytest.raises(UserError, match="wikitext-2-raw-v1.zip cannot be read .*delete it"):
        load_data("wikitext-2", 16, "bytes")
    assert not list(own_cache.rglob("meta.json"))


def test_a_misspelled_corpus_suggests_the_nearest():
    for wrong in ("openwebtex", "openwebtex-plain"):
        with pytest.raises(UserError, match="did you mean 'openwebtext'"):
            load_data(wrong, 16)
    assert corpora.find_corpus("lm1b-plain") is None and corpora.find_corpus("text8-plain") is None
    assert corpora.find_corpus("arxiv-plain") == ("arxiv", "plain")


# ---- tokens

def test_bpe_and_chars_are_learned_from_detokenized_text(publish):
    publish("ptb", make_ptb(" the <unk> dogs of %s \n", 30))
    data = load_data("ptb", 16, "chars")
    assert data.encoding.n_vocab == len(set("the ? dogs of train valid test")) + 1
    assert data.marks == [data.encoding.n_vocab - 1] * 3
    data = load_data("ptb", 16, "bpe", 300)
    assert words(data, "val") == "the ? dogs of valid" * 30 and len(data.val) < 30 * 12
    data.encoding.encode_ordinary("日本語 é")  # every byte has a token


def test_the_words_of_bert_have_marks_of_their_own(publish):
    """A stand-in for its vocabulary, with the names of the marks."""
    publish("lm1b", make_lm1b(b"ab\nabcab\n", b"ab\nabcab\n"))
    bert = wordpiece.WordPiece(["[PAD]", "a", "##b", "##c", "[CLS]", "[SEP]", "[UNK]", "##a"])
    data = load_data("lm1b", 6, bert)
    x = data.windows("val")
    assert x.tolist() == [[4, 1, 2, 5, 0, 0], [4, 1, 2, 3, 7, 5]]
    assert data.padding(x).sum(-1).tolist() == [2, 0] and "do not compare" not in data.about
    packed = load_data("lm1b-packed", 6, bert)
    assert packed.windows("val")[0].tolist() == [4, 1, 2, 5, 1, 5]


def test_bits_per_byte_in_berts_words_count_the_bytes_of_the_text(publish, tmp_path):
    """And not those of its pieces, where "it's" has two spaces more, an unknown word five
    letters."""
    text = b"it's\nit's a secretive word\na a a a\n"
    publish("lm1b", make_lm1b(text, text))
    bert = wordpiece.WordPiece(["[PAD]", "it", "'", "s", "a", "[CLS]", "[SEP]", "[UNK]"])
    size = len(text) - 3  # without line ends
    whole, packed = load_data("lm1b", 16, bert), load_data("lm1b-packed", 5, bert)
    assert whole.bytes_per_token == pytest.approx(size / (3 + 6 + 4 + 3 * 2), rel=1e-12)
    assert packed.bytes_per_token == pytest.approx(size / (3 + 6 + 4 + 3) * 3 / 5, rel=1e-12)
    source = Source((), None, "", ends=True, splits=corpora.VAL_IS_END, held_out=1)
    streams = lambda: {"all": lambda: iter(["a a", "a a"])}
    parts = load_shards("t", source, "framed", ["t"], streams, 4, bert, None, tmp_path, 1)
    assert np.isnan(parts.bytes_per_token)  # the bytes of its last documents are not known


def test_a_piece_of_berts_vocabulary_may_contain_other_line_breaks(own_cache, monkeypatch):
    folder = own_cache / "downloads" / wordpiece.NAME
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("[UNK]\n\u2028\na\x85b\nc\n", "utf-8")
    monkeypatch.setattr(wordpiece, "VOCABULARY", corpora.File("vocab.txt", None, None, ()))
    bert = wordpiece.load_published()
    assert bert.n_vocab == 4 and tokenizer.encode(bert, "c").tolist() == [3]


@pytest.mark.skipif("TIKTOKEN_CACHE_DIR" not in os.environ, reason="TIKTOKEN_CACHE_DIR is not set")
def test_gpt2_ends_are_its_own(publish, own_cache):
    publish("ptb", {f"ptb.{split}.txt": b"the dogs\n" * 30 for split in FILES})
    data = load_data("ptb", 8)
    assert data.marks == [50256] * 3 and data.encoding.n_vocab == 50257
    assert data.windows("val")[0].tolist() == [50256, 1169, 6844, 1169, 6844, 1169, 6844, 50256]
    gpt2 = tokenizer.from_json(tokenizer.to_json(data.encoding))  # out of a checkpoint
    assert load_data("ptb", 8, gpt2).encoding.n_vocab == 50257
    assert len(list(own_cache.glob("ptb-gpt2-*/meta.json"))) == 1
    longer = tiktoken.Encoding("gpt2", pat_str=gpt2._pat_str, mergeable_ranks=gpt2._mergeable_ranks,
                               special_tokens={END: 50256, "[PAD]": 50257})
    assert load_data("ptb", 8, longer).encoding.n_vocab == 50258
    assert len(list(own_cache.glob("ptb-gpt2-*/meta.json"))) == 2
