"""
Guidance: texts of a class y, and more so than the data are. For any process, by a labelled network or by a classifier.

Bayes' rule takes p(x | y) ~ p(x) p(y | x) apart, and guidance turns one factor up (~ is "in proportion to"):

    p^gamma(x | y)  ~  p(x) p(y | x)^gamma  ~  p(x | y)^gamma p(x)^(1 - gamma)                                   (36)

gamma = 0 does not know y, 1 is p(x | y), and more prefers what could be of no other class. No sampler can renormalise
over texts, so (36) is applied to each token by itself, at each step of (3) (D-CFG and D-CBG, arXiv:2412.10193):

    classifier-free  p(z_s | z_t, y)^gamma p(z_s | z_t)^(1 - gamma), from a network that knows y, or none        (37)
    classifier       p(z_s^l = v | z_t) p(y | z_t, z_s^l = v)^gamma, from one that does not, and p_phi(y | z)    (38)
    first order      log p_phi(y | z with v at l) = log p_phi(y | z) + (e_v - e_z_l) . d log p_phi / d e_z_l     (39)

From left to right (38) is FUDGE (arXiv:2104.05218): p(x_l = v | x_<l) p_phi(y | x_<l, v, then masks)^gamma. With the
exact laws and gamma = 1, (37) and (38) are the step of (3) given y. With gamma > 1 neither samples (36) over whole
texts, not even in many steps: a step cannot know how the rest of the text will weigh.

Under masks (36) is applied to x_theta in place of the step. Then a guided network is a network like any other, and
every sampler, blocks and ar have it for free. (37) has the same words; only its chance to open a mask differs, by the
factor sum_v x_theta(v | y)^gamma x_theta(v)^(1 - gamma), and at s = 0 no difference is left, for any process. Where
words may be wrong, x_theta is no law of the step, and to mix it is not (37) unless s = 0. Ratios of probabilities are:
sedd's log-scores are mixed as they are, and its steps follow the rates of (37).

What (38) asks of the classifier has one token of time s among those of time t, so it is told a time for each token.
(The public code tells it t alone; under masks the two are one.) A first-order step costs one pass forward and one
backward, an exact one as many passes as there are positions that can change times symbols.
"""
import math
from functools import partial

import torch
import torch.nn.functional as F

from data import BadInput
from diffusion import ancestral, categorical, probabilities, reverse
from flags import nearest
from masked import Absorbing
from model import Told

PART = 4096                                                  # texts that a classifier reads at once


def mix(log_c, log_u, gamma, ratios=False):
    """Eq. (36), the right side: two laws as logits (..., V) -> one as log-probabilities (..., V); log-ratios -> same

    What either law rules out stays out: 0^gamma 0^(1 - gamma) has no value. Where that is everything, as when both
    are sure of different symbols (--temperature 0), the first law holds.
    """
    if gamma in (0, 1):
        mixed = log_c if gamma else log_u                                                           # (..., V)
    else:
        # exercise 16: lean towards the class, eq. (36), 2 lines
        never = (log_c == -math.inf) | (log_u == -math.inf)                                         # (..., V)
        mixed = (gamma * log_c + (1 - gamma) * log_u).masked_fill(never, -math.inf)                 # (..., V)
        # end
    if ratios:
        return mixed                                                                                # (..., V)
    nothing = (mixed == -math.inf).all(-1, keepdim=True)                                            # (..., 1)
    return torch.where(nothing, log_c, mixed).log_softmax(-1)                                       # (..., V)


# ---- by a network that is told the class, or none

def both(denoiser, label, none, z, t, at, **layout):
    """Logits told `label` (B,) or (1,), and told `none`, from one call of 2B texts. -> (N, V), (N, V)"""
    twice = lambda a: None if a is None else torch.cat([a, a])                                      # (2B, ...)
    label = torch.cat([label.expand(len(z)), torch.full((len(z),), none, device=z.device)])         # (2B,)
    return denoiser(twice(z), twice(t), at=twice(at), label=label, **layout).chunk(2)


class ClassifierFree:
    """A denoiser whose x_theta is (36): guidance under masks, and for ar. label (B,), or (1,) for all texts

    ratios: it gives log-scores (sedd), which need not sum to anything.
    """

    def __init__(self, denoiser, label, none, gamma, ratios=False):
        self.both, self.mix = partial(both, denoiser, label, none), partial(mix, gamma=gamma, ratios=ratios)
        self.caches = 2 * getattr(denoiser, "caches", False)     # a text has two rows in a cache

    def __call__(self, z, t, at=None, **layout):
        return self.mix(*self.both(z, t, at, **layout))


def changeable(process, z, frozen):
    """Where a step can change something: under masks alone, text stays. -> (B, L) bool"""
    return ~frozen & (z == process.mask) if isinstance(process, Absorbing) else ~frozen


def reverse_at(process, logits, z, s, t, at, law=probabilities):
    """Eq. (3), or (27) for d3pm's matrices, at the positions `at` alone. logits (N, V) -> (N, V) float64"""
    x_theta = law(logits[:, :process.n_tokens])                                                     # (N, n_tokens)
    z, s, t = (a.expand_as(z)[at] for a in (z, s, t))                                               # (N,) each
    if hasattr(process, "reverse"):
        return process.reverse(x_theta, z, s, t)                                                    # (N, V)
    x_theta = F.pad(x_theta, (0, process.V - process.n_tokens))                                     # (N, V)
    return reverse(process, x_theta[:, None], z[:, None], s[:, None], t[:, None])[:, 0]             # (N, V)


@torch.no_grad()
def classifier_free_step(process, denoiser, z, frozen, s, t, law=probabilities, *, label, none, gamma):
    """One draw of (37) at every token that can change. For `ancestral`; s and t as there. -> (B, L)

    Not lazy as diffusion.step is: under (3) no token moves with more than a known probability, under (37) with
    gamma > 1 none is known before the network answers.
    """
    at = changeable(process, z, frozen)                                                             # (B, L)
    if not at.any():
        return z
    log_c, log_u = (reverse_at(process, logits, z, s, t, at, law).log()
                    for logits in both(denoiser, label, none, z, t.float(), at))                    # (N, V) each
    return z.masked_scatter(at, categorical(mix(log_c, log_u, gamma).exp()))                        # (B, L)


# ---- by a classifier: classifier(z, t) -> logits of p(y | z), (B, K); z ids, or weights over symbols (B, L, V)

def log_class(classifier, z, t, label):
    """log p_phi(y | z), some texts at a time. z, t (n, L), label (n,) -> (n,)"""
    parts = zip(z.split(PART), t.split(PART), label.split(PART))
    return torch.cat([classifier(z, t).log_softmax(-1).gather(-1, y[:, None])[:, 0] for z, t, y in parts])


def exact_scores(classifier, z, s, t, at, label, V):
    """log p_phi(y | z with v at l), for every l of `at` and every v, the token l being of time s. -> (N, V)"""
    text, place = at.nonzero().unbind(-1)                                                           # (N,) each
    s, t, scores = s.expand_as(z), t.expand_as(z), []                                               # (B, L) each
    for rows in torch.arange(len(text) * V, device=z.device).split(PART):
        i, v = text[rows // V], rows % V                                                            # (n,) each
        l = place[rows // V, None]                                                                  # (n, 1)
        changed = z[i].scatter(1, l, v[:, None])                                                    # (n, L)
        times = t[i].scatter(1, l, s[i].gather(1, l))                                               # (n, L)
        scores.append(log_class(classifier, changed, times, label[i]))                              # (n,)
    return torch.cat(scores).view(-1, V)                                                            # (N, V)


def first_order_scores(classifier, z, t, label, V):
    """Eq. (39), for every position and symbol, by one pass forward and backward. -> (B, L, V)"""
    with torch.enable_grad():
        soft = F.one_hot(z, V).double().requires_grad_()                                            # (B, L, V)
        log_p = log_class(classifier, soft, t, label)                                               # (B,)
        slope, = torch.autograd.grad(log_p.sum(), soft)                                             # (B, L, V)
    return log_p.detach()[:, None, None] + slope - slope.gather(-1, z[..., None])                   # (B, L, V)


@torch.no_grad()
def classifier_step(process, denoiser, z, frozen, s, t, law=probabilities, *, classifier, label, gamma, order="first"):
    """One draw of (38), or of (39) in it, at every token that can change. For `ancestral`. label (B,), (1,) -> (B, L)

    The mask is a symbol like any other here: a classifier may keep it closed, or have it opened early.
    """
    at, label = changeable(process, z, frozen), label.expand(len(z))                                # (B, L), (B,)
    if not at.any():
        return z
    p = reverse_at(process, denoiser(z, t.float(), at=at), z, s, t, at, law)                        # (N, V)
    score = (exact_scores(classifier, z, s, t, at, label, process.V) if order == "exact" else
             first_order_scores(classifier, z, t, label, process.V)[at])                            # (N, V)
    return z.masked_scatter(at, categorical((p.log() + gamma * score.double()).softmax(-1)))        # (B, L)


class Fudge:
    """(38) for ar: a denoiser on whose next word a classifier has its say. That was trained on masks anywhere, and
    reads a beginning as a text of `length` tokens whose rest is masked; of a longer one it reads the end. Only the
    `candidates` likeliest words are rated, the others never drawn. No cache: at every token the last `window` tokens
    are read, or the whole text for None."""

    def __init__(self, denoiser, process, classifier, label, gamma, length, candidates=200, window=None):
        self.denoiser, self.process, self.classifier = denoiser, process, classifier
        self.label, self.gamma, self.length, self.candidates = label, gamma, length, candidates
        self.window = window

    @torch.no_grad()
    def __call__(self, z, t, at=None):
        """z (B, n) = [start, x_0, .., x_(n-2)], asked for x_(n-1) in the rows whose last `at` is True. -> (N, V)"""
        n = self.process.n_tokens
        last = slice(-(self.window or z.shape[1]), None)
        logits = self.denoiser(z[:, last], t, at=at[:, last])[:, :n]                                # (N, n)
        logits, words = logits.topk(min(self.candidates, n))                                        # (N, k) each
        asked = at.any(-1)                                                                          # (B,)
        past, label = z[asked, 1:], self.label.expand(len(z))[asked]                                # (N, n - 1), (N,)
        past = past[:, max(0, past.shape[1] - self.length + 1):]                                    # (N, l)
        l, k = past.shape[1], words.shape[1]
        text = torch.full((len(past), k, self.length), self.process.mask, device=z.device)          # (N, k, L)
        text[:, :, :l], text[:, :, l] = past[:, None], words
        masked = torch.tensor([[1 - (l + 1) / self.length]], device=z.device)                       # (1, 1) its time
        score = log_class(self.classifier, text.flatten(0, 1), masked.expand(len(past) * k, 1),
                          label.repeat_interleave(k))                                               # (N k,)
        guided = logits + self.gamma * score.view(-1, k).to(logits.dtype)                           # (N, k)
        return torch.full((len(past), n), -math.inf, dtype=logits.dtype, device=z.device).scatter(-1, words, guided)


# ---- which of these serves a model

def label_of(name, classes, device="cpu"):
    """The class of that name or number. -> (1,) its number"""
    if not classes:
        raise BadInput(f"--label {name}: the model knows no classes; train it with --labels, or give a --classifier")
    number = classes.index(name) if name in classes else int(name) if name.isdecimal() else len(classes)
    if number >= len(classes):
        raise BadInput(f"there is no class {name!r}{nearest(name, classes)}: give one of {', '.join(classes)}, "
                       f"or its number, 0 to {len(classes) - 1}")
    return torch.tensor([number], device=device)                                                        # (1,)


def by_label(method, denoiser, sampler, label, none, gamma):
    """-> the denoiser and the sampler that `method.sample` takes, for a denoiser that knows labels."""
    process, scores = getattr(method, "process", None), hasattr(method, "log_score")
    if gamma in (0, 1):                                      # one call does, and any sampler
        return Told(denoiser, label if gamma else torch.full_like(label, none)), sampler
    revises = hasattr(process, "b") or hasattr(process, "reverse")       # all but ar, and genmd4 with its own steps
    if scores or not revises or isinstance(process, Absorbing):
        return ClassifierFree(denoiser, label, none, gamma, scores), sampler
    guided = partial(classifier_free_step, label=label, none=none, gamma=gamma)
    return denoiser, partial(only_ancestral(sampler), step=guided)


def noise_read(method):
    """The process whose noise a classifier must read to guide this method; BadInput where it could not guide it."""
    process = getattr(method, "process", None) or Absorbing(method.n_tokens)             # ar: the rest is masked
    if hasattr(method, "block") or hasattr(method, "log_score") or not hasattr(process, "b"):
        raise BadInput("a classifier has no say in bd3lm, genmd4, sedd, nor in d3pm with matrices: train them with "
                       "--labels, and leave out --classifier")
    return process


def by_classifier(method, denoiser, sampler, label, gamma, classifier, order, length, candidates=200):
    """The same for a denoiser that does not. length: of the texts that the classifier reads"""
    process = noise_read(method)
    if gamma == 0:
        return denoiser, sampler
    if not hasattr(method, "process"):
        return Fudge(denoiser, process, classifier, label, gamma, length, candidates, method.window), sampler
    guided = partial(classifier_step, classifier=classifier, label=label, gamma=gamma, order=order)
    return denoiser, partial(only_ancestral(sampler), step=guided)


def only_ancestral(sampler):
    if getattr(sampler, "func", sampler) is not ancestral:
        raise BadInput("guidance has a step of its own here: leave out --sampler and --tail")
    return sampler
