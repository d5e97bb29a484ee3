"""
Chapter 1. The toy language: a small English whose every probability is known.

    python -m data.toy            # print some of it, and its exact entropy

A text has one topic (farm, sea, ...), which makes some words likely, and follows one grammar
(data/toy_grammar.py), which says what kind of word comes next and remembers number: "the dog that
chases two cats sleeps ." That is a hidden Markov model. With k the topic, h_l the hidden place in
the grammar at word l, and x the first L words of an endless text,

    p(x) = sum_k p(k) sum_h prod_l T(h_l | h_l-1) p_k(x_l | h_l)                              (1.2)

A noisy text is evidence: e_l(v) = p(z_l | x_l = v), up to a factor. One-hot is a known word, flat
is a mask. Two sweeps of L small matrix products, one from either side, replace the sum over all
texts (~ is "in proportion to"):

    posterior  p(x_l = v | all evidence but e_l) = sum_k w_l(k) sum_h q_l(h) p_k(v | h),      (1.3)
               q_l ~ f_l g_l,   w_l(k) = p(k | all evidence but e_l),   where
    evidence   e_l(h) = sum_v p_k(v | h) e_l(v)
    forward    f_l(h) = p(h_l = h | k, evidence before l),       f_l+1 ~ (f_l e_l) @ T
    backward   g_l(h) ~ p(evidence after l | k, h_l = h),        g_l-1 ~ T @ (g_l e_l)

    entropy    H(x) = H(x, h, k) - H(h, k | x)                                                (1.5)

(1.3) is the Bayes-optimal denoiser of every forward process. Under uniform noise a perfect network
learns this leave-one-out posterior, not p(x_l | z); under masks the two are the same. n texts, L
words, V vocabulary, K topics, Q places. All is float64 on the CPU, since Apple's GPUs have no
float64. The noise is in diffusion.py; nothing here is learned.
"""
from functools import cache, cached_property

import torch
from torch.special import entr  # -p log p

from data.base import Dataset
from data.tokenizer import words
from data.toy_grammar import (
    GRAMMAR,
    TOPICS,
    TYPO,
    automaton,
    transition_probs,
    vocabulary,
    word_probs,
)
from script import one_line_errors

# far from the seeds that people type
SEEDS = {"train": 1_000_001, "val": 1_000_002, "entropy": 1_000_003, "test": 1_000_004}


def cumulative(p):
    """The cumulative distribution of each row r of p (R, V), between r and r + 1. -> (R, V)"""
    cdf = p.cumsum(-1)  # (R, V)
    return cdf / cdf[:, -1:] + torch.arange(len(p))[:, None]  # (R, V)


def draw_rows(cdf, rows, u):
    """One draw from each of these rows of `cumulative`: the first v whose cumulative probability
    exceeds u < 1. All rows are searched as one: none is copied. cdf (R, V); rows, u (n,) -> (n,)"""
    return torch.searchsorted(cdf.flatten(), rows + u, right=True) % cdf.shape[-1]  # (n,)


def map_rows(f, *tensors, rows=256):
    """f of a few rows at a time, which fit the processor's cache: several times faster."""
    parts = zip(*(tensor.split(rows) for tensor in tensors))
    return torch.cat([f(*part) for part in parts])


class Toy:
    """The language as tables, and its exact answers: probabilities in float64, logarithms in nats.

    `topic` (an int, or ids (n,)) conditions on a topic; n_topics, or None, is the mixture of
    topics, (1.2). Tensors may come from any device; answers are on the CPU.
    """

    def __init__(self):
        table = transition_probs(GRAMMAR)
        self.words, self.topics, self.places = vocabulary(), list(TOPICS), list(table)
        self.V, self.n_topics = V, K = len(self.words), len(self.topics)
        Q = len(self.places)
        self.prior = torch.tensor(list(TOPICS.values()), dtype=torch.double)  # (K,) p(k)
        self.transition = torch.zeros(Q, Q, dtype=torch.double)  # (Q, Q) T, from row to column
        self.emission = torch.full((K, Q, V), TYPO / V, dtype=torch.double)  # (K, Q, V) p_k(v | h)
        for i, place in enumerate(self.places):
            for target, p in table[place].items():
                self.transition[i, self.places.index(target)] = p
            for k, topic in enumerate(self.topics):
                for word, p in word_probs(place, topic).items():
                    self.emission[k, i, self.words.index(word)] += (1 - TYPO) * p
        self.initial = self.transition[self.places.index("sentence stop")]  # (Q,) as after a stop
        self.by_word = self.emission.permute(2, 0, 1).contiguous()  # (V, K, Q) the same, transposed

    @cached_property
    def encoding(self):
        return words(self.words)

    # ---- samples

    @cached_property
    def cdf(self):
        """What `draw_rows` reads: of the first place, the next one, and the word, row k Q + h."""
        laws = {"start": self.initial[None], "next": self.transition,
                "word": self.emission.flatten(0, 1)}
        return {name: cumulative(p) for name, p in laws.items()}  # (R, Q|V) each

    def sample(self, n, length, generator=None, topic=None, return_topic=False):
        """n texts of `length` words -> (n, length) int64, and their topics (n,) if return_topic.
        The generator is a CPU one."""
        x, _, k = self.draw_paths(n, length, generator, topic)  # (n, L), (n, L), (n,)
        return (x, k) if return_topic else x

    def draw_paths(self, n, length, generator=None, topic=None):
        """(1.2) from left to right. -> words x (n, L), places h (n, L), topics k (n,)"""
        u = torch.rand(2 * length + 1, n, dtype=torch.double, generator=generator)  # (2L + 1, n)
        k = draw_rows(cumulative(self.log_prior(topic, n).exp()), torch.arange(n), u[-1])  # (n,)
        x, h, h_l = [], [], torch.zeros_like(k)  # (n,)
        for l in range(length):
            h_l = draw_rows(self.cdf["next" if l else "start"], h_l, u[l])  # (n,)
            row = k * len(self.places) + h_l  # (n,)
            x.append(draw_rows(self.cdf["word"], row, u[length + l]))  # (n,)
            h.append(h_l)
        return torch.stack(x, 1), torch.stack(h, 1), k  # (n, L), (n, L), (n,)

    # ---- probabilities

    def log_prob(self, x, topic=None):
        """log p(x), (1.2). x (n, L) -> (n,) nats; finite for every text"""
        log_evidence = map_rows(self.log_evidence, x)  # (n, K)
        return (self.log_prior(topic, len(x)) + log_evidence).logsumexp(-1)  # (n,)

    def topic_posterior(self, x):
        """p(k | x), or p(k | evidence): words x (n, L), or a likelihood (n, L, V) as for
        `posterior`. -> (n, K)"""
        return (self.prior.log() + map_rows(self.log_evidence, x)).softmax(-1)  # (n, K)

    def predict(self, x, topic=None):
        """p(x_l | x_<l), the perfect autoregressive model: row l does not depend on x_l.
        x (n, L) -> (n, L, V)"""
        log_prior, rows = self.log_prior(topic, len(x)), []  # (n, K)
        for f, log_past in self.forward_sweep(self.evidence(x), len(x)):
            w = (log_prior + log_past).softmax(-1)  # (n, K) p(k | x_<l)
            rows.append(self.mix_words(w, f))  # (n, V)
        return torch.stack(rows[:-1], 1)  # (n, L, V) without word L + 1

    def posterior(self, likelihood, leave_one_out=True, topic=None):
        """(1.3), or p(x_l | all evidence) with leave_one_out=False. likelihood (n, L, V) -> (n, L,
        V)

        likelihood[i, l, v] = p(z_l | x_l = v) up to a factor per (i, l). It may be 0. A row that is
        all zeros, or has an entry that is negative or not finite, raises ValueError.
        """
        likelihood = self.check_likelihood(likelihood)  # (n, L, V)
        log_prior = self.log_prior(topic, len(likelihood))  # (n, K)
        p = map_rows(self.combine_sweeps, likelihood, log_prior)  # (n, L, V)
        if not leave_one_out:
            p = p * likelihood  # (n, L, V) Bayes' rule for the word's own evidence
            p = p / p.sum(-1, keepdim=True)  # (n, L, V)
        return p

    def combine_sweeps(self, likelihood, log_prior):
        """(1.3): the forward sweep, then the backward sweep, combined at each word. -> (n, L, V)"""
        by_word = self.by_word  # (V, K, Q)
        evidence = [torch.tensordot(e, by_word, 1) for e in likelihood.unbind(1)]  # L of (n, K, Q)
        *forward, (_, log_all) = self.forward_sweep(evidence, len(likelihood))
        g, rows = torch.ones_like(self.by_word[:1]), []  # (1, K, Q) no evidence after the last word
        for (f, _), e in zip(reversed(forward), reversed(evidence)):
            q = f * g  # (n, K, Q)
            q /= q.sum(-1, keepdim=True)  # (n, K, Q) in place: new memory costs more than division
            own = torch.linalg.vecdot(q, e)  # (n, K) the word's own evidence
            log_others = log_all - own.log()  # (n, K)
            w = (log_prior + log_others).softmax(-1)  # (n, K)
            rows.append(self.mix_words(w, q))  # (n, V)
            g = (g * e) @ self.transition.T  # (n, K, Q) the backward sweep
            g /= g.amax(-1, keepdim=True)  # (n, K, Q) its scale does not matter
        return torch.stack(rows[::-1], 1)  # (n, L, V)

    @cache
    def entropy(self, length, n=4096):
        """Entropy of `length` words, (1.5) -> nats per token, its standard error

        The mean of -log p(x) over samples is noisy. The mean of -log p(x, h, k) is known exactly,
        and the two differ by how uncertain the path is given the words, which is little. Only this
        difference is averaged over n texts.
        """
        next_nats = entr(self.transition).sum(-1)  # (Q,) H(h_l+1 | h_l)
        word_nats = self.prior @ entr(self.emission).sum(-1)  # (Q,) H(x_l | h_l, k)
        p_h = self.initial  # (Q,) p(h_l), the same in every topic
        joint = entr(self.prior).sum() + entr(p_h).sum()  # () H(k) + H(h_1)
        for _ in range(length - 1):
            joint = joint + p_h @ (word_nats + next_nats)  # ()
            p_h = p_h @ self.transition  # (Q,)
        joint = joint + p_h @ word_nats  # () H(x, h, k)

        x, h, k = self.draw_paths(n, length, torch.Generator().manual_seed(SEEDS["entropy"]))
        log_path = self.prior[k].log() + self.initial[h[:, 0]].log()  # (n,)
        log_path += self.transition[h[:, :-1], h[:, 1:]].log().sum(-1)  # (n,)
        log_path += self.emission[k[:, None], h, x].log().sum(-1)  # (n,) log p(x, h, k)
        nats = (joint + log_path - self.log_prob(x)) / length  # (n,) whose mean is H(x) / L
        return nats.mean().item(), (nats.std() / n ** .5).item()

    # ---- the parts of (1.3)

    def forward_sweep(self, evidence, n):
        """Yields L + 1 times f_l (n, K, Q), and log p(evidence before l | k) (n, K) in nats.

        f is normalized at each word and in each topic, so that nothing can underflow. A single norm
        for all topics would lose some: after 2,000 words of the farm p(sea) is below the smallest
        float64, and yet 2,000 words of the sea may follow.
        """
        f = self.initial.expand(n, self.n_topics, -1)  # (n, K, Q)
        log_past = torch.zeros(n, self.n_topics, dtype=torch.double)  # (n, K)
        for e in evidence:
            yield f, log_past
            f = f * e  # (n, K, Q)
            norm = f.sum(-1, keepdim=True)  # (n, K, 1) p(e_l | k, past)
            f = f.div_(norm) @ self.transition  # (n, K, Q)
            log_past = log_past + norm[..., 0].log()  # (n, K)
        yield f, log_past

    def evidence(self, x):
        """e_l(h) of words x (n, L), or of a likelihood (n, L, V): L times (n, K, Q), one by one to
        save memory."""
        if x.ndim == 3:
            return (torch.tensordot(e, self.by_word, 1) for e in self.check_likelihood(x).unbind(1))
        if x.min() < 0 or x.max() >= self.V:
            raise ValueError(f"ids of words are 0 .. {self.V - 1}: a text with masks has no "
                             f"probability, but posterior() takes them as flat evidence")
        return (self.by_word[x_l] for x_l in x.cpu().unbind(1))

    def log_evidence(self, x):
        """log p(x | k). x (n, L) -> (n, K) nats"""
        *_, (_, log_all) = self.forward_sweep(self.evidence(x), len(x))
        return log_all  # (n, K)

    def mix_words(self, w, q):
        """sum_k w(k) sum_h q(h) p_k(v | h), from topics w (n, K) and places q (n, K, Q). -> (n,
        V)"""
        return (w[..., None] * q).flatten(1) @ self.emission.flatten(0, 1)  # (n, V)

    def log_prior(self, topic, n):
        """log p(k), or 0 for the given topic and -inf for the others. -> (n, K)"""
        topic = torch.as_tensor(self.n_topics if topic is None else topic).cpu().expand(n)  # (n,)
        table = torch.cat([torch.eye(self.n_topics), self.prior[None]])  # (K + 1, K)
        return table[topic].log()  # (n, K)

    def check_likelihood(self, likelihood):
        """In float64 and with 1 as the largest entry of each row. (n, L, V) -> (n, L, V)"""
        if likelihood.shape[-1] != self.V:
            raise ValueError(f"evidence is one number for each of {self.V} words, not "
                             f"{likelihood.shape[-1]}: a mask is a flat row, not a symbol")
        likelihood = likelihood.cpu().double()  # (n, L, V)
        top = likelihood.amax(-1, keepdim=True)  # (n, L, 1)
        if not ((likelihood >= 0).all() and (top > 0).all() and top.isfinite().all()):
            raise ValueError("each row of a likelihood must be finite, nowhere negative, and "
                             "somewhere positive")
        return likelihood / top  # (n, L, V)


@cache
def toy_language(kind=Toy):
    """A language, whose tables never change: made once."""
    return kind()


class LanguageCorpus(Dataset):
    """A language as a data set: `language` draws its texts, and no text is ever seen twice."""
    splits = ("train", "val", "test")
    has_language = independent_texts = True
    fingerprint = None

    @classmethod
    def load(cls, data, block_size, tokenizer="auto", vocab_size=1024, cache=None):
        return cls(block_size)

    def examples(self, split, n, generator=None):
        """n fresh texts and their topics. All splits have one distribution: nothing can overfit."""
        x, topic = self.language.sample(n, self.block_size, generator, return_topic=True)
        return x, None, topic  # (n, L), (n,)

    def example_windows(self, split="val", most=None):
        """`most` texts, by default 1,000, the same at every call."""
        self.check_split(split)
        return self.examples(split, most or 1000, torch.Generator().manual_seed(SEEDS[split]))

    @property
    def train(self):
        """About 200,000 ids."""
        return first_ids(type(self), "train", self.block_size, 200_000)  # (m,)

    @property
    def val(self):
        return first_ids(type(self), "val", self.block_size, 20_000)  # (m,)


@cache
def first_ids(corpus, split, length, most):
    """The first ids of a split in texts of this length: drawn once, they never change. -> (m,)"""
    return corpus(length).windows(split, most // length).flatten().numpy()  # (m,)


class ToyCorpus(LanguageCorpus):
    """The toy language as a data set. It has no end."""
    name = "toy"
    defaults = dict(recipe_iters=3000, minutes=1.0, batch_size=32, block_size=32)

    def __init__(self, block_size=32):
        self.block_size, self.language, self.classes = block_size, toy_language(), tuple(TOPICS)
        self.encoding = self.language.encoding
        self.about = f"toy: a small English of {self.language.V} words and {len(TOPICS)} topics, " \
                     f"fresh texts of {block_size} words without end, entropy known"

    @cached_property
    def automaton(self):
        """Of its grammar without typos. -> (S, V)"""
        return torch.tensor(automaton())  # (S, V)

    @property
    def bytes_per_token(self):
        return bytes_per_word(self.block_size)


@cache
def bytes_per_word(L):
    """The expected bytes per word of a text of L words, with the space between two. Exact."""
    toy = toy_language()
    p = toy.posterior(torch.ones(1, L, toy.V)).mean((0, 1))  # (V,) p(x_l), no evidence
    letters = torch.tensor([len(word.encode()) for word in toy.words])  # (V,)
    return (p @ letters.double()).item() + (L - 1) / L


def main():
    """What the language is like."""
    toy = Toy()
    print(f"{toy.V} words, {toy.n_topics} topics with {len(toy.places)} places of the grammar\n")
    for ids, k in zip(*toy.sample(10, 24, torch.Generator().manual_seed(0), return_topic=True)):
        print(f"{toy.topics[k]:8s} ", *(toy.words[i] for i in ids))
    for length in (8, 32, 64):
        nats, error = toy.entropy(length)
        print(f"entropy of {length:2d} words: {nats:.4f} +- {error:.4f} nats per token")


if __name__ == "__main__":
    with one_line_errors():
        main()
