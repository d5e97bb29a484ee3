"""
Chapter 4. Uniform noise as masks that show a word: AUDM (after arXiv:2605.22765).

Uniform noise (4.1) tosses a coin m for each token, and then shows a word in its place. Draw that
word u once, for the whole way from noise to text, and let the network see the coin:

    forward    m_l = 1 with probability 1 - alpha_t,   u_l ~ Uniform(N)                        (4.2)
               z_l = x_l where m_l = 0, u_l where m_l = 1
    bound      -log p(x) <= E_u E_t E_m sum_l m_l -alpha'/(1 - alpha) (-log x_theta(x_l))      (4.3)
               with x_theta(z, m) = p(x_l | z, m)

(x, z_t) has udlm's distribution at every t. (z, m) is masked diffusion with N masks in place of
one: word w is the id w as text and N + 1 + w as noise. So text is carried over, the bound is a
cross-entropy at the noise, (4.3) is also the mean of the any-order form (3.1), no time is needed,
and every sampler of masks serves. u depends neither on x nor on m. Hence the exact
x_theta does not look at it, and is mdlm's: the bound is as tight, and what a network loses to mdlm
is what it takes to learn that the words of noise say nothing. What udlm's network lacks is m:

    noise?     p(m_l = 0 | z, other m) = alpha x_theta(z_l) / (alpha x_theta(z_l) + (1 - alpha)/N)
                                                                                               (4.4)
    udlm       p(x_l | z without z_l) = E[ x_theta(x_l) | z without z_l ], over the other m    (4.5)

Not equal to udlm's are distributions of two times: its words of noise jump on, ours stay. If each
were drawn again with probability 1 - alpha_t / alpha_s between s and t, (x, z_s, z_t) would be
udlm's too, with the same x_theta and the same bound.

The paper's network sees z and all of u, so a word that happens to equal its u may be text: one word
of text in N looks like noise. Its bound is as tight, but no cross-entropy, and needs the time.
"""
from dataclasses import dataclass

import torch
from torch import nn

from diffusion import Wrapper, ancestral, probabilities
from methods.mdlm import MDLM
from model import Transformer


class TwoVectors(Transformer):
    """The transformer with two vectors for each word, as text and as noise. It predicts text.

    The id N is a mask that shows no word yet: it shows a random one, another one in each call.
    """

    def __init__(self, vocab_size, *shape, **options):
        super().__init__(vocab_size // 2, *shape, **options)
        noise = torch.empty_like(self.embed)  # (N, D)
        nn.init.kaiming_uniform_(noise, a=5 ** 0.5)
        self.embed = nn.Parameter(torch.cat([self.embed.detach(), noise]))  # (2N, D)

    def embedding(self, z):
        n = self.vocab_size
        z = torch.where(z == n, n + 1 + torch.randint_like(z, n), z)  # (B, L)
        return super().embedding(z - (z > n).to(z.dtype))  # (B, L, D)


class ShowWords(Wrapper):
    """A denoiser of (z, m), called with masks in place of noise: they show the words u (B, L)."""

    def __init__(self, denoiser, mask, words):
        super().__init__(denoiser)
        self.mask, self.words = mask, words

    def show(self, z, first=0):
        """z (B, l), the tokens from `first` on, with N + 1 + u at its masks. -> (B, l)"""
        shown = self.mask + 1 + self.words[:, first:first + z.shape[1]]  # (B, l)
        return torch.where(z == self.mask, shown, z)  # (B, l)

    def __call__(self, z, t, at=None, cache=None, **layout):
        """A cache says which tokens of the text z are."""
        first = 0 if cache is None else cache.start
        layout = layout if cache is None else {**layout, "cache": cache}
        return self.denoiser(self.show(z, first), t, at=at, **layout)  # (N, V)


@dataclass(eq=False)
class AUDM(MDLM):
    """--method audm: mdlm whose masks show random words; its bound is (4.3)."""
    network = TwoVectors
    public_layout = None

    def __post_init__(self):
        super().__post_init__()
        self.vocab_size = 2 * self.n_tokens + 1

    def cross_entropy(self, denoiser, x, z, t, weight=None, frozen=None, share=1.0):
        """-log x_theta(x) at the noise, whose words are drawn here, 0 elsewhere. -> (B, L) nats"""
        shown = ShowWords(denoiser, self.process.mask, torch.randint_like(x, self.n_tokens))
        return super().cross_entropy(shown, x, z, t, weight, frozen, share)  # (B, L)

    def prior(self, shape, device="cpu"):
        """Noise everywhere. -> (B, L) ids N + 1 + u"""
        return self.process.mask + 1 + torch.randint(self.n_tokens, shape, device=device)  # (B, L)

    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """From noise to text; yields (z, m) as ids (B, L), whose noise keeps its words."""
        mask = self.process.mask
        words = torch.where(z > mask, z, self.prior(z.shape, z.device)) - mask - 1  # (B, L)
        shown = ShowWords(denoiser, mask, words)
        for z in sampler(self.process, shown, z.clamp(max=mask), frozen, steps, to_probs):
            yield shown.show(z)  # (B, L)

    def likelihood(self, z, t):
        """Noise is a mask, whatever word it shows. -> (B, L, n_tokens)"""
        return super().likelihood(z.clamp(max=self.process.mask), t)  # (B, L, n_tokens)
