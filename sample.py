"""
Generate text with a trained model: from nothing, after a prompt, or in the gaps of a text.

    python sample.py                                             three texts from out/python-mdlm
    python sample.py --prompt "Return the" --num_samples 2       continue
    python sample.py --prompt "Return ____ of the ____ object."  fill in: each _ is one token, what you gave stays
    python sample.py --prompt FILE:notes.txt --gap "?"           the prompt from a file, another gap mark
    python sample.py --watch --steps 64                          see it denoise in the terminal
    python sample.py --oracle mdlm --steps 4                     no training: the exact denoiser of the toy language
    python sample.py --oracle udlm --label farm --guidance 2     texts of a class, and more so than the data are
    python sample.py --out_dir out/toy-bd3lm --length 4096       as long as you like, through a window
    python sample.py --num_samples 1000 --json > texts.jsonl     many: a line for each text as soon as it is finished
    python sample.py --chat                                      talk to a network that has learnt to answer
    python sample.py --init_from kuleshov-group/mdlm-owt         a published model, by its name (hub.py)
    python sample.py --html out.html --beside out/toy-udlm       a page that plays how the texts came about

Texts are written --batch_size at a time and printed with their number as they finish: batch after batch, and those of
ar and bd3lm that draw the end of a text before the rest of their batch. What is printed stays, whatever comes then. A
seed fixes the texts for a given --batch_size, not beyond: texts that are written together share their chance.

A sampler is a generator that yields the ids after every step (see the method files): watching needs no hooks.
"""
from dataclasses import dataclass

from flags import flag, nearest, one_line_errors
from sampling import Sampling, named, parsed


@dataclass
class Config(Sampling):
    chat: bool = flag(False, "questions are read line by line, from the terminal or a pipe, and answered")
    prompt: str = flag("", "given text with or without gaps; FILE:path reads it from a file")
    gap: str = flag("_", "the mark in the prompt that stands for one token to fill in")
    num_samples: int = flag(3, "texts", least=1)
    batch_size: int = flag(0, "texts at once; 0: what half the free memory holds, 64 at most (GPU: 512)", least=0)
    dtype: str = flag("float32", "of matrix products; auto: bfloat16 where it is faster, which rounds predictions",
                      ["float32", "bfloat16", "auto"])
    length: int = flag(0, "tokens per text; 0 means the training length, or that of a prompt with gaps", least=0)
    window: int = flag(0, "ar, bd3lm: tokens that are remembered; 0 means the training length", least=0)
    stride: int = flag(0, "texts longer than in training: new tokens per window; 0 means half a window", least=0)
    png: str = flag("", "digits: write the images to this file")
    watch: bool = flag(False, "show the text while it denoises")
    html: str = flag("", "write a page to this file that plays how the texts came about")
    beside: str = flag("", "html: further models from the same prompt, folders or oracles, with commas between")
    json: bool = flag(False, "one JSON object per text, for machines")


CONFIG, GIVEN = parsed(Config) if __name__ == "__main__" else (None, ())   # before torch, which takes seconds to load

import json  # noqa: E402
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

import chat
import page
from checkpoint import device_of, dtype_of, keep_memory, restore
from correction import ROUNDS
from data import BadInput
from data.digits import png
from data.tokenizer import decode, encode
from decoding import windows
from diffusion import ancestral, probabilities
from memory import fitting, per_text
from methods import METHODS
from oracle import exact
from screen import Screen
from steering import compiled_by, end_of_text, law_of, sampler_of, steer


LEFT_OUT = ("out_dir", "init_from", "oracle", "chat", "gap", "num_samples", "length", "png", "watch", "html", "beside",
            "json", "device")                                # of what --json says


def trajectory(method, denoiser, given, frozen, steps, sampler=ancestral, law=probabilities, window=None, stride=1):
    """The states of a batch of texts from noise to the end. given (B, L) ids, kept where frozen (B, L) is True.

    Texts longer than `window` are written a window after the other, `stride` new tokens each time.
    """
    z = torch.where(frozen, given, method.prior(given.shape, given.device))                             # (B, L)
    yield z
    write = lambda z, frozen: method.sample(denoiser, z, frozen, steps, sampler, law)
    yield from windows(write, z, frozen, window, stride) if window else write(z, frozen)


def begun(method, given, frozen):
    """Some published networks never saw noise in the first place: their texts begin with a token that is given."""
    first = getattr(method, "first", None)
    if first is None or frozen[:, 0].all():
        return given, frozen
    begins = torch.arange(given.shape[1], device=given.device).expand_as(given) == 0                    # (B, L)
    return torch.where(begins & ~frozen, first, given), frozen | begins


def generate(method, denoiser, n, length, steps, sampler=ancestral, law=probabilities, device="cpu", given=None,
             frozen=None):
    """n texts from nothing, or around what is `given` (n, length) where `frozen` says so. -> (n, length) ids"""
    given = torch.zeros(n, length, dtype=torch.long, device=device) if frozen is None else given        # (n, length)
    frozen = given.bool() if frozen is None else frozen                                                 # (n, length)
    given, frozen = begun(method, given, frozen)
    *_, z = trajectory(method, denoiser, given, frozen, steps, sampler, law)
    return z


class Counted:
    """A denoiser that counts: network calls, texts that were read in them, and positions at which the head ran."""

    def __init__(self, denoiser):
        self.denoiser, self.calls, self.texts, self.positions = denoiser, 0, 0, 0
        self.caches, self.fuses = (getattr(denoiser, name, False) for name in ("caches", "fuses"))

    def __call__(self, z, t, at=None, **layout):
        self.calls += 1
        self.texts += len(z) if at is None else int(at.any(-1).sum())
        self.positions += z.numel() if at is None else int(at.sum())
        return self.denoiser(z, t, at=at, **layout)


def read_prompt(prompt):
    if not prompt.startswith("FILE:"):
        return prompt
    path = Path(prompt.removeprefix("FILE:"))
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise BadInput(f"cannot read the prompt {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"the prompt {path} is not UTF-8 text: save it as UTF-8") from None


def template(prompt, gap, encoding, length, block_size):
    """The prompt as ids, and where it is given: not in gaps, nor after it. -> (L,), (L,) bool"""
    if len(gap) != 1:
        raise BadInput(f"--gap {gap!r} must be one character")
    ids, frozen = [], []
    for i, part in enumerate(prompt.split(gap)):
        part = encode(encoding, part).tolist()
        ids += [0] * (i > 0) + part
        frozen += [False] * (i > 0) + [True] * len(part)
    length = length or (len(ids) if gap in prompt else block_size)
    if len(ids) > length:
        raise BadInput(f"the prompt has {len(ids)} tokens, more than the text's {length}: "
                       "shorten it or raise --length")
    rest = length - len(ids)
    return torch.tensor(ids + [0] * rest), torch.tensor(frozen + [False] * rest)                        # (L,), (L,)


def until(row, frozen, stop):
    """The ids of a text up to the first end-of-text that was drawn."""
    drawn = [i for i, id in enumerate(row) if id == stop and not frozen[i]]
    return row[:drawn[0]] if drawn else row


def window_of(window, method):
    """How many tokens ar and bd3lm remember. BadInput where that is not one block or several."""
    block = getattr(method, "block", 1)
    if window % block:
        raise BadInput(f"--window {window} must be a multiple of the block of {block} tokens, and at least that")
    return window


def stride_of(stride, block_size):
    """New tokens per window. BadInput where a window would leave a gap."""
    if stride > block_size:
        raise BadInput(f"--stride {stride} must be at most {block_size}, the length of a text in training")
    return stride or max(1, block_size // 2)


def not_yet(z, frozen, step, blank):
    """What ar has not written after `step` steps shows as `blank`: it has no mask, and any id stands there. (B, L)"""
    return torch.where(~frozen & ((~frozen).cumsum(-1) > step), blank, z)                               # (B, L)


def texts_at_once(config, model, length, device):
    """--batch_size, or what fits."""
    if config.html:                                          # a film has one batch
        return config.num_samples
    if config.batch_size or config.oracle:
        return min(config.num_samples, config.batch_size or 64)
    scored = getattr(model.method, "block", 1) if hasattr(model.method, "window") else None
    copies = 1 + (config.guidance != 1) + bool(config.classifier) * config.candidates
    return min(config.num_samples, fitting(copies * per_text(model.denoiser, length, scored), device))


def ended(z, frozen, method):
    """Texts of ar and bd3lm that drew their end and have left the batch, filled up with it. (In the last block the
    samplers of masks may still take it back.) z, frozen (B, L) -> (B,)"""
    if getattr(method, "stop", None) is None:
        return torch.zeros(len(z), dtype=torch.bool)                                                    # (B,)
    at_the_end = ((z == method.stop) & ~frozen).flip(-1).cumprod(-1).sum(-1)                            # (B,) stops
    return at_the_end > getattr(method, "block", 1)                                                     # (B,)


def written(walk, frozen, method, show=None):
    """The texts of a batch as they are finished: yields (which, ids). show(step, z) sees every state, and then all
    texts come at the end, so that they do not run into what it shows."""
    waiting = dict.fromkeys(range(len(frozen)))
    for step, z in enumerate(walk):
        if show:
            show(step, z)
            continue
        for i in ended(z, frozen, method).nonzero()[:, 0].tolist():
            if i in waiting:
                del waiting[i]
                yield i, z[i].tolist()
    for i in waiting:
        yield i, z[i].tolist()


def in_batches(walk, model, denoiser, given, frozen, config, size, watching=None):
    """--num_samples texts, `size` at a time, as they are finished: yields (number from 1 on, ids, what its batch has
    cost so far). given, frozen (L,): what all begin with; watching() -> show(step, z) of a batch's states, close()"""
    for first in range(0, config.num_samples, size):
        batch = [a.expand(min(size, config.num_samples - first), -1) for a in (given, frozen)]          # (B, L) each
        calls, began = denoiser.calls, time.time()
        show, close = watching() if watching else (None, lambda: None)
        torch.manual_seed(config.seed + 1_000_003 * first)
        try:
            for i, row in written(walk(*batch), batch[1], model.method, show):
                yield first + i + 1, row, {"network_calls": denoiser.calls - calls,
                                           "seconds": round(time.time() - began, 3)}
        finally:
            close()


def tell(number, text, ids, about):
    """Print a text as soon as it is there; with --json as a line, with what is known `about` it: flags, and costs. All
    in one piece: what interrupts the script leaves no half of a line."""
    said = f"{'-' * 8} text {number}\n{text}\n"
    if about["json"]:
        about = {key: value for key, value in about.items() if key not in LEFT_OUT}
        said = json.dumps({"text": text, "ids": ids, "number": number, **about}) + "\n"
    sys.stdout.write(said)
    sys.stdout.flush()


def beside(config):
    """The flags of each model that is asked: one, or several on a page."""
    others, known = [name for name in config.beside.split(",") if name], [*METHODS]
    if others and not config.html:
        raise BadInput("--beside sets models side by side on a page: give --html out.html too")
    if config.html and config.chat:
        raise BadInput("--html plays texts that are written in one go: leave out --chat")
    if config.html and not Path(config.html).absolute().parent.is_dir():
        raise BadInput(f"--html {config.html}: there is no folder {Path(config.html).parent}")
    if config.oracle and (unknown := [name for name in others if name not in known]):
        raise BadInput(f"--beside {unknown[0]} is no oracle{nearest(unknown[0], known)}: with --oracle, name others")
    other = lambda name: dict(oracle=name) if config.oracle else dict(out_dir=name, init_from="")
    return [config, *(replace(config, **other(name)) for name in others)]


def main(config):
    device = device_of(config.device)
    torch.set_float32_matmul_precision(config.matmul_precision)
    keep_memory()
    asked = [(flags, exact(flags.oracle) if flags.oracle else restore(flags.init_from or flags.out_dir, device))
             for flags in beside(config)]
    films = [run(flags, model, device) for flags, model in asked]
    if config.html:
        prompt = read_prompt(config.prompt)
        size = page.write(config.html, f"“{prompt}”" if prompt else "from nothing", films)
        print(f"{'-' * 8} {config.html}, {size / 1000:.0f} kB: open it in a browser", file=sys.stderr)


def settled(config, model):
    """The flags as they hold for this model, and the prompt; BadInput if they do not."""
    where = named(config)
    if model.config.method == "classifier":
        raise BadInput(f"{where} is a classifier, which writes no text: give it to --classifier")
    if config.png and model.config.data != "digits":
        raise BadInput(f"--png is for images, a model of --data digits: {where} writes text")
    config, prompt = chat.settled(config, model.config.method), read_prompt(config.prompt)
    if config.guidance != 1 and not (config.label or prompt or config.chat):
        raise BadInput("--guidance needs something to lean on: a --label, or a --prompt")
    return config, prompt


def viewer(config, model, frozen, frames, film, denoiser):
    """What looks at every state of a batch, for in_batches: the screen of its first text, the film of all; or None."""
    watched = config.watch and not config.json

    def watching():
        screen = Screen(frames) if watched else None

        def show(step, z):
            if model.config.method == "ar":
                z = not_yet(z, frozen.expand_as(z), step, model.encoding.n_vocab)                       # (B, L)
            if film:
                film.add(z, denoiser.calls)
            if screen:
                screen.show(step, z[0], frozen, model.encoding)
        return show, screen.close if screen else lambda: None
    return watching if film or watched else None


def run(config, model, device):
    """The texts of one model, printed as they are finished. -> their film, with --html"""
    config, prompt = settled(config, model)
    name, encoding, L = model.config.method, model.encoding, model.config.block_size
    sampler = sampler_of(config, name, encoding)
    endless = hasattr(model.method, "window")                # ar and bd3lm
    stop = end_of_text(encoding) if endless else None
    if endless:
        model.method.stop = None if config.html else stop    # in a film all texts go on to the end
        model.method.window = window_of(config.window or L, model.method)
    torch.manual_seed(config.seed)
    denoiser = Counted(compiled_by(config, model))
    half = torch.autocast(device.type, torch.bfloat16, enabled=dtype_of(config.dtype, device) == "bfloat16")
    if config.chat:
        screen = lambda: Screen() if config.watch and not config.json else None
        with half:
            return chat.talk(model, denoiser, config, sampler, law_of(config), prompt, device, screen)
    given, frozen = template(prompt, config.gap, encoding, config.length, L)                            # (L,) each
    given, frozen = (a[0].to(device) for a in begun(model.method, given[None], frozen[None]))           # (L,) each
    if config.png and len(given) != L:
        raise BadInput(f"--png draws {L} pixels, and this text has {len(given)}: leave out --length and gaps")
    length, window, stride = len(given), L if len(given) > L and not endless else None, stride_of(config.stride, L)
    guided, sampler = steer(config, model, denoiser, sampler, device)
    if not config.label:
        guided = chat.guided(model, guided, frozen[None], config, window)
    rounds = (config.rounds or ROUNDS[config.tail]) if config.tail in ROUNDS else 0
    parts = 1 + math.ceil((length - L) / stride) if window else length // getattr(model.method, "block", length)
    frames = length if name == "ar" else (config.steps + rounds) * parts
    film, guided = page.filmed(config, name, guided, encoding, frozen.expand(config.num_samples, -1), window, stop)
    size, began, rows = texts_at_once(config, model, window or length, device), time.time(), {}
    walk = lambda given, frozen: trajectory(model.method, guided, given, frozen, config.steps, sampler, law_of(config),
                                            window, stride)
    said = {"model": named(config), **vars(config), "batch_size": size}
    watching = viewer(config, model, frozen, frames, film, denoiser)
    with half:
        for number, row, spent in in_batches(walk, model, denoiser, given, frozen, config, size, watching):
            row = until(row, frozen, stop)
            rows[number] = row if config.png else None
            tell(number, decode(encoding, row, config.gap), row, {**said, **spent})
    if config.png:                                           # last: where it fails, the texts are there
        png(config.png, torch.tensor([rows[i] for i in sorted(rows)]))
    if not config.json:
        print(f"{'-' * 8} {len(rows)} x {length} tokens, {size} at a time, {name}, {config.sampler}: {denoiser.calls} "
              f"network calls, {denoiser.texts:,} texts read, {denoiser.positions:,} positions scored, "
              f"{time.time() - began:.1f} s", file=sys.stderr)
    return film


if __name__ == "__main__":
    with one_line_errors():
        main(CONFIG)
