"""
Chapter 17. Glauber dynamics: GGM (arXiv:2405.17035), one token at a time. The paper has no public
code; this file follows its abstract.

Noise visits the tokens in order, `rounds` times. A visit keeps the token with probability phi, and
otherwise replaces it by a uniform symbol. After n visits a token is clean with probability
alpha = phi^n, so each token has its own time, 1 - alpha. Before step t = (round r, site i) the
sites left of i have been visited r + 1 times, the others r times. With x_theta the leave-one-out
distribution of token i, given all others as they are,

    given the rest  P(a) = p(X_t,i = a | X_t,-i) = alpha_i x_theta(a) + (1 - alpha_i) / V     (17.1)
                    with alpha_i = phi^r
    kept or noise?  logit p(kept | X_t+1,i = a) = log P(a) + log( phi V / (1 - phi) )         (17.2)
    heat bath       X_t,i ~ P, whatever X_t+1,i is                                            (17.3)
    reverse         p(X_t,i = a | X_t+1) ~ P(a) ( phi [a = X_t+1,i] + (1 - phi) / V )         (17.4)
    bound           -log p(x) <= sum_t KL( q(X_t,i | X_t+1, x) || (17.4) )                    (17.5)
                    + sum_l KL( q(X_T,l | x) || 1/V )

(17.2) is noise-contrastive estimation with uniform noise, and the paper trains on that one bit
(`bce`). The cross-entropy of x_theta has the same minimum; it gives a word of information in place
of a bit, and learns faster (`ce`). (17.3) maps the distribution of X_t+1 to that of X_t exactly: a
step draws a single token, so no error comes from drawing tokens independently, in any number of
rounds. The price is one network call per token and round. With the exact denoiser (17.5) is the
entropy plus KL(distribution of X_T || uniform), exactly, in any number of rounds.

The network sees token i as a mask of time 1, so it learns nothing from the token itself.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion import Uniform, categorical, likelihood, probabilities, stratified
from flags import flag
from methods.base import Method, to_float32


@dataclass(eq=False)
class GGM(Method):
    """--method ggm: noise and samples visit one token at a time."""
    rounds: int = flag(4, "visits of noise to each token", least=1, most=1000, fixed=True)
    keep: float = flag(0.35, "phi, the probability that a visit keeps a token", least=0.001,
                       most=0.999, fixed=True)
    objective: str = flag("ce", "cross-entropy of the clean word, or of the bit: kept or noise",
                          ["ce", "bce"])
    uses_time, fixed_positions = True, False
    samplers = ("ancestral",)
    revises_text, classifier_process = False, None  # guidance changes x_theta only

    def __post_init__(self):
        self.process, self.max_steps = Uniform(self.n_tokens), self.rounds
        self.mask, self.vocab_size = self.n_tokens, self.n_tokens + 1

    # ---- noise

    def draw_step(self, x, frozen=None):
        """A step (r, i) for each text, stratified over all, and how many steps there are.

        -> round r, site i, number of steps T, (B, 1) each
        """
        free = torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen  # (B, L)
        n = free.sum(-1, keepdim=True).clamp(min=1)  # (B, 1)
        u = stratified(len(x), x.device)[torch.randperm(len(x), device=x.device)]  # (B, 1)
        step = (u.double() * self.rounds * n).long().clamp(max=self.rounds * n - 1)  # (B, 1)
        site = (free.cumsum(-1) == step % n + 1).int().argmax(-1, keepdim=True)  # (B, 1)
        return step // n, site, self.rounds * n  # (B, 1) each

    def times(self, x, r, site, frozen=None):
        """1 - alpha of each token before step (r, site), 0 where it is given. -> (B, L) float64"""
        visits = r + (torch.arange(x.shape[1], device=x.device) < site)  # (B, L)
        t = 1 - self.keep ** visits.double()  # (B, L)
        return t if frozen is None else t.masked_fill(frozen, 0.0)  # (B, L)

    def noised(self, x, t):
        """Each token replaced by a uniform symbol with probability t (B, L). -> (B, L)"""
        replaced = torch.rand(x.shape, dtype=torch.float64, device=x.device) < t  # (B, L)
        return torch.where(replaced, self.process.draw_noise(t, x), x)  # (B, L)

    # ---- the distribution of one token given the rest

    def logits_at(self, denoiser, z, t, site, rows=None):
        """Logits of the token `site` (B, 1), given the others of z (B, L) at times t (B, L).

        rows (B,) selects texts. -> (N, V)
        """
        at = torch.zeros_like(z, dtype=torch.bool).scatter_(1, site, True)  # (B, L)
        hidden, t = z.masked_fill(at, self.mask), t.masked_fill(at, 1.0)  # (B, L) each
        at = at if rows is None else at & rows[:, None]  # (B, L)
        return denoiser(hidden, t, at=at)[:, :self.n_tokens]  # (N, V)

    def given_rest(self, x_theta, alpha):
        """(17.1). x_theta (N, V), alpha a number or (N, 1) -> (N, V)"""
        return alpha * x_theta + (1 - alpha) / self.n_tokens  # (N, V)

    def reverse(self, p, b):
        """(17.4). p (N, V) from (17.1), or q(X_t,i | x); b (N, 1) is X_t+1,i. -> (N, V)"""
        joint = p * (1 - self.keep) / self.n_tokens  # (N, V)
        joint = joint.scatter_add(1, b, p.gather(1, b) * self.keep)  # (N, V)
        return joint / joint.sum(-1, keepdim=True)  # (N, V)

    def visit(self, z, site):
        """Noise visits the token `site`. -> the token after it, whether it was kept, (B, 1) each"""
        kept = torch.rand(site.shape, dtype=torch.float64, device=z.device) < self.keep  # (B, 1)
        before = z.gather(1, site)  # (B, 1)
        return torch.where(kept, before, self.process.draw_noise(1.0, before)), kept  # (B, 1) each

    # ---- losses

    def loss(self, denoiser, x, frozen=None):
        """`ce`: -log x_theta(x_i); `bce`: the cross-entropy of (17.2). -> (B, L)

        One token of each text is scored, times the number of free tokens, so that the mean over
        those is in nats per token.
        """
        r, site, T = self.draw_step(x, frozen)  # (B, 1) each
        t = self.times(x, r, site, frozen)  # (B, L)
        z = self.noised(x, t)  # (B, L)
        logits = to_float32(self.logits_at(denoiser, z, t, site))  # (B, V)
        if self.objective == "ce":
            nats = F.cross_entropy(logits, x.gather(1, site)[:, 0], reduction="none")  # (B,)
            nats = nats[:, None]  # (B, 1)
        else:
            p = self.given_rest(logits.softmax(-1), self.keep ** r.to(logits.dtype))  # (B, V)
            after, kept = self.visit(z, site)  # (B, 1) each
            odds = self.keep * self.n_tokens / (1 - self.keep)
            logit = (p.gather(1, after) * odds).log()  # (B, 1) of (17.2)
            kept = kept.to(logit.dtype)  # (B, 1)
            nats = F.binary_cross_entropy_with_logits(logit, kept, reduction="none")  # (B, 1)
        return self.at_site(x, site, nats * (T / self.rounds).to(nats.dtype), frozen)  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """A random term of (17.5) times their number, and the last term in full. -> (B, L) nats"""
        r, site, T = self.draw_step(x, frozen)  # (B, 1) each
        t = self.times(x, r, site, frozen)  # (B, L)
        z = self.noised(x, t)  # (B, L)
        x_theta = self.logits_at(denoiser, z, t, site).double().softmax(-1)  # (B, V)
        after, _ = self.visit(z, site)  # (B, 1)
        nats = T * self.step_kl(x_theta, x.gather(1, site), after, r)  # (B, 1)
        nats = self.at_site(x, site, nats, frozen)  # (B, L)
        prior = torch.full_like(nats, self.prior_kl())  # (B, L)
        return nats + (prior if frozen is None else prior.masked_fill(frozen, 0.0))  # (B, L)

    def step_kl(self, x_theta, x, b, r):
        """One term of (17.5). x_theta (N, V); clean x, X_t+1,i b, round r (N, 1) -> (N, 1) nats"""
        alpha = self.keep ** r.double()  # (N, 1)
        clean = torch.zeros_like(x_theta).scatter(1, x, 1.0)  # (N, V)
        q = self.reverse(self.given_rest(clean, alpha), b)  # (N, V)
        p = self.reverse(self.given_rest(x_theta, alpha), b)  # (N, V)
        terms = torch.special.xlogy(q, q) - torch.special.xlogy(q, p)  # (N, V)
        return terms.sum(-1, keepdim=True)  # (N, 1)

    def prior_kl(self):
        """The last term of (17.5) for one token, the same for every x. -> nats, a number"""
        alpha = torch.tensor(self.keep**self.rounds, dtype=torch.float64)  # ()
        right, wrong = alpha + (1 - alpha) / self.n_tokens, (1 - alpha) / self.n_tokens  # () each
        entropy = torch.special.entr(right) + (self.n_tokens - 1) * torch.special.entr(wrong)  # ()
        return torch.tensor(self.n_tokens).double().log().item() - entropy.item()

    def at_site(self, x, site, nats, frozen=None):
        """nats (B, 1) at one token of each text; 0 at other tokens and at given ones. -> (B, L)"""
        zeros = torch.zeros(x.shape, dtype=nats.dtype, device=x.device)  # (B, L)
        nats = zeros.scatter(1, site, nats)  # (B, L)
        return nats if frozen is None else nats.masked_fill(frozen, 0.0)  # (B, L)

    # ---- samples

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=None, to_probs=probabilities, window=None,
               end=None):
        """The last `steps` rounds backwards by (17.3); yields z after each token."""
        for r in range(min(steps, self.rounds) - 1, -1, -1):
            for i in range(z.shape[1] - 1, -1, -1):
                rows = ~frozen[:, i]  # (B,)
                site = torch.full((len(z), 1), i, device=z.device)  # (B, 1)
                if rows.any():
                    t = self.times(z, torch.full_like(site, r), site, frozen)  # (B, L)
                    x_theta = to_probs(self.logits_at(denoiser, z, t, site, rows))  # (N, V)
                    new = categorical(self.given_rest(x_theta, self.keep**r))  # (N,)
                    place = rows.nonzero()[:, 0], torch.tensor(i, device=z.device)  # (N,), ()
                    z = z.index_put(place, new)  # (B, L)
                yield z

    def prior(self, shape, device="cpu"):
        return torch.randint(self.n_tokens, shape, device=device)  # (B, L)

    def count_states(self, length, steps):
        return min(steps, self.rounds) * length

    # ---- the exact denoiser

    def likelihood(self, z, t):
        """q(z_t | x = v) for each text symbol v; 1 for all v where z is the mask. -> (B, L, V)"""
        hidden = z == self.mask  # (B, L)
        e = likelihood(self.process, z.masked_fill(hidden, 0), t.expand(z.shape))  # (B, L, V)
        return e.masked_fill(hidden[..., None], 1.0)  # (B, L, V)
