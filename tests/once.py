"""
What one process of tests does once, though each test asks for it again: nothing of it depends on
the test.

A script's parser of flags is made once, and so is an encoding from its JSON text; whether spaces
stand between the words of a language is found once for texts of a length. A checkpoint is read by
the reader that trusts no file when its bytes come for the first time. From then on that reader has
passed the same bytes, and the one of pickle takes a third of its time.
"""
import hashlib
import io
import sys
from functools import cache
from pathlib import Path

import torch

load = torch.load
TRUSTED = set()  # hashes of files that the careful reader has read


def remember_what_tests_repeat():
    import flags
    from checkpoints import load as loading
    from evaluation import sample_quality

    torch.load = load_again
    has_words, answers = sample_quality.has_words, {}

    def has_words_once(data):
        if data.language is None:  # its text may be another
            return has_words(data)
        key = type(data), data.block_size
        if key not in answers:
            answers[key] = has_words(data)
        return answers[key]
    sample_quality.has_words = has_words_once
    parser_of, from_json = flags.parser_of, loading.from_json
    cached = {}

    def parser_once(cls, groups=None, **options):
        key = cls, str(groups), str(options), sys.argv[0]
        if key not in cached:
            cached[key] = parser_of(cls, groups, **options)
        return cached[key]
    flags.parser_of = parser_once
    once = cache(from_json)
    loading.from_json = lambda text: (once if isinstance(text, str) else from_json)(text)


def load_again(path, map_location=None, weights_only=True, **more):
    """torch.load"""
    if more or not weights_only or not isinstance(path, (str, Path)) or not Path(path).is_file():
        return load(path, map_location=map_location, weights_only=weights_only, **more)
    content = Path(path).read_bytes()
    known = hashlib.sha1(content).digest()
    if known in TRUSTED:
        return load(io.BytesIO(content), map_location=map_location, weights_only=False)
    state = load(path, map_location=map_location, weights_only=True)
    TRUSTED.add(known)
    return state
