"""
Texts from a method and a sampler: from noise to text, in batches, with the network calls counted.

    trajectory(...)           the states of a batch, from noise to text
    generate(...)             their end: a batch of texts
    writer_of(config, ...)    what `trajectory` needs besides the texts, as the flags say
    generate_in_batches(...)  many texts, yielded as they are finished

`method.sample` is a generator that yields the ids after every step, so watching, counting and
stopping need no hooks. Texts with a prompt have given tokens: given (B, L), where frozen (B, L).
"""
import time
from dataclasses import dataclass

import torch

from data.tokenizer import end_of_text
from diffusion import Wrapper, ancestral, probabilities
from flags import UserError
from samplers import choose_sampler, sampler_of, to_probs_of
from samplers.guidance import guide, guide_by_prompt
from samplers.sides import cache_source
from samplers.sliding_window import count_windows, slide_window, stride_of


def trajectory(method, denoiser, given, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, stride=1, end=None):
    """Yields z (B, L): noise, then the state after each step. given (B, L) ids where frozen (B, L).

    window: tokens that the network sees at once, None for all. Methods that write from left to
            right slide it by themselves; others write one window after the other, `stride` new
            tokens each time
    end: the id at which a text ends, for methods that write from left to right
    """
    z = torch.where(frozen, given, method.prior(given.shape, given.device))  # (B, L)
    yield z
    if method.left_to_right:
        yield from method.sample(denoiser, z, frozen, steps, sampler, to_probs, window, end)
    elif window is None:
        yield from method.sample(denoiser, z, frozen, steps, sampler, to_probs)
    else:
        sample = lambda z, frozen: method.sample(denoiser, z, frozen, steps, sampler, to_probs)
        yield from slide_window(sample, z, frozen, window, stride)


def prepend_bos(method, given, frozen):
    """Give the token with which all texts of some published networks begin. -> given, frozen"""
    if method.first_token is None or frozen[:, 0].all():
        return given, frozen
    begins = torch.arange(given.shape[1], device=given.device).expand_as(given) == 0  # (B, L)
    return torch.where(begins & ~frozen, method.first_token, given), frozen | begins  # (B, L) each


def generate(method, denoiser, n, length, steps, sampler=ancestral, to_probs=probabilities,
             device="cpu", given=None, frozen=None):
    """n texts from nothing, or around the tokens `given` where `frozen`. -> (n, length) ids"""
    if frozen is None:
        given = torch.zeros(n, length, dtype=torch.long, device=device)  # (n, length)
        frozen = given.bool()  # (n, length)
    given, frozen = prepend_bos(method, given, frozen)  # (n, length) each
    *_, z = trajectory(method, denoiser, given, frozen, steps, sampler, to_probs)
    return z  # (n, length)


class CallCounter(Wrapper):
    """A denoiser that counts network calls, texts that they read, and positions that they score."""

    def __init__(self, denoiser):
        super().__init__(denoiser)
        self.fixed_shapes = False            # `at` stays boolean, so that it can be counted
        self.calls = self.texts = self.positions = 0

    def __call__(self, z, t, at=None, **layout):
        self.calls += 1
        self.texts += len(z) if at is None else int(at.any(-1).sum())
        self.positions += z.numel() if at is None else int(at.sum())
        return self.denoiser(z, t, at=at, **layout)  # (N, V)

    def explained(self, writer, length):
        """What texts of `length` tokens cost, and why calls may be fewer than steps."""
        process, costs = writer.method.process, writer.costs(whole=True).items()
        counted = ", ".join([str(self), *(f"{name.replace('_', ' ')} {n}" for name, n in costs)])
        if process is None:
            return counted
        masks = process.text_stays and process.mask is not None
        what = "mask opens" if masks else "word changes"
        steps = f"{writer.steps} step{'s' * (writer.steps != 1)}"
        return f"{counted} ({length} tokens in {steps}; no call where no {what})"

    def __str__(self):
        return (f"{self.calls} network call{'s' * (self.calls != 1)}, {self.positions:,} "
                f"position{'s' * (self.positions != 1)} scored")


@dataclass
class Writer:
    """How the texts of a model are written: what `trajectory` needs besides the texts."""
    method: object
    denoiser: object
    sampler: object
    to_probs: object
    steps: int
    window: int = None
    stride: int = 1
    end: int = None

    def trajectory(self, given, frozen):
        return trajectory(self.method, self.denoiser, given, frozen, self.steps, self.sampler,
                          self.to_probs, self.window, self.stride, self.end)

    def costs(self, whole=False):
        """What a batch, or all texts, took besides calls of the network. -> {name: number}"""
        return self.sampler.costs(whole) if self.sampler.costs else {}

    def count_states(self, length):
        """How many states a text of `length` tokens has after the first, at most."""
        slides = self.window is not None and not self.method.left_to_right
        part = min(length, self.window) if slides else length
        states = self.sampler.count_states(self.method.block_length or part, self.steps)
        parts = count_windows(length, self.window, self.stride) if slides else 1
        return parts * self.method.count_states(part, states)


def writer_of(config, model, denoiser, frozen, classifier=None, window=0, stride=0):
    """The Writer that the flags describe, guided as they say; UserError if they do not fit.

    frozen (L,): the given tokens of all texts; classifier: what load_classifier returns
    window: tokens that a method which writes from left to right sees; 0: the length of training
    stride: new tokens per window, for all others; 0: half a window; None: one window for any text
    """
    method, L, config = model.method, model.config.block_size, choose_sampler(config, model, frozen)
    sampler = sampler_of(config, model)
    if config.compile and sampler.uses_cache:
        raise UserError("--compile is for networks that read whole texts: leave out --cache")
    guided = bool(config.label or config.guidance != 1)
    denoiser = cache_source(denoiser, frozen, guided)
    writer = Writer(method, denoiser, sampler, to_probs_of(config), config.steps)
    if method.left_to_right:
        writer.window, writer.end = window or L, end_of_text(model.encoding)
        if writer.window % method.block_length:
            raise UserError(f"--window {writer.window} must be a multiple of the block of "
                            f"{method.block_length} tokens, and at least that")
    elif method.end_id is not None:
        writer.end = method.end_id
    elif stride is not None:
        writer.stride = stride_of(stride, L)
        writer.window = L if len(frozen) > L else None
    writer.denoiser, writer.sampler = guide(config, model, denoiser, sampler, classifier,
                                            writer.window, frozen.device)
    if not config.label:
        writer.denoiser = guide_by_prompt(config, method, writer.denoiser, sampler, frozen[None],
                                          writer.window)
    return writer


def truncate_at_eos(row, frozen, end):
    """The ids of a text, a list, up to the first end of text that was drawn."""
    drawn = [i for i, id in enumerate(row) if id == end and not frozen[i]]
    return row[:drawn[0]] if drawn else row


def finished_texts(z, frozen, end, block_length):
    """Texts that drew their end and have left the batch, filled up with it. -> (B,) bool

    z, frozen (B, L). In the last block a sampler may still take the end back.
    """
    if end is None:
        return torch.zeros(len(z), dtype=torch.bool)  # (B,)
    at_the_end = ((z == end) & ~frozen).flip(-1).cumprod(-1).sum(-1)  # (B,) ends
    return at_the_end > block_length  # (B,)


def in_order_of_completion(states, frozen, end=None, block_length=None, viewers=()):
    """The texts of a batch as they are finished: yields (number in the batch, ids).

    viewers: objects whose show(step, z) sees every state. If there are any, all texts come at the
    end, so that output does not interleave.
    """
    waiting = dict.fromkeys(range(len(frozen)))
    for step, z in enumerate(states):
        for viewer in viewers:
            viewer.show(step, z)
        over = finished_texts(z, frozen, end, block_length).tolist()
        for i in [i for i in waiting if over[i] and not viewers]:
            del waiting[i]
            yield i, z[i].tolist()
    for i in waiting:
        yield i, z[i].tolist()


def generate_in_batches(writer, counter, given, frozen, n, size, seed, viewers=()):
    """n texts, `size` at a time. Yields (number from 1 on, ids, costs of the batch so far).

    given, frozen (L,): what all texts begin with; counter: the CallCounter inside writer.denoiser
    viewers: see in_order_of_completion; their close() ends a batch, whatever happens
    """
    for first in range(0, n, size):
        batch = [a.expand(min(size, n - first), -1) for a in (given, frozen)]  # (B, L) each
        calls, began = counter.calls, time.time()
        torch.manual_seed(seed + 1_000_003 * first)
        end = writer.end if writer.method.left_to_right else None  # the others end all at once
        texts = in_order_of_completion(writer.trajectory(*batch), batch[1], end,
                                       writer.method.block_length, viewers)
        try:
            for i, row in texts:
                yield first + i + 1, row, {"network_calls": counter.calls - calls,
                                           **writer.costs(),
                                           "seconds": round(time.time() - began, 3)}
        finally:
            for viewer in viewers:
                viewer.close()
