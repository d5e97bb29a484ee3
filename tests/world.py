"""
A world small enough to enumerate: 3 symbols, texts of length 3, 27 known probabilities.

An expectation over it is a sum. The texts have two classes.
"""
from itertools import product

import torch
import torch.nn.functional as F

from any_length import FewTexts
from data.tokenizer import chars
from diffusion import Absorbing, Hybrid, Uniform, likelihood, posterior_x0, reverse
from methods import make_method


def weights(seed, *shape):
    """Squares of uniform numbers, which sum to 1 over the last dimension. -> shape"""
    generator = torch.Generator().manual_seed(seed)
    w = torch.rand(shape, generator=generator, dtype=torch.float64) ** 2  # shape
    return w / w.sum(-1, keepdim=True)


N, L = 3, 3
TEXTS = torch.tensor(list(product(range(N), repeat=L)))  # (27, 3)
P = weights(3, len(TEXTS))  # (27,) p(x)
CLASS = weights(5, len(TEXTS), 2)  # (27, K) p(y | x)
JOINT = torch.cat([P * CLASS.T, P[None]])  # (K + 1, 27) p(x, y); the last row: no class
PROCESSES = {"mask": Absorbing(N), "uniform": Uniform(N), "hybrid .1": Hybrid(N, 0.1),
             "hybrid .7": Hybrid(N, 0.7)}


def states(process):
    """Every noisy text. -> (V^3, 3)"""
    return torch.tensor(list(product(range(process.V), repeat=L)))


def evidence(process, z, t):
    """q(z_l | x_l) for every text x of the world. -> (B, 27, L)"""
    return torch.stack([likelihood(process, z, t)[:, l, TEXTS[:, l]] for l in range(L)], -1)


def q(process, z, t):
    """q(z | x) for every text x. -> (B, 27)"""
    return evidence(process, z, t).prod(-1)


def tables(n):
    """p(x_1, .., x_n) n times, each with another x_l last; tests may take another P. -> n of (N^(n
    - 1), N)"""
    p = P.view(N ** n, -1).sum(-1).view((N,) * n)  # (N, .., N)
    return [p.movedim(l, -1).reshape(-1, N) for l in range(n)]


def posterior_of_all(likelihood, leave_one_out=True):
    """Language.posterior without a topic: a product of matrices for each token. -> (B, n, N)"""
    n, rows = likelihood.shape[1], []
    for l, table in enumerate(tables(n)):
        seen = torch.ones_like(likelihood[:, 0, :1])  # (B, 1)
        for k in (k for k in range(n) if k != l):
            seen = (seen[..., None] * likelihood[:, None, k]).flatten(1)  # (B, N), (B, N^2), ..
        q = seen @ table  # (B, N)
        rows.append(q if leave_one_out else q * likelihood[:, l])  # (B, N)
    p = torch.stack(rows, 1)  # (B, n, N)
    return p / p.sum(-1, keepdim=True).clamp(min=1e-300)  # (B, n, N)


FEW = FewTexts([*map(tuple, TEXTS.tolist())], P, N)


class Language:
    """The world as a language (see data/toy.py): what Method.oracle needs to know of one."""
    V, n_topics = N, len(JOINT) - 1

    def posterior(self, likelihood, leave_one_out=True, topic=None):
        """p(x_l | all other evidence), or all evidence. likelihood (B, n, N) -> (B, n, N)"""
        n = likelihood.shape[1]  # of the first n tokens, as bd3lm asks
        if topic is None:
            return posterior_of_all(likelihood, leave_one_out)  # (B, n, N)
        seen = likelihood[:, torch.arange(n), TEXTS[:, :n]]  # (B, 27, n)
        weight, rows = JOINT[topic], []  # (27,)|(B, 27)
        for l in range(n):
            kept = [k for k in range(n) if k != l or not leave_one_out]
            joint = seen[:, :, kept].prod(-1) * weight  # (B, 27)
            rows.append(torch.stack([joint[:, TEXTS[:, l] == v].sum(-1) for v in range(N)], -1))
        p = torch.stack(rows, 1)  # (B, n, N)
        return p / p.sum(-1, keepdim=True).clamp(min=1e-300)  # (B, n, N)

    def topic_posterior(self, likelihood):
        """p(y | evidence). likelihood (B, L, N) -> (B, K)"""
        seen = likelihood[:, torch.arange(L), TEXTS]  # (B, 27, L)
        joint = seen.prod(-1) @ JOINT[:-1].T  # (B, K)
        return joint / joint.sum(-1, keepdim=True).clamp(min=1e-300)  # (B, K)

    def log_prob(self, likelihood, topic=None):
        """log of the sum of p(x) times the evidence of x, whose largest entry is made 1 at each
        word. likelihood (B, L, N) -> (B,)"""
        e = likelihood / likelihood.amax(-1, keepdim=True)  # (B, L, N)
        seen = e[:, torch.arange(L), TEXTS].prod(-1)  # (B, 27)
        weight = P if topic is None else JOINT[topic]  # (27,)|(B, 27)
        return ((seen * weight).sum(-1) / weight.sum(-1)).log()  # (B,)

    def predict(self, x, topic=None):
        """p(x_l | x_<l). x (B, L) -> (B, L, N)"""
        weight, rows = P if topic is None else JOINT[topic], []  # (27,)|(B, 27)
        for l in range(x.shape[1]):
            match = (TEXTS[None, :, :l] == x[:, None, :l]).all(-1) * weight  # (B, 27)
            rows.append(torch.stack([match[:, TEXTS[:, l] == v].sum(-1) for v in range(N)], -1))
        p = torch.stack(rows, 1)  # (B, L, N)
        return p / p.sum(-1, keepdim=True)  # (B, L, N)


    # of texts that are written by insertions, z (B, M) with a place more than texts have
    fill_in, next_word = FEW.fill_in, FEW.next_word


LANGUAGE = Language()


class Corpus:
    """The world as a data set: what Method.on_data reads of one, 1,000 texts by their numbers."""
    encoding = chars("abcdefgh")  # at least as many symbols as tests have
    thoughts = (1, 2)  # the last three words

    def ids(self, split):
        return TEXTS.repeat_interleave((1000 * P).round().long(), 0).flatten().numpy()  # (m,)


def make_world_method(name, n_tokens, **flags):
    """The method `name`, which has seen the world as its training text."""
    method = make_method(name, n_tokens, **flags)
    method.on_data(Corpus())
    return method


def places(key):
    """Which of its values each number is, from the least on. (B,) -> (B,)"""
    if key.max() > 100_000:
        return key.unique(return_inverse=True)[1]
    there = torch.zeros(key.max() + 1, dtype=torch.long).index_fill_(0, key, 1)  # (numbers,)
    return (there.cumsum(0) - 1)[key]


def by_state(denoiser):
    """The same denoiser, called once for equal texts: many draws are in few states."""
    def call(z, t, at=None, label=None, **layout):
        own = layout.get("mask_mod") and not getattr(layout["mask_mod"], "cacheable", False)
        own = own or z.is_floating_point()  # or no two texts are alike
        own = own or layout.get("positions", z[0]).dim() > 1  # a layout for each text
        if own or t is not None and (t.shape[-1] > 1 or len(t.unique()) > 1):
            return denoiser(z, t, at=at, label=label, **layout)
        key = (z * 8 ** torch.arange(z.shape[1])).sum(-1) * 8 + (0 if label is None else label)
        of = places(key)  # (B,) which of the states
        one = torch.zeros(of.max() + 1, dtype=torch.long).scatter(0, of, torch.arange(len(z)))
        t = t if t is None else t.expand(len(z), 1)[one]  # (states, 1)
        options = layout if label is None else {**layout, "label": label[one]}
        logits = denoiser(z[one], t, **options)[of]  # (B, L, V)
        return logits if at is None else logits[at]  # (B, L, V)|(N, V)
    return call


def oracle(process, leave_one_out=True):
    """The exact denoiser: the leave-one-out distribution, or p(x_l | z), to show the difference."""
    def denoiser(z, t, at=None, label=None):
        e = likelihood(process, z, t.double())  # (B, L, N)
        log_p = LANGUAGE.posterior(e, leave_one_out, label).clamp(min=1e-300).log()  # (B, L, N)
        return log_p if at is None else log_p[at]
    return denoiser


def classifier(process):
    """The exact p(y | z), from ids, or from weights over symbols at one time for a text."""
    def log_posterior(z, t):
        if z.is_floating_point():
            symbols = torch.arange(process.V).expand(len(z), -1)  # (B, V)
            table = likelihood(process, symbols, t.double())  # (B, V, N)
            e = torch.stack([(z @ table)[:, l, TEXTS[:, l]] for l in range(L)], -1)  # (B, 27, L)
        else:
            e = evidence(process, z, t.double())  # (B, 27, L)
        joint = e.prod(-1) @ JOINT[:-1].T  # (B, K)
        p = joint / joint.sum(-1, keepdim=True).clamp(min=1e-300)  # (B, K)
        return p.clamp(min=1e-300).log()  # (B, K)
    return log_posterior


def left_to_right(z, t, at, label=None):
    """The exact next-token probabilities, as ar calls it: of the last token of [start, x_0, ..]."""
    x, l = z[:, 1:], z.shape[1] - 1
    weight = P if label is None else JOINT[label]  # (27,)|(B, 27)
    match = (TEXTS[None, :, :l] == x[:, None]).all(-1) * weight  # (B, 27)
    p = torch.stack([match[:, TEXTS[:, l] == v].sum(-1) for v in range(N)], -1)  # (B, N)
    return p[at[:, -1]].log()  # (N, n_tokens)


def next_token(p):
    """The exact p(x_l | x_<l) of a law p (27,), as ar calls its network."""
    def denoiser(z, t, at=None, **layout):
        x, rows = z.roll(-1, 1), []  # (B, L)
        for l in range(x.shape[1]):
            match = (TEXTS[None, :, :l] == x[:, None, :l]).all(-1) * p  # (B, 27)
            rows.append(torch.stack([match[:, TEXTS[:, l] == v].sum(-1) for v in range(N)], -1))
        logits = torch.stack(rows, 1).log()  # (B, L, N)
        return logits if at is None else logits[at]
    return denoiser


def vandal(z, t, at=None):
    """A wrong denoiser that depends on all it is given: position, neighbours and the time."""
    left, right = z.roll(1, -1), z.roll(-1, -1)  # (B, L)
    scores = [0.7 * left + 0.2 * z, 0.3 * right + t * z, 1.1 * t + 0 * z]  # N times (B, L)
    log_p = torch.stack(scores, -1).double().log_softmax(-1)  # (B, L, N)
    return log_p if at is None else log_p[at]


def once(denoiser):
    """The same denoiser, called with the first of texts and times that are all equal."""
    def call(z, t, at):
        assert (z == z[0]).all() and (t == t[0]).all()
        return denoiser(z[:1], t[:1].double()).expand(*z.shape, -1)[at]  # (N, V)
    return call


def numbers(z, V):
    """Each text of three as one number. (n, 3) -> (n,)"""
    return (z * V ** torch.arange(L).flip(0)).sum(-1)


def chi_square(draws, p):
    """Of draws (ids) from p: the statistic, and its degrees of freedom.

    Cells that expect at most 5 draws count as one.
    """
    expected, seen = p * len(draws), torch.bincount(draws, minlength=len(p))
    assert (seen[p == 0] == 0).all(), "drew what has probability zero"
    cells = expected > 5
    rest_expected, rest_seen = expected[~cells].sum(), seen[~cells].sum()
    chi, freedom = ((seen - expected)[cells] ** 2 / expected[cells]).sum(), int(cells.sum()) - 1
    if rest_expected > 5:
        chi, freedom = chi + (rest_seen - rest_expected) ** 2 / rest_expected, freedom + 1
    return float(chi), max(1, freedom)


def surprise(draws, p):
    """chi_square in standard deviations above its mean: about normal for many cells."""
    chi, freedom = chi_square(draws, p)
    return (chi - freedom) / (2 * freedom) ** 0.5


def distance(draws, p):
    """sum_x (q(x) - p(x))^2 / p(x) for draws (ids) from q. -> an unbiased estimate, its error

    Total variation is at most half of its root.
    """
    chi, freedom = chi_square(draws, p)
    return (chi - freedom) / len(draws), (2 * freedom) ** 0.5 / len(draws)


def carried_over(process, x_theta, z):
    """x_theta over all V symbols. If noise is masks only, text is right, whatever x_theta is."""
    x_theta = F.pad(x_theta, (0, process.V - x_theta.shape[-1]))  # (B, L, V)
    known = (z < process.n_tokens)[..., None] & process.text_stays  # (B, L, 1)
    return torch.where(known, F.one_hot(z, process.V).to(x_theta.dtype), x_theta)  # (B, L, V)


def psi_law(process, x_theta, z, s, t, kappa):
    """(7.3) written out: probabilities of z_s given z_t. s, t (B, 1) -> (B, L, V)"""
    symbols = torch.arange(process.V)  # (V,)
    x = F.pad(posterior_x0(process, x_theta, z, t), (0, process.V - process.n_tokens))  # (B, L, V)
    correct = process.alpha(s)[..., None] * x + process.b(s[..., None], symbols)  # (B, L, V)
    predict = reverse(process, carried_over(process, x_theta, z), z, s, t)  # (B, L, V)
    return kappa * predict + (1 - kappa) * correct  # (B, L, V)


def end_of_steps(process, denoiser, t, s, kappa):
    """The distribution after steps of (7.3) from noise, as a product of matrices. -> (V^3,)

    t, s, kappa (steps,): with kappa = 1, steps of (0.3)
    """
    z = states(process)  # (V^3, L)
    p = (z == process.V - 1).all(-1).double()  # (V^3,) all masks
    p = torch.full_like(p, 1 / len(p)) if process.mask is None else p  # (V^3,)
    for t, s, k in zip(t, s, kappa):
        t, s = t.expand(len(z), 1), s.expand(len(z), 1)  # (V^3, 1)
        rows = psi_law(process, denoiser(z, t).exp(), z, s, t, k).nan_to_num()  # (V^3, L, V)
        p = p @ torch.einsum("ai,aj,ak->aijk", *rows.unbind(1)).flatten(1)  # (V^3,)
    return p


def from_texts(p, V):
    """Total variation distance between p (V^3,) and the 27 probabilities of the world."""
    exact = torch.zeros_like(p).index_put((numbers(TEXTS, V),), P)  # (V^3,)
    return float((p - exact).abs().sum() / 2)
