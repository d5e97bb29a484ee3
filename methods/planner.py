"""
Chapter 24. A planner: a language model whose network says, besides, which words are wrong.

One more logit at each token, the head h_l, learns from texts in which some words are known to be
wrong (P2, arXiv:2502.03540; DDPD, 2410.06264):

    planner  l = -[z_l wrong] log sigma(h_l(z)) - [z_l right] log(1 - sigma(h_l(z)))          (24.9)

It is least at sigma(h_l) = p(z_l is wrong | z). Which words are wrong depends on where z is from:

    words    uniform noise. A word is wrong if noise has put it there, and the least (24.9) is at
             (24.8): then x_theta has this planner in it. `ddpd` asks the head
    draws    masks of time t, some of which the network itself opens in one step (0.3) to s < t,
             t ~ U(0, 1), s ~ U(0, t). A word is wrong if it is not that of the text. No formula
             has this planner in it: x_theta does not know which words were drawn at once. `p2` asks
             the head

The rest is udlm or mdlm: bound, samplers, and the loss, to which (24.9) is added, on noise of its
own. A network of mdlm fits (--init_from): its logit of the mask, which nothing reads, is the head.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion import Wrapper, corrupt, reverse_step, stratified
from flags import flag
from methods.base import Method, inside, loss_at, to_float32
from methods.mdlm import MDLM
from methods.udlm import UDLM
from model import select_rows


def planner_nats(logits, wrong):
    """(24.9). logits (N, n_tokens + 1), of which the last is the head; wrong (N,) -> (N,) nats"""
    head = to_float32(logits[:, -1])  # (N,)
    return F.binary_cross_entropy_with_logits(head, wrong.to(head), reduction="none")  # (N,)


@dataclass(eq=False)
class Planner(Method):
    """--method planner: mdlm or udlm, and a head that says which words are wrong."""
    errors: str = flag("draws", "where wrong words are from: the network's own draws at masks, or "
                       "uniform noise in place of masks", ["draws", "words"], fixed=True)
    model: object = None  # the language model
    fixed_positions, plans, opens_masks = False, True, True

    def __post_init__(self):
        self.model = (MDLM if self.errors == "draws" else UDLM)(self.n_tokens)
        self.process, self.vocab_size = self.model.process, self.n_tokens + 1
        self.uses_time, self.opens_masks = self.model.uses_time, self.model.opens_masks

    def wrong_words(self, denoiser, x, frozen):
        """Texts with wrong words. frozen (B, L) -> z (B, L), t (B, 1), wrong (B, L) bool"""
        t = stratified(len(x), x.device)  # (B, 1)
        if self.errors == "words":
            noise = torch.rand(x.shape, device=x.device) < 1 - self.process.alpha(t)  # (B, L)
            noise = noise & ~frozen  # (B, L)
            return torch.where(noise, self.process.draw_noise(t, x), x), t, noise
        s, z = t * torch.rand_like(t), corrupt(self.process, x, t, frozen)  # (B, 1), (B, L)
        z = reverse_step(self.process, denoiser, z, frozen, s.double(), t.double())  # (B, L)
        return z, s, (z != x) & (z != self.process.mask)

    def plan(self, denoiser, x, frozen=None):
        """(24.9) at the words that are not given, 0 elsewhere. -> (B, L) nats"""
        given = torch.zeros_like(x, dtype=torch.bool) if frozen is None else frozen  # (B, L)
        z, t, wrong = self.wrong_words(denoiser, x, given)  # (B, L), (B, 1), (B, L)
        at = (z < self.n_tokens) & ~given  # (B, L)
        return loss_at(denoiser, z, t, at, planner_nats, (wrong,), self.n_tokens + 1)  # (B, L)

    def loss(self, denoiser, x, frozen=None):
        """What training minimizes: that of the language model and (24.9). -> (B, L) nats"""
        denoiser = Wrapper(denoiser)
        denoiser.fixed_shapes = False  # nobody knows how many masks open
        return self.model.loss(denoiser, x, frozen) + self.plan(denoiser, x, frozen)  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """The bound of the language model. -> (B, L) nats"""
        return self.model.nelbo(denoiser, x, frozen)  # (B, L)

    def likelihood(self, z, t):
        return self.model.likelihood(z, t)  # (B, L, n_tokens)

    def oracle(self, language):
        """The exact denoiser, and as its head the log-odds of (24.8). Where masks leave none, those
        that x_theta gives to all other words. -> (.., n_tokens + 1)"""
        exact, n = self.model.oracle(language), self.n_tokens

        def denoiser(z, t, at=None, label=None, **layout):
            log_p = exact(z, t, at=at, label=label)  # (.., n)
            word = z.clamp(max=n - 1)[..., None]  # (B, L, 1)
            own = log_p.gather(-1, select_rows(word, at))  # (.., 1) log x_theta_l(z_l)
            if self.errors == "draws":
                head = torch.log1p(-own.exp()) - own  # (.., 1)
            else:
                odds = self.process.b(inside(t), z) / self.process.alpha(inside(t))  # (B, L)
                head = select_rows(odds[..., None], at).log() - own  # (.., 1)
            return torch.cat([log_p, head], -1)  # (.., n + 1)
        return denoiser
