"""
How good are samples? Whether they are likely, varied, and distributed like held-out text.

    entropy       of the tokens within a text, in nats. Repetition lowers it, so a likelihood means
                  nothing without it
    -log p        by the exact language (toy) or by a judge (judges.py); its exponential is the
                  generative perplexity
    distinct-n    (arXiv:1510.03055) distinct n-grams over all n-grams of words
    self-BLEU     (arXiv:1802.01886) the share of a text's 1- to 4-grams that occurs in the other
                  texts; high if all texts are alike
    MAUVE         (arXiv:2102.01454) overlap of samples and held-out text, as clusters of the last
                  hidden states of a judge

The first two are means over texts. The others describe a set of texts and depend on its size, so
samples and held-out text are compared on sets of one size. Their standard errors: distinct-n by the
jackknife; self-BLEU over texts, as if these were independent; MAUVE by the bootstrap.
"""
import math
import re
from collections import Counter

import torch

from evaluation.likelihood import mean_error, perplexity_of, pooled_rate

# ---- means over texts

def unigram_entropy(x):
    """Entropy of the tokens within each text, in nats. x (n, L) -> (n,)"""
    _, inverse = x.unique(return_inverse=True)  # (n, L)
    counts = torch.zeros(len(x), int(inverse.max()) + 1, dtype=torch.float64)  # (n, symbols)
    ones = torch.ones(x.shape, dtype=torch.float64)  # (n, L)
    counts.scatter_add_(1, inverse.cpu(), ones)  # (n, symbols)
    return torch.special.entr(counts / x.shape[1]).sum(-1)  # (n,)


def share_of_known_words(texts, data):
    """The share of words of three letters or more that occur in the corpus, and their number.

    A word at the edge of a text may be cut, so it does not count.
    """
    whole = re.compile(r"(?<=[^A-Za-z])[A-Za-z]{3,}(?=[^A-Za-z])")
    known = {word for split in ("train", "val")
             for word in whole.findall(data.text(data.ids(split)))}
    words = [word for text in texts for word in whole.findall(text)]
    return sum(word in known for word in words) / max(1, len(words)), len(words)


def judge_rows(judge, x, data, batch_size):
    """Rows of generative perplexity: over all tokens (MDLM), and the mean over texts (SEDD)."""
    nats, scored = judge.nats(x, [data.text(row) for row in x.tolist()], batch_size)  # (n,) each
    rate, error = pooled_rate(nats, scored)
    each = (nats / scored)[scored > 0].exp()  # (n',)
    return [(f"-log p by {judge.where}, nats/token", rate, error),
            (f"generative perplexity by {judge.where}", *perplexity_of(rate, error)),
            ("the same, mean over texts", *mean_error(each))]


def exact_rows(x, language, label=None):
    """Rows of exact probabilities; with a label (1,) also those of its class."""
    x, n = x.cpu(), x.shape[1]  # (n, L)
    rows = [("exact -log p, nats/token", *mean_error(-language.log_prob(x) / n))]
    if label is not None:
        of_class = -language.log_prob(x, label) / n  # (n,)
        posterior = language.topic_posterior(x)[:, label.cpu()][:, 0]  # (n,)
        rows += [("exact -log p given the class, nats/token", *mean_error(of_class)),
                 ("exact p(class | text)", *mean_error(posterior))]
    return rows


def rate_samples(x, data, judge, batch_size, label=None):
    """Rows (what, mean, standard error) of texts x (n, L), which are samples or held-out text.

    label (1,): the class that was asked for
    """
    rows = [("entropy of the tokens within a text, nats", *mean_error(unigram_entropy(x)))]
    if data.language is not None:
        rows += exact_rows(x, data.language, label)
    elif judge:
        rows += judge_rows(judge, x, data, batch_size)
    rows += [(what, *mean_error(values)) for what, values in data.score(x, label)]
    if data.is_text and data.language is None:
        share, n = share_of_known_words([data.text(row) for row in x.tolist()], data)
        error = (share * (1 - share) / max(1, n)) ** 0.5
        rows.append((f"words that stand in the corpus, of {n:,}", share, error))
    return rows


# ---- figures of a set of texts

def count_ngrams(words, n):
    return Counter(zip(*(words[i:] for i in range(n))))


def distinct_ngrams(texts, n):
    """Distinct n-grams over all n-grams of texts (lists of words); its jackknife standard error."""
    counts = [count_ngrams(words, n) for words in texts]
    owners = Counter(gram for grams in counts for gram in grams)  # in how many texts
    total = sum(grams.total() for grams in counts)
    without = [(len(owners) - sum(owners[gram] == 1 for gram in grams))
               / max(1, total - grams.total()) for grams in counts]  # each text left out
    m, mean = len(texts), sum(without) / len(texts)
    error = math.sqrt((m - 1) / m * sum((value - mean) ** 2 for value in without))
    return len(owners) / max(1, total), error


def self_bleu(texts, longest=4):
    """BLEU of each text (a list of words) with all others as references. -> (n,)

    It is the geometric mean of the shares of its 1- to 4-grams that occur as often in another text,
    times exp(1 - r/c) where the text has c words, and the reference nearest in length has r > c. A
    share of 0 of m n-grams counts as 0.1/m (the first smoothing of NLTK).
    """
    logs = torch.zeros(len(texts), dtype=torch.float64)  # (n,)
    for n in range(1, longest + 1):
        counts, most = [count_ngrams(words, n) for words in texts], {}
        for i, grams in enumerate(counts):  # of each n-gram: the two largest counts, and whose
            for gram, k in grams.items():
                most[gram] = sorted([*most.get(gram, []), (k, i)], reverse=True)[:2]
        for i, grams in enumerate(counts):
            others = {gram: next((best for best, j in most[gram] if j != i), 0) for gram in grams}
            shared = sum(min(k, others[gram]) for gram, k in grams.items())
            logs[i] += math.log((shared or 0.1) / max(1, grams.total())) / longest
    lengths = Counter(map(len, texts))
    for i, c in enumerate(map(len, texts)):
        references = (m for m in lengths if lengths[m] > (m == c))  # not the text itself
        r = min(references, key=lambda m: (abs(m - c), m))
        logs[i] += min(0.0, 1 - r / c) if c else -math.inf
    return logs.exp()  # (n,)


def rate_diversity(x, data):
    """Rows (what, value, standard error) of the set x (n, L); none for images or a single text."""
    if not data.is_text or len(x) < 2:
        return []
    texts = [data.text(row).split() for row in x.tolist()]
    rows = [(f"distinct-{n}, of {len(texts)} texts", *distinct_ngrams(texts, n)) for n in (1, 2, 3)]
    return rows + [(f"self-BLEU of {len(texts)} texts", *mean_error(self_bleu(texts)))]


def mauve_of(judge, ours, theirs, batch_size, seed, again=10):
    """MAUVE of as many samples as held-out texts, where p and q are their last hidden states.

    -> its value, and its standard error from `again` bootstrap sets of texts
    """
    from mauve import compute_mauve  # an extra

    p, q = (judge.states(texts, batch_size) for texts in (ours, theirs))  # (n, D) each
    mauve = lambda p, q, seed: float(compute_mauve(
        p_features=p.numpy(), q_features=q.numpy(), seed=seed, verbose=False).mauve)
    generator = torch.Generator().manual_seed(seed)
    resampled = lambda a: a[torch.randint(len(a), (len(a),), generator=generator)]  # (n, D)
    others = torch.tensor([mauve(resampled(p), resampled(q), seed + i) for i in range(again)])
    return mauve(p, q, seed), others.std().item()


# ---- samples beside held-out text

def sample_figures(samples, x, data, judge, label, config):
    """Samples (m, L) rated beside the held-out texts x (n, L). -> dict of plain numbers"""
    few = min(len(samples), len(x))  # figures of a set are compared on sets of one size
    spread = torch.linspace(0, len(x) - 1, few).long().to(x.device)  # (few,)
    sets = samples[:few], x[spread]  # (few, L) each
    rows = [rate_samples(a, data, judge, config.batch_size, label) + rate_diversity(part, data)
            for a, part in zip((samples, x), sets)]
    figures = {"samples": rows[0], "held_out": rows[1], "num_samples": len(samples)}
    if config.mauve:
        texts = ([data.text(row) for row in a.tolist()] for a in sets)
        value, error = mauve_of(judge, *texts, config.batch_size, config.seed)
        figures |= {"mauve": value, "mauve_error": error, "mauve_texts": few}
    return figures
