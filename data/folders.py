"""
The files of a folder that are its text, so that `cd texts; train.py --data .` reads the same before
and after it has written a run there.

Left out: hidden files and folders; the cache (data/cache, $PALIMPSEST_CACHE), and folders that
look like one; of a run's folder (it holds ckpt.pt, or the .lock of a run) what runs write; exported
models; pages and pictures that say that they are ours. Every other file counts, and one that is no
text is an error. Links are followed, but a file or folder is read once, however many links lead to
it; a link that leads nowhere is an error.
"""
from fnmatch import fnmatch
from pathlib import Path

from data.download import cache_root
from data.reading import parse_json
from flags import UserError

OF_RUNS = "*.pt", "metrics*.jsonl", "evaluation*.json", "tensorboard*"
OF_EXPORTS = "config.json", "encoding.json", "model.safetensors"
MARKED = {".html": b'<meta name="generator" content="palimpsest">', ".png": b"Software\0palimpsest"}


def files_below(root):
    """The text files below a folder, in order of name: of their paths, folder by folder."""
    found, seen, waiting = {}, {cache_root().resolve()}, [Path(root)]
    while waiting:
        folder = waiting.pop()
        if folder.resolve() in seen:  # by another link, or a link to a folder above
            continue
        seen.add(folder.resolve())
        try:
            paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        except OSError as error:
            raise UserError(f"cannot read the folder {folder}: {error.strerror}") from None
        ours = patterns_of_ours(folder, {path.name for path in paths})
        for path in paths:
            if any(fnmatch(path.name, pattern) for pattern in ours) or is_marked(path):
                continue
            if path.is_symlink() and not path.exists():
                raise UserError(f"{path} is a link to a file that is not there: remove the link")
            if path.is_file():
                found.setdefault(path.resolve(), path)
        waiting += [path for path in reversed(paths) if path.is_dir()
                    and not any(fnmatch(path.name, pattern) for pattern in ours)]
    return sorted(found.values())


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
    with open(path, "rb") as file:
        return mark in file.read(2000)
