"""
Every data set by name. To add one, write its class (the contract is in data/base.py) and one row.

A row is "module:Class" and is imported when it is chosen. A name with * is a pattern. Files:

    toy, toy_grammar           a small English whose entropy is known exactly
    sentences                  its sentences, which end: lengths and what is missing, exactly
    digits                     images of 8 x 8 pixels, which are tokens too
    puzzles, sudoku, countdown, planning, sat      questions with a checker of answers
    arithmetic, trees          the same, whose answers are trees of a grammar
    multiplication, boolean    the same, with or without the thoughts that lead to an answer
    seq2seq, rewriting, wording, spans        a source and a target, whose entropy is known
    chat, synthetic_chats      questions and answers: made up, or from your own file
    texts, docstrings, corpus  text that is small enough to be tokenized in one go
    corpora                    the corpora of the papers' tables: sources, splits, conventions
    download, documents, detokenize      from the network, or a file, to documents
    build_shards, tokenize_workers, shards      from documents to tokens on disk
    shard_dataset              texts from these tokens, each once per epoch
    tokenizer, wordpiece       text to ids and back
    files                      how files are written, here and everywhere
    reading, folders           what users give: text, JSON, folders of files
    prompt                     the prompts of sample.py
"""
from flags import load_row

DATASETS = {
    "toy": "data.toy:ToyCorpus",  # a small English of known entropy
    "sentences": "data.sentences:SentenceCorpus",  # its sentences, one by one: texts that end
    "digits": "data.digits:Digits",  # handwritten digits, 8 x 8 pixels
    "chat": "data.chat:Chat",  # made-up questions and answers
    "names": "data.texts:Names",  # the names of Unicode's characters
    "python": "data.texts:Docstrings",  # the docstrings of your Python
    "shakespeare": "data.texts:Shakespeare",  # 1 MB, downloaded once

    # puzzles: a question that is given, an answer that a checker accepts
    "sudoku4": "data.sudoku:Sudoku4",  # 4 x 4, the clues in front of the solution
    "sudoku4-in-place": "data.sudoku:Sudoku4InPlace",  # the clues where they stand
    "sudoku9": "data.sudoku:Sudoku9",
    "sudoku9-in-place": "data.sudoku:Sudoku9InPlace",
    "countdown3": "data.countdown:Countdown3",  # reach a number with three others
    "countdown4": "data.countdown:Countdown4",
    "countdown5": "data.countdown:Countdown5",
    "planning2": "data.planning:Planning2",  # the way through a star graph with two arms
    "planning5": "data.planning:Planning5",
    "sat5": "data.sat:Sat5",  # values that make a formula true
    "sat5-unique": "data.sat:Sat5Unique",
    "sat7": "data.sat:Sat7",
    "sat9": "data.sat:Sat9",
    "boolean": "data.boolean:BooleanAnswer",  # the value of a formula
    "boolean-thoughts": "data.boolean:BooleanThoughts",  # and of each bracket
    "arithmetic": "data.arithmetic:Arithmetic",  # expressions that have a given value
    "multiplication": "data.multiplication:MultiplicationAnswer",  # 2 digits times 2 digits
    "multiplication-thoughts": "data.multiplication:MultiplicationThoughts",

    # sequence to sequence: a source that is given, a target with a checker
    "reverse": "data.rewriting:Reverse",  # letters in the other order
    "sort": "data.rewriting:Sort",  # digits, the smallest first
    "date": "data.rewriting:Dates",  # a day in one form
    "translit": "data.rewriting:Translit",  # words as they sound
    "add": "data.rewriting:Add",  # sums
    "add-reversed": "data.rewriting:AddReversed",  # the last digit first
    "repair": "data.repair:Repair",  # sentences with a typo, as they were meant
    "paraphrase": "data.wording:Paraphrase",  # a sentence in other words
    "summary": "data.wording:Summary",  # who and what is most frequent
    "describe": "data.wording:Describe",  # all that a table has
    "describe-spans": "data.spans:DescribeSpans",  # GENIE's pre-training for it

    # downloaded: the corpora of the papers' tables
    "text8": "data.corpora:PublishedCorpus",
    "wikitext-2": "data.corpora:PublishedCorpus",
    "wikitext-103": "data.corpora:PublishedCorpus",
    "lm1b": "data.corpora:PublishedCorpus",  # a sentence per text
    "lm1b-packed": "data.corpora:PublishedCorpus",  # windows across sentences
    "lm1b-joined": "data.corpora:PublishedCorpus",  # held-out sentences without ends
    "openwebtext": "data.corpora:PublishedCorpus",
    "fineweb-edu": "data.corpora:PublishedCorpus",
    "lambada": "data.corpora:PublishedCorpus",
    "ptb": "data.corpora:PublishedCorpus",
    "ag-news": "data.corpora:PublishedCorpus",
    "pubmed": "data.corpora:PublishedCorpus",
    "arxiv": "data.corpora:PublishedCorpus",
    "*-plain": "data.corpora:PublishedCorpus",  # one of these in windows without ends

    # your own
    "*.jsonl": "data.chat:ChatFile",  # chats
    "*": "data.texts:Files",  # a text file or a folder of them
}


def load_data(data, block_size, tokenizer="auto", vocab_size=1024, cache=None, sft=False):
    """The data set `data`: a name of the table, or what matches a pattern. UserError says what to
    fix.

    tokenizer   auto, chars, bytes, bpe, a name such as gpt2, or the Encoding of a checkpoint
    vocab_size  of a bpe that is trained
    cache       the folder to use in place of data/cache
    sft         texts are chats whose prompts are given and whose answers are learned
    """
    row = load_row(DATASETS, data)
    load = row.load_answers if sft else row.load
    return load(data, block_size, tokenizer, vocab_size, cache)
