"""
Chapter 21. Words are inserted outright, one at a time: ILM (arXiv:2505.05755).

y is what is left of a text x of n tokens when all but k are deleted, in random order. The network
outputs one distribution pi over all pairs (gap of y, word), and the probability that y is complete.
It needs no time: k is seen.

    l_k = [k = n] (-log stop(y)) + [k < n] ( -log(1 - stop(y)) - 1/(n - k) sum_missing log pi )
                                                                                             (21.10)
    -log p(x) <= (n + 1) E_{k ~ U{0..n}} E_y l_k  -  log n!                                  (21.11)

For each order of the tokens of x there is one sequence of insertions, hence log n!. The exact
reverse makes (21.11) tight for each text:

    stop(y) = p(y) / Z,   pi(j, v) ~ sum over texts x, ways to find y in x, and tokens v missing
              in gap j, of p(x) / ( C(n, k) (n - k) );   Z = sum p(x) / C(n, k)              (21.12)
              1 / ( C(k + r, k) r ) = int_0^1 d^(r-1) (1 - d)^k dd                           (21.13)

By (21.13) it is (21.9) in the mean over times: the words that may be missing at time d.

The published loss is the mean of l_k over k and texts (`published`). It counts each text once,
whatever its length, and so what minimizes it writes texts of another law,

    q(x) ~ p(x) / (n + 1)                                                                    (21.14)

and its sampler stops where stop(y) >= 0.9 in place of drawing. Here it is drawn: n + 1 calls, and
nothing is approximated. From a prompt of k tokens, though, the chain does not know which tokens are
given. It takes them for tokens that it has inserted, and writes

    q(x | prompt) ~ p(x) (ways to find the prompt in x) / C(n, k)                            (21.15)

so its texts are too short. FlexMDM has a clock, which says that all but the prompt is gone.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion import ancestral, categorical, probabilities
from flags import flag
from methods.base import to_float32
from methods.insertion import AnyLength, Insertions, count_words, leave, spread_nats, told
from model import select_rows, texts_with
from samplers.base import scatter_at, toss
from samplers.insertion import Draft


@dataclass(eq=False)
class ILM(AnyLength):
    """--method ilm: words are inserted one at a time, anywhere, until the text says stop."""
    weighting: str = flag("bound", "train on the bound, or as published: each text once, whatever "
                          "its length", ["bound", "published"])
    also_called = ("insertion_lm",)
    one_by_one, samplers = True, ("ancestral",)

    def __post_init__(self):
        self.process = Insertions(self.n_tokens)  # without masks: that column says stop
        self.vocab_size = self.process.V

    # ---- losses

    def call(self, denoiser, z, m, gaps, closed):
        """What the network says of texts z (B, M) of m (B, 1) tokens at the gaps (B, M): logits of
        words there, and behind the text the log-odds that it is complete.

        -> words (N, n_tokens), log of the sum over words (B, M), log-odds (B,); where (B, M) of
        the N rows
        """
        last = torch.arange(z.shape[1], device=z.device) == m  # (B, M) the place behind the text
        at = gaps | last & gaps.any(-1, keepdim=True)  # (B, M)
        logits = to_float32(denoiser(z, None, at=at, **told(denoiser, closed)))  # (N', V)
        words = logits[gaps[at], :self.n_tokens]  # (N, n_tokens)
        stop = scatter_at(at & last, logits[last[at], self.n_tokens]).sum(-1)  # (B,)
        return words, scatter_at(gaps, words.logsumexp(-1), -torch.inf), stop

    def terms(self, denoiser, x, n, kept, frozen):
        """Both parts of (21.10) if `kept` (B, L) is left of x. -> nats of stop, nats of pi, (B,)"""
        left = leave(x, n, kept, frozen, self.process.fill)
        words, log_sum, stop = self.call(denoiser, left.z, left.m, left.open, left.closed)
        row = left.open.flatten().cumsum(0).view(left.open.shape) - 1  # (B, L + 1) row of a gap
        missing = ~kept & (torch.arange(x.shape[1], device=x.device) < n)  # (B, L)
        log_pi = words[row.gather(-1, kept.cumsum(-1))[missing], x[missing]]  # (n,)
        log_pi = scatter_at(missing, log_pi) - log_sum.logsumexp(-1, keepdim=True)  # (B, L)
        size = missing.sum(-1)  # (B,) n - k
        log_pi = torch.where(missing, log_pi, 0.0).sum(-1) / size.clamp(min=1)  # (B,)
        stop = -F.logsigmoid(torch.where(size > 0, -stop, stop))  # (B,)
        return torch.where(left.open.any(-1), stop, 0.0), -log_pi  # (B,) each

    def nats(self, denoiser, x, frozen, weighted):
        """(21.10) for one k; if `weighted`, one draw of (21.11). -> (B, L)"""
        given = torch.zeros_like(x, dtype=torch.bool) if frozen is None else frozen  # (B, L)
        n, place = count_words(x, self.end_id), torch.arange(x.shape[1], device=x.device)
        free = ~given & (place < n)  # (B, L)
        size = free.sum(-1, keepdim=True)  # (B, 1) the n of (21.10)
        k = (torch.rand(len(x), 1, device=x.device) * (size + 1)).long()  # (B, 1) of 0 .. n
        order = torch.rand(x.shape, device=x.device).masked_fill(~free, 2).argsort(-1)  # (B, L)
        kept = given | (order.argsort(-1) < k) & free  # (B, L)
        nats = sum(self.terms(denoiser, x, n, kept, frozen))  # (B,)
        if weighted:
            nats = (size + 1)[:, 0] * nats - torch.lgamma((size + 1)[:, 0].double())  # (B,)
        return spread_nats(nats, x, n, frozen)  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (21.11). -> (B, L) nats"""
        return self.nats(denoiser, x, frozen, weighted=True)  # (B, L)

    def loss(self, denoiser, x, frozen=None):
        """What training minimizes. -> (B, L) nats"""
        return self.nats(denoiser, x, frozen, self.weighting == "bound").float()  # (B, L)

    # ---- samples

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """A word in each call, or the end; yields z (B, L) after each."""
        draft, process = Draft.begin(self.process, z, frozen), self.process
        going = torch.ones(len(z), dtype=torch.bool, device=z.device)  # (B,)
        while True:
            gaps = draft.takes(process) & going[:, None]  # (B, M)
            if not gaps.any():
                break
            words, log_sum, stop = self.call(denoiser, draft.z, draft.size(process), gaps,
                                             draft.closed)
            ends = self.end_id is not None and toss(stop.double().sigmoid())  # (B,)
            going = going & gaps.any(-1) & ~torch.as_tensor(ends)  # (B,)
            gap = categorical(log_sum.double().softmax(-1).nan_to_num())  # (B,)
            k = F.one_hot(gap, gaps.shape[1]) * going[:, None]  # (B, M) one mask each
            new = categorical(to_probs(process.words(words[k.bool()[gaps]])))  # (n,)
            draft = draft.insert(process, k)
            draft.z = draft.z.masked_scatter(draft.z == process.mask, new)  # (B, M)
            yield draft.text(process)

    def count_states(self, length, steps):
        return length + 1  # the last call says stop

    def oracle(self, language):
        """The exact reverse (21.12): language.next_word (data/sentences.py)."""
        def exact(z, t, at=None, label=None, frozen=None, **layout):
            if at is not None:
                z, at, label, frozen = texts_with(at, z, at, label, frozen)
            m = (z != self.process.fill).sum(-1)  # (B,)
            joint, stop = language.next_word(z, m, frozen, label)  # (B, M, n_tokens), (B,)
            odds = torch.logit(stop, eps=1e-300).clamp(-700, 700)[:, None, None]  # (B, 1, 1)
            log_pi = joint.clamp(min=1e-300).log()  # (B, M, n_tokens)
            logits = torch.cat([log_pi, odds.expand(*z.shape, 1)], -1)  # (B, M, n_tokens + 1)
            return select_rows(logits.to(z.device), at)
        exact.reads_frozen = True  # of gaps, as flexmdm
        return exact
