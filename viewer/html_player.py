"""
A page that plays how texts come about, for several models side by side. It needs no library and no
network connection.

    python -m viewer.html_player --oracle mdlm,udlm,pgm,ar       exact denoisers of the toy language
    python -m viewer.html_player --out_dir out/a,out/b --prompt "the _ dog"
    python sample.py --html page.html --beside out/b             the same, and the texts are printed

A recording is the first state of each text, and for each step the tokens that the step wrote. For
each of them it has the probability that the network gave it, and the five likeliest tokens there.
This takes no extra network calls: a Recorder keeps the logits that the sampler gets. The page grows
with the number of changes, not with steps times tokens. player.html shows these data:

    {"title": str, "recordings": [{                        a model
        "name": str, "what": str, "about": str             the heading, what the name stands for
        "calls": [int]                                     network calls up to each step
        "tokens": [bytes as Latin-1, null for a mask, [bytes] for one that shows a word, 0 for none
                   yet, since it comes in later]
        "end": id or null, "unwritten": bool, "spaced": bool, "columns": int, "box": int
        "texts": [{"start": [id], "given": [position],
                   "steps": [[[position, id, p, id1, p1, ..], ..], ..],
                   "faults": [[position, ..], ..]}]}]}

box: texts are grids with boxes of box x box cells; faults: for each step from 0 on, the cells that
break a rule of the data set. p in thousandths. An entry that writes the token that stands there
already means that the network was called for this position once more, and the token stayed.
"""
import json
import re
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from checkpoints.load import load_classifier, load_chosen
from data import DATASETS
from data.base import Dataset
from data.files import check_writable, write_file
from data.prompt import encode_prompt, read_prompt
from data.tokenizer import decode
from diffusion import Wrapper, probabilities
from flags import UserError, flag, load_row
from runtime.device import start_device
from runtime.memory import check_length
from samplers import SamplingFlags, choose_sampler, model_name
from samplers.generate import CallCounter, generate_in_batches, prepend_bos, writer_of
from samplers.insertion import Draft
from script import run_script

PAGE = Path(__file__).parent / "player.html"
N_BEST = 5
ABSENT = -1  # an id: there is no token yet, of texts whose words move


@dataclass
class Config(SamplingFlags):
    oracle: str = flag("", "exact denoisers of the toy language, with commas between",
                       each=str)
    out_dir: str = flag("", "folders of runs, with commas between", each=str)
    init_from: str = flag("", "published models, with commas between", each=str)
    prompt: str = flag("", "given text, with or without gaps; FILE:path reads it from a file",
                       text=True, once="start one command for each prompt")
    gap: str = flag("_", "the character in the prompt that stands for one token to fill in",
                    text=True)
    num_samples: int = flag(3, "texts of each model", least=1)
    length: int = flag(0, "tokens per text; 0: as in training, or those of a prompt with gaps",
                       least=0)
    html: str = flag("player.html", "the page")


class Recorder(Wrapper):
    """A denoiser that keeps its last output at each position, for the B texts of a batch.

    Probabilities are the network's own, before --temperature and --top_p. Ratios are normalized.
    """

    def __init__(self, denoiser, n_tokens, B):
        super().__init__(denoiser)
        self.supports_fused_head = self.fixed_shapes = False  # it needs logits at (B, L) positions
        self.n_tokens, self.B, self.outputs = n_tokens, B, {}

    def __call__(self, z, t, at=None, **layout):
        logits, cache = self.denoiser(z, t, at=at, **layout), layout.get("cache")
        before = max(cache.start, cache.read) if cache else 0  # tokens that this call does not read
        at = torch.ones_like(z) if at is None else at  # (B, L)
        text, position = at.nonzero().unbind(-1)  # (N,) each
        columns = logits.shape[-1]
        if columns < self.n_tokens or logits.numel() != len(text) * columns:
            return logits  # vectors of tokens, or of the whole text, are no distributions
        rows = text < self.B  # (N,) a guided network reads each text twice, first with the class
        logits_of_text = logits.reshape(-1, logits.shape[-1])[rows, :self.n_tokens]  # (N', V)
        p = probabilities(logits_of_text).cpu()  # (N', V)
        text, place = text[rows], position[rows] + before  # (N',) each
        if torch.is_tensor(places := layout.get("positions")):  # (L,), or (B, 1|2, L)
            place = places[place] if places.dim() == 1 else places[text, 0, position[rows]]  # (N',)
        keys = zip(text.tolist(), place.tolist())
        self.outputs.update(zip(keys, p))
        return logits

    def take(self):
        """{(text, position): probabilities (V,)} since the last call."""
        outputs, self.outputs = self.outputs, {}
        return outputs


class Recording:
    """The states of B texts, and what the network said on the way.

    name, about: the heading; counter: a CallCounter; frozen (B, L): given tokens
    end: the id that ends a text; unwritten: a position without a token is empty, not a mask
    what: a line that says what the name stands for
    data: the class of the data set, which knows what breaks a rule of it
    """

    def __init__(self, name, about, recorder, counter, encoding, frozen, end=None, unwritten=False,
                 what="", data=Dataset):
        self.name, self.about, self.end, self.unwritten = name, about, end, unwritten
        self.what, self.dataset, self.faults = what, data, [[] for _ in frozen]
        self.recorder, self.counter, self.encoding, self.given = recorder, counter, encoding, frozen
        self.last, self.calls, self.steps = None, [], [[] for _ in frozen]
        self.unchanged = {}  # (text, position) -> step, entry of the last call that changed nothing

    def show(self, step, z):
        """z (B, L): the texts after `step` steps; step 0 is the noise."""
        outputs = self.recorder.take()
        if self.dataset.box:
            faults = self.dataset.faults(z.cpu()) & ~self.given.cpu()  # (B, L)
            for own, row in zip(self.faults, faults):
                own.append(row.nonzero()[:, 0].tolist())
        if self.last is None:
            self.start, self.last = z.tolist(), z
            return
        changed = set(map(tuple, (z != self.last).nonzero().tolist()))
        for steps in self.steps:
            steps.append([])
        inside = {(text, place) for text, place in outputs if place < z.shape[1]}  # of the text
        for text, position in sorted(changed | inside):
            id = int(z[text, position])
            entry = [position, id, *top_probabilities(outputs.get((text, position)), id)]
            if (text, position) in changed:
                self.steps[text][-1].append(entry)
                self.unchanged.pop((text, position), None)
            elif id < self.encoding.n_vocab:
                self.unchanged[text, position] = len(self.calls), entry
        self.last = z
        self.calls.append(self.counter.calls)

    def close(self):
        """What a viewer needs: the texts are complete."""

    def data(self):
        """The recording as plain lists, for the page."""
        for (text, _), (step, entry) in self.unchanged.items():
            self.steps[text][step].append(entry)
        self.unchanged, number = {}, {}
        short = lambda id: number.setdefault(id, len(number))
        renumbered = lambda entry: [short(a) if i % 2 else a for i, a in enumerate(entry)]
        texts = [{"start": list(map(short, start)), "given": given.nonzero()[:, 0].tolist(),
                  "steps": [list(map(renumbered, step)) for step in steps], "faults": faults}
                 for start, given, steps, faults
                 in zip(self.start, self.given, self.steps, self.faults)]
        return {"name": self.name, "what": self.what, "about": self.about, "calls": self.calls,
                "texts": texts,
                "end": number.get(self.end), "unwritten": self.unwritten,
                "tokens": [as_latin1(self.encoding, id) for id in number],
                "box": self.dataset.box, **spelling(self.encoding)}


class MovingRecording(Recording):
    """A Recording of texts that tokens come into, by the drafts that the method's `process` keeps.
    No token leaves or overtakes another (samplers/insertion.py: Draft). So each has a place of its
    own in the finished text, which is ABSENT before: what stands behind is pushed to the right."""

    def __init__(self, process, *parts, **facts):
        super().__init__(*parts, **facts)
        self.process, process.drafts = process, []
        self.entries = [[] for _ in self.steps]  # of each text: (step, token, id, probabilities)

    def show(self, step, z):
        """z (B, L): the texts after `step` steps; step 0 is what is given."""
        outputs, first = self.recorder.take(), self.last is None
        if first:
            draft = Draft.begin(self.process, z, self.given.to(z.device))
        else:
            draft = self.process.drafts.pop()
            self.calls.append(self.counter.calls)
        texts = self.tokens_of(draft)
        for text, now in enumerate(texts):
            before = {} if first else self.before[text]
            place = {token: i for i, token in enumerate(before)}
            gap = 0  # the number of tokens of `before` that stand to the left
            for token, id in now.items():
                gap += token in place
                if before.get(token) != id:
                    p = outputs.get((text, place.get(token, gap)))
                    self.entries[text].append((step, token, id, top_probabilities(p, id)))
        self.before, self.last = texts, z

    def tokens_of(self, draft):
        """{number of a token: its id} of each text, in the order of the text."""
        rows = zip(draft.z.tolist(), draft.number.tolist(), draft.size(self.process)[:, 0].tolist())
        return [dict(zip(numbers[:m], ids[:m])) for ids, numbers, m in rows]

    def data(self):
        """The recording as plain lists: places of the finished text."""
        self.start, self.steps = [], []
        for now, entries in zip(self.before, self.entries):
            place = {token: i for i, token in enumerate(now)}
            start, steps = [ABSENT] * len(place), [[] for _ in self.calls]
            for step, token, id, p in entries:
                if step:
                    steps[step - 1].append([place[token], id, *p])
                else:
                    start[place[token]] = id
            self.start.append(start)
            self.steps.append(sorted(each) for each in steps)
        found = super().data()
        for text, start in zip(found["texts"], self.start):
            text["given"] = [i for i, id in enumerate(start) if id != ABSENT]
        return found


def top_probabilities(p, token):
    """[p of the token, the likeliest, its p, the next, ..] in thousandths, or []. p (V,) or None"""
    if p is None or token >= len(p):
        return []
    best, ids = p.topk(min(N_BEST, len(p)))  # (5,) each
    pairs = zip(ids.tolist(), (1000 * best).round().int().tolist())
    return [round(1000 * p[token].item()), *(number for pair in pairs for number in pair)]


def as_latin1(encoding, id):
    """The bytes of a token, each as the character of its number; None for a mask, [bytes] for a
    mask that shows a word: n_vocab + 1 + the word, as in viewer/terminal.py; 0 for ABSENT."""
    if id == ABSENT:
        return 0
    if id > encoding.n_vocab:
        return [as_latin1(encoding, id - encoding.n_vocab - 1)]
    try:
        return encoding.decode_single_token_bytes(id).decode("latin-1")
    except (KeyError, OverflowError):
        return None


def spelling(encoding):
    """How tokens make a text: spaces between them, or lines of so many columns (0: one line)."""
    masks = decode(encoding, [encoding.n_vocab] * 99)
    return {"spaced": masks.startswith("_ _"), "columns": max(0, masks.find("\n"))}


def record(config, model, writer, counter, frozen):
    """A Recording of the batch that `writer` is going to write. It must be one of the viewers.

    It changes the writer: all texts go on to their last token, beyond their end.
    """
    method = model.method
    if writer.window is not None and not method.left_to_right:
        raise UserError(f"--html plays texts of one window: --length {writer.window} at most, or a "
                        "model that writes from left to right")
    writer.denoiser = Recorder(writer.denoiser, model.encoding.n_vocab, len(frozen))
    end, writer.end = writer.end, None
    source = "the exact denoiser of the toy language" if config.oracle else model_name(config)
    each = " for each block" if method.left_to_right else ""
    one_by_one = "left to right" if method.left_to_right else "one by one"
    how = f"{config.sampler}, {config.steps} steps{each}" if method.process else one_by_one
    whole = model.config.data and frozen.shape[1] == model.config.block_size
    data = load_row(DATASETS, model.config.data) if whole else Dataset  # other lengths are no grid
    kind = partial(MovingRecording, method.process) if method.any_length else Recording
    return kind(model.config.method, f"{source}; {how}", writer.denoiser, counter,
                model.encoding, frozen, end, unwritten=method.process is None,
                what=meaning_of(method), data=data)


def meaning_of(method):
    """What the name of a method stands for: the first line of its file, without references."""
    first = sys.modules[type(method).__module__].__doc__.strip().splitlines()[0]
    return re.sub(r"^Chapter \d+\. | \((arXiv:)?\d+\.\d+\)", "", first).rstrip(".")


def render_page(title, recordings):
    """The whole page as text. No `<` of a text stays one, so data cannot leave its element."""
    data = {"title": title, "recordings": [recording.data() for recording in recordings]}
    data = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return PAGE.read_text("utf-8").replace("{}", data, 1)


def write_page(path, prompt, recordings):
    """Write the page of texts after a prompt, and say where it is."""
    if note := same_texts(recordings):
        print(note, file=sys.stderr)
    nothing = "a held-out question" if recordings[0].given.any() else "from nothing"
    page = render_page(f"“{prompt}”" if prompt else nothing, recordings).encode()
    write_file(path, page)
    print(f"{'-' * 8} {path}, {len(page) / 1000:.0f} kB: open it in a browser", file=sys.stderr)


def same_texts(recordings):
    """A line about models that wrote the same texts, word for word; "" if there are none."""
    for i, one in enumerate(recordings):
        same = [one.name, *(other.name for other in recordings[i + 1:]
                            if torch.equal(other.last, one.last))]
        if len(same) > 1:
            return (f"{' and '.join(same)} wrote the same texts, and should: they take the same "
                    "steps with the same predictions, from the same --seed")
    return ""


def compared_models(config):
    """The flags of each model: of one oracle, folder or published model each."""
    models = [{**dict(oracle="", out_dir="", init_from=""), flag: name}
              for flag in ("oracle", "out_dir", "init_from")
              for name in filter(None, vars(config)[flag].split(","))]
    if not models:
        raise UserError("name the models: --oracle mdlm,udlm or --out_dir out/a,out/b")
    return [replace(config, **model) for model in models]


def record_texts(config, model, device):
    """The Recording of --num_samples texts of one model."""
    check_length(config.length)
    prompt, n = read_prompt(config.prompt), config.num_samples
    given, frozen = encode_prompt(prompt, config.gap, model.encoding, config.length,
                                  model.config.block_size, model.config.data, config.seed,
                                  model.method.end_id)  # (L,) each
    given, frozen = (a[0].to(device) for a in prepend_bos(model.method, given[None], frozen[None]))
    counter = CallCounter(model.denoiser)
    classifier = load_classifier(config, model, device) if config.classifier else None
    config = choose_sampler(config, model, frozen)
    writer = writer_of(config, model, counter, frozen, classifier)
    recording = record(config, model, writer, counter, frozen.expand(n, -1))
    for _ in generate_in_batches(writer, counter, given, frozen, n, n, config.seed, [recording]):
        pass
    return recording


def main(config, given=()):
    check_writable(config.html)
    device = start_device(config)
    models = [(one, load_chosen(one, device)) for one in compared_models(config)]
    recordings = [record_texts(one, model, device) for one, model in models]
    write_page(config.html, read_prompt(config.prompt), recordings)


if __name__ == "__main__":
    run_script(Config, main)
