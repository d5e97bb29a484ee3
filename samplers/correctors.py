"""
Chapters 3, 5 and 7. Correctors: a sampler writes a text, and then words are drawn again.

    greedy         the last step takes the likeliest word at each token, given all others (Duo)
    gibbs          draw one word anywhere from p(x_l | all others), many times
    self-correct   draw all words at temperature 0.1, and of those that change put in the one of
                   highest confidence, until nothing improves (GIDD, arXiv:2503.04482)
    informed       draw the word again whose log-probability exceeds that of the best other word by
                   least, or falls short by most, many times (2407.21243, 2605.22765)

Only `gibbs` keeps the model's distribution: it is a Gibbs sampler, so it can run forever, and it
repairs what a fast sampler got wrong. `self-correct` moves to a likelier text nearby. `informed`
looks at the words to choose where to draw, which favors texts without doubtful words. x_theta at
t = 0 is p(x_l | all others): under masks with x_l masked, under other noise with the text as it is.
"""
from dataclasses import dataclass

import torch

from diffusion import categorical, probabilities
from flags import flag
from samplers.base import Corrector, highest, scatter_at

SHARPENED = 0.1  # self-correct: the temperature of its draws
PATIENCE = 32  # self-correct: rounds without improvement, after which a text is done


@dataclass(eq=False)
class Greedy(Corrector):
    """--corrector greedy: takes the likeliest words, given all others, as the last of the steps.

    They are the argmax of x_theta, the leave-one-out distribution, at t = 0. That of p(x | z) would
    keep all words: near t = 0 a token's own evidence has odds of V / t. The network predicts what
    the other tokens say of each word, and so proofreads. The entropy of the texts falls: report it
    beside their likelihood.
    """
    corrects_noise, draws_from_model = True, False

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        if steps > 1:
            for z in self.sampler(process, denoiser, z, frozen, steps - 1, to_probs):
                yield z
        t = torch.full((len(z), 1), 0.0 if steps > 1 else 1.0, device=z.device)  # (B, 1)
        if not frozen.all():
            words = denoiser(z, t, at=~frozen)[:, :process.n_tokens].argmax(-1)  # (N,)
            yield z.masked_scatter(~frozen, words)  # (B, L)


def logits_given_others(process, denoiser, z, at):
    """log p(x_l | all others) at the tokens `at` (B, L), at most one per text. -> (N, n_tokens)"""
    hidden = z if process.mask is None else z.masked_fill(at, process.mask)  # (B, L)
    t = torch.zeros(len(z), 1, device=z.device)  # (B, 1)
    return denoiser(hidden, t, at=at)[:, :process.n_tokens]  # (N, n_tokens)


class InRounds(Corrector):
    """A corrector that changes a complete text `rounds` times: `correct` yields it after each."""

    def count_states(self, length, steps):
        return self.sampler.count_states(length, steps) + self.rounds

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        for z in self.sampler(process, denoiser, z, frozen, steps, to_probs):
            yield z
        if not frozen.all():
            yield from self.correct(process, denoiser, z, frozen, to_probs)


@dataclass(eq=False)
class Gibbs(InRounds):
    """--corrector gibbs: draws one word of each text again, anywhere, `rounds` times."""
    rounds: int = flag(32, "words to draw again", least=1)

    def correct(self, process, denoiser, z, frozen, to_probs):
        for _ in range(self.rounds):
            order = torch.rand(z.shape, device=z.device).masked_fill(frozen, -1)  # (B, L)
            at = highest(order, 1) & ~frozen  # (B, L)
            p = to_probs(logits_given_others(process, denoiser, z, at))  # (N, n_tokens)
            z = z.masked_scatter(at, categorical(p))  # (B, L)
            yield z


@dataclass(eq=False)
class SelfCorrect(InRounds):
    """--corrector self-correct: puts in the most confident new word, until nothing improves.

    It needs a network that was trained on wrong words: one that was trained on masks alone trusts
    every word that it sees. A text is done when for PATIENCE rounds no larger share of its words
    has been their own likeliest word.
    """
    rounds: int = flag(128, "words to replace at most", least=1)
    corrects_noise, draws_from_model = True, False

    def correct(self, process, denoiser, z, frozen, to_probs):
        free, t = ~frozen, torch.full((len(z), 1), 0.01, device=z.device)  # (B, L), (B, 1)
        best = torch.full((len(z),), -1.0, device=z.device)  # (B,) share of words
        waited = torch.zeros(len(z), device=z.device)  # (B,) rounds since then
        for _ in range(self.rounds):
            logits = denoiser(z, t, at=free)[:, :process.n_tokens]  # (N, n_tokens)
            likeliest = (logits.argmax(-1) == z[free]).float()  # (N,)
            share = scatter_at(free, likeliest).sum(-1) / free.sum(-1).clamp(min=1)  # (B,)
            waited = torch.where(share > best, 0, waited + 1)  # (B,)
            best = share.maximum(best)  # (B,)
            if (waited >= PATIENCE).all():
                return
            p = probabilities(logits, SHARPENED)  # (N, n_tokens)
            new = categorical(p)  # (N,)
            gain = p.gather(-1, new[:, None])[:, 0].masked_fill(new == z[free], 0)  # (N,)
            gain = scatter_at(free, gain)  # (B, L)
            change = highest(gain, 1) & (gain > 0) & (waited < PATIENCE)[:, None]  # (B, L)
            z = torch.where(change, z.masked_scatter(free, new), z)  # (B, L)
            yield z


def margins(logits, words):
    """log p of `words` (N,) less that of the likeliest other word. logits (N, V) -> (N,)"""
    log_p = logits.double().log_softmax(-1)  # (N, V)
    own = log_p.gather(-1, words[:, None])[:, 0]  # (N,)
    return own - log_p.scatter(-1, words[:, None], -torch.inf).amax(-1)  # (N,)


@dataclass(eq=False)
class Informed(InRounds):
    """--corrector informed: draws the most doubtful word of each text again, `rounds` times."""
    rounds: int = flag(32, "words to draw again", least=1)
    corrects_noise, draws_from_model = True, False

    def correct(self, process, denoiser, z, frozen, to_probs):
        free, t = ~frozen, torch.zeros(len(z), 1, device=z.device)  # (B, L), (B, 1)
        for _ in range(self.rounds):
            logits = denoiser(z, t, at=free)[:, :process.n_tokens]  # (N, n_tokens)
            doubt = scatter_at(free, -margins(logits, z[free]), -torch.inf)  # (B, L)
            at = highest(doubt, 1) & free  # (B, L)
            z = z.masked_scatter(at, categorical(to_probs(logits[at[free]])))  # (B, L)
            yield z
