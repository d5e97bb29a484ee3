"""
Chapter 4. ReAUDM (arXiv:2605.22765): samples of `audm --told words` whose noise is drawn again.

Steps of (0.3) draw u once, so text never becomes noise again. Here a step from t to s draws the
text x of all that looks like noise, by p of (4.6); then the words at time s, of uniform noise
between x and z_t; and then new words u of noise, given both:

    z_s ~ q(z_s | x, z_t),   p(u = v | x, z_s) = [v = z_s]  where z_s != x,                    (4.7)
                             else ([v = z_s] + alpha_s [v != z_s]) / (1 + (N - 1) alpha_s)

If z_t and u are noise of x, so are z_s and u. A word that equals its new u looks like noise, and
may change: about one in 1 + (N - 1) alpha_s. All words of a step are drawn at once, however short
it is, so many steps do not quite make this the model's own distribution: in a world of 27 texts its
distance (total variation) is 0.030 in 16 steps, 0.0085 in 64, and 0.0017 in 1,024.
"""
from dataclasses import dataclass

import torch

from diffusion import Ancestral, categorical, draw_at


def between(process, x, z, s, t):
    """A draw of q(z_s | x, z_t) under uniform noise. x, z (B, L); s, t (B, 1) -> (B, L)"""
    n, alpha_s = process.n_tokens, process.alpha(s)  # (B, 1)
    kept = process.alpha(t) / alpha_s  # (B, 1) of the words at s, those that are there at t
    text = kept * alpha_s * (x == z) + (1 - kept) * alpha_s / n  # (B, L) z_s = x
    noise = kept * (1 - alpha_s) / n, (1 - kept) * (1 - alpha_s) / n  # (B, 1) = z_t; any word
    weights = torch.stack([text, *(w.expand(text.shape) for w in noise)], -1)  # (B, L, 3)
    words = torch.stack([x, z, torch.randint_like(z, n)], -1)  # (B, L, 3)
    return words.gather(-1, categorical(weights)[..., None])[..., 0]  # (B, L)


@torch.no_grad()
def redraw_step(process, denoiser, z, frozen, s, t, to_probs):
    """(4.7). denoiser.words (B, L) becomes the new u. z (B, L), s, t (B, 1) -> z_s (B, L), words"""
    n, u, at = process.n_tokens, denoiser.words, (z == process.mask) & ~frozen  # (B, L) each
    z = torch.where(z == process.mask, u, z)  # (B, L)
    x = z  # (B, L)
    if at.any():
        drawn, _ = draw_at(denoiser, torch.where(at, process.mask, z), t.float(), at, to_probs, n)
        x = z.masked_scatter(at, drawn)  # (B, L)
    z = torch.where(frozen, z, between(process, x, z, s, t))  # (B, L)
    same = torch.rand(z.shape, dtype=torch.float64, device=z.device) < 1 / (
        1 + (n - 1) * process.alpha(s))  # (B, L)
    other = (z + torch.randint_like(z, 1, n)) % n  # (B, L) never z
    denoiser.words = torch.where((z == x) & ~same, other, z)  # (B, L)
    return z


@dataclass(eq=False)
class Redraw(Ancestral):
    """--sampler redraw: steps of (4.7)."""
    grid: object = "uniform"  # no flag here: methods with steps of their own have no other
    step: object = redraw_step
    draws_from_model, chooses_first, rewrites = False, False, True

    def fits(self, method):
        if method.samplers is None:
            return (f"draws again the noise that a network is told of, and {method.name} tells "
                    "none: it is for audm with --told words")
        return super().fits(method)
