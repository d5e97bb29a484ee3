"""
What --html writes: one page, on the leaf page.html, that plays how texts came about. It needs no network, no library.

A walk is kept as what it changes. Of each text: its first ids, and for each step the tokens that the step wrote, with
what the network believed when it was asked for them: the probability of what was written, and the five likeliest
words. Nothing is asked twice for that: `Seen` stands before the denoiser and keeps the answers that the sampler got
anyway. So the page grows with the number of changes, not with steps times tokens.

    {"title": str, "films": [{                             a model
        "name": str, "about": str, "calls": [int]          network calls until each step
        "tokens": [bytes as Latin-1, or null for a mask]   of the ids below
        "texts": [{"start": [id], "given": [place], "steps": [[[place, id, p, id1, p1, ..], ..], ..]}]}]}

p in thousandths. An entry that writes what stood there already was asked once more, and stayed.
"""
import json
from pathlib import Path

import torch

from checkpoint import beside
from data import BadInput
from diffusion import probabilities

LEAF = Path(__file__).parent / "page.html"
BEST = 5


class Seen:
    """A denoiser that keeps what it last said of each place, for B texts. Its own probabilities: those before
    --temperature and --top_p; of sedd, the ratios brought to a sum of 1."""

    def __init__(self, denoiser, n_tokens, B):
        self.denoiser, self.n_tokens, self.B, self.said = denoiser, n_tokens, B, {}
        self.caches = getattr(denoiser, "caches", False)

    def __call__(self, z, t, at=None, **layout):
        logits, cache = self.denoiser(z, t, at=at, **layout), layout.get("cache")
        before = max(cache.start, cache.read) if cache else 0                    # tokens that are not read again
        text, place = (torch.ones_like(z) if at is None else at).nonzero().unbind(-1)                   # (N,) each
        rows = text < self.B                                 # a guided network is asked twice: first for the class
        p = probabilities(logits.reshape(-1, logits.shape[-1])[rows, :self.n_tokens]).cpu()             # (N', V)
        self.said.update(zip(zip(text[rows].tolist(), (place[rows] + before).tolist()), p))
        return logits

    def taken(self):
        said, self.said = self.said, {}
        return said


class Film:
    """The states of B texts as they come, and what was seen on the way. name, about: what stands above them"""

    def __init__(self, name, about, seen, encoding, frozen, stop=None):
        self.name, self.about, self.seen, self.encoding, self.stop = name, about, seen, encoding, stop
        self.given, self.last, self.calls = frozen, None, []
        self.steps, self.kept = [[] for _ in frozen], {}     # text -> step -> entries; (text, place) -> step, entry

    def add(self, z, calls):
        """z (B, L): the state after one more step, or at first before the first; calls: so far"""
        said = self.seen.taken()
        if self.last is None:
            self.start, self.last = z.tolist(), z
            return
        changed = set(map(tuple, (z != self.last).nonzero().tolist()))
        for steps in self.steps:
            steps.append([])
        for text, place in sorted(changed | said.keys()):
            entry = [place, int(z[text, place]), *belief(said.get((text, place)), int(z[text, place]))]
            if (text, place) in changed:
                self.steps[text][-1].append(entry)
                self.kept.pop((text, place), None)
            elif int(z[text, place]) < self.encoding.n_vocab:
                self.kept[text, place] = len(self.calls), entry
        self.last = z
        self.calls.append(calls)

    def data(self):
        """What the page is told, as plain lists."""
        for (text, place), (step, entry) in self.kept.items():
            self.steps[text][step].append(entry)
        self.kept, number = {}, {}
        short = lambda id: number.setdefault(id, len(number))
        renamed = lambda entry: [short(a) if i % 2 else a for i, a in enumerate(entry)]
        texts = [{"start": list(map(short, start)), "given": given.nonzero()[:, 0].tolist(),
                  "steps": [list(map(renamed, step)) for step in steps]}
                 for start, given, steps in zip(self.start, self.given, self.steps)]
        stop = None if self.stop is None else number.get(self.stop)
        return {"name": self.name, "about": self.about, "calls": self.calls, "texts": texts, "stop": stop,
                "tokens": [spelling(self.encoding, id) for id in number],
                "words": self.encoding.name == "words", "columns": 8 * (self.encoding.name == "pixels")}


def belief(p, token):
    """[p of the token, the likeliest, its p, the next, ..] in thousandths; [] where nothing was asked. p (V,)"""
    if p is None or token >= len(p):
        return []
    best, ids = p.topk(min(BEST, len(p)))                                                               # (5,) each
    return [round(1000 * p[token].item()), *(a for pair in zip(ids.tolist(), (1000 * best).round().int().tolist())
                                             for a in pair)]


def spelling(encoding, id):
    """The bytes of a token, each as the character of its number; None for what is no token, a mask."""
    try:
        return encoding.decode_single_token_bytes(id).decode("latin-1")
    except (KeyError, OverflowError):
        return None


def page(title, films):
    """The whole page as text. Data cannot leave its element: no `<` of a text stays one."""
    told = json.dumps({"title": title, "films": [film.data() for film in films]}, separators=(",", ":"))
    return LEAF.read_text("utf-8").replace("{}", told.replace("<", "\\u003c"), 1)


def write(path, title, films):
    """-> the size of the page in bytes"""
    text = page(title, films).encode()
    with beside(Path(path)) as file:
        file.write(text)
    return len(text)


def filmed(config, name, denoiser, encoding, frozen, window, stop):
    """-> the film of a walk, or None without --html, and the denoiser that it looks through"""
    if not config.html:
        return None, denoiser
    if window:
        raise BadInput(f"--html plays texts of one window: --length {window} at most, or a model that is ar or bd3lm")
    seen = Seen(denoiser, encoding.n_vocab, len(frozen))
    about = "the exact denoiser of the toy language" if config.oracle else config.init_from or config.out_dir
    walk = "left to right" if name == "ar" else f"{config.sampler}, {config.steps} steps"
    return Film(name, f"{about}; {walk}", seen, encoding, frozen, stop), seen
