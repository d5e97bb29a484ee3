"""
Chapter 17. Edits of texts: DiffusER (arXiv:2210.16886) and Edit Flows (2506.09018). A text becomes
another one by replacing, deleting and inserting tokens.

An alignment writes a start y and a text x below each other in columns (a_c, b_c), with a blank
where one of them has no token; as few columns as possible differ: their number is the edit distance
(Levenshtein). Each column that differs has a time of its own, uniform in (0, 1):

    state     z shows a_c where T_c < t, else b_c, without blanks: y at t = 1, x at t = 0    (17.13)
    pending   columns that differ and show a_c: replace l by b_c, delete l, or insert b_c    (17.14)
              into a gap, where l and the gap are places of z
    bound     -log p(x | y) <= E_t E_z (1/t) [ sum_a lam(a)                                  (17.15)
                                               - sum_pending (1 + log lam(a)) ]
    minimum   lam*(a) = E[ number of pending columns that are a | z, t, y ]                  (17.16)
    step      from t to s: a token changes with probability min(1, R (1 - s/t)), where R     (17.17)
              is the sum of lam over all that may happen to it; what happens is drawn by
              lam. Into a gap goes a token by the same rule. t_i = (1 - i/N)^2
    start     y is the source (`source`), or random words, whatever x is (`random`); the     (17.18)
              network reads the source in both cases

(17.15) is (21.1) with the rate w = 1/t. It is a bound, and not tight: which column of the alignment
a token of z belongs to is hidden, so z does not tell which events have happened. In a world of 15
texts, from random words, its minimum is 3.051 nats where the entropy is 2.219 (tests/methods). The
chain with the rates lam* still leads to the law of x.

The network outputs lam for each place of z: n words to replace the token there, n words to insert
before it, and its deletion. All that may happen to one token is drawn at once, so that it is
not deleted and replaced in one step. Published losses leave out the 1 (DiffusER has a tagger and a
generator in place of rates), and some divide by the length, which changes what is learned.
"""
from dataclasses import dataclass
from functools import partial
from math import log

import torch
import torch.nn.functional as F

from data import DATASETS
from diffusion import Ancestral, categorical, probabilities, stratified
from flags import UserError, flag, load_row
from methods.base import Method, to_float32
from methods.insertion import action_nats

BLANK = -1


def align(y, x):
    """Columns of an alignment with the fewest that differ: [(a, b)]. Of several, from the end on,
    two tokens are paired if they can be, else the last one of y is deleted (Needleman-Wunsch)."""
    cost = [[i + j for j in range(len(x) + 1)] for i in range(len(y) + 1)]
    for i, a in enumerate(y, 1):
        for j, b in enumerate(x, 1):
            cost[i][j] = min(cost[i - 1][j - 1] + (a != b), cost[i - 1][j] + 1, cost[i][j - 1] + 1)
    columns, i, j = [], len(y), len(x)
    while i or j:
        if i and j and cost[i][j] == cost[i - 1][j - 1] + (y[i - 1] != x[j - 1]):
            i, j = i - 1, j - 1
            columns.append((y[i], x[j]))
        elif i and cost[i][j] == cost[i - 1][j] + 1:
            i -= 1
            columns.append((y[i], BLANK))
        else:
            j -= 1
            columns.append((BLANK, x[j]))
    return columns[::-1]


def state_of(columns, noisy, n):
    """(17.13) and (17.14). noisy: whether each column shows a_c; n: the number of words
    -> z, a list, and what is pending: [(place, action)], actions as in `Diffuser.rates`"""
    z, pending = [], []
    for (a, b), shows_a in zip(columns, noisy):
        if shows_a and a != b:
            action = n + b if a == BLANK else 2 * n if b == BLANK else b
            pending.append((len(z), action))
        if (token := a if shows_a else b) != BLANK:
            z.append(token)
    return z, pending


def log_softplus(x):
    """log lam = log log(1 + e^x): rates that are small as e^x, and grow like x, not like e^x, which
    would overflow in training. -> shape of x"""
    return torch.where(x < -15, x, F.softplus(x.clamp(min=-15)).log())


@dataclass(eq=False)
class Diffuser(Method):
    """--method diffuser, for data with a source: --data repair, sort."""
    also_called = ("edit_flows", "editflows", "editflow", "levenshtein")
    start: str = flag("source", "the text that is edited: the source, or random words",
                      ["source", "random"], fixed=True)
    weighting: str = flag("simple", "train on bounded weights or on the bound itself",
                          ["simple", "bound"])
    predicts, edits = "edits of a text", "text"
    uses_time, fixed_positions, revises_text = True, False, True
    samplers, classifier_process = ("ancestral", "edit-beam"), None
    source = target = None  # tokens of both parts of a text, from the data

    def __post_init__(self):
        self.pad, self.end, self.fill = 0, self.n_tokens - 1, self.n_tokens
        self.actions = self.vocab_size = 2 * self.n_tokens + 1

    # ---- what it knows of the data

    def check(self, config):
        self.on_data(load_row(DATASETS, config.data))

    def on_data(self, data):
        if not data.source:
            raise UserError(f"--method diffuser edits a source, and the texts of {data.name} have "
                            "none: give --data repair, or sort")
        self.source, self.target = data.source, data.target
        self.places = data.source + data.target  # of z, with the gap behind it
        self.offset = log(self.actions * self.places)  # at first about one edit of a text

    def load_extra_state(self, state):
        self.on_data(load_row(DATASETS, state["config"]["data"]))

    def parts(self, x):
        """The sources and the answers of texts (B, L), as lists without pads and ends."""
        before = lambda row, stop: row[:row.index(stop)] if stop in row else row
        return ([before(row[:self.source], self.pad) for row in x.tolist()],
                [before(row[self.source:], self.end) for row in x.tolist()])

    def starts(self, sources):
        """(17.18): the texts that are edited. -> lists of tokens"""
        if self.start == "source":
            return sources
        n, words = torch.randint(self.target, (len(sources),)), self.n_tokens - 2
        return [(1 + torch.randint(words, (int(m),))).tolist() for m in n]

    # ---- the network

    def rates(self, denoiser, sources, texts, t):
        """log lam of all actions at the places 0 .. m of texts of m tokens, t (B, 1). Action v < n
        replaces the token by v, n + v inserts v before it, and 2 n deletes it; behind the text only
        insertions count, so the others are -inf there. -> log lam (N, 2 n + 1), places (B, M)"""
        rows = [[*y, *[self.pad] * (self.source - len(y)),
                 *z, *[self.fill] * (self.places - len(z))] for y, z in zip(sources, texts)]
        ids = torch.tensor(rows, device=t.device)  # (B, S + M)
        m = torch.tensor([len(z) for z in texts], device=t.device)[:, None]  # (B, 1)
        place = torch.arange(self.places, device=t.device).expand(len(rows), -1)  # (B, M)
        at = F.pad(place <= m, (self.source, 0))  # (B, S + M)
        logits = to_float32(denoiser(ids, t.float(), at=at)) - self.offset  # (N, 2 n + 1)
        log_rate = log_softplus(logits)  # (N, 2 n + 1)
        behind = (place == m)[place <= m]  # (N,)
        action, n = torch.arange(self.actions, device=t.device), self.n_tokens  # (2 n + 1,)
        inserts = (action >= n) & (action < 2 * n)  # (2 n + 1,)
        return log_rate.masked_fill(behind[:, None] & ~inserts, -torch.inf), place <= m

    # ---- losses

    def noised(self, x, t):
        """A draw of (17.13) for each text. -> sources, z, pending"""
        sources, answers = self.parts(x)
        texts, pending = [], []
        for y, answer, time in zip(self.starts(sources), answers, t[:, 0].tolist()):
            columns = align(y, answer)
            noisy = (torch.rand(len(columns)) < time).tolist()
            z, actions = state_of(columns, noisy, self.n_tokens)
            texts.append(z)
            pending.append(actions)
        return sources, texts, pending

    def nats_at(self, denoiser, x, frozen, t, weight):
        """The bracket of (17.15) at times t (B, 1), times a weight (B, 1). -> (B, L) nats, each
        text's shared out among the tokens that are not given"""
        sources, texts, pending = self.noised(x, t)
        log_rate, at = self.rates(denoiser, sources, texts, t)  # (N, A), (B, M)
        begin = at.sum(-1).cumsum(0) - at.sum(-1)  # (B,) the first row of each text
        rows = [(int(first) + place, action) for first, actions in zip(begin, pending)
                for place, action in actions]
        k = torch.zeros_like(log_rate)  # (N, A)
        if rows:
            where = tuple(torch.tensor(rows, device=x.device).T)  # 2 x (events,)
            k.index_put_(where, torch.ones((), dtype=k.dtype, device=x.device), accumulate=True)
        each = action_nats(log_rate, k).sum(-1)  # (N,)
        nats = torch.zeros(at.shape, dtype=each.dtype, device=x.device).masked_scatter(at, each)
        nats = nats.sum(-1, keepdim=True) * weight.to(each.dtype)  # (B, 1)
        free = torch.arange(x.shape[1], device=x.device) >= self.source  # (L,)
        free = free.expand(x.shape) if frozen is None else ~frozen  # (B, L)
        return nats * free / free.sum(-1, keepdim=True).clamp(min=1)  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """A draw of (17.15), with t = v^2 (21.7), since 1/t has infinite variance. -> (B, L) nats
        """
        v = stratified(len(x), x.device).double()  # (B, 1)
        return self.nats_at(denoiser, x, frozen, v.square(), 2 / v)

    def loss(self, denoiser, x, frozen=None):
        """What training minimizes; `simple` is a surrogate, as in mdlm. -> (B, L) nats"""
        if self.weighting == "bound":
            return self.nelbo(denoiser, x, frozen).float()  # (B, L)
        t = 1 - (1 - stratified(len(x), x.device)).sqrt()  # (B, 1)
        return self.nats_at(denoiser, x, frozen, t, torch.full_like(t, 3.0))  # (B, L)

    # ---- samples

    def prior(self, shape, device="cpu"):
        """No answer yet. -> (B, L)"""
        return torch.full(shape, self.end, device=device)  # (B, L)

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=None, to_probs=probabilities, window=None,
               end=None):
        """From the start to a text in steps of (17.17); yields z (B, L) after each."""
        given = torch.arange(z.shape[1], device=z.device) < self.source  # (L,)
        if z.shape[1] != self.source + self.target or (frozen != given).any():
            raise UserError(f"diffuser edits a source: give its {self.source} tokens, and no "
                            "others")
        sources, _ = self.parts(z)
        texts = self.starts(sources)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=z.device)  # (N + 1,)
        drawn = sampler is None or isinstance(sampler, Ancestral)
        walk = self.draw_path if drawn else partial(sampler, self)
        for texts in walk(denoiser, sources, texts, times.square(), to_probs):
            rows = [text[:self.target] + [self.end] * (self.target - len(text)) for text in texts]
            yield torch.cat([z[:, :self.source], torch.tensor(rows, device=z.device)], 1)  # (B, L)

    def draw_path(self, denoiser, sources, texts, times, to_probs):
        """Steps of (17.17) at falling times (N + 1,); yields texts after each."""
        for t, s in zip(times[:-1], times[1:]):
            texts = self.step(denoiser, sources, texts, s, t, to_probs)
            yield texts

    def step(self, denoiser, sources, texts, s, t, to_probs):
        """(17.17) from t to s, numbers. -> texts"""
        log_rate, at = self.rates(denoiser, sources, texts, t.expand(len(texts), 1))  # (N, A)
        happens = []
        for q, p in self.groups(log_rate, 1 - s / t, to_probs):
            coin = torch.rand(q.shape, dtype=torch.float64, device=q.device)  # (N,)
            action = categorical(p).tolist()
            happens.append(iter([a if fires else None
                                 for fires, a in zip((coin < q).tolist(), action)]))
        parts = [[[next(own) for _ in range(m)] for own in happens] for m in at.sum(-1).tolist()]
        return [self.edited(z, *own) for z, own in zip(texts, parts)]

    def groups(self, log_rate, share, to_probs):
        """(17.17): what may happen at each place, first changes, where action n is deletion, then
        insertions. log_rate (N, 2 n + 1); share = 1 - s/t -> pairs of P(something happens) (N,),
        and the law of what (N, n + 1) or (N, n)"""
        n = self.n_tokens
        for group in ([*range(n), 2 * n], [*range(n, 2 * n)]):
            own = log_rate[:, group]  # (N, n + 1) or (N, n)
            q = (own.double().logsumexp(-1).exp() * share).clamp(max=1)  # (N,)
            nothing = (own == -torch.inf).all(-1, keepdim=True)  # (N, 1) behind the text
            yield q, to_probs(own.masked_fill(nothing, 0.0))

    def edited(self, z, changes, inserts):
        """The text that actions make of z, a list; None where nothing happens. -> list"""
        new = []
        for token, change, insert in zip([*z, None], changes, inserts):
            new += [] if insert is None else [insert]
            if token is not None and change != self.n_tokens:  # not deleted
                new.append(token if change is None else change)
        return new[:self.places - 1]
