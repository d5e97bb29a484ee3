"""
Chapter 11. Guidance by gradients, where noisy text is evidence of words: real numbers, not symbols.

Let a_l(v) = log p(z_l | x_l = v) be what the noise of a token says of each word, (13.2) for rows of
a table, and e_hat_l(v) = p(x_l = v | z), x_hat = sum_v e_hat(v) e_v. Then for any language

    words      p(x_l = v | z, y) = e_hat_l(v) + d log p(y | z) / d a_l(v)                     (11.6)
    rows       E[e_l | z, y] = x_hat_l + (sigma^2 / alpha) d log p(y | z) / d z_l             (11.7)

(11.7) is (11.6) times the table, since d a(v) / d z = (alpha / sigma^2) (e_v - z / alpha), and what
does not depend on v shifts nothing. So one shift of e_hat guides methods that predict words and
those that predict rows, with any sampler: the walk given y is the walk whose predictions are given
y. `strength` multiplies the gradient; e_hat may then be negative, which no step of (13.4) and
(13.5) minds. Where words are drawn it is clipped at 0.

Where words are ends of axes of a sphere (methods/sphere.py) a is the evidence of a path, and (11.6)
turns the pull of a point by a gradient in the tangent plane, that of one more move xi:

    pull       E[Log_X(e_l) | path, y] = sum_v e_hat(v) Log_X(e_v) + b d log p(y | path) / d xi_l
                                                                                            (11.10)

p(y | z) needs a classifier of noisy text. One of clean text reads what the model expects instead:

    clean      u <- u + strength d R(softmax u) / d u, K times, R = log p(y | soft text),     (11.8)
               from the logits of e_hat; then e_hat = softmax u

and has no exact counterpart. R is that of a text, so its sum over the batch has the gradient of
each text, and nothing depends on the size of the batch. (SSD-LM's code, 2210.17432, takes the mean
over the batch. TESS 2's, 2502.13917, never clears the gradient, so step k moves by the sum of k.)

    control    K steps of Adagrad on z_s after each step of (13.4), which descend             (11.9)
               -log p(y | z_s) + 0.01 |z_s - mean|^2 / variance

as in Diffusion-LM (2205.14217). Its code makes a new Adagrad for each of the K, which then moves
each number by the rate, whatever the gradient; and divides by the deviation. Here one Adagrad
serves a walk. Nothing is exact about (11.9) either: z_s leaves the noise that the model expects.
"""
import copy
from dataclasses import dataclass, fields

import torch

from diffusion import Ancestral, Sampler
from flags import UserError
from gaussian import DDPM, EmbeddingSpace, Prediction

RATE = 0.1  # of Adagrad in (11.9), at strength 1
PULL = 0.01  # weight of the second term of (11.9)


# ---- the equations

def gradient_of(log_p, at):
    """The gradient of each text's log_p(a) (B,) at a, which is detached. -> shape of a"""
    with torch.enable_grad():
        a = at.detach().requires_grad_()
        return torch.autograd.grad(log_p(a).sum(), a)[0]  # a sum: each text has its own


def evidence_gradient(log_p, weights):
    """The second term of (11.6), where exp(a) is `weights` (B, L, V) up to a factor per token.

    log_p: weights -> log p(y | z) (B,). A weight of 0 is a word that is ruled out -> (B, L, V)
    """
    return gradient_of(lambda a: log_p(weights * a.exp()), torch.zeros_like(weights))  # (B, L, V)


def shift_words(found, shift, rows):
    """(11.6) and (11.7): a Prediction at N tokens, shifted by `shift` (N, V), the gradient times
    the strength. -> Prediction, whose log_p is clipped"""
    x_hat = found.x_hat + (shift @ rows.to(shift.dtype)).to(found.x_hat.dtype)  # (N, D)
    if found.log_p is None:
        return Prediction(None, x_hat)
    p = (found.log_p.exp() + shift).clamp(min=0)  # (N, V)
    return Prediction((p / p.sum(-1, keepdim=True)).log(), x_hat)


def climb(logits, reward, strength, steps):
    """(11.8). logits (..., V); reward: softmax(u) (..., V) -> R (B,) of each text -> u (..., V)"""
    for _ in range(steps):
        logits = logits + strength * gradient_of(lambda u: reward(u.softmax(-1)), logits)
    return logits


def descend(z, cost, squares, rate, steps):
    """K steps of Adagrad. z (N, D); cost: z -> (..); squares (N, D): the sum of squared gradients
    so far -> z, squares"""
    for _ in range(steps):
        gradient = gradient_of(cost, z)  # (N, D)
        squares = squares + gradient.square()  # (N, D)
        z = z - rate * gradient / (squares.sqrt() + 1e-10)  # (N, D) as torch.optim.Adagrad
    return z, squares


# ---- a process whose predictions are guided

@dataclass
class GuidedProcess:
    """A process with predictions by (11.6) or (11.8). All else is that of `method.process`.

    classifier(weights, t) -> logits of y (B, K), of weights (B, L, V) that sum to 1
    clean: it reads clean text, so (11.8) in `steps` steps
    """
    method: object
    classifier: object
    label: torch.Tensor  # (1,)
    strength: float
    clean: bool = False
    steps: int = 1

    def __getattr__(self, name):
        return getattr(self.method.process, name)

    def log_class(self, weights, t):
        """log p(y | z) of weights (B, L, V) at times t (B, 1|L). -> (B,)"""
        p = weights / weights.sum(-1, keepdim=True)  # (B, L, V)
        return self.classifier(p, t).double().log_softmax(-1)[:, self.label].sum(-1)  # (B,)

    def predict(self, denoiser, z, t, at, fed=None):
        """The Prediction at the tokens `at` (B, L), guided."""
        found = self.method.process.predict(denoiser, z, t, at, fed)
        return self.guided(found, z, t, at, self.rows())

    def log_words(self, source, z, t, at, *fed):
        """Of a Prediction: how a table decodes it. Where a walk calls the network for log e_hat, as
        those of log-evidence do: guided. -> (N, V) nats"""
        log_p = self.method.process.log_words(source, z, t, at, *fed)  # (N, V)
        if isinstance(source, Prediction):
            return log_p
        one_hot = torch.eye(log_p.shape[-1], dtype=log_p.dtype, device=log_p.device)  # (V, V)
        return self.guided(Prediction(log_p, log_p.exp()), z, t, at, one_hot).log_p

    def guided(self, found, z, t, at, rows):
        """(11.6) or (11.8). rows (V, D): of the words -> Prediction"""
        with torch.no_grad():
            weights = self.method.likelihood(z, t)  # (B, L, V) one-hot at given tokens
        if not self.clean:
            shift = evidence_gradient(lambda a: self.log_class(a, t), weights)[at]  # (N, V)
            return shift_words(found, self.strength * shift, rows)
        start, around = torch.zeros_like(t[:, :1]), at[..., None]  # (B, 1), (B, L, 1)
        reward = lambda p: self.log_class(weights.masked_scatter(around, p), start)  # (B,)
        log_p = climb(found.log_p.double(), reward, self.strength, self.steps).log_softmax(-1)
        return Prediction(log_p, log_p.exp() @ rows.to(log_p.dtype))


@dataclass(eq=False)
class GradientGuided(Sampler):
    """A sampler that writes with the guided process of a method."""
    sampler: Sampler
    method: object
    draws_from_model = False

    def __init__(self, sampler, process):
        self.sampler, self.method = sampler, copy.copy(process.method)
        self.method.process, self.costs = process, sampler.costs

    def count_states(self, length, steps):
        return self.sampler.count_states(length, steps)

    def __call__(self, process, denoiser, z, frozen, steps, *to_probs):
        return self.method.sample(denoiser, z, frozen, steps, self.sampler, *to_probs)


@dataclass(eq=False)
class Control(DDPM):
    """Steps of (13.4), and after each of them (11.9). `guide`: the GuidedProcess that says p(y|z)
    """
    guide: GuidedProcess = None
    draws_from_model = False

    def __call__(self, process, denoiser, z, frozen, steps, *to_probs):
        self.given, self.free = process.rows()[z], ~frozen  # (B, L, D), (B, L)
        self.squares = torch.zeros(int(self.free.sum()), self.given.shape[-1])  # (N, D)
        self.squares = self.squares.to(self.given)  # (N, D)
        return super().__call__(process, denoiser, z, frozen, steps, *to_probs)

    def log_class(self, z, s):
        """log p(y | z) of the rows z (N, D) at times s (N,), among the given ones. -> (B,)"""
        text = self.given.to(z.dtype).masked_scatter(self.free[..., None], z)  # (B, L, D)
        t = torch.zeros_like(self.free, dtype=s.dtype).masked_scatter(self.free, s)  # (B, L)
        return self.guide.log_class(self.guide.method.likelihood(text, t), t)  # (B,)

    def move(self, process, z, found, s, t, eps):
        law = lambda eps: super(Control, self).move(process, z, found, s, t, eps)  # (N, D)
        mean = law(torch.zeros_like(eps))  # (N, D)
        deviation = law(torch.ones_like(eps)) - mean  # (N, D)

        def cost(z):
            far = ((z - mean) / deviation).square().sum()  # ()
            return PULL * far - self.log_class(z, s).sum()  # ()
        z, self.squares = descend(mean + deviation * eps, cost, self.squares,
                                  RATE * self.guide.strength, self.guide.steps)  # (N, D) each
        return z


# ---- which of these serves a model

def guide_by_gradients(config, method, sampler, label, classifier):
    """The sampler, guided towards a class as the flags say; or UserError.

    classifier(weights, t): see GuidedProcess; label (1,)
    """
    process = GuidedProcess(method, classifier, label, config.guidance,
                            config.gradient == "clean", config.gradient_steps)
    if config.guidance == 0:
        return sampler
    rows = isinstance(method.process, EmbeddingSpace)
    if config.gradient == "control":
        if not rows:
            raise UserError(f"--gradient control moves noisy rows, which {method.name} does not "
                            "have: take --gradient noisy or clean")
        if not isinstance(sampler, Ancestral) and type(sampler) is not DDPM:
            raise UserError("--gradient control moves z after steps of (13.4): take --sampler ddpm")
        plain = DDPM() if isinstance(sampler, Ancestral) else sampler
        return Control(**{f.name: getattr(plain, f.name) for f in fields(DDPM)}, guide=process)
    if config.gradient == "clean" and rows and method.process.vectors:
        raise UserError(f"--gradient clean changes logits, and {method.name} predicts rows: take "
                        "--gradient noisy or control")
    return GradientGuided(sampler, process)
