"""
Chapter 21. Sentences of the toy language: texts that end where the grammar says so.

    python -m data.sentences      # print some, their exact entropy and the law of their lengths

A text is one sentence of data/toy.py. It ends behind the place `sentence stop` of the grammar, not
behind the word ".", which may be a typo. The rest of its L tokens are the end of text. So a text
with its ends is again a hidden Markov model, with one more place that never ends and one more word,
and all that data/toy.py computes holds for it: log p(x) is exact, length included.

Which words are missing? z has m of the tokens of a text, in order; at masks the word is not known.
Each token is missing with probability d by itself. With T the transitions inside a sentence (rows
that sum to less than 1: the rest is `end`), first the law of the first place, e_j(h) the evidence
of token j of z, and for each gap j = 0 .. m, the last one behind the text,

    K_j = (I - d T)^-1, or I where nothing can be missing
    f_0 = first K_0,    f_j = (f_j-1 e_j-1) T K_j         a token in gap j, from the left     (21.9)
    c_m = K_m end,      c_j = K_j T (e_j c_j+1)           the same from the right
    missing in gap j    g_j  = d f_j . c_j / Z,           Z = f_j . (e_j c_j+1) for any j
    the word of mask j  p(v) ~ sum_h f_j(h) c_j+1(h) p(v | h)

for each topic, which counts by p(k) Z. Z is the sum over all texts and all ways to find z in them
of p(x) d^(tokens that are missing).
"""
from functools import cached_property

import numpy
import torch

from data.tokenizer import END_OF_TEXT, ONE_WORD, make_encoding
from data.toy import LanguageCorpus, Toy, map_rows, toy_language
from data.toy_grammar import TOPICS, TYPO
from flags import UserError
from script import one_line_errors


class Sentences(Toy):
    """The language as tables. The end is the last word and the last place."""

    def __init__(self):
        super().__init__()
        stop, Q = self.places.index("sentence stop"), len(self.places)
        self.inner = self.transition.clone()  # (Q, Q) T
        self.inner[stop] = 0.0
        self.first, self.ends = self.initial, torch.eye(Q, dtype=torch.double)[stop]  # (Q,) each
        self.spoken = self.emission  # (K, Q, V - 1) p_k(v | h), without the end
        self.words, self.places = [*self.words, END_OF_TEXT], [*self.places, "end"]
        self.V += 1
        pad = torch.nn.functional.pad
        self.transition = pad(self.inner, (0, 1, 0, 1))  # (Q + 1, Q + 1)
        self.transition[stop, Q] = self.transition[Q, Q] = 1.0
        self.emission = pad(self.spoken, (0, 1, 0, 1))  # (K, Q + 1, V)
        self.emission[:, Q, -1] = 1.0
        self.initial = pad(self.first, (0, 1))  # (Q + 1,)
        self.by_word = self.emission.permute(2, 0, 1).contiguous()  # (V, K, Q + 1)

    @cached_property
    def encoding(self):
        words = [f" {word}".encode() for word in self.words[:-1]]
        return make_encoding("words", ONE_WORD, words, [END_OF_TEXT])

    @cached_property
    def length_law(self):
        """p(n) for n = 0 .. the longest sentence, exact. -> (N + 1,)"""
        law, p = [0.0], self.first  # (Q,) p(h_n, n words or more)
        while p.sum() > 0:
            law.append((p @ self.ends).item())
            p = p @ self.inner  # (Q,)
        return torch.tensor(law, dtype=torch.double)  # (N + 1,)

    def log_prob(self, x, topic=None):
        """log p(x), -inf for what no sentence can be: too short or too long. (n, L) -> (n,)"""
        return super().log_prob(x, topic).nan_to_num(-torch.inf, neginf=-torch.inf)  # (n,)

    def topic_posterior(self, x):
        """p(k | x), that of no text for what no sentence can be. -> (n, K)"""
        p = super().topic_posterior(x)  # (n, K)
        return torch.where(p.isfinite(), p, self.prior)  # (n, K)

    def lengths(self, x):
        """Words before the first end. x (n, L) -> (n,)"""
        return (x != self.V - 1).long().cumprod(-1).sum(-1)  # (n,)

    def is_grammatical(self, x):
        """Whether a sentence has no typo and ends where it may. x (n, L) -> (n,) bool"""
        spoken = (self.spoken > 2 * TYPO / self.spoken.shape[-1]).any(0)  # (Q, V - 1)
        table = torch.nn.functional.pad(spoken.T, (0, 1, 0, 1))  # (V, Q + 1)
        table[-1, -1] = True
        f = self.initial > 0  # (Q + 1,)
        for l, word in enumerate(x.unbind(1)):
            f = (f.double() @ (self.transition > 0).double() > 0) if l else f  # (n, Q + 1)
            f = f & table[word]  # (n, Q + 1)
        return f[:, -1] | f[:, self.places.index("sentence stop")]  # (n,)

    # ---- (21.9)

    def evidence_of(self, z, m):
        """e_j(h) of z (n, M), whose first m (n,) ids count; id V is a mask. -> (n, M, K, Q)"""
        table = torch.cat([self.by_word[..., :-1], torch.ones_like(self.by_word[:1, :, :-1])])
        place = torch.arange(z.shape[1])  # (M,)
        return table[torch.where(place < m[:, None], z, self.V)]  # (n, M, K, Q)

    def sweeps(self, z, m, d, closed=None):
        """(21.9). z (n, M), M > m; d (n,) or (1,); closed (n, M): gaps where nothing can be
        missing. -> f, c (n, M, K, Q), of which gaps 0 .. m count; Z (n, K)"""
        e, (n, M), Q = self.evidence_of(z, m), z.shape, len(self.first)
        e, T, eye = (a.to(d.dtype) for a in (e, self.inner, torch.eye(Q)))
        K = torch.linalg.inv(eye - d[:, None, None] * T)  # (n, Q, Q), or (1, Q, Q)
        K = K[0] if len(d) == 1 else K  # one product for all texts
        through = lambda v, j: v @ K if closed is None else torch.where(  # (n, K, Q)
            closed[:, j, None, None], v, v @ K)
        back = lambda v, j: through_transposed(v, K, None if closed is None else closed[:, j])
        first = self.first.to(d.dtype).expand(n, self.n_topics, -1)  # (n, K, Q)
        f = [through(first, 0)]
        for j in range(M - 1):
            f.append(through((f[j] * e[:, j]) @ T, j + 1))  # (n, K, Q)
        ends = self.ends.to(d.dtype).expand(n, self.n_topics, -1)  # (n, K, Q)
        c = [back(ends, M - 1)]  # of the last gap, if it is the last
        for j in range(M - 2, -1, -1):
            last, more = m[:, None, None] == j, (e[:, j] * c[0]) @ T.T  # (n, 1, 1), (n, K, Q)
            c.insert(0, back(torch.where(last, ends, more), j))  # (n, K, Q)
        Z = (f[0] * e[:, 0] * c[1]).sum(-1)  # (n, K) with a token
        Z = torch.where(m[:, None] == 0, d[:, None] * (f[0] * ends).sum(-1), Z)  # (n, K)
        return torch.stack(f, 1), torch.stack(c, 1), Z  # (n, M, K, Q) twice, (n, K)

    def fill_in(self, z, m, d, closed=None, topic=None):
        """(21.9): p(v) at each mask, and how many tokens are missing in each gap.

        z (n, M), whose first m (n,) ids count, m < M; d (n,) P(a token is missing); closed (n, M)
        -> words (n, M, V), gaps (n, M)
        """
        order = m.cpu().argsort()  # (n,) texts of about one length together
        log_prior = self.log_prior(topic, len(z))  # (n, K)
        parts = [z.cpu(), m.cpu(), d.cpu().double(), log_prior]
        parts += [] if closed is None else [closed.cpu()]
        both = map_rows(self.fill_in_rows, *(a[order] for a in parts), rows=64)  # (n, M, V + 1)
        both = both[order.argsort()]  # (n, M, V + 1)
        return both[..., :-1], both[..., -1]  # (n, M, V), (n, M)

    def fill_in_rows(self, z, m, d, log_prior, closed=None):
        """Words, and behind them the missing tokens. -> (n, M, V + 1)"""
        M, long = z.shape[1], max(int(m.max()) + 1, 2)
        z, closed = z[:, :long], closed if closed is None else closed[:, :long]  # (n, M') each
        d = d[:1] if (d == d[0]).all() else d  # (n,) or (1,)
        f, c, Z = self.sweeps(z, m, d, closed)  # (n, M', K, Q) twice, (n, K)
        w = (log_prior + Z.log()).softmax(-1)  # (n, K) p(k | z)
        own = (f * c).sum(-1)  # (n, M', K)
        gaps = (w[:, None] * d[:, None, None] * own / Z[:, None]).sum(-1)  # (n, M')
        q = f * c.roll(-1, 1)  # (n, M', K, Q) a mask has no evidence
        q = q * w[:, None, :, None] / q.sum(-1, keepdim=True).clamp(min=1e-300)  # (n, M', K, Q)
        words = q.flatten(2) @ self.spoken.flatten(0, 1)  # (n, M', V - 1)
        both = torch.cat([words, torch.zeros_like(words[..., :1]), gaps[..., None]], -1)
        return torch.nn.functional.pad(both, (0, 0, 0, M - long))  # (n, M, V + 1)


    def next_word(self, z, m, closed=None, topic=None):
        """(21.12): p(gap, word) of the next insertion into z (n, M), whose first m (n,) ids count,
        and p(z is complete). -> joint (n, M, V), stop (n,)

        (21.13) by as many Gauss-Legendre nodes as make it exact for the longest sentence.
        """
        log_prior = self.log_prior(topic, len(z))  # (n, K)
        parts = [z.cpu(), m.cpu(), log_prior] + ([] if closed is None else [closed.cpu()])
        both = map_rows(self.next_word_rows, *parts, rows=64)  # (n, M, V + 1)
        return both[..., :-1], both[:, 0, -1]  # (n, M, V), (n,)

    def next_word_rows(self, z, m, log_prior, closed=None):
        """p(gap, word), and behind the words of each gap p(stop). -> (n, M, V + 1)"""
        nodes, weights = numpy.polynomial.legendre.leggauss(len(self.length_law) // 2)
        p, joint = log_prior.exp(), 0.0  # (n, K)
        for d, weight in zip((nodes + 1) / 2, weights / 2):
            f, c, _ = self.sweeps(z, m, torch.tensor([d]), closed)  # (n, M, K, Q) each
            q = (f * c * p[:, None, :, None]).flatten(2)  # (n, M, K Q)
            share = weight * (1 - d) ** m.double()  # (n,)
            joint = joint + share[:, None, None] * (q @ self.spoken.flatten(0, 1))  # (n, M, V - 1)
        gone = torch.arange(z.shape[1]) > m[:, None]  # (n, M)
        gone = gone if closed is None else gone | closed  # (n, M)
        joint = joint.masked_fill(gone[..., None], 0.0)  # (n, M, V - 1)
        now = (p * self.sweeps(z, m, torch.zeros(1, dtype=torch.double), closed)[2]).sum(-1)  # (n,)
        total = joint.sum((1, 2))  # (n,)
        stop = (now / (now + total))[:, None, None].expand(*z.shape, 1)  # (n, M, 1)
        joint = joint / total.clamp(min=1e-300)[:, None, None]  # (n, M, V - 1)
        return torch.cat([joint, torch.zeros_like(joint[..., :1]), stop], -1)  # (n, M, V + 1)


def through_transposed(v, K, closed):
    """K v, or v where the gap is closed. v (n, K, Q), closed (n,) -> (n, K, Q)"""
    moved = v @ K.transpose(-1, -2)  # (n, K, Q)
    return moved if closed is None else torch.where(closed[:, None, None], v, moved)


class SentenceCorpus(LanguageCorpus):
    """Sentences as a data set."""
    name, counts_words = "sentences", False
    defaults = dict(recipe_iters=3000, minutes=1.0, batch_size=64, block_size=20)

    def __init__(self, block_size=20):
        self.language, self.classes = toy_language(Sentences), tuple(TOPICS)
        self.block_size, self.end = block_size, self.language.V - 1
        longest = len(self.language.length_law) - 1
        if block_size < longest:
            raise UserError(f"the longest sentence has {longest} words: give --block_size "
                            f"{longest} or more")
        self.encoding = self.language.encoding
        self.about = f"sentences: single sentences of a small English of {self.end} words, of " \
                     f"{longest} words at most, filled up to {block_size}; entropy known"

    def text(self, ids):
        """The sentence that ids spell, without its ends."""
        return super().text(ids).replace(END_OF_TEXT, "")

    def lengths(self, x):
        return self.language.lengths(x)  # (n,)

    @cached_property
    def mean_length(self):
        law = self.language.length_law  # (N + 1,)
        return (law @ torch.arange(len(law)).double()).item()

    @cached_property
    def bytes_per_token(self):
        """The expected bytes per word, with the space before it, but for the first one. Exact but
        for where typos stand."""
        letters = torch.tensor([len(word.encode()) for word in self.language.words])  # (V,)
        x = self.windows("val")  # (n, L)
        n = self.lengths(x)  # (n,)
        words = torch.arange(self.block_size) < n[:, None]  # (n, L)
        return ((letters[x] + 1)[words].sum() / n.sum()).item()

    def score(self, x, label=None):
        x = x.cpu()  # (n, L)
        return [("words", self.lengths(x).double()),
                ("sentences of the grammar", self.language.is_grammatical(x).double())]

    def score_set(self, x):
        """The distance of the law of lengths from the exact one."""
        n, law = self.lengths(x), self.language.length_law  # (n,), (N + 1,)
        p = torch.zeros(self.block_size + 1, dtype=torch.double)  # (L + 1,)
        p[:len(law)] = law
        q = torch.bincount(n, minlength=len(p)) / len(n)  # (L + 1,)
        side = (q - p).sign() / 2  # (L + 1,)
        error = side[n].std().item() / len(n) ** 0.5
        return [("total variation from the exact law of lengths",
                 (side * (q - p)).sum().item(), error)]


def main():
    """What the sentences are like."""
    data = SentenceCorpus()
    for row in data.windows("val", 10).tolist():
        print(data.text(row))
    language, L = data.language, data.block_size
    nats, error = language.entropy(L)
    law = language.length_law  # (N + 1,)
    print(f"\nentropy {L * nats:.3f} +- {L * error:.3f} nats, {data.mean_length:.2f} words on "
          "average\n"
          + "  ".join(f"{n}: {p:.3f}" for n, p in enumerate(law.tolist()) if p))


if __name__ == "__main__":
    with one_line_errors():
        main()
