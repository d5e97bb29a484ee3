"""
Chapter 14. Noise is evidence: the Gaussian channel of BFN, TESS and SSD-LM, and its bounds.

    y      (B, L, V)  log-evidence: what a noisy token says for each word; theta = softmax(y)
    lam    its amount: 0 at t = 1, lam1 at t = 0; lam_t < lam_s for s < t
    e_x    one-hot;   e_hat = softmax(log_p)  (.., V), the network's law of a word, given all of y

    channel    y ~ N( lam e_x, lam I ),   log p(y_l | x_l = v) = y_v + const                  (14.1)
    evidence   y_s = y_t + N( d e_x, d I ),   d = lam_s - lam_t, independent of y_t           (14.2)
    posterior  p(x | y) ~ p(x) exp sum_l y_l[x_l]                                             (14.3)
    bound      -log p(x) <= 1/2 int_0^lam1 E sum_l |e_x - e_hat(y)|^2 dlam                    (14.4)
                            + E sum_l -log e_hat_x(y at lam1)
    n steps    -log p(x) <= sum_i E sum_l [ dy_x - logsumexp_v(log e_hat_v(y) + dy_v) ]       (14.5)
                            + E sum_l -log e_hat_x(y at lam1),
               y at lam_(i-1),   dy ~ N( d_i e_x, d_i I ),   lam_i = lam1 (i/n)^2
    excess     (14.5) is about  c / n  above the entropy, with the exact denoiser:            (14.6)
               c = 1/2 int_0^1 lam'(u)^2 sum_(l<m) E |Cov(e_l, e_m | y)|^2 du
    skip       log_p = log softmax( out + y ): `out` is then leave-one-out                    (14.7)

No lam stands in (14.3): the perfect denoiser needs no clock, and a shift y + c says nothing. A term
of (14.5) is a Bayes step of one token, in log space; (14.4) is its limit. Both are exact at the
end: what lam1 leaves in doubt is paid by the last term. (14.5) factorizes the receiver over tokens,
which is all that it loses: with one token it telescopes to -log p(x) on every path.

What minimizes both, and the cross-entropy, is p(x_l | y) with the token's own evidence, not the
leave-one-out distribution: the head may learn that one, as in (0.4), and (14.7) adds the evidence.

This is the process of gaussian.py with the unit table and lam = exp(-gamma): (14.1) is (13.2) up to
a constant, (14.4) is (13.7) with gamma_1 = infinity, and y = alpha z / sigma^2. Here the start is
y = 0, where (13.4) would divide by zero. t = 0 marks a given token.
"""
import math

import torch
import torch.nn.functional as F

from gaussian import LEAST

FIRST = 1e-8  # evidence before the first step: y is 1e-4 eps, and costs 5e-9 nats a token
GIVEN = 1e4  # evidence of a given token: exp(-1e4) is 0 in float64, too


class Squared:
    """lam = lam1 (1 - t)^2, as in BFN."""

    def __init__(self, lam1):
        self.lam1 = lam1

    def __call__(self, t):
        return self.lam1 * (1 - t) ** 2

    def time(self, lam):
        """The inverse. -> shape of lam"""
        return 1 - (lam / self.lam1).sqrt()


class Cosine:
    """The noise of SSD-LM and TESS: alpha_bar = cos^2(q) / cos^2(q_0), q from near 0 to pi/2.

    lam = 4 alpha_bar / (1 - alpha_bar). t runs over the part of it whose lam is lam1 at most.
    """
    OFFSET = 1e-4

    def __init__(self, lam1):
        self.lam1, self.start = lam1, 0.0
        self.start = self.time(torch.tensor(lam1, dtype=torch.float64)).item()

    def alpha_bar(self, r):
        """At the time r of the papers, from 0 to 1. -> shape of r, float64"""
        q = (r.double() + self.OFFSET) / (1 + self.OFFSET) * math.pi / 2
        return q.cos() ** 2 / self.top

    top = math.cos(OFFSET / (1 + OFFSET) * math.pi / 2) ** 2

    def __call__(self, t):
        a = self.alpha_bar(self.start + (1 - self.start) * t.double())
        return (4 * a / (1 - a)).to(t.dtype)

    def time(self, lam):
        """The inverse. -> shape of lam"""
        q = torch.acos((lam.double() / (4 + lam.double()) * self.top).sqrt())
        r = q * 2 / math.pi * (1 + self.OFFSET) - self.OFFSET
        return ((r - self.start) / (1 - self.start)).to(lam.dtype)


# ---- the terms of the bounds, from log_p (.., V) and x (..)

def square_error(log_p, x):
    """|e_x - e_hat|^2 = 1 - 2 e_hat_x + sum_v e_hat_v^2. -> (..)"""
    e_hat = log_p.exp()  # (.., V)
    return 1 - 2 * e_hat.gather(-1, x[..., None])[..., 0] + e_hat.square().sum(-1)


def word_nats(log_p, x):
    """-log e_hat_x. -> (..) nats"""
    return -log_p.gather(-1, x[..., None])[..., 0]


def receiver_nats(log_p, dy, x):
    """A term of (14.5): what evidence dy (.., V) adds to log p of the word x, by Bayes' rule. It is
    the sender's log density less the receiver's. -> (..) nats"""
    # exercise 26: the n-step bound, (14.5), 2 lines
    seen = (log_p + dy).logsumexp(-1)  # (..)
    return dy.gather(-1, x[..., None])[..., 0] - seen  # (..)
    # end


def draw_evidence(x, lam, eps):
    """(14.1), or the increment of (14.2). x (..), lam (..) or (), eps (.., V) -> (.., V)"""
    lam = torch.as_tensor(lam, dtype=eps.dtype, device=eps.device)[..., None]  # (.., 1) or (1,)
    # exercise 25: evidence adds up, (14.1), 1 line
    return lam * F.one_hot(x, eps.shape[-1]) + lam.sqrt() * eps  # (.., V)
    # end


class Evidence:
    """The process: the schedule, and what a network reads and outputs.

    skip: (14.7);   k: the network reads softmax(w) at (14.13), not theta; 0: theta
    feeds_back: z has 2 V columns, and the last V are the last e_hat, or 1/V: (14.14)
    """
    text_stays, continuous, mask = True, True, None  # given text is right

    def __init__(self, n_tokens, schedule, skip=True, k=0.0, feeds_back=False):
        self.n_tokens = self.V = n_tokens
        self.schedule, self.skip, self.k, self.feeds_back = schedule, skip, k, feeds_back

    @property
    def lam1(self):
        return self.schedule.lam1

    def lam(self, t):
        """Evidence at times t. -> shape of t"""
        return self.schedule(t).clamp(min=FIRST)

    def time(self, lam):
        """The time at which evidence is lam, never that of a given token. -> shape of lam"""
        return self.schedule.time(lam).clamp(min=LEAST, max=1)

    def given(self, x):
        """The evidence of given tokens. x (B, L) -> (B, L, V)"""
        return GIVEN * F.one_hot(x, self.V).float()  # (B, L, V)

    def noisy(self, x, lam, frozen=None):
        """A draw of (14.1) at lam (B, 1), and the times. -> y (B, L, V), t (B, 1|L)"""
        eps = torch.randn(*x.shape, self.V, device=x.device)  # (B, L, V)
        y, t = draw_evidence(x, lam.float().clamp(min=FIRST), eps), self.time(lam)  # (B, L, V)
        if frozen is None:
            return y, t
        y = torch.where(frozen[..., None], self.given(x), y)  # (B, L, V)
        return y, t.expand(x.shape).masked_fill(frozen, 0)  # (B, L)

    def shown(self, z, t):
        """What a network reads: probabilities. z (B, L, V|2V), t (B, 1|L) -> (B, L, V)"""
        y = z[..., :self.V]  # (B, L, V)
        theta = y.softmax(-1)  # (B, L, V)
        if not self.k:
            return theta
        given = (t == 0)[..., None]  # (B, 1|L, 1)
        lam = self.lam(t)[..., None]  # (B, 1|L, 1)
        p = (y * 2 * self.k / (lam * (4 + lam)).sqrt()).softmax(-1)  # (B, L, V) of w, (14.13)
        p = (p + z[..., self.V:]) / 2 if self.feeds_back else p  # (B, L, V) (14.14)
        return torch.where(given, theta, p)  # (B, L, V)

    def log_words(self, denoiser, y, t, at, fed=None):
        """log e_hat at `at` (B, L). fed (B, L, V): the last e_hat, None for 1/V. -> (N, V) nats"""
        z = y  # (B, L, V)
        if self.feeds_back:
            z = torch.cat([y, torch.full_like(y, 1 / self.V) if fed is None else fed], -1)
        out = denoiser(z, t.float(), at=at)[:, :self.V]  # (N, V)
        out = out if out.dtype == torch.float64 else out.float()  # (N, V)
        return (out + y[at].to(out.dtype) if self.skip else out).log_softmax(-1)  # (N, V)
