"""
Chapter 19. Answers of a sequence-to-sequence model: beside the reference, and the best of several.

    BLEU-4    exp( min(0, 1 - r/c) ) prod_n ( shared_n / total_n )^(1/4),  n = 1 .. 4         (19.2)
              total_n n-grams of the answer (c words), shared_n of which the reference (r words)
              has too, each at most as often as there; over a set of texts, sums of all four
    MBR       y = argmax_i 1/(k - 1) sum_{j != i} u(answer = y_i, reference = y_j)            (19.3)

(19.3) is the answer of least risk (minimum Bayes risk): of k answers the one that the others agree
with most. BLEU is not symmetric: here the candidate is the answer, and the others take the place of
the reference. The first of equal ones wins. Public code has either side, and counts of 0 are
smoothed in several ways, which give other numbers:

    smoothing        shared_n = 0 becomes               of all orders
    exponential      1/2^i for the i-th order with 0    sacreBLEU; ours: orders with total_n > 0
    chen 4           ln(c) / (5 2^i)                    NLTK's method 4, DiffuSeq
    add one          shared_n + 1 of total_n + 1        AR-Diffusion

The figure of a set is not smoothed. Texts are the units of all standard errors.
"""
import math
from collections import Counter
from functools import partial

import torch

from evaluation.errors import mean_error
from evaluation.sample_quality import (
    count_ngrams,
    distinct_ngrams,
    jackknife,
    questions_asked,
    sample_figures,
    self_bleu,
)
from evaluation.statistics import compare_statistics
from evaluation.votes import vote_figures


def shared_ngrams(answer, reference, longest=4):
    """shared_n and total_n of (19.2), then c and r, of two lists of words. -> (2 longest + 2,)"""
    found = []
    for n in range(1, longest + 1):
        ours = count_ngrams(answer, n)
        found += [(ours & count_ngrams(reference, n)).total(), ours.total()]
    return [*found, len(answer), len(reference)]


def bleu_of_counts(counts, smoothing=None):
    """(19.2) of what shared_ngrams returns, or of the sum of many. smoothing: see above"""
    *pairs, c, r = counts
    zeros, logs = 0, []
    for shared, total in zip(pairs[::2], pairs[1::2]):
        if smoothing == "add one":
            shared, total = shared + 1, total + 1
        elif shared == 0 and smoothing and (total or smoothing == "chen 4"):
            zeros += 1
            shared = 0.5**zeros * (math.log(c) / 5 if smoothing == "chen 4" else 1)
        elif total == 0:
            continue  # too short for n-grams of this order
        logs.append(math.log(shared / max(1, total)) if shared > 0 else -math.inf)
    if not c or not logs:
        return 0.0
    return math.exp(min(0.0, 1 - r / c) + sum(logs) / len(logs))


def bleu(answer, reference, smoothing="exponential"):
    """BLEU-4 of one answer, smoothed."""
    return bleu_of_counts(shared_ngrams(answer, reference), smoothing)


def bleu_of_set(pairs):
    """BLEU-4 of a list of pairs (answer, reference)."""
    return bleu_of_counts([sum(column) for column in zip(*(shared_ngrams(*p) for p in pairs))])


def equality(answer, reference):
    """The utility whose MBR answer is the most frequent one."""
    return float(answer == reference)


def choose(candidates, utility=bleu):
    """(19.3): the number of the candidate, of a list of tuples of words, that the others agree with
    most, the first of several. utility(answer, reference)"""
    # exercise 30: the answer that the others agree with, (19.3), 4 lines
    counts = Counter(candidates)
    score = {y: sum(n * utility(y, other) for other, n in counts.items()) - utility(y, y)
             for y in counts}
    return candidates.index(max(counts, key=score.__getitem__))
    # end


def answer_rows(x, reference, data):
    """Rows (what, value, standard error) of k answers to each of n questions.

    x (n, k, L) texts with the questions of the references (n, L)
    """
    n, k, L = x.shape
    words = [[tuple(data.answer_words(row)) for row in each] for each in x.tolist()]
    wanted = [tuple(data.answer_words(row)) for row in reference.tolist()]
    same = (x == reference[:, None])[..., data.source:].double()  # (n, k, T)
    exact, of_each = same.amin(-1), torch.arange(n)  # (n, k), (n,)
    solved = data.solved(x.flatten(0, 1)).view(n, k).double()  # (n, k)
    mean = partial(mean_error, independent=True)

    def rows_of(name, chosen):
        """Of one answer to each question, (n,) numbers from 0 to k - 1."""
        pairs = [(row[i], y) for row, i, y in zip(words, chosen.tolist(), wanted)]
        return [(f"{name}solved", *mean(solved[of_each, chosen])),
                (f"{name}exact match with the reference", *mean(exact[of_each, chosen])),
                (f"{name}BLEU-4 with the reference", *jackknife(bleu_of_set, pairs))]
    first = [row[0] for row in words]
    rows = rows_of("", torch.zeros(n, dtype=torch.long))[1:]
    rows.append(("tokens as in the reference", *mean(same[:, 0].mean(-1))))
    rows += [(f"distinct-{m} of {n} answers", *jackknife(partial(distinct_ngrams, n=m), first))
             for m in (1, 2)]
    if k == 1:
        return rows
    rows += [(f"self-BLEU of {k} answers to a question", *mean(
        torch.stack([self_bleu(row).mean() for row in words]))),
             (f"mean of {k}: solved", *mean(solved.mean(-1))),
             (f"any of {k}: solved", *mean(solved.amax(-1))),
             (f"any of {k}: exact match with the reference", *mean(exact.amax(-1)))]
    for utility in (bleu, equality):
        chosen = torch.tensor([choose(row, utility) for row in words])  # (n,)
        rows += rows_of(f"MBR-{k} by {utility.__name__}: ", chosen)
    return rows


def answer_figures(samples, x, data, judge, label, config):
    """sample_figures, compare_statistics, and what --answers to each question add: votes, or of
    tasks answer_rows. What stands beside these is the exact distribution: as many answers from it.

    samples (n k, L), x (m, L) held-out texts -> dict of plain numbers
    """
    k = config.answers
    figures = sample_figures(samples[::k], x, data, judge, label, config)
    figures |= compare_statistics(samples[::k], x, data, label, config)
    texts = samples.unflatten(0, (-1, k))  # (n, k, L)
    if not data.source:
        return figures if k == 1 else {**figures, "votes": vote_figures(texts, data)}
    reference = x[questions_asked(x, len(texts))]  # (n, L)
    drawn = torch.stack([data.redraw(reference, seed) for seed in range(k)], 1)  # (n, k, L)
    for column, answers in (("samples", texts), ("held_out", drawn)):
        figures[column] += answer_rows(answers, reference, data)
    return figures
