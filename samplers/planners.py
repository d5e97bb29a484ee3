"""
Chapter 24. Planners: samplers that ask which words are wrong, and change those.

x_theta, the leave-one-out distribution, contains a planner. Let z_l be clean if noise has not
touched it; then by Bayes' rule

    p(z_l is noise | z) = b_t(z_l) / (alpha_t x_theta_l(z_l) + b_t(z_l))                      (24.8)

with the exact denoiser the exact planner, without a second network. Under masks it is 1 at masks
and 0 at words. But words that were drawn at once may not fit, and x_theta_l(z_l), what all others
say of the word, tells.

    ddpd      choose words by (24.8), and draw them from x_theta (2410.06264): where noise makes
              wrong words. In many steps that is the reverse process. In few, a step changes as
              many words as should change on average, and the likeliest to be noise
    p2        draw all masks; of all words, new and old, keep those of the highest x_theta_l(z_l),
              old ones by its power --trust, and mask the rest again (2502.03540). With --trust 0 no
              word is masked again; top-k (remasking.py) compares what words had when drawn
    edit      as LLaDA2.1: all masks of confidence above a threshold open, and words change, or are
              masked again, where another word has more than a second threshold
    proseco   before every few steps, fill in all masks, and put in the likeliest words in place of
              those that are there already, given this text (2602.11590)

`ddpd` and `p2` may ask a head that was trained to know wrong words, (24.9) of methods/planner.py,
in place of x_theta: that of the model, or of --planner, which takes a second call in each step.

The last three do not draw from the model: they prefer likely words. They ask the network about
words that it sees. The oracle and networks that learned from wrong words (gidd) answer with
x_theta; one that was trained on masks alone never learned to, and mostly repeats the word.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion import Sampler, categorical, draw_from, probabilities
from flags import UserError, flag
from samplers.base import MaskSampler, highest, masks_to_open, scatter_at


def noise_probability(process, own, z, t):
    """(24.8). own (B, L): x_theta_l(z_l); t (B, 1) float64 -> (B, L)"""
    noise = process.b(t, z)  # (B, L)
    return noise / (process.alpha(t) * own + noise)  # (B, L)


def round_at_random(x):
    """One of the two whole numbers around x, with x as the mean. -> shape of x"""
    return (x + torch.rand_like(x)).floor()


def own_probability(logits, words):
    """The probability of `words` (N,) under the softmax of logits (N, V). -> (N,)"""
    return logits.double().softmax(-1).gather(-1, words[:, None])[:, 0]  # (N,)


@dataclass(eq=False)
class Planned(Sampler):
    """A sampler that may ask a trained head which words are wrong."""
    planner: str = flag("", "folder of a run of --method planner that says which words are wrong; "
                        "empty: the model itself, by its head if it has one, else by x_theta; a "
                        "second network takes as many calls again, which are not counted")
    judge: object = None  # the model with the head, from `prepare`; None: x_theta says it

    def prepare(self, model):
        judge = model.beside("--planner", self.planner) if self.planner else model
        if self.planner and not judge.method.plans:
            raise UserError(f"--planner {self.planner} is a run of {judge.method.name}, which has "
                            "no head for wrong words: train one with --method planner")
        ours, theirs = model.method.process, judge.method.process
        if (type(ours), vars(ours)) != (type(theirs), vars(theirs)):
            raise UserError(f"--planner {self.planner} knows other noise than that of "
                            f"{model.method.name}: train it with another --errors")
        self.judge = judge if judge.method.plans else None

    def log_odds(self, logits, z, t, at):
        """Of the words at `at` (B, L): that they are wrong, by the head. logits: of the model for
        this call. None: there is no head. -> (N,)"""
        if self.judge is None:
            return None
        if self.planner:
            logits = self.judge.denoiser(z, t, at=at)  # (N, V)
        return logits[:, self.judge.method.n_tokens].double()  # (N,)


@dataclass(eq=False)
class DDPD(Planned):
    """--sampler ddpd: changes the words that are most probably noise."""
    greedy: bool = flag(False, "the words of the highest probability, in place of a draw by it")

    def fits(self, method):
        if method.process is None or not method.revises_text or method.samplers is not None:
            return f"plans which words are wrong, and {method.name} has none that noise made wrong"
        if method.process.mask is not None:
            return f"needs noise that makes wrong words only, and {method.name} has masks too"

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=z.device)
        free = ~frozen  # (B, L)
        for t, s in zip(times[:-1], times[1:]) if free.any() else ():
            t, s = t.expand(len(z), 1), s.expand(len(z), 1)  # (B, 1) each
            logits = denoiser(z, t.float(), at=free)  # (N, V)
            odds, logits = self.log_odds(logits, z, t.float(), free), logits[:, :process.n_tokens]
            if odds is None:
                own = scatter_at(free, own_probability(logits, z[free]), 1.0)  # (B, L)
                noise = noise_probability(process, own, z, t).masked_fill(~free, 0)  # (B, L)
            else:
                noise = scatter_at(free, odds.sigmoid())  # (B, L)
            share = (process.alpha(s) - process.alpha(t)) / (1 - process.alpha(t))  # (B, 1)
            k = round_at_random(share * noise.sum(-1, keepdim=True))  # (B, 1) words to change
            race = noise if self.greedy else noise / torch.empty_like(noise).exponential_()
            at = highest(race, k) & (noise > 0)  # (B, L)
            words, _ = draw_from(to_probs, logits[at[free]])  # (n,)
            z = z.masked_scatter(at, words)  # (B, L)
            yield z


@dataclass(eq=False)
class P2(MaskSampler, Planned):
    """--sampler p2: of all words, new and old, keeps those that the others or the head call right.
    """
    trust: float = flag(1.0, "the power of an old word's probability: 0 never masks it again",
                        least=0)
    draws_from_model, rewrites = False, True

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        free, L = ~frozen, z.shape[1]  # (B, L)
        n = (z == process.mask).sum(-1, keepdim=True)  # (B, 1)
        for left in range(steps - 1, -1, -1):
            masked = z == process.mask  # (B, L)
            if not masked.any():
                return
            t = masked.sum(-1, keepdim=True) / L  # (B, 1)
            logits = denoiser(z, t, at=free)  # (N, V)
            odds, logits = self.log_odds(logits, z, t, free), logits[:, :process.n_tokens]
            drawn, _ = draw_from(to_probs, logits[masked[free]])  # (n,)
            filled = z.masked_scatter(masked, drawn)  # (B, L)
            log_p = own_probability(logits, filled[free]).log()  # (N,)
            if odds is not None:
                log_p = torch.where(masked[free], log_p, F.logsigmoid(-odds))  # (N,)
            log_p = scatter_at(free, log_p, torch.inf)  # (B, L)
            score = torch.where(masked | frozen, log_p, self.trust * log_p)  # (B, L)
            z = filled.masked_fill(~highest(score, L - n * left // steps), process.mask)  # (B, L)
            yield z


# ---- words that change

@dataclass(eq=False)
class Editor(Sampler):
    """A sampler for networks that read masks, and may change the words that they see."""
    draws_from_model, rewrites = False, True

    def fits(self, method):
        if method.process is None or method.process.mask is None or method.samplers is not None:
            return f"opens masks and changes words, and {method.name} has no masks to open"


def open_confident(score, threshold, left):
    """The masks of more confidence than the threshold, and as many as the steps ask for at least.

    score (B, L): the confidence at masks, -1 elsewhere -> (B, L) bool
    """
    n = (score >= 0).sum(-1, keepdim=True)  # (B, 1)
    return ((score > threshold) | highest(score, masks_to_open(n, left))) & (score >= 0)  # (B, L)


@dataclass(eq=False)
class Edit(Editor):
    """--sampler edit: opens masks above a threshold, and edits words below another."""
    open_above: float = flag(0.9, "open masks of more confidence than this, whatever --steps says",
                             least=0, most=1)
    edit_above: float = flag(0.9, "edit a word where another one has more probability than this",
                             least=0, most=1)
    again: bool = flag(False, "mask the word again, in place of the other word")

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        free = ~frozen  # (B, L)
        for left in range(steps, 0, -1):
            masked = z == process.mask  # (B, L)
            if not masked.any():
                return
            t = masked.sum(-1, keepdim=True) / z.shape[1]  # (B, 1)
            logits = denoiser(z, t, at=free)[:, :process.n_tokens]  # (N, V)
            drawn, confidence = draw_from(to_probs, logits)  # (N,) each
            top, likeliest = logits.double().softmax(-1).max(-1)  # (N,) each
            score = scatter_at(free, confidence, -1.0).masked_fill(~masked, -1.0)  # (B, L)
            opens = open_confident(score, self.open_above, left)  # (B, L)
            other = (likeliest != z[free]) & (top > self.edit_above)  # (N,)
            words = ~masked & masked.any(-1, keepdim=True)  # (B, L) of texts that go on
            edits = torch.zeros_like(free).masked_scatter(free, other) & words  # (B, L)
            new = likeliest if not self.again else torch.full_like(likeliest, process.mask)  # (N,)
            if self.again and left == 1:  # nothing could open it any more
                edits = torch.zeros_like(edits)  # (B, L)
            z = torch.where(opens, z.masked_scatter(free, drawn), z)  # (B, L)
            z = torch.where(edits, z.masked_scatter(free, new), z)  # (B, L)
            yield z


@dataclass(eq=False)
class ProSeCo(Editor):
    """--sampler proseco: opens masks at random, and corrects the words between the steps."""
    every: int = flag(2, "steps between corrections", least=1)

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        free = ~frozen  # (B, L)
        for left in range(steps, 0, -1):
            masked = z == process.mask  # (B, L)
            if not masked.any():
                return
            n = masked.sum(-1, keepdim=True)  # (B, 1)
            logits = denoiser(z, n / z.shape[1], at=masked)[:, :process.n_tokens]  # (N, V)
            filled = z.masked_scatter(masked, categorical(to_probs(logits)))  # (B, L)
            order = torch.rand(z.shape, device=z.device).masked_fill(~masked, -1)  # (B, L)
            opens = highest(order, masks_to_open(n, left))  # (B, L)
            words = free & ~masked & (n > 0)  # (B, L) of texts that go on
            clean = torch.zeros(len(z), 1, device=z.device)  # (B, 1)
            if left % self.every == 1 % self.every and words.any():  # the last step is one of them
                right = denoiser(filled, clean, at=words)[:, :process.n_tokens].argmax(-1)  # (N,)
                filled = filled.masked_scatter(words, right)  # (B, L)
            z = torch.where(opens | words, filled, z)  # (B, L)
            yield z
