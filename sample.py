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
    python sample.py --chat                                      talk to a network that has learnt to answer
    python sample.py --init_from kuleshov-group/mdlm-owt         a published model, by its name (hub.py)

A sampler is a generator that yields the ids after every step (see the method files): watching needs no hooks.
"""
from dataclasses import dataclass

from flags import flag, one_line_errors, parse
from sampling import Sampling


@dataclass
class Config(Sampling):
    chat: bool = flag(False, "questions are read line by line, from the terminal or a pipe, and answered")
    prompt: str = flag("", "given text with or without gaps; FILE:path reads it from a file")
    gap: str = flag("_", "the mark in the prompt that stands for one token to fill in")
    num_samples: int = flag(3, "texts", least=1)
    length: int = flag(0, "tokens per text; 0 means the training length, or that of a prompt with gaps", least=0)
    window: int = flag(0, "ar, bd3lm: tokens that are remembered; 0 means the training length", least=0)
    stride: int = flag(0, "texts longer than in training: new tokens per window; 0 means half a window", least=0)
    png: str = flag("", "digits: write the images to this file")
    watch: bool = flag(False, "show the text while it denoises")
    json: bool = flag(False, "one JSON object per text, for machines")


CONFIG, GIVEN = parse(Config) if __name__ == "__main__" else (None, ())     # before torch, which takes seconds to load

import json  # noqa: E402
import math
import sys
import time
from pathlib import Path

import torch

import chat
from checkpoint import device_of, restore
from data import BadInput
from data.digits import png
from data.tokenizer import decode, encode
from decoding import windows
from diffusion import ancestral, probabilities
from oracle import exact
from screen import Screen
from steering import end_of_text, law_of, sampler_of, steer


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
        self.caches = getattr(denoiser, "caches", False)

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


def show(texts, length, config, name, denoiser, seconds):
    """The texts of so many tokens, and what they cost; or one line of JSON each. texts: [(text, ids)]"""
    if config.json:
        left_out = ("out_dir", "init_from", "oracle", "chat", "gap", "num_samples", "length", "png", "watch", "json",
                    "device")
        shared = {key: value for key, value in vars(config).items() if key not in left_out}
        for text, ids in texts:
            print(json.dumps({"text": text, "ids": ids, **shared, "network_calls": denoiser.calls,
                              "seconds": round(seconds, 3)}))
        return
    for i, (text, _) in enumerate(texts):
        print(f"{'-' * 8} text {i + 1}\n{text}")
    print(f"{'-' * 8} {len(texts)} x {length} tokens, {name}, {config.sampler}: {denoiser.calls} network calls, "
          f"{denoiser.texts:,} texts read, {denoiser.positions:,} positions scored, {seconds:.1f} s", file=sys.stderr)


def main(config):
    device = device_of(config.device)
    model = exact(config.oracle) if config.oracle else restore(config.init_from or config.out_dir, device)
    name, encoding, L = model.config.method, model.encoding, model.config.block_size
    if name == "classifier":
        raise BadInput(f"{config.out_dir} is a classifier, which writes no text: give it to --classifier")
    if config.png and model.config.data != "digits":
        raise BadInput(f"--png is for images, a model of --data digits: {config.out_dir} writes text")
    config, prompt = chat.settled(config, name), read_prompt(config.prompt)
    if config.guidance != 1 and not (config.label or prompt or config.chat):
        raise BadInput("--guidance needs something to lean on: a --label, or a --prompt")
    sampler = sampler_of(config, name, encoding)
    endless = hasattr(model.method, "window")                # ar and bd3lm
    if endless:
        model.method.stop = end_of_text(encoding)
        model.method.window = window_of(config.window or L, model.method)
    torch.manual_seed(config.seed)
    denoiser, began = Counted(model.denoiser), time.time()
    if config.chat:
        screen = lambda: Screen() if config.watch and not config.json else None
        return chat.talk(model, denoiser, config, sampler, law_of(config), prompt, device, screen)
    given, frozen = template(prompt, config.gap, encoding, config.length, L)
    window, stride = L if len(given) > L and not endless else None, stride_of(config.stride, L)
    given, frozen = (a.to(device).expand(config.num_samples, -1) for a in (given, frozen))              # (B, L) each
    given, frozen = begun(model.method, given, frozen)
    guided, sampler = steer(config, model, denoiser, sampler, device)
    if not config.label:
        guided = chat.guided(model, guided, frozen, config, window)
    blocks = given.shape[1] // getattr(model.method, "block", given.shape[1])
    rounds = config.rounds if config.tail in ("gibbs", "self-correct") else 0
    parts = 1 + math.ceil((given.shape[1] - L) / stride) if window else blocks
    screen = Screen(given.shape[1] if name == "ar" else (config.steps + rounds) * parts)
    walk = trajectory(model.method, guided, given, frozen, config.steps, sampler, law_of(config), window, stride)
    try:
        for step, z in enumerate(walk):
            if config.watch and not config.json:
                screen.show(step, z[0], frozen[0], encoding)
    finally:
        screen.close()
    stop = model.method.stop if endless else None
    rows = [until(row, fixed, stop) for row, fixed in zip(z.tolist(), frozen.tolist())]
    if config.png:
        png(config.png, torch.tensor(rows))
    texts = [(decode(encoding, row, config.gap), row) for row in rows]
    show(texts, given.shape[1], config, name, denoiser, time.time() - began)


if __name__ == "__main__":
    with one_line_errors():
        main(CONFIG)
