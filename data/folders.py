"""
The files of a folder that are its text, so that `cd texts; train.py --data .` reads the same before
and after it has written a run there.

Left out: hidden files and folders; the cache (data/cache, $PALIMPSEST_CACHE), and folders that
look like one; of a run's folder (it holds ckpt.pt, or the .lock of a run) what runs write; exported
models; pages and pictures that say that they are ours. Every other file counts, and one that is no
text is an error, but for pipes, which are skipped. Links are followed, but a file or folder is read
once, however many links lead to it; a link that leads nowhere is an error.
"""
import os
import stat
from fnmatch import fnmatch
from pathlib import Path

from data.download import cache_root
from data.files import readable_status, refuse_unreadable
from data.reading import parse_json

OF_RUNS = "*.pt", "metrics*.jsonl", "evaluation*.json", "tensorboard*"
OF_EXPORTS = "config.json", "encoding.json", "model.safetensors"
MARKED = {".html": b'<meta name="generator" content="palimpsest">', ".png": b"Software\0palimpsest"}


def files_below(root):
    """The text files below a folder, in order of their paths. UserError names what cannot be read.
    """
    found, seen = [], {str(cache_root().resolve()), os.path.realpath(root)}
    for here, folders, names in os.walk(root, onerror=refuse_unreadable, followlinks=True):
        here = Path(here)
        ours = [".*", *patterns_of_ours(here, {*folders, *names})]
        counts = lambda name: not any(fnmatch(name, pattern) for pattern in ours)
        links_last = sorted(filter(counts, folders), key=lambda name: (here / name).is_symlink())
        real = {os.path.realpath(here / name): name for name in reversed(links_last)}
        folders[:] = sorted(name for path, name in real.items() if path not in seen)
        seen |= real.keys()
        found += [here / name for name in filter(counts, names) if not is_marked(here / name)]
    files = [path for path in found if stat.S_ISREG(readable_status(path).st_mode)]
    files.sort(key=lambda path: (path.resolve() != path.absolute(), path))  # the links last
    return sorted({path.resolve(): path for path in reversed(files)}.values())


def patterns_of_ours(folder, names):
    """The names of what palimpsest wrote to a folder, as patterns."""
    if "meta.json" in names and names & {"train.bin", "train.json"}:
        return ["*"]  # tokens on disk
    run = OF_RUNS if "ckpt.pt" in names or (folder / ".lock").exists() else ()
    return [*run, *(OF_EXPORTS if "config.json" in names and is_export(folder) else ())]


def is_export(folder):
    try:
        return "palimpsest" in parse_json((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def is_marked(path):
    """Whether a page or a picture says that it is one of ours."""
    mark = MARKED.get(path.suffix)
    if not mark or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            return mark in file.read(2000)
    except OSError as error:
        refuse_unreadable(error)
