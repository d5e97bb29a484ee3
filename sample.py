"""
Generate text with a trained model: from nothing, after a prompt, or in the gaps of a text.

    python sample.py                                             three texts from out/python-mdlm
    python sample.py --prompt "Return the" --num_samples 2       continue
    python sample.py --prompt "Return ____ of the ____ object."  fill in: each _ is one token, what you gave stays
    python sample.py --prompt FILE:notes.txt --gap "?"           the prompt from a file, another gap mark
    python sample.py --watch --steps 64                          see it denoise in the terminal
    python sample.py --oracle mdlm --steps 4                     no training: the exact denoiser of the toy language
    python sample.py --out_dir out/toy-bd3lm --length 4096       as long as you like: ar and bd3lm forget what is far
    python sample.py --chat                                      talk to a network that has learnt to answer

A sampler is a generator that yields the ids after every step (see the method files): watching needs no hooks.
"""
from dataclasses import dataclass

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    out_dir: str = flag("out/python-mdlm", "folder of the checkpoint, or the file", chat="out/chat-mdlm-sft")
    chat: bool = flag(False, "questions are read line by line, from the terminal or a pipe, and answered")
    oracle: str = flag("", "no checkpoint but the toy language's exact denoiser",
                       ["", "ar", "mdlm", "bd3lm", "pgm", "udlm", "gidd", "duo"])
    prompt: str = flag("", "given text with or without gaps; FILE:path reads it from a file")
    gap: str = flag("_", "the mark in the prompt that stands for one token to fill in")
    num_samples: int = flag(3, "texts", least=1)
    length: int = flag(0, "tokens per text; 0 means the training length, or that of a prompt with gaps", least=0)
    steps: int = flag(128, "steps from noise to text; bd3lm: of each block; ar takes one per token", least=1,
                      chat=64)
    window: int = flag(0, "ar, bd3lm: tokens that are remembered; 0 means the training length", least=0)
    sampler: str = flag("ancestral", "ancestral draws from the model, psi also corrects; the others are for masks",
                        choices=["ancestral", "psi", "first-hitting", "confidence", "semi-ar"], chat="semi-ar")
    decode_block: int = flag(32, "semi-ar: tokens that are opened before the next ones", least=1, chat=8)
    cache: str = flag("none", "semi-ar: old keys and values to go on with", choices=["none", "prefix", "dual"])
    threshold: float = flag(0.0, "semi-ar: open all that is believed this much; 0 follows --steps", least=0, most=1,
                            chat=0.9)
    factor: float = flag(0.0, "semi-ar: open n if (n + 1) (1 - belief) is less; 0 follows --steps", least=0)
    eos_last: bool = flag(False, "semi-ar: the end of a text opens when no word is left to open")
    prompt_guidance: float = flag(1.0, "mdlm: above 1 leans on the prompt; 1 asks once, else twice", least=0, most=100)
    kappa: str = flag("cap", "psi: when to correct", choices=["constant", "cap", "rescale", "loop"])
    eta: float = flag(0.02, "psi: how much is noised again; 0 is ancestral", least=0, most=1)
    tail: str = flag("draw", "the last step draws, or takes the likeliest word given all others", ["draw", "greedy"])
    temperature: float = flag(1.0, "below 1 sharpens every prediction, 0 takes the likeliest token", least=0, most=100,
                              chat=0.0)
    top_p: float = flag(1.0, "draw from the likeliest tokens that hold this much probability", least=0.001, most=1)
    watch: bool = flag(False, "show the text while it denoises")
    json: bool = flag(False, "one JSON object per text, for machines")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps")
    seed: int = flag(1337, "of all draws", least=0, most=10**9)


CONFIG, GIVEN = parse(Config) if __name__ == "__main__" else (None, ())     # before torch, which takes seconds to load

import json  # noqa: E402
import os
import shutil
import sys
import time
import unicodedata
from functools import partial
from pathlib import Path

import torch

import chat
from checkpoint import device_of, restore
from data import BadInput
from data.tokenizer import decode, encode, pieces
from diffusion import ancestral, probabilities
from methods import make_sampler
from oracle import exact


def trajectory(method, denoiser, given, frozen, steps, sampler=ancestral, law=probabilities):
    """The states of a batch of texts from noise to the end. given (B, L) ids, kept where frozen (B, L) is True."""
    z = torch.where(frozen, given, method.prior(given.shape, given.device))                             # (B, L)
    yield z
    yield from method.sample(denoiser, z, frozen, steps, sampler, law)


def generate(method, denoiser, n, length, steps, sampler=ancestral, law=probabilities, device="cpu", given=None,
             frozen=None):
    """n texts from nothing, or around what is `given` (n, length) where `frozen` says so. -> (n, length) ids"""
    given = torch.zeros(n, length, dtype=torch.long, device=device) if frozen is None else given        # (n, length)
    frozen = given.bool() if frozen is None else frozen                                                 # (n, length)
    *_, z = trajectory(method, denoiser, given, frozen, steps, sampler, law)
    return z


class Counted:
    """A denoiser that counts: network calls, and positions at which the head ran."""

    def __init__(self, denoiser):
        self.denoiser, self.calls, self.positions = denoiser, 0, 0
        self.caches = getattr(denoiser, "caches", False)

    def __call__(self, z, t, at=None, **layout):
        self.calls += 1
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


def template(prompt, gap, encoding, length, block_size, endless=False):
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
    if length > block_size and not endless:
        print(f"note: trained on texts of {block_size} tokens; longer ones are a leap for the model", file=sys.stderr)
    rest = length - len(ids)
    return torch.tensor(ids + [0] * rest), torch.tensor(frozen + [False] * rest)                        # (L,), (L,)


def sampler_of(config, method, encoding):
    """The sampler that the flags describe, or BadInput."""
    sampler = make_sampler(config.sampler, method, config.kappa, config.eta, config.tail, config.decode_block,
                           config.cache, config.threshold, config.factor)
    if config.eos_last and (config.sampler != "semi-ar" or end_of_text(encoding) is None):
        raise BadInput("--eos_last goes with --sampler semi-ar, and with tokens that have an end, as --data chat")
    return partial(sampler, last=end_of_text(encoding)) if config.eos_last else sampler


def end_of_text(encoding):
    """The id that ends a text, for encodings that have one (gpt2), else None."""
    return encoding.eot_token if "<|endoftext|>" in encoding.special_tokens_set else None


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


class Screen:
    """--watch: the text in place, given tokens bold, noise dim, what just changed green. Plain lines where there is no
    terminal, or where NO_COLOR or TERM=dumb asks for them. A frame is one write, and leaves no colour switched on.
    steps is 0 where nobody knows how many there will be."""

    def __init__(self, steps=0):
        dumb = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self.live, self.drawn, self.last, self.steps = sys.stdout.isatty() and not dumb, 0, None, steps

    def show(self, step, z, frozen, encoding):
        """z (L,), frozen (L,): one text after `step` steps."""
        changed = torch.zeros_like(frozen) if self.last is None else z != self.last                     # (L,)
        self.last = z
        if not self.live:
            if step % max(1, self.steps // 16) == 0 or step == self.steps:
                print(f"step {step:>4}: {decode(encoding, z.tolist())!r}", flush=True)
            return
        style = lambda i: "1" if frozen[i] else "2" if z[i] >= encoding.n_vocab else "32" if changed[i] else ""
        cells = [(char, style(i)) for i, piece in enumerate(pieces(encoding, z.tolist())) for char in piece]
        size = shutil.get_terminal_size()
        lines = self.wrap(cells, max(20, size.columns - 1))
        if len(lines) > size.lines - 2:                      # the cursor cannot go back further up than the screen
            lines = [*lines[:size.lines - 3], "..."]
        frame = "\n".join([f"step {step}" + (f" of {self.steps}" if self.steps else ""), *lines])
        sys.stdout.write((f"\x1b[{self.drawn}F" if self.drawn else "") + f"\x1b[J{frame}\n")
        sys.stdout.flush()
        self.drawn = len(lines) + 1

    def close(self):
        if self.live:
            sys.stdout.write("\x1b[0m")                      # a frame may have been cut in the middle
            sys.stdout.flush()

    @staticmethod
    def wrap(cells, width):
        """Styled characters to lines of the terminal's width; a new line in the text starts one."""
        lines, line, room = [], "", width
        for char, style in cells:
            char = char if char.isprintable() or char == "\n" else " "      # tabs and escapes would garble the screen
            cost = 0 if char == "\n" else 2 if unicodedata.east_asian_width(char) in "WF" else 1
            if char == "\n" or cost > room:
                lines.append(line)
                line, room = "", width
            if char != "\n":
                line += f"\x1b[{style}m{char}\x1b[0m" if style else char
                room -= cost
        return lines + [line]


def show_json(texts, config, calls, seconds):
    shared = {name: getattr(config, name) for name in ("prompt", "sampler", "kappa", "eta", "tail", "steps",
                                                       "window", "decode_block", "cache", "threshold", "factor",
                                                       "temperature", "top_p", "seed")}
    for text, ids in texts:
        print(json.dumps({"text": text, "ids": ids, **shared, "network_calls": calls, "seconds": round(seconds, 3)}))


def main(config):
    device = device_of(config.device)
    model = exact(config.oracle) if config.oracle else restore(config.out_dir, device)
    name, encoding = model.config.method, model.encoding
    config = chat.settled(config, name)
    sampler = sampler_of(config, name, encoding)
    endless = hasattr(model.method, "window")                # ar and bd3lm
    if endless:
        model.method.stop = end_of_text(encoding)
        model.method.window = window_of(config.window or model.config.block_size, model.method)
    torch.manual_seed(config.seed)
    denoiser, began = Counted(model.denoiser), time.time()
    law = partial(probabilities, temperature=config.temperature, top_p=config.top_p)
    prompt = read_prompt(config.prompt)
    if config.chat:
        screen = lambda: Screen() if config.watch and not config.json else None
        return chat.talk(model, denoiser, config, sampler, law, prompt, device, screen)
    given, frozen = template(prompt, config.gap, encoding, config.length, model.config.block_size, endless)
    given, frozen = (a.to(device).expand(config.num_samples, -1) for a in (given, frozen))              # (B, L) each
    guided = chat.guided(model, denoiser, frozen, config)
    blocks = given.shape[1] // getattr(model.method, "block", given.shape[1])
    screen = Screen(given.shape[1] if name == "ar" else config.steps * blocks)
    try:
        for step, z in enumerate(trajectory(model.method, guided, given, frozen, config.steps, sampler, law)):
            if config.watch and not config.json:
                screen.show(step, z[0], frozen[0], encoding)
    finally:
        screen.close()
    stop = model.method.stop if endless else None
    rows = [until(row, fixed, stop) for row, fixed in zip(z.tolist(), frozen.tolist())]
    texts = [(decode(encoding, row, config.gap), row) for row in rows]
    if config.json:
        return show_json(texts, config, denoiser.calls, time.time() - began)
    for i, (text, _) in enumerate(texts):
        print(f"{'-' * 8} text {i + 1}\n{text}")
    print(f"{'-' * 8} {len(texts)} x {given.shape[1]} tokens, {name}, {config.sampler}: {denoiser.calls} network "
          f"calls, {denoiser.positions:,} positions scored, {time.time() - began:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    with one_line_errors():
        main(CONFIG)
