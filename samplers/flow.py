"""
Chapter 14. Steps of a flow, (14.21): a token jumps to a draw of its clean word, and may be redrawn.

    jump       x ~ p(x_l | z_t);  z_s = x  with probability (kappa_s - kappa_t)/(1 - kappa_t)
                                                                                            (14.24)
    redraw     first, with probability c: x ~ p(x_l | z_t), z_s ~ kappa_s x + (1 - kappa_s) p0
                                                                                            (14.25)
    rates      jump kappa'/(1 - kappa), redraw eta kappa'/(kappa (1 - kappa)),              (14.26)
               or eta kappa'/(1 - kappa)
    c          1 - [ (kappa_t/kappa_s) (1 - kappa_s)/(1 - kappa_t) ]^eta,                   (14.27)
               or the same without kappa_t/kappa_s

kappa is alpha, and s < t. If p knows x, both lines of a step keep q(z_s | x), for any eta and any
length of a step; only the words are drawn independently. (14.24) and (14.27) are (14.26) in a whole
step. `--form rates` takes instead a jump with probability 1 - exp(-(t - s) rate), rates and redraws
of time t: that is right in many steps only. In the last step all tokens become draws of p.

A redraw is the second line of (7.3). Rates of both ends, the first of (14.26), are those of Gat et
al. (arXiv:2407.15595). Those of the end are Campbell's under masks (2402.04997), where a mask
opens at the rate (1 + eta u)/(1 - u), and text is masked again at the rate eta.

(14.21) needs the full posterior p(x_l | z). From denoisers of what the others say, (0.4) makes it.
"""
from dataclasses import dataclass

import torch

from diffusion import (
    Sampler,
    categorical,
    changeable,
    draw_at,
    posterior_x0,
    probabilities,
    supports,
)
from flags import flag


def draw_words(process, denoiser, z, t, at, to_probs=probabilities):
    """x_l ~ p(x_l | z) at the tokens `at` (B, L), t (B, 1) -> (N,)"""
    if process.text_stays or supports(denoiser, "predicts_posterior"):
        return draw_at(denoiser, z, t.float(), at, to_probs, process.n_tokens)[0]  # (N,)
    x_theta = denoiser(z, t.float(), at=at)[:, None, :process.n_tokens].double().softmax(-1)
    own, times = z[at][:, None], t.expand_as(z)[at][:, None]  # (N, 1) each
    p = posterior_x0(process, x_theta, own, times)[:, 0]  # (N, n_tokens)
    return categorical(to_probs(p.log()))  # (N,)


@dataclass(eq=False)
class Flow(Sampler):
    """--sampler flow: jumps to clean words, (14.24), and words drawn again."""
    form: str = flag("exact", "rates over a step: exactly, or those of its beginning",
                     ["exact", "rates"])
    eta: float = flag(0.0, "how much is drawn again; 0: nothing", least=0, most=1000)
    redraw_rate: str = flag("ends", "of (14.26): eta kappa'/(kappa (1 - kappa)), or "
                            "eta kappa'/(1 - kappa), which is Campbell's", ["ends", "end"])

    @property
    def rewrites(self):
        return self.eta > 0

    def fits(self, method):
        if method.process is None:
            return f"goes from noise to text, and {method.name} has no noise"
        if method.process.mask is not None and not method.process.text_stays:
            return f"needs one kind of noise at all times, and {method.name} mixes two"

    def chances(self, process, s, t):
        """Probabilities of (14.24) and (14.25); s, t () float64 -> () each"""
        early, late = process.alpha(t), process.alpha(s)  # () each kappa_t < kappa_s
        if self.form == "rates" and s > 0:
            rate = -process.dalpha(t) / (1 - early)  # ()
            again = rate / early if self.redraw_rate == "ends" else rate  # () inf at t = 1
            again = 1 - torch.exp(-(t - s) * self.eta * again) if self.eta else 0 * rate  # ()
            return 1 - torch.exp(-(t - s) * rate), again.nan_to_num(1.0)  # () each
        odds = (1 - late) / (1 - early) * (early / late if self.redraw_rate == "ends" else 1)  # ()
        return (late - early) / (1 - early), 1 - odds ** self.eta  # () each

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        coin = lambda: torch.rand(z.shape, dtype=torch.float64, device=z.device)  # (B, L)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=z.device)  # (n + 1,)
        for t, s in zip(times[:-1], times[1:]):
            jump, again = self.chances(process, s, t)  # () each
            level = t if self.form == "rates" and s > 0 else s  # () of a redraw
            redrawn = (coin() < again) & ~frozen  # (B, L)
            noised = redrawn & (coin() >= process.alpha(level))  # (B, L)
            moves = (redrawn | (coin() < jump)) & ~noised  # (B, L)
            at = moves & changeable(process, z, frozen)  # (B, L)
            if at.any():
                time = t.expand(len(z), 1)  # (B, 1)
                words = draw_words(process, denoiser, z, time, at, to_probs)  # (N,)
                new = z.masked_scatter(at, words)  # (B, L)
            else:
                new = z
            z = torch.where(noised, process.draw_noise(level, z), new)  # (B, L)
            yield z
