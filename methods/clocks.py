"""
Chapter 13. A clock for each token, (13.10): when noise leaves it.

The clock of a text runs from u = 1 to 0. A token's time t_l(u) falls from 1 to 0 with it, each in
its own way that depends on its place and not on its word. The place counts the tokens that are not
given, in the order of their generation, from 0 to n - 1; d = place / (n - 1).

    common  t = u: all at once
    line    t = clip( (1 + w) u - w (1 - d), 0, 1 ), from left to right: between the first token and
            the last lie w times the time in which one of them is noisy
    any     the same, where each text has an order of its own, drawn anew each time
    adaptive    SeqDiffuSeq's, fitted for each place while training
    arc     AR-Diffusion's (arXiv:2305.09515), of T = n / w levels: with i = (n + T) u, the line
            through (max(n-1-i, 0), max(i-n+1, 0)) and (2n, T) at the place, over T, clipped

    key_first, easy_first    `line`, where d is the rank of the word by its frequency:
            InfoDiffusion (arXiv:2310.11976), Masked-Diffuse LM (2304.04746), after their abstracts

With the exact denoiser all but the last two give the same bound. Networks differ, since with a
large w most tokens are either clean or pure noise, as under masks: a token is predicted from words,
not from noise.

The last two have no bound. How noisy z is tells which word it is, the variance of a step tells it
at once, and in steps of 1 / T the KL of a Gaussian with the noise of another word grows like T.
Bayes' rule holds as it is, so samples by steps of a drawn word with its own noise are exact in many
steps (samplers/ddim.py: WordSteps).

Draws of (13.7): one token gets a gamma of density f, which tells u. A token at which the text could
have been drawn from is as good as that one, so all that move count, with the weight

    gamma_l' / mean_k ( f(gamma_k) gamma_k' ),   ' = d/du.
"""
import torch


class Common:
    """t = u."""
    by_word = False  # it depends on the word, and (13.10) does not hold

    def observe(self, t, error, at):
        """In training: |e - x_hat|^2 (N,) at the times t (N,) of the tokens `at` (B, L)."""

    def on_step(self, step):
        """Before each training step."""

    def state(self):
        """What a checkpoint keeps. -> dict of tensors"""
        return {}

    def load(self, state):
        """Take back what state() returned, from the dict of a checkpoint."""

    def plan(self, free):
        """What the times of a text depend on, drawn once. free (B, L) bool, not given -> a tuple"""
        return ()

    def times(self, u, *plan):
        """u (B, 1) -> t (B, 1|L), and dt/du"""
        return u, torch.ones_like(u)


class Line(Common):
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
        n = n.clamp(min=1)  # (B, 1)
        T = n / self.spread  # (B, 1)
        i = (n + T) * u  # (B, 1)
        at, high = (n - 1 - i).clamp(min=0), (i - n + 1).clamp(min=0)  # (B, 1) each
        t = high / T + (1 - high / T) * (place - at) / (2 * n - at)  # (B, L)
        early = (2 * n - place) / (2 * n - at) ** 2  # (B, L) dt/di while i < n - 1
        slope = torch.where(i < n - 1, early, (1 - place / (2 * n)) / T) * (n + T)  # (B, L)
        return t.clamp(0, 1), slope * ((t > 0) & (t < 1))


class ByWord(Common):
    """`line`, where the place is the rank of the word: the network is told u, and not the time of a
    token, which would tell the word."""
    by_word = True

    def __init__(self, spread, easy_first=False):
        self.spread, self.easy_first, self.rank = spread, easy_first, None

    def use_counts(self, counts):
        """How often each word occurs (V,): d = 0 for the rarest, the first of key_first."""
        rank = counts.argsort(stable=True).argsort() / max(1, len(counts) - 1)  # (V,)
        self.rank = (1 - rank if self.easy_first else rank).double()  # (V,)

    def word_times(self, u):
        """The times of all words at u (...). -> (..., V)"""
        u = u.double()[..., None]  # (..., 1)
        return (u + self.spread * (u - 1 + self.rank.to(u.device))).clamp(0, 1)

    def times_of(self, u, words):
        """The times of `words` at u, of one shape."""
        return self.word_times(u).gather(-1, words[..., None])[..., 0].to(u.dtype)


def refit(t, error, n):
    """Times between which the error rises by equal amounts. t, error (k,), rising -> (n + 1,)"""
    rising = error.cummax(0).values + 1e-9 * torch.arange(len(t), device=t.device)  # (k,)
    levels = torch.linspace(0, 1, n + 1, dtype=torch.float64)  # (n + 1,)
    levels = rising[0] + (rising[-1] - rising[0]) * levels  # (n + 1,)
    i = torch.searchsorted(rising, levels).clamp(1, len(t) - 1)  # (n + 1,)
    share = (levels - rising[i - 1]) / (rising[i] - rising[i - 1])  # (n + 1,)
    return t[i - 1] + share.clamp(0, 1) * (t[i] - t[i - 1])


class Adaptive(Common):
    """SeqDiffuSeq's (arXiv:2212.10325): at each place the error rises evenly with u. It is fitted
    again every REFIT steps, to what was observed since. The variance of a step follows, since it is
    that of (13.4); in the public code it does not."""
    BINS, REFIT, KNOTS = 20, 200, 40

    def __init__(self, spread):
        self.knots = self.error = self.seen = None  # (L, KNOTS + 1), (L, BINS) twice

    def plan(self, free):
        """-> the times at the knots (L, KNOTS + 1); at first, and beyond known places, even ones"""
        L = free.shape[1]
        even = torch.linspace(0, 1, self.KNOTS + 1, dtype=torch.float64).expand(L, -1)
        if self.knots is None:
            return (even.to(free.device),)
        known = self.knots[:L]  # (L', KNOTS + 1)
        return (torch.cat([known, even[len(known):]]).to(free.device),)

    def times(self, u, knots):
        """-> (B, L) each"""
        place = (u.double() * self.KNOTS).clamp(0, self.KNOTS - 1e-9)  # (B, 1)
        i = place.long()  # (B, 1)
        low, high = (knots.T[(i + k)[:, 0]] for k in (0, 1))  # (B, L) each
        return low + (high - low) * (u * self.KNOTS - i), (high - low) * self.KNOTS

    def observe(self, t, error, at):
        if self.error is None or self.error.shape[0] < at.shape[1]:
            self.error = torch.zeros(at.shape[1], self.BINS, dtype=torch.float64)  # (L, BINS)
            self.seen = torch.zeros_like(self.error)  # (L, BINS)
        bins = (t.detach().cpu().double() * self.BINS).long().clamp(0, self.BINS - 1)  # (N,)
        where = at.nonzero()[:, 1].cpu(), bins  # (N,) each
        self.error.index_put_(where, error.detach().cpu().double(), accumulate=True)
        self.seen.index_put_(where, torch.ones_like(error).cpu().double(), accumulate=True)

    def on_step(self, step):
        if step and step % self.REFIT == 0 and self.error is not None:
            middle = (torch.arange(self.BINS, dtype=torch.float64) + 0.5) / self.BINS  # (BINS,)
            self.knots = torch.stack([self.fitted(middle, *row) for row in zip(self.error,
                                                                               self.seen)])
            self.error, self.seen = torch.zeros_like(self.error), torch.zeros_like(self.seen)

    def fitted(self, middle, error, seen):
        """The knots of one place, from its sums (BINS,); even where too little was seen. ->
        (KNOTS + 1,)"""
        some = seen > 0  # (BINS,)
        if some.sum() < 2:
            return torch.linspace(0, 1, self.KNOTS + 1, dtype=torch.float64)
        t, mean = middle[some], error[some] / seen[some]  # (k,) each
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)  # (2,)
        t = torch.cat([ends[:1], t, ends[1:]])  # (k + 2,)
        return refit(t, torch.cat([mean[:1], mean, mean[-1:]]), self.KNOTS)

    def state(self):
        known = {"clock_knots": self.knots, "clock_error": self.error, "clock_seen": self.seen}
        return {name: a for name, a in known.items() if a is not None}

    def load(self, state):
        self.knots, self.error, self.seen = (state.get(f"clock_{name}") for name in (
            "knots", "error", "seen"))


CLOCKS = {"common": lambda spread: Common(), "line": Line, "arc": Arc,
          "any": lambda spread: Line(spread, any_order=True), "adaptive": Adaptive,
          "key_first": ByWord,
          "easy_first": lambda spread: ByWord(spread, easy_first=True)}


def when(clock, plan, chosen, t):
    """The u at which the token `chosen` (B, L) of each text is at t (B, 1), by bisection. -> (B, 1)
    """
    low, high = torch.zeros_like(t), torch.ones_like(t)  # (B, 1) each
    for _ in range(40):
        u = (low + high) / 2  # (B, 1)
        there = (clock.times(u, *plan)[0] * chosen).sum(-1, keepdim=True)  # (B, 1)
        low, high = torch.where(there < t, u, low), torch.where(there < t, high, u)  # (B, 1) each
    return (low + high) / 2  # (B, 1)
