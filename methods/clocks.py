"""
Chapter 13. A clock for each token, (13.10): when noise leaves it.

The clock of a text runs from u = 1 to 0. A token's time t_l(u) falls from 1 to 0 with it, each in
its own way that depends on its place and not on its word. The place counts the tokens that are not
given, in the order of their generation, from 0 to n - 1; d = place / (n - 1).

    common  t = u: all at once
    line    t = clip( (1 + w) u - w (1 - d), 0, 1 ), from left to right: between the first token and
            the last lie w times the time in which one of them is noisy
    any     the same, where each text has an order of its own, drawn anew each time
    arc     AR-Diffusion's (arXiv:2305.09515), of T = n / w levels: with i = (n + T) u, the line
            through (max(n-1-i, 0), max(i-n+1, 0)) and (2n, T) at the place, over T, clipped

With the exact denoiser all give the same bound. Networks differ, since with a large w most tokens
are either clean or pure noise, as under masks: a token is predicted from words, not from noise.

Draws of (13.7): one token gets a gamma of density f, which tells u. A token at which the text could
have been drawn from is as good as that one, so all that move count, with the weight

    gamma_l' / mean_k ( f(gamma_k) gamma_k' ),   ' = d/du.
"""
import torch


class Common:
    """t = u."""

    def plan(self, free):
        """What the times of a text depend on, drawn once. free (B, L) bool, not given -> a tuple"""
        return ()

    def times(self, u, *plan):
        """u (B, 1) -> t (B, 1|L), and dt/du"""
        return u, torch.ones_like(u)


class Line:
    """From left to right, or in any order."""

    def __init__(self, spread, any_order=False):
        self.spread, self.any_order = spread, any_order

    def plan(self, free):
        """-> place (B, L), n (B, 1), float64"""
        order = torch.rand(free.shape, device=free.device)  # (B, L)
        if not self.any_order:
            order = torch.arange(free.shape[1], device=free.device).expand_as(free) / free.shape[1]
        place = order.masked_fill(~free, 2).argsort(-1).argsort(-1)  # (B, L) given ones come last
        return place.masked_fill(~free, 0).double(), free.sum(-1, keepdim=True).double()

    def times(self, u, place, n):
        """-> (B, L) each"""
        w, d = self.spread, place / (n - 1).clamp(min=1)  # (B, L)
        t = u + w * (u - 1 + d)  # (B, L) in this form 0 and 1 are exact
        return t.clamp(0, 1), (1 + w) * ((t > 0) & (t < 1)).to(t.dtype)


class Arc(Line):
    """AR-Diffusion's: the left is ahead while it becomes text."""

    def times(self, u, place, n):
        """-> (B, L) each"""
        T = n / self.spread  # (B, 1)
        i = (n + T) * u  # (B, 1)
        at, high = (n - 1 - i).clamp(min=0), (i - n + 1).clamp(min=0)  # (B, 1) each
        t = high / T + (1 - high / T) * (place - at) / (2 * n - at)  # (B, L)
        early = (2 * n - place) / (2 * n - at) ** 2  # (B, L) dt/di while i < n - 1
        slope = torch.where(i < n - 1, early, (1 - place / (2 * n)) / T) * (n + T)  # (B, L)
        return t.clamp(0, 1), slope * ((t > 0) & (t < 1))


CLOCKS = {"common": lambda spread: Common(), "line": Line, "arc": Arc,
          "any": lambda spread: Line(spread, any_order=True)}


def when(clock, plan, chosen, t):
    """The u at which the token `chosen` (B, L) of each text is at t (B, 1), by bisection. -> (B, 1)
    """
    low, high = torch.zeros_like(t), torch.ones_like(t)  # (B, 1) each
    for _ in range(40):
        u = (low + high) / 2  # (B, 1)
        there = (clock.times(u, *plan)[0] * chosen).sum(-1, keepdim=True)  # (B, 1)
        low, high = torch.where(there < t, u, low), torch.where(there < t, high, u)  # (B, 1) each
    return (low + high) / 2  # (B, 1)
