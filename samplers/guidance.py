"""
Chapter 11. Guidance: texts of a class y, as in the data or more strongly.

By Bayes' rule p(x | y) ~ p(x) p(y | x), and guidance raises one factor to a power (~: up to a
constant):

    p^gamma(x | y)  ~  p(x) p(y | x)^gamma  ~  p(x | y)^gamma p(x)^(1 - gamma)                (11.1)

gamma = 0 ignores y, 1 is p(x | y), and more prefers texts that can be of no other class. No sampler
can normalize over whole texts, so (11.1) is applied to each token in each step of (0.3) (D-CFG and
D-CBG, arXiv:2412.10193):

    classifier-free  p(z_s | z_t, y)^gamma p(z_s | z_t)^(1 - gamma), from a network that
                     takes a label, or none                                                   (11.2)
    classifier       p(z_s^l = v | z_t) p_phi(y | z_t, z_s^l = v)^gamma, from a network
                     without labels, and a classifier of noisy text                           (11.3)
    first order      log p_phi(y | z with v at l)
                     = log p_phi(y | z) + (e_v - e_z_l) . d log p_phi / d e_z_l               (11.4)

From left to right, (11.3) is FUDGE (arXiv:2104.05218): p(x_l = v | x_<l) p_phi(y | x_<l, v, then
masks)^gamma. With exact distributions and gamma = 1, (11.2) and (11.3) are the step of (0.3) given
y. With gamma > 1 neither samples (11.1) over whole texts, in however many steps: a step does not
know how the rest of the text will count.

Under masks, (11.1) is applied to x_theta in place of the step, so a guided network is a network,
and works with every sampler. It gives the words of (11.2); only the odds that a mask opens differ,
by the factor sum_v x_theta(v | y)^gamma x_theta(v)^(1 - gamma), and not at s = 0, where all open.
Under other noise, mixing x_theta is (11.2) at s = 0 only. Ratios of probabilities can be mixed too.

In (11.3) one token has time s and the others time t, so the classifier takes a time per token. (The
public code gives it t only, which is the same under masks.) A step of first order costs one forward
and one backward pass, an exact step one pass per token that can change and symbol.
"""
import math
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

from diffusion import (
    Ancestral,
    Labeled,
    Wrapper,
    categorical,
    changeable,
    probabilities,
    reverse,
)
from flags import UserError, load_row
from methods import METHODS
from samplers.base import MaskSampler
from samplers.gradients import guide_by_gradients
from suggest import suggest

TEXTS_AT_ONCE = 4096  # how many a classifier reads in one call


# ---- (11.1) and (11.2): a network that takes a label

def mix_logits(log_c, log_u, gamma, ratios=False):
    """(11.1), right: logits with and without y (..., V) -> log-probabilities (..., V)

    A symbol of probability 0 in either stays at 0: 0^gamma 0^(1 - gamma) has no value. If that
    rules out all symbols (at temperature 0), the first distribution holds.
    ratios: both are log-ratios, and so is the result
    """
    if gamma in (0, 1):
        mixed = log_c if gamma else log_u  # (..., V)
    else:
        # exercise 16: guide towards the class, (11.1), 2 lines
        never = (log_c == -math.inf) | (log_u == -math.inf)  # (..., V)
        mixed = (gamma * log_c + (1 - gamma) * log_u).masked_fill(never, -math.inf)  # (..., V)
        # end
    if ratios:
        return mixed  # (..., V)
    nothing = (mixed == -math.inf).all(-1, keepdim=True)  # (..., 1)
    return torch.where(nothing, log_c, mixed).log_softmax(-1)  # (..., V)


def cond_and_uncond(denoiser, label, none, z, t, at, **layout):
    """Logits with `label` (B,) or (1,) and with the label `none`, in one call. -> (N, V), (N, V)"""
    twice = lambda a: None if a is None else torch.cat([a, a])  # (2B, ...)
    none = torch.full((len(z),), none, device=z.device)  # (B,)
    label = torch.cat([label.expand(len(z)), none])  # (2B,)
    layout |= {key: twice(a) for key, a in layout.items() if torch.is_tensor(a) and a.dim() > 1}
    return denoiser(twice(z), twice(t), at=twice(at), label=label, **layout).chunk(2)


class CFG(Wrapper):
    """A denoiser whose x_theta is (11.1): guidance under masks, and from left to right.

    label: (B,), or (1,) for all texts; none: the label of no class; ratios: see mix_logits
    """

    def __init__(self, denoiser, label, none, gamma, ratios=False):
        super().__init__(denoiser)
        self.label, self.none, self.gamma, self.ratios = label, none, gamma, ratios
        self.supports_cache = 2 * self.supports_cache  # a text has two rows in a cache
        self.supports_fused_head = self.fixed_shapes = False

    def __call__(self, z, t, at=None, **layout):
        both = cond_and_uncond(self.denoiser, self.label, self.none, z, t, at, **layout)
        return mix_logits(*both, self.gamma, self.ratios)  # (N, V)


def reverse_at(process, logits, z, s, t, at, to_probs=probabilities):
    """(0.3), or (2.2) of d3pm.py, at the positions `at`. logits (N, V) -> (N, V) float64"""
    x_theta = to_probs(logits[:, :process.n_tokens])  # (N, n_tokens)
    z, s, t = (a.expand_as(z)[at] for a in (z, s, t))  # (N,) each
    if not process.continuous:
        return process.reverse(x_theta, z, s, t)  # (N, V)
    x_theta = F.pad(x_theta, (0, process.V - process.n_tokens))  # (N, V)
    column = lambda a: a[:, None]  # (N, 1, ...)
    return reverse(process, *map(column, (x_theta, z, s, t)))[:, 0]  # (N, V)


@torch.no_grad()
def classifier_free_step(process, denoiser, z, frozen, s, t, to_probs=probabilities, *,
                         label, none, gamma):
    """One draw of (11.2) at every token that can change: a step of Ancestral. -> (B, L)

    It is not lazy. In (0.3) no token moves with more than a known probability; in (11.2) with
    gamma > 1 that probability is unknown before the network is called.
    """
    at = changeable(process, z, frozen)  # (B, L)
    if not at.any():
        return z
    log_c, log_u = (reverse_at(process, logits, z, s, t, at, to_probs).log()  # (N, V) each
                    for logits in cond_and_uncond(denoiser, label, none, z, t.float(), at))
    return z.masked_scatter(at, categorical(mix_logits(log_c, log_u, gamma).exp()))  # (B, L)


# ---- (11.3) and (11.4): a classifier(z, t) -> logits of y (B, K); z ids, or weights (B, L, V)

def log_class(classifier, z, t, label):
    """log p_phi(y | z), some texts at a time. z, t (n, L), label (n,) -> (n,)"""
    parts = zip(*(a.split(TEXTS_AT_ONCE) for a in (z, t, label)))
    log_p = [classifier(z, t).log_softmax(-1).gather(-1, y[:, None])[:, 0] for z, t, y in parts]
    return torch.cat(log_p)  # (n,)


def exact_scores(classifier, z, s, t, at, label, V):
    """log p_phi(y | z with v at l) for each l of `at` and each v; l has time s. -> (N, V)"""
    text, place = at.nonzero().unbind(-1)  # (N,) each
    s, t, scores = s.expand_as(z), t.expand_as(z), []  # (B, L) each
    for rows in torch.arange(len(text) * V, device=z.device).split(TEXTS_AT_ONCE):
        i, v = text[rows // V], rows % V  # (n,) each
        l = place[rows // V, None]  # (n, 1)
        changed = z[i].scatter(1, l, v[:, None])  # (n, L)
        times = t[i].scatter(1, l, s[i].gather(1, l))  # (n, L)
        scores.append(log_class(classifier, changed, times, label[i]))  # (n,)
    return torch.cat(scores).view(-1, V)  # (N, V)


def first_order_scores(classifier, z, t, label, V):
    """(11.4) for every position and symbol, from one forward and one backward pass. -> (B, L, V)"""
    with torch.enable_grad():
        soft = F.one_hot(z, V).double().requires_grad_()  # (B, L, V)
        log_p = log_class(classifier, soft, t, label)  # (B,)
        slope, = torch.autograd.grad(log_p.sum(), soft)  # (B, L, V)
    return log_p.detach()[:, None, None] + slope - slope.gather(-1, z[..., None])  # (B, L, V)


@torch.no_grad()
def classifier_step(process, denoiser, z, frozen, s, t, to_probs=probabilities, *,
                    classifier, label, gamma, order="first"):
    """One draw of (11.3), or with (11.4) in it, at every token that can change. -> (B, L)

    A step of Ancestral. label (B,) or (1,). The mask is a symbol like any other, so a classifier
    can keep a mask closed, or open it early.
    """
    at, label = changeable(process, z, frozen), label.expand(len(z))  # (B, L), (B,)
    if not at.any():
        return z
    p = reverse_at(process, denoiser(z, t.float(), at=at), z, s, t, at, to_probs)  # (N, V)
    if order == "exact":
        score = exact_scores(classifier, z, s, t, at, label, process.V)  # (N, V)
    else:
        score = first_order_scores(classifier, z, t, label, process.V)[at]  # (N, V)
    return z.masked_scatter(at, categorical((p.log() + gamma * score.double()).softmax(-1)))


class Fudge(Wrapper):
    """(11.3) from left to right: a denoiser whose next-token logits a classifier reweights.

    The classifier was trained on masks anywhere. It reads the text so far as one of `length` tokens
    whose rest is masked, or only the end of a longer one. It rates the `candidates` likeliest
    words; no other is drawn. There is no cache: every call reads the last `window` tokens, or all.
    """

    def __init__(self, denoiser, process, classifier, label, gamma, length, candidates=200,
                 window=None):
        super().__init__(denoiser)
        self.process, self.classifier, self.label, self.gamma = process, classifier, label, gamma
        self.length, self.candidates, self.window = length, candidates, window
        self.supports_cache = self.supports_fused_head = self.fixed_shapes = False

    @torch.no_grad()
    def __call__(self, z, t, at=None):
        """z (B, n) = [start, x_0, .., x_(n-2)]; `at` selects rows at their last token. -> (N, V)"""
        V = self.process.n_tokens
        last = slice(-(self.window or z.shape[1]), None)
        logits = self.denoiser(z[:, last], t, at=at[:, last])[:, :V]  # (N, V)
        logits, words = logits.topk(min(self.candidates, V))  # (N, k) each
        rows = at.any(-1)  # (B,)
        label = self.label.expand(len(z))[rows]  # (N,)
        score = self.rate(z[rows, 1:], words, label)  # (N, k)
        guided = logits + self.gamma * score.to(logits.dtype)  # (N, k)
        return guided.new_full((len(words), V), -math.inf).scatter(-1, words, guided)  # (N, V)

    def rate(self, past, words, label):
        """log p_phi(y | past, word, masks) of each word. past (N, n), words (N, k) -> (N, k)"""
        N, k = words.shape
        past = past[:, max(0, past.shape[1] - self.length + 1):]  # (N, l)
        l = past.shape[1]
        text = torch.full((N, k, self.length), self.process.mask, device=past.device)  # (N, k, L)
        text[:, :, :l], text[:, :, l] = past[:, None], words
        masked = torch.tensor([[1 - (l + 1) / self.length]], device=past.device)  # (1, 1) its time
        score = log_class(self.classifier, text.flatten(0, 1), masked.expand(N * k, 1),
                          label.repeat_interleave(k))  # (N k,)
        return score.view(N, k)  # (N, k)


# ---- a prompt in the place of a class

class PromptGuided(Wrapper):
    """A denoiser that (11.1) guides towards its prompt, masked out for the second term.

    prompt (B, L) bool. It needs no label and no training of its own, since any part of a text was
    masked in training (LLaDA, arXiv:2502.09992; SMDM, 2410.18514: their w is gamma - 1).
    """

    def __init__(self, denoiser, prompt, mask, gamma):
        super().__init__(denoiser)
        self.prompt, self.mask, self.gamma = prompt, mask, gamma
        self.supports_cache = self.supports_fused_head = self.fixed_shapes = False

    def __call__(self, z, t, at=None):
        log_c = self.denoiser(z, t, at=at)  # (N, V)
        log_u = self.denoiser(z.masked_fill(self.prompt, self.mask), t, at=at)  # (N, V)
        return mix_logits(log_c, log_u, self.gamma)  # (N, V)


def reads_masked_text(method):
    """Whether one call reads a whole text with masks, so that a prompt can be masked out of it."""
    return method.bidirectional and method.opens_masks


def guide_by_prompt(config, method, denoiser, sampler, prompt, window=None):
    """The denoiser, guided towards its prompt (B, L) if --guidance is not 1; or UserError."""
    if config.guidance == 1:
        return denoiser
    if not reads_masked_text(method) or sampler.uses_cache or window:
        names = [name for name in METHODS if reads_masked_text(load_row(METHODS, name))]
        raise UserError("--guidance without --label masks the prompt out and calls the network "
                        f"again: it is for {', '.join(names)}, without --cache, and not beyond the "
                        "length of training")
    return PromptGuided(denoiser, prompt, method.process.mask, config.guidance)


# ---- which of these serves a model

def guide(config, model, denoiser, sampler, classifier=None, window=None, device="cpu"):
    """The denoiser and the sampler, guided towards --label as the flags say; or UserError.

    classifier: what checkpoints.load.load_classifier returns, if --classifier is given
    window: tokens that a method which writes from left to right sees
    """
    if config.classifier and not config.label:
        raise UserError("--classifier needs a --label, the class to guide to")
    if isinstance(sampler, MaskSampler) and sampler.by_class:
        return denoiser, sampler.aim(classifier, config, device)
    if not config.label:
        return denoiser, sampler
    method, gamma = model.method, config.guidance
    if classifier is None:
        label = label_of(config.label, model.classes, device)  # (1,)
        return guide_by_label(method, denoiser, sampler, label, len(model.classes), gamma)
    judge, classes, length = classifier
    label = label_of(config.label, classes, device)  # (1,)
    if method.draw_evidence:
        return denoiser, guide_by_gradients(config, method, sampler, label, judge)
    return guide_by_classifier(method, denoiser, sampler, label, gamma, judge,
                               config.classifier_order, length, config.candidates, window)


def label_of(name, classes, device="cpu"):
    """The number of a class, from its name or number. -> (1,)"""
    if not classes:
        raise UserError(f"--label {name}: this model has no classes; train one with --labels, or "
                        "give a --classifier")
    number = int(name) if name.isdecimal() else len(classes)
    number = classes.index(name) if name in classes else number
    if number >= len(classes):
        raise UserError(f"there is no class {name!r}{suggest(name, classes)}: give one of "
                        f"{', '.join(classes)}, or its number, 0 to {len(classes) - 1}")
    return torch.tensor([number], device=device)  # (1,)


def guide_by_label(method, denoiser, sampler, label, none, gamma):
    """The denoiser and the sampler for `method.sample`, with a network that takes labels.

    label: (B,), or (1,) for all texts; none: the label of no class
    """
    if gamma in (0, 1):  # one call does, with any sampler
        label = label if gamma else torch.full_like(label, none)  # (B,) or (1,)
        return Labeled(denoiser, label), sampler
    if method.scores_ratios or not method.revises_text or not method.takes_steps:
        unnormalized = method.scores_ratios or method.any_length  # whose columns are not all words
        return CFG(denoiser, label, none, gamma, unnormalized), sampler
    step = partial(classifier_free_step, label=label, none=none, gamma=gamma)
    return denoiser, guided_ancestral(sampler, step)


def guide_by_classifier(method, denoiser, sampler, label, gamma, classifier, order, length,
                        candidates=200, window=None):
    """The same for a network without labels. length: of the texts that the classifier reads"""
    check_classifier_fits(method)
    if gamma == 0:
        return denoiser, sampler
    if sampler.write_in_order:
        raise UserError("a classifier rates one next token at a time, and not a draft of several: "
                        "leave out --sampler, or train a model with --labels")
    if method.left_to_right:
        return Fudge(denoiser, method.classifier_process, classifier, label, gamma, length,
                     candidates, window), sampler
    step = partial(classifier_step, classifier=classifier, label=label, gamma=gamma, order=order)
    return denoiser, guided_ancestral(sampler, step)


def check_classifier_fits(method, gradient="noisy"):
    """Raises UserError if no classifier can guide a method, or none by that --gradient."""
    if gradient != "noisy" and not method.draw_evidence:
        raise UserError(f"--gradient {gradient} is for noise of real numbers, and {method.name} "
                        "has symbols: leave it out")
    if method.classifier_process is None:
        raise UserError(f"no classifier can guide {method.name}: train it with --labels, and leave "
                        "out --classifier")


def guided_ancestral(sampler, step):
    """The ancestral sampler with a guided step in place of its own."""
    if not isinstance(sampler, Ancestral):
        raise UserError("guidance has a step of its own here: leave out --sampler and --corrector")
    return replace(sampler, step=step)
