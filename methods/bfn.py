"""
Chapter 14. Bayesian Flow Networks for text (arXiv:2308.07037): the network reads a belief.

A token is a belief theta = softmax(y), flat at first. Evidence arrives, by (14.2), Bayes' rule
updates the belief of each token by itself, and a network that reads all beliefs predicts the words.

    schedule   lam = lam1 (1 - t)^2;   BFN's beta(1) is lam1 / V                             (14.12)
    squared    lam1 (1 - t) |e_x - e_hat|^2, the integrand of (14.4) over t

Give lam1, not beta(1): it is how much a token tells in the end, whatever the vocabulary is. BFN's
text8 has 15.2; at V = 50,000 the same beta(1) would be 28,000.

`squared` without (14.7) is as published. `ce` trains on -log e_hat_x instead. It is (14.7) that
helps: without it the two learn the same in equal time (docs/results.md). The published code mixes
the n-step receiver over V components in each coordinate of y by itself, where (14.5) has one word
for all of them: it is off by up to 13 % in 3 steps. And it ends with the likeliest word; here the
last word is drawn, as the bound has it.
"""
from dataclasses import dataclass

from diffusion import stratified
from flags import flag
from methods.base import free_tokens, scatter_nats
from methods.evidence import Evidence, Squared, square_error
from methods.simplex import Simplex


@dataclass(eq=False)
class BFN(Simplex):
    """--method bfn. The clock is not needed, (14.3): --time_input none."""
    weighting: str = flag("ce", "train on the cross-entropy, or on the squared error as published",
                          ["ce", "squared"])

    def channel(self):
        return Evidence(self.n_tokens, Squared(self.lam1), self.skip)

    def loss(self, denoiser, x, frozen=None):
        """-> (B, L) nats; `squared` is a draw of the integral of (14.4)"""
        if self.weighting == "ce":
            return super().loss(denoiser, x, frozen)  # (B, L)
        at, u = free_tokens(x, frozen), stratified(len(x), x.device)  # (B, L), (B, 1)
        return scatter_nats(self.integrand(denoiser, x, u, at, frozen), at)  # (B, L)
