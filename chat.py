"""
Talk to a network that has learnt to answer (train.py --sft), and measure how well it does. `sample.py --chat` is the
way in; data/chat.py has the texts.

    prompt      [user] question [assistant] answer [user] question [assistant]        given; all after it is masks
    answer      the text up to the first [end]; masks to the length of training, which saw answers filled up with [end]
    guidance    (36) of guidance.py between log x_theta and the same with the prompt masked out
    worth       -log p(answer | prompt) <= E_k E_z sum_l [z_l = m] (n/k) cross-entropy, (6) of masked.py on the n
                tokens of the answer; the mean of some draws, whose k are spread evenly over 1 .. n

Guidance asks twice and leans on what the prompt changed (LLaDA, arXiv:2502.09992; SMDM, 2410.18514: their w is
gamma - 1). It needs no labels and no training of its own: pretraining has shown every part of a text missing.

The trap of [end]: most of what a network answers is [end], and it is surest of the last ones. Where the surest masks
open first and all are candidates at once, the ends come first, and words must fit in before them. `--decode_block`
lets only the next few be candidates; `--eos_last` opens an [end] when no word is left to open. README has figures.
"""
import sys
import time
from dataclasses import replace

import torch

from checkpoint import as_json
from data import BadInput
from data.chat import MARKS, ids_of
from data.tokenizer import decode, encode
from guidance import mix
from masked import Absorbing

FULL = ("mdlm", "md4", "radd")                               # masks, and everything may look at everything


# ---- the answer to a prompt

def template(messages, encoding, length):
    """What was said, ending in a question, as the beginning of a text: given (L,) ids, frozen (L,) bool. A quarter of
    the text is for the answer: the oldest questions are forgotten, with their answers, until there is so much room."""
    most = length - max(1, length // 4)
    while len(ids := ids_of(encoding, messages)) > most and len(messages) > 1:
        messages = messages[2:]
    if len(ids) > most:
        raise BadInput(f"the question has {len(ids)} tokens with its marks, and {most} leave room for an answer: "
                       f"shorten it")
    rest = length - len(ids)
    return torch.tensor(ids + [0] * rest), torch.arange(length) < len(ids)                              # (L,), (L,)


def answer(row, start, encoding):
    """The words of an answer that begins at `start`: up to the first mark. row (L,) ids -> text"""
    marks = {encoding.encode_single_token(mark) for mark in MARKS}
    ids = row.tolist()[start:]
    stop = next((i for i, id in enumerate(ids) if id in marks), len(ids))
    return decode(encoding, ids[:stop]).strip()


def finished(z, frozen, mask, end):
    """True for texts in which no mask stands before the first [end] that is not given. z, frozen (B, L) -> (B,)"""
    before = ((z == end) & ~frozen).cumsum(-1) == 0                                                     # (B, L)
    return ~((z == mask) & before).any(-1)                                                              # (B,)


class PromptGuided:
    """u + gamma (c - u): a denoiser that leans on its prompt. prompt (B, L) bool; gamma 1 is the denoiser itself."""

    def __init__(self, denoiser, prompt, mask, gamma):
        self.denoiser, self.prompt, self.mask, self.gamma = denoiser, prompt, mask, gamma

    def __call__(self, z, t, at=None):
        c = self.denoiser(z, t, at=at)                                                                  # (N, V)
        u = self.denoiser(z.masked_fill(self.prompt, self.mask), t, at=at)                              # (N, V)
        return mix(c, u, self.gamma)                                                                    # (N, V)


def guided(model, denoiser, prompt, config, window=None):
    """The denoiser, guided if --guidance is not 1. BadInput where a prompt cannot be masked out."""
    if config.guidance == 1:
        return denoiser
    if model.config.method not in FULL or config.cache != "none" or window:
        raise BadInput(f"--guidance without a --label masks the prompt out and asks again: it is for "
                       f"{', '.join(FULL)}, without --cache, and not beyond the length of training")
    return PromptGuided(denoiser, prompt, model.method.process.mask, config.guidance)


def settled(config, name):
    """The flags of the sampler. The default of a chat is semi-ar; bd3lm, ar and the rest answer as they write."""
    if not config.chat or name in FULL or config.sampler != "semi-ar":
        return config
    return replace(config, sampler="ancestral", cache="none", threshold=0.0, factor=0.0, eos_last=False)


def reply(model, denoiser, given, frozen, config, sampler, law, show=None):
    """Answers to a batch of prompts; ends when all have ended. given, frozen (B, L) -> (B, L) ids"""
    method, end = model.method, model.encoding.eot_token
    denoiser = guided(model, denoiser, frozen, config)
    # Masks that have opened stay so, unless the sampler takes words back: then an end is none until the last step.
    stays = (isinstance(getattr(method, "process", None), Absorbing) and config.tail == "draw"
             and config.sampler in ("semi-ar", "ancestral", "first-hitting", "confidence"))
    z = torch.where(frozen, given, method.prior(given.shape, given.device))                             # (B, L)
    for step, z in enumerate(method.sample(denoiser, z, frozen, config.steps, sampler, law), 1):
        if show:
            show(step, z[0])
        if stays and finished(z, frozen, method.process.mask, end).all():
            break
    return z


# ---- a conversation

class Watched:
    """--watch: the answer alone while it denoises, on a screen of sample.py; blank behind its first [end]."""

    def __init__(self, screen, start, encoding):
        self.screen, self.start, self.encoding = screen, start, encoding
        self.blank = int(encode(encoding, " ")[0])

    def __call__(self, step, z):
        words = z[self.start:]                                                                          # (n,)
        ended = (words == self.encoding.eot_token).cumsum(0) > 0                                        # (n,)
        self.screen.show(step, words.masked_fill(ended, self.blank), torch.zeros_like(ended), self.encoding)


def questions(prompt, echo):
    """The prompt alone, or what is typed, line after line, to an empty line, /quit or the end of the input."""
    human = sys.stdin.isatty()
    while True:
        if human and not prompt:
            print("> ", end="", flush=True)
        try:
            line = prompt or sys.stdin.readline().strip()
        except UnicodeDecodeError:
            raise BadInput("what comes in is not UTF-8 text") from None
        if line in ("", "/quit"):
            return
        if echo and not human and not prompt:
            print(f"> {line}")                               # so that the output of a pipe reads as a conversation
        yield line
        if prompt:
            return


def talk(model, denoiser, config, sampler, law, prompt, device, screen):
    """Answers what it is asked, and remembers what was said as far as there is room. screen(): a new one, or None"""
    if not set(MARKS) <= model.encoding.special_tokens_set:
        raise BadInput("this network knows no marks of who speaks: train one with --data chat, then with --sft")
    length, said, n, began = config.length or model.config.block_size, [], 0, time.time()
    for question in questions(prompt, not config.json):
        try:
            given, frozen = template([*said, question], model.encoding, length)                         # (L,), (L,)
        except BadInput as error:                            # too long, or a character that it never saw
            if prompt:
                raise
            print(f"({error})", file=sys.stderr, flush=True)
            continue
        start, calls, asked, shown = int(frozen.sum()), denoiser.calls, time.time(), screen()
        show = shown and Watched(shown, start, model.encoding)
        try:
            batch = (a[None].to(device) for a in (given, frozen))                                       # (1, L) each
            row = reply(model, denoiser, *batch, config, sampler, law, show)[0]                         # (L,)
        finally:
            if shown:
                shown.close()
        words, n = answer(row, start, model.encoding), n + 1
        said += [question, words]
        print(as_json({"prompt": question, "text": words, "network_calls": denoiser.calls - calls,
                       "seconds": round(time.time() - asked, 3)}) if config.json else words, flush=True)
    print(f"{'-' * 8} {n} answer{'s' * (n != 1)}, {model.config.method}, {config.sampler}: {denoiser.calls} network "
          f"calls, {denoiser.positions:,} positions scored, {time.time() - began:.1f} s", file=sys.stderr)


# ---- what it has learnt

@torch.no_grad()
def worth(method, denoiser, x, frozen, draws):
    """The bound on -log p(answer | prompt) of each text, from `draws` draws of noise each, spread evenly over the
    numbers of masks. x, frozen (B, L) -> (B,) nats, (B,) standard errors, too large since draws are spread"""
    nats = torch.stack([method.nelbo(denoiser, row.expand(draws, -1), given.expand(draws, -1)).double().sum(-1)
                        for row, given in zip(x, frozen)])                                              # (B, draws)
    return nats.mean(-1), nats.std(-1) / draws ** 0.5


def answers(model, denoiser, x, frozen, config, sampler, law):
    """The answers to the prompts of x, in batches of prompts of one length, as in a chat. -> list of B texts"""
    starts, said = frozen.sum(-1), [None] * len(x)                                                      # (B,)
    for start in starts.unique():
        for rows in (starts == start).nonzero()[:, 0].split(config.batch_size):                         # (b,)
            z = reply(model, denoiser, x[rows], frozen[rows], config, sampler, law)                     # (b, L)
            for i, row in zip(rows.tolist(), z):
                said[i] = answer(row, int(start), model.encoding)
    return said


def choices(chats, i, fits, n=4):
    """The right answer of chat i, then n - 1 others: of the next chats of its kind, if they say something else."""
    kind, (*_, right) = chats[i]
    others = dict.fromkeys(said[-1] for k, said in [*chats[i + 1:], *chats[:i]] if k == kind and said[-1] != right)
    return [right, *[said for said in others if fits(said)][:n - 1]]


def chosen(model, denoiser, messages, offered, length, draws, seed, device):
    """Multiple choice by likelihood, on the same noise: the number of the likeliest of the answers offered."""
    start, nats = len(ids_of(model.encoding, messages[:-1])), []
    for said in offered:
        ids = ids_of(model.encoding, [*messages[:-1], said])
        x = torch.tensor([ids + [model.encoding.eot_token] * (length - len(ids))], device=device)       # (1, L)
        torch.manual_seed(seed)
        frozen = (torch.arange(length, device=device) < start)[None]                                    # (1, L)
        nats.append(worth(model.method, denoiser, x, frozen, draws)[0].item())
    return min(range(len(nats)), key=nats.__getitem__)


def examine(model, denoiser, corpus, config, sampler, law, device):
    """What it has learnt, from `num_samples` questions of each split -> rows, one for each kind and one for all:
    (kind, held-out questions, share of answers right to the letter, share of right choices among four; questions of
    training, share of answers right)"""
    marks = {}
    for split in ("val", "train"):
        rows = corpus.spread(split, config.num_samples)                                                 # (m,)
        x, frozen, _ = corpus.chosen(split, rows)                                                       # (m, L) each
        torch.manual_seed(config.seed)
        said = answers(model, denoiser, x.to(device), frozen.to(device), config, sampler, law)
        for i, words in zip(rows.tolist(), said):
            kind, messages = corpus.chats[split][i]
            right = {split: words == messages[-1].strip()}
            if split == "val":
                fits = lambda other: len(ids_of(corpus.encoding, [*messages[:-1], other])) < corpus.block_size
                offered = choices(corpus.chats["val"], i, fits)
                right["choice"] = not chosen(model, model.denoiser, messages, offered, corpus.block_size, config.draws,
                                             config.seed, device)
            for name in (kind, "all"):
                for what, is_right in right.items():
                    marks.setdefault(name, {"val": [], "choice": [], "train": []})[what].append(is_right)
    share = lambda marks: sum(marks) / len(marks) if marks else None
    order = sorted(marks, key=lambda name: (name == "all", name))
    return [(name, len(m["val"]), share(m["val"]), share(m["choice"]), len(m["train"]), share(m["train"]))
            for name, m in ((name, marks[name]) for name in order)]
