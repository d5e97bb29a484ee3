"""
Statistics of texts beyond likelihood: do samples follow the laws of words that text follows?

After Meister and Cotterell (arXiv:2106.00085). Text is compared with text, never with an ideal law:
it is not exactly Zipf's either, and s and b depend on how much text there is.

    Zipf      p(r) = r^-s / sum_{q <= R} q^-s,  r = 1 .. R the ranks of the words seen        (12.5)
    Heaps     different words among the first n = k n^b,  least squares of logs, n = 8, 16 .. (12.6)
    p-value   (1 + how many of m permutations have a distance >= d) / (1 + m)                 (12.7)

The most likely s is that at which the mean of log r under (12.5) is that of the texts. Repetition
rep-n is 1 - distinct / all n-grams of a text. The distance d of s and b is the difference, that of
all else Kolmogorov and Smirnov's: the largest difference of two cumulative distributions, of words
in the order of their pooled frequency, or of one number for each text.

A permutation deals the texts of both sets into two new ones of the same sizes. If samples and text
have one law, and texts do not depend on each other, all dealings are equally likely, so P(p <= a)
<= a. Neighboring windows of a stream depend on each other: there p is too small.

Where the law of words is known (data/toy.py), the words are also compared with it. Its p-value is
(12.7) with m sets of fresh texts in place of permutations.
"""
from collections import Counter
from functools import partial

import torch

from evaluation.errors import mean_error
from evaluation.sample_quality import count_ngrams, jackknife, questions_asked, words_in_texts

SHORTEST = 8  # words: the first n of (12.6)
COMMON = 10  # words of the training text that count as common ones
STOPS = tuple(".!?\u3002\uff01\uff1f")  # a sentence ends behind them
LARGEST = 64.0  # of s: two words of which one is 2^64 times as frequent
AT_ONCE = 1 << 22  # numbers in memory


# ---- laws of words

def zipf_exponent(counts):
    """s of (12.5) by maximum likelihood, in bisections. counts (m, V), in any order -> (m,)

    0 if all words are equally frequent; nan for fewer than two different words
    """
    counts = counts.double().sort(-1, descending=True).values  # (m, V)
    log_r = torch.arange(1, counts.shape[-1] + 1).double().log()  # (V,)
    seen, target = counts > 0, (counts * log_r).sum(-1) / counts.sum(-1)  # (m, V), (m,)
    low, high = torch.zeros_like(target), torch.full_like(target, LARGEST)  # (m,) each
    for _ in range(50):
        s = (low + high) / 2  # (m,)
        p = (-s[:, None] * log_r).masked_fill(~seen, -torch.inf).softmax(-1)  # (m, V) p(r)
        above = (p * log_r).sum(-1) > target  # (m,) s is too small
        low, high = torch.where(above, s, low), torch.where(above, high, s)  # (m,) each
    return ((low + high) / 2).masked_fill(seen.sum(-1) < 2, torch.nan)  # (m,)


def heaps_fit(words):
    """k and b of (12.6) of words in their order, a tensor of ids (T,). nan for T < 16"""
    T = len(words)
    sizes = [n for i in range(T.bit_length()) if (n := SHORTEST << i) <= T]
    if len(sizes) < 2:
        return torch.nan, torch.nan
    first = torch.full((int(words.max()) + 1,), T).scatter_reduce(
        0, words, torch.arange(T), "amin")  # (V,) where each word stands first
    types = torch.stack([(first < n).sum() for n in sizes]).double()  # (points,)
    x, y = torch.tensor(sizes).double().log(), types.log()  # (points,) each
    b = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()  # ()
    return (y.mean() - b * x.mean()).exp().item(), b.item()


def repetition(words, n):
    """rep-n of a text, a list of words; 0 for a text of fewer than n."""
    grams = count_ngrams(words, n)
    return 1 - len(grams) / grams.total() if grams else 0.0


def zipf_of(texts):
    counts = Counter(word for words in texts for word in words)
    return zipf_exponent(torch.tensor([[*counts.values()] or [0]])).item()


def heaps_of(texts):
    number = {}
    return heaps_fit(torch.tensor([number.setdefault(word, len(number))
                                   for words in texts for word in words]))[1]


def values_of_texts(texts, common):
    """Numbers that each text (a list of words) has. -> {what: (n,)}"""
    share = lambda words, of: sum(map(of, words)) / max(1, len(words))
    stops = lambda words: sum(word.endswith(STOPS) for word in words)
    measures = {
        "words": len,
        "words per sentence": lambda words: len(words) / (1 + stops(words)),
        f"share of the {len(common)} most common words": partial(share, of=common.__contains__),
        "share of symbols": partial(share, of=lambda word: not any(map(str.isalnum, word))),
        **{f"repetition, rep-{n}": partial(repetition, n=n) for n in (1, 2, 3, 4)}}
    return {what: torch.tensor([measure(words) for words in texts], dtype=torch.float64)  # (n,)
            for what, measure in measures.items()}


# ---- distances of two sets, for many ways to deal the texts

def deal(n, m, generator):
    """The two sets as they are, and m permutations of them. -> (m + 1, 2n) order of the texts; the
    first n are the first set"""
    shuffled = torch.rand(m, 2 * n, generator=generator).argsort(-1)  # (m, 2n)
    return torch.cat([torch.arange(2 * n)[None], shuffled])  # (m + 1, 2n)


def in_first(order):
    """Whether each text is in the first set. order (m, 2n) -> (m, 2n)"""
    return order.argsort(-1) < order.shape[-1] // 2  # (m, 2n)


def distances_of_values(values, order):
    """Kolmogorov and Smirnov's distance of numbers (2n,), one for each text. -> (m,)"""
    sorted_values, by_value = values.sort()  # (2n,) each
    sign = torch.where(in_first(order)[:, by_value], 1.0, -1.0)  # (m, 2n)
    last = torch.cat([sorted_values.diff() > 0, torch.tensor([True])])  # (2n,) of equal ones
    return sign.cumsum(-1)[:, last].abs().amax(-1) / (len(values) / 2)  # (m,)


def distances_of_words(words, text, order):
    """The distances of both sets' words in their pooled order, and of s. words, text (T,): the id
    of each word, and whose it is. -> (m,), (m,)"""
    V, n = int(words.max()) + 1, order.shape[-1]
    table = torch.sparse_coo_tensor(torch.stack([words, text]), torch.ones(len(words)).double(),
                                    (V, n), check_invariants=True)  # (V, 2n) counts in each text
    pooled = torch.bincount(words, minlength=V).double()  # (V,)
    ranked, of_words, of_s = pooled.argsort(descending=True), [], []  # (V,)
    for rows in in_first(order).double().split(max(1, AT_ONCE // V)):
        first = (table @ rows.T).T  # (m', V) counts in the first set
        other = pooled - first  # (m', V)
        share = lambda counts: counts[:, ranked].cumsum(-1) / counts.sum(-1, keepdim=True)
        of_words.append((share(first) - share(other)).abs().amax(-1))  # (m',)
        of_s.append((zipf_exponent(first) - zipf_exponent(other)).abs())  # (m',)
    return torch.cat(of_words), torch.cat(of_s)  # (m,) each


def distances_of_heaps(numbered, order):
    """|b - b'| of (12.6). numbered: 2n texts as tensors of ids -> (m,)"""
    half = len(numbered) // 2
    b = lambda rows: heaps_fit(torch.cat([numbered[i] for i in rows]))[1]
    return torch.tensor([abs(b(row[:half]) - b(row[half:])) for row in order.tolist()],
                        dtype=torch.float64)  # (m,)


def p_value(distances):
    """(12.7) of distances (m + 1,), of which the first is that of the sets as they are; 1 where
    that is nan, for too few words."""
    near = distances[0] - 1e-9  # sums of floats in another order differ in their last digits
    return (~(distances < near)).double().mean().item()


# ---- against the law of words

def distance_to_law(counts, law):
    """Kolmogorov and Smirnov's distance of counts (m, V) from probabilities (V,), in the order of
    the latter. -> (m,)"""
    order = law.argsort(descending=True)  # (V,)
    share = counts[:, order].double().cumsum(-1) / counts.sum(-1, keepdim=True)  # (m, V)
    return (share - law[order].cumsum(-1)).abs().amax(-1)  # (m,)


def row_of_law(ours, theirs, language, label, m, generator):
    """The row of the known law; ours, theirs (n, L). Fresh texts say how far is far."""
    (n, L), V = ours.shape, language.V
    law = language.posterior(torch.ones(1, L, V), topic=label).mean((0, 1))  # (V,)
    count = lambda x: torch.zeros(len(x), V).double().scatter_add_(
        1, x, torch.ones(1, 1).double().expand(x.shape))  # (m', V) of sets (m', n L)
    distances, size = [distance_to_law(count(ours.reshape(1, -1)), law)], max(1, 10_000 // n)
    for lo in range(0, m, size):
        sets = min(size, m - lo)
        fresh = language.sample(n * sets, L, generator, label)  # (n m', L)
        distances.append(distance_to_law(count(fresh.view(sets, -1)), law))  # (m',)
    held, = distance_to_law(count(theirs.reshape(1, -1)), law).tolist()
    d = torch.cat(distances)  # (m + 1,)
    return ["words against their known law", d[0].item(), None, held, None, d[0].item(), p_value(d)]


# ---- samples beside held-out text

def compare_statistics(samples, x, data, label, config):
    """Samples (m, L) and as many held-out texts of x (n, L). -> {} without --permutations, or
    {"statistics": rows [what, value, its error, that of held-out text, its error, distance, p]}"""
    if not config.permutations:
        return {}
    n = min(len(samples), len(x))
    ours, theirs = samples[:n].cpu(), x[questions_asked(x, n)].cpu()  # (n, L)
    generator = torch.Generator().manual_seed(config.seed)
    texts, _ = words_in_texts(torch.cat([ours, theirs]), data)  # 2n lists of words
    train = torch.as_tensor(data.ids("train")[:50_000].astype("int64"))  # (T,)
    (read,), _ = words_in_texts(train[None], data)
    common = {word for word, _ in Counter(read).most_common(COMMON)}
    order, number = deal(n, config.permutations, generator), {}  # (m + 1, 2n)
    numbered = [torch.tensor([number.setdefault(word, len(number)) for word in words],
                             dtype=torch.long) for words in texts]  # (words,) each
    sizes = torch.tensor([*map(len, texts)])  # (2n,)
    words, text = torch.cat(numbered), torch.arange(2 * n).repeat_interleave(sizes)  # (T,) each
    of_words, of_s = distances_of_words(words, text, order)  # (m + 1,) each
    rows = [["words, by rank", None, None, None, None, of_words[0].item(), p_value(of_words)]]
    if data.language is not None:
        rows.append(row_of_law(ours, theirs, data.language, label, config.permutations, generator))
    for what, figure, d in (("Zipf's exponent s", zipf_of, of_s),
                            ("Heaps' exponent b", heaps_of, distances_of_heaps(numbered, order))):
        both = *jackknife(figure, texts[:n]), *jackknife(figure, texts[n:])
        rows.append([what, *both, d[0].item(), p_value(d)])
    for what, values in values_of_texts(texts, common).items():
        if values.min() < values.max():
            both = *mean_error(values[:n], True), *mean_error(values[n:], True)
            d = distances_of_values(values, order)  # (m + 1,)
            rows.append([what, *both, d[0].item(), p_value(d)])
    return {"statistics": rows, "permutations": config.permutations, "statistics_texts": n}
