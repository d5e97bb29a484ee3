"""
Chapter 22. Policy gradients of a masked sampler: the law of its steps, and what stands in for it.

A sampler writes x in steps. In step k it sees z_k and draws the words of the masks A_k, its
actions. Which masks these are does not depend on theta, or only by jumps of measure 0. So

    grad E r = E[ (r - b) sum_k sum_{l in A_k} grad log x_theta_l(x_l | z_k) ]                (22.1)

is exact for any b that does not depend on x (REINFORCE; DDPO, arXiv:2305.13301). A sampler that
draws all masks and then keeps some of the draws (`confidence`) has drawn them all: A_k are all
masks, with the words that were drawn there, kept or not. A text takes as many network calls as its
sampler took; a random K of the S steps, times S/K, is enough for an unbiased gradient.

Of G texts for one question, the others are the baseline, and a unit u of the probability (a step, a
token, a text) has its own clipped ratio to the policy that wrote the text (PPO, GRPO):

    A_i = r_i - (1/G) sum_j r_j, or / (std + 1e-4), or r_i - (1/(G - 1)) sum_{j != i} r_j     (22.2)
    loss = -sum_u min( rho_u A, clip(rho_u, 1 - c, 1 + c) A ),  rho_u = exp(log q_u - log q_u^old)
                                                                                              (22.3)
Others do without the trajectory, and put another log-probability of the text in its place:

    d1       log x_theta_l(x_l | m .. m), each token from masks alone; the question is masked with
             probability .15 (diffu-GRPO, 2504.12216)                                         (22.4)
    coupled  [ log x_theta_l(x_l | m .. m) + w log x_theta_l(x_l | z) ] / 2, z one of two texts
             that hide what the other shows: with probability t ~ U(.2, .8), w = 1/t, or 1 - t and
             w = 1/(1 - t). E w [l is hidden] = 1 in each, so the weights sum to 1.5, not to 1
             (coupled-GRPO, 2506.20639, as released). `coupled-even` has w = 1                (22.5)
    elbo     mean over M draws of (3.1): sum_l [z_l = m] (n/k) log x_theta_l(x_l | z)         (22.6)
    spg      (22.6) where A >= 0. Elsewhere an upper bound, which must fall, mixed with it:
             omega U + (1 - omega) (22.6),
             U = sum_l (1/beta) log E[ (n/k) [z_l = m] x_theta_l(x_l | z)^beta ]              (22.7)
             (SPG, 2510.09541; of M draws, as released: the mean over tokens that were hidden, times
             n). For a denoiser that is exact, (22.6) is log p(x) in the mean, and U is above it
    agrpo    (22.1) for K steps drawn for each text, a ratio for each token (AGRPO, 2510.04019,
             after its abstract)

Their expected gradients are compared with (22.1) in experiments/policy_gradients.py.
"""
from dataclasses import dataclass, fields, is_dataclass
from functools import partial

import torch
import torch.nn.functional as F

from diffusion import Wrapper, categorical, probabilities
from flags import flag
from methods.base import to_float32
from methods.mdlm import any_order, complement
from samplers.generate import trajectory

COUPLED_RATES = 0.2, 0.8
TINY = 1e-4  # added to the standard deviation of a group


@dataclass
class Calls:
    """What a network is asked for: P calls for B texts of L tokens, and which words count."""
    z: object  # (P, B, L) what it sees
    t: object  # (P, B, 1) the share of masks, or the sampler's time; None: there is none
    at: object  # (P, B, L) bool
    words: object  # (P, B, L) those whose probability counts, where `at`
    weight: object = 1.0  # of each logarithm, can be expanded to (P, B, L)
    scale: float = 1.0  # of the loss

    def ask(self, denoiser, n_tokens, temperature):
        """The log-probabilities of all words where `at`, as they are drawn from. -> (N, n_tokens)
        """
        z, at = self.z.flatten(0, 1), self.at.flatten(0, 1)  # (P B, L) each
        t = None if self.t is None else self.t.flatten(0, 1)  # (P B, 1)
        logits = to_float32(denoiser(z, t, at=at)[:, :n_tokens])  # (N, n_tokens)
        return (logits / temperature).log_softmax(-1)  # (N, n_tokens)

    def place(self, values):
        """values (N,) where `at`, 0 elsewhere. -> (P, B, L)"""
        return values.new_zeros(self.at.shape).masked_scatter(self.at, values)  # (P, B, L)


# ---- trajectories

def writes_masks(method, sampler):
    """Why (22.1) is not the law of this pair, as the end of a sentence; None if it is."""
    whole = method.opens_masks and not method.left_to_right and method.samplers is None
    if not whole or not (method.prior((1, 1)) == method.process.mask).all():
        return f"{method.name} does not open masks one step after the other"
    if not (sampler.chooses_first or sampler.draws_decide) or sampler.uses_cache:
        return "its steps depend on more than the words that they draw"


class Witness(Wrapper):
    """A denoiser that keeps what a sampler asked for: z (B, L), t (B, 1), at (B, L) of each call.
    """

    def __init__(self, denoiser):
        super().__init__(denoiser)
        self.seen = []

    def __call__(self, z, t, at=None, **layout):
        self.seen.append((z.clone(), t.float().expand(len(z), 1), at))
        return super().__call__(z, t, at=at, **layout)  # (N, V)


def watch(method, denoiser, given, frozen, steps, sampler, temperature=1.0):
    """Texts that a sampler writes, and the actions of its steps. given (B, L) ids where frozen
    (B, L) -> x (B, L), Calls

    sampler None: of a method that is exact and writes in order, whose steps are tokens
    """
    if sampler is None:
        to_probs = partial(probabilities, temperature=temperature)
        *_, x = trajectory(method, denoiser, given, frozen, steps, to_probs=to_probs)
        return x, Calls(method.shift(x)[None], None, ~frozen[None], x[None])
    witness, drawn, n = Witness(denoiser), [], method.n_tokens

    def to_probs(logits):
        """All on one word, which is drawn here: so it is known where it is not kept, too."""
        drawn.append(categorical(probabilities(logits, temperature)))  # (N,)
        return F.one_hot(drawn[-1], n).double()  # (N, n)
    z = torch.where(frozen, given, method.prior(given.shape, given.device))  # (B, L)
    for z in method.sample(witness, z, frozen, steps, sampler, to_probs):
        pass
    states, t, at = zip(*witness.seen)
    before, at = torch.stack(states), torch.stack(at)  # (P, B, L) each
    if sampler.chooses_first:
        words = torch.cat([before[1:], z[None]])  # (P, B, L) what stands there after the step
        at = (before == method.process.mask) & (words != method.process.mask)  # (P, B, L)
    else:
        words = before.masked_scatter(at, torch.cat(drawn))  # (P, B, L)
    return z, Calls(before, torch.stack(t), at, words)


def action_log_probs(denoiser, calls, n_tokens, temperature=1.0):
    """log x_theta(words) where `at`, by the distribution that was drawn from, else 0. -> (P, B, L)
    """
    log_p = calls.ask(denoiser, n_tokens, temperature)  # (N, n_tokens)
    words = calls.words[calls.at][:, None]  # (N, 1)
    return calls.place(log_p.gather(-1, words)[:, 0])  # (P, B, L)


@torch.no_grad()
def kl_along(denoiser, start, calls, n_tokens, temperature=1.0):
    """KL of the two laws of each action, summed along a trajectory of the first: its mean is the KL
    of the laws of trajectories, given what opens, and at least that of the texts. -> (B,) nats"""
    ours, theirs = (calls.ask(net, n_tokens, temperature) for net in (denoiser, start))
    kl = F.kl_div(theirs, ours, log_target=True, reduction="none").sum(-1)  # (N,)
    return calls.place(kl).sum((0, 2))  # (B,)


# ---- advantages and ratios

def advantages(reward, group, kind="leave-one-out"):
    """(22.2) of rewards (B,) of B / group questions. -> (B,)"""
    r = reward.view(-1, group)  # (questions, G)
    a = r - r.mean(-1, keepdim=True)  # (questions, G)
    if kind == "std":
        a = a / (r.std(-1, keepdim=True) + TINY)  # (questions, G)
    if kind == "leave-one-out":
        a = a * group / (group - 1)  # (questions, G)
    return a.flatten()  # (B,)


def clipped_loss(new, old, advantage, clip):
    """(22.3). new, old (B, U) log-probabilities of the units of a text; advantage (B,) -> (B,)"""
    ratio, a = (new - old).exp(), advantage[:, None]  # (B, U), (B, 1)
    return -torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a).sum(-1)  # (B,)


# ---- estimators

@dataclass
class EstimatorFlags:
    """Estimator (runtime/policy.py)."""
    subset: int = flag(0, "ddpo, agrpo: steps of a trajectory that count in an update; 0: all",
                       least=0)
    prompt_mask: float = flag(0.15, "d1: share of the question that is masked", least=0, most=1)
    draws: int = flag(2, "elbo, spg: masks that are drawn", least=1)
    beta: float = flag(1.5, "spg: the power in the upper bound", least=0.01, most=100)
    mix: float = flag(0.5, "spg: share of the upper bound where it counts", least=0, most=1)


@dataclass
class Trajectory:
    """(22.1): a unit is a step. subset: how many steps count, drawn for all texts; 0 for all"""
    subset: int = 0

    def calls(self, process, x, frozen, path):
        """What the network is asked for in an update, from the texts x and their trajectories.
        path: Calls -> Calls"""
        P = len(path.z)
        k = min(self.subset or P, P)
        return self.take(path, torch.randperm(P)[:k, None].expand(k, len(x)), P / k)

    def take(self, path, rows, scale):
        """The steps `rows` (K, B) of each text."""
        rows = rows.to(path.z.device)[..., None]  # (K, B, 1)
        wide = rows.expand(-1, -1, path.z.shape[-1])  # (K, B, L)
        z, at, words = (a.gather(0, wide) for a in (path.z, path.at, path.words))  # (K, B, L) each
        t = path.t if path.t is None else path.t.gather(0, rows)  # (K, B, 1)
        return Calls(z, t, at, words, scale=scale)

    def units(self, log_p, calls, advantage):
        """The log-probabilities that have a ratio of their own. log_p (P, B, L) -> (B, U)"""
        return log_p.sum(-1).T  # (B, P)


@dataclass
class AGRPO(Trajectory):
    """(22.1): a unit is a token, and the steps are drawn for each text."""

    def calls(self, process, x, frozen, path):
        P = len(path.z)
        k = min(self.subset or P, P)
        return self.take(path, torch.rand(P, len(x)).argsort(0)[:k], P / k)

    def units(self, log_p, calls, advantage):
        return log_p.transpose(0, 1).flatten(1)  # (B, P L)


@dataclass
class MeanField:
    """(22.4). prompt_mask: the share of the question that is masked"""
    prompt_mask: float = 0.15

    def calls(self, process, x, frozen, path):
        hide = torch.rand(x.shape, device=x.device) < self.prompt_mask  # (B, L)
        return hidden_calls(process, x, frozen, [~frozen | hide])

    def units(self, log_p, calls, advantage):
        return log_p[0]  # (B, L)


class Coupled:
    """(22.5)."""
    even = False

    def calls(self, process, x, frozen, path):
        low, high = COUPLED_RATES
        t = low + (high - low) * torch.rand(len(x), 1, device=x.device)  # (B, 1)
        return self.pair(process, x, frozen, torch.rand(x.shape, device=x.device) < t, t)

    def pair(self, process, x, frozen, hide, t):
        """Three calls: all masks, those that `hide` (B, L) with probability t (B, 1), the others.
        """
        z = torch.where(hide & ~frozen, process.mask, x)  # (B, L)
        other = complement(process, x, z, frozen) == process.mask  # (B, L)
        calls = hidden_calls(process, x, frozen, [~frozen, hide & ~frozen, other])
        one = torch.ones_like(t)  # (B, 1)
        calls.weight = torch.stack([one, *((one, one) if self.even else (1 / t, 1 / (1 - t)))]) / 2
        return calls

    def units(self, log_p, calls, advantage):
        return (calls.weight * log_p).sum(0)  # (B, L)


class CoupledEven(Coupled):
    """(22.5) with w = 1, so that the weights of a token sum to 1."""
    even = True


@dataclass
class ELBO:
    """(22.6). draws: of masks, for each text"""
    draws: int = 2

    def calls(self, process, x, frozen, path):
        drawn = [any_order(process, x, torch.rand(len(x), 1, device=x.device), frozen)[0]
                 for _ in range(self.draws)]  # (B, L) each
        return self.hidden(process, x, frozen, [z == process.mask for z in drawn])

    def hidden(self, process, x, frozen, hide):
        """A call for each of M masks `hide` (B, L)."""
        calls = hidden_calls(process, x, frozen, hide)
        n, k = (~frozen).sum(-1, keepdim=True), calls.at.sum(-1, keepdim=True)  # (B, 1), (M, B, 1)
        calls.weight = n / k.clamp(min=1)  # (M, B, 1)
        return calls

    def units(self, log_p, calls, advantage):
        return (calls.weight * log_p).sum(-1).mean(0)[:, None]  # (B, 1)


@dataclass
class SPG(ELBO):
    """(22.7)."""
    beta: float = 1.5
    mix: float = 0.5

    def units(self, log_p, calls, advantage):
        lower = super().units(log_p, calls, advantage)[:, 0]  # (B,)
        upper = self.upper(log_p, calls)  # (B,)
        mixed = self.mix * upper + (1 - self.mix) * lower  # (B,)
        return torch.where(advantage >= 0, lower, mixed)[:, None]  # (B, 1)

    def upper(self, log_p, calls, share=None):
        """U of (22.7). share: the probability of each draw of masks; None: they are equal. -> (B,)
        """
        share = torch.full_like(log_p[..., :1], 1 / len(log_p)) if share is None else share
        log = (share * calls.weight).log() + self.beta * log_p  # (M, B, L)
        seen, n = calls.at.any(0), calls.at.any(0).sum(-1)  # (B, L), (B,) tokens that were hidden
        log = log.masked_fill(~calls.at, -torch.inf).masked_fill(~seen, 0.0)  # (M, B, L)
        each = log.logsumexp(0).masked_fill(~seen, 0.0) / self.beta  # (B, L)
        free = (calls.weight * calls.at.sum(-1, keepdim=True))[0, :, 0]  # (B,) n
        return each.sum(-1) * free / n.clamp(min=1)  # (B,)


def hidden_calls(process, x, frozen, hide):
    """A call for each of the masks `hide`, (B, L) each, which count where nothing is given."""
    hide, words = torch.stack(hide), x.expand(len(hide), *x.shape)  # (P, B, L) each
    z = torch.where(hide, process.mask, words)  # (P, B, L)
    return Calls(z, hide.float().mean(-1, keepdim=True), hide & ~frozen, words)


ESTIMATORS = {"ddpo": Trajectory, "agrpo": AGRPO, "d1": MeanField, "coupled": Coupled,
              "coupled-even": CoupledEven, "elbo": ELBO, "spg": SPG}


def make_estimator(name, **options):
    """The estimator `name`, with those of the options that it has."""
    cls = ESTIMATORS[name]
    own = [f.name for f in fields(cls)] if is_dataclass(cls) else []
    return cls(**{key: options[key] for key in own if key in options})


def pack_rollouts(rollouts):
    """Answers as plain tensors, for a checkpoint. rollouts: [(advantage, tokens, [(Calls, old)])]
    """
    return [(a, free, [({**vars(calls)}, old) for calls, old in updates])
            for a, free, updates in rollouts]


def unpack_rollouts(packed):
    return [(a, free, [(Calls(**calls), old) for calls, old in updates])
            for a, free, updates in packed]
