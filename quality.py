"""
What is said about samples, and of held-out text beside them: likely by a judge, varied, and like the text of people.

    entropy       of the tokens within a text, in nats: what repetition lowers. Never a likelihood without it
    -log p        by the exact language (toy) or by a judge (judge.py), whose exponential is the generative perplexity
    distinct-n    (arXiv:1510.03055) share of the n-grams of words of all texts that are different
    self-BLEU     (arXiv:1802.01886) how much of a text's 1- to 4-grams stands in the others: high where all are alike
    MAUVE         (arXiv:2102.01454) overlap of samples and held-out text, as clusters of a judge's last hidden states

The first two are means over texts. The others belong to a set of texts, and change with its size: samples and
held-out text are compared by equally many. Their errors: distinct-n by jackknife, self-BLEU over texts as if they were
independent, MAUVE over sets of texts drawn again with replacement, and over its draws of clusters.
"""
import math
import re
from collections import Counter

import torch

from bounds import beginnings, mean_error, perplexity, pooled


def unigram_entropy(x):
    """Entropy of the tokens within each text, in nats: what repetition lowers. (n, L) -> (n,)"""
    _, inverse = x.unique(return_inverse=True)                                                          # (n, L)
    counts = torch.zeros(len(x), int(inverse.max()) + 1, dtype=torch.float64).scatter_add_(
        1, inverse.cpu(), torch.ones(x.shape, dtype=torch.float64))                                     # (n, symbols)
    return torch.special.entr(counts / x.shape[1]).sum(-1)                                              # (n,)


def known_words(texts, corpus):
    """Share of the words of three or more letters that the corpus knows. Words cut by a text's edge do not count."""
    whole = re.compile(r"(?<=[^A-Za-z])[A-Za-z]{3,}(?=[^A-Za-z])")
    known = {word for ids in beginnings(corpus) for word in whole.findall(corpus.text(ids))}
    words = [word for text in texts for word in whole.findall(text)]
    return sum(word in known for word in words) / max(1, len(words)), len(words)


def rated(judge, x, corpus, batch_size):
    """Rows of generative perplexity: exp of all nats over all tokens (MDLM), and the mean of each text's (SEDD)."""
    nats, scored = judge.nats(x, [corpus.text(row) for row in x.tolist()], batch_size)                  # (n,) each
    rate, error = pooled(nats, scored)
    each = (nats / scored)[scored > 0].exp()                                                            # (n',)
    return [(f"-log p by {judge.where}, nats/token", rate, error),
            (f"generative perplexity by {judge.where}", *perplexity(rate, error)),
            ("the same, mean over texts", *mean_error(each))]


def quality(x, corpus, judge, batch_size, label=None):
    """Rows (what, mean, standard error) on texts x (n, L); the same function rates samples and held-out text. With a
    label (1,) also whether they are of that class."""
    rows = [("entropy of the tokens within a text, nats", *mean_error(unigram_entropy(x)))]
    if corpus.name == "toy":
        rows.append(("exact -log p, nats/token", *mean_error(-corpus.language.log_prob(x.cpu()) / x.shape[1])))
        if label is not None:
            rows.append(("exact -log p given the class, nats/token",
                         *mean_error(-corpus.language.log_prob(x.cpu(), label) / x.shape[1])))
            rows.append(("exact p(class | text)",
                         *mean_error(corpus.language.topic_posterior(x.cpu())[:, label.cpu()][:, 0])))
    elif judge:
        rows += rated(judge, x, corpus, batch_size)
    rows += [(what, *mean_error(values)) for what, values in getattr(corpus, "rate", lambda *a: [])(x, label)]
    if corpus.name not in ("toy", "digits"):
        share, n = known_words([corpus.text(row) for row in x.tolist()], corpus)
        rows.append((f"words that stand in the corpus, of {n:,}", share, (share * (1 - share) / max(1, n)) ** 0.5))
    return rows


# ---- of a set of texts

def ngrams(words, n):
    return Counter(zip(*(words[i:] for i in range(n))))


def distinct(texts, n):
    """Different n-grams over n-grams, of texts (lists of words), and its jackknife standard error."""
    counts = [ngrams(words, n) for words in texts]
    owners = Counter(gram for grams in counts for gram in grams)         # in how many texts
    total = sum(grams.total() for grams in counts)
    without = [(len(owners) - sum(owners[gram] == 1 for gram in grams)) / max(1, total - grams.total())
               for grams in counts]                                      # one text left out
    m, mean = len(texts), sum(without) / len(texts)
    return len(owners) / max(1, total), math.sqrt((m - 1) / m * sum((value - mean) ** 2 for value in without))


def self_bleu(texts, longest=4):
    """BLEU of each text (a list of words) with all others as references: the geometric mean of the shares of its 1- to
    4-grams that stand in one of them, as often; times exp(1 - r/c) where the text has c words, and r > c those of the
    other one nearest in length. A share of 0 of m counts as 0.1/m (NLTK's first smoothing). -> (n,)"""
    logs = torch.zeros(len(texts), dtype=torch.float64)                                                 # (n,)
    for n in range(1, longest + 1):
        counts, most = [ngrams(words, n) for words in texts], {}
        for i, grams in enumerate(counts):                   # of each n-gram: the two largest counts, and who has them
            for gram, k in grams.items():
                most[gram] = sorted([*most.get(gram, []), (k, i)], reverse=True)[:2]
        for i, grams in enumerate(counts):
            shared = sum(min(k, next((best for best, j in most[gram] if j != i), 0)) for gram, k in grams.items())
            logs[i] += math.log((shared or 0.1) / max(1, grams.total())) / longest
    lengths = Counter(map(len, texts))
    for i, c in enumerate(map(len, texts)):
        r = min((m for m in lengths if lengths[m] > (m == c)), key=lambda m: (abs(m - c), m))
        logs[i] += min(0.0, 1 - r / c) if c else -math.inf
    return logs.exp()                                                                                   # (n,)


def variety(x, corpus):
    """Rows (what, value, standard error) of the set x (n, L) of texts; none for pictures, nor for one text."""
    if corpus.encoding.name == "pixels" or len(x) < 2:       # one text is like no other
        return []
    texts = [corpus.text(row).split() for row in x.tolist()]
    rows = [(f"distinct-{n}, of {len(texts)} texts", *distinct(texts, n)) for n in (1, 2, 3)]
    return rows + [(f"self-BLEU of {len(texts)} texts", *mean_error(self_bleu(texts)))]


def mauve_of(judge, ours, theirs, batch_size, seed, again=10):
    """MAUVE of samples and held-out texts, equally many: p and q are their last hidden states. -> value, its standard
    error, from `again` sets of texts drawn with replacement from these"""
    from mauve import compute_mauve

    p, q = (judge.states(texts, batch_size) for texts in (ours, theirs))                                # (n, D) each
    measure = lambda p, q, seed: float(compute_mauve(p_features=p.numpy(), q_features=q.numpy(), seed=seed,
                                                     verbose=False).mauve)
    draw = torch.Generator().manual_seed(seed)
    resampled = lambda a: a[torch.randint(len(a), (len(a),), generator=draw)]                           # (n, D)
    others = torch.tensor([measure(resampled(p), resampled(q), seed + i) for i in range(again)])        # (again,)
    return measure(p, q, seed), others.std().item()
