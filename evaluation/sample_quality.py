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
samples and held-out text are compared on sets of one size. Their standard errors: distinct-n and
self-BLEU by the jackknife over groups of neighbors, MAUVE by the bootstrap. All of them count texts
and not words, since the words of a text resemble each other.

Where no spaces stand between words (Chinese, proteins), n-grams are those of characters, and no
words are looked up.
"""
import math
import re
from collections import Counter
from functools import partial

import torch

from evaluation.errors import mean_error, pooled_rate
from evaluation.likelihood import perplexity_of
from flags import UserError
from samplers.generate import generate

WHOLE_WORD = re.compile(r"(?<=[\W\d_])[^\W\d_]{3,}(?=[\W\d_])")  # letters of any script
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
                      "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")  # kana, Han
LONG = 20  # characters between spaces, on average: English has 6, German 7, proteins hundreds


def questions_asked(x, n):
    """The numbers of n of the texts x, evenly spread. -> (n,)"""
    return torch.linspace(0, len(x) - 1, n).round().long().to(x.device)  # (n,)


def check_samples(config, data):
    """UserError where there are no samples to rate, or no answers to compare."""
    if config.num_samples == 1:
        raise UserError("--num_samples 1 has no standard error: give 0, or at least 2")
    if config.judge and config.num_samples == 0:
        raise UserError("--judge rates samples: leave it out, or --num_samples 0")
    if (config.judge or config.permutations) and data.answers:
        raise UserError("--judge rates samples, as --permutations does, not answers: leave it out")
    if config.answers == 1:
        return
    if not data.prompted or not config.num_samples:
        raise UserError(f"--answers compares answers to questions, and here are none: leave it "
                        f"out, or give {'--num_samples' if data.prompted else '--data'} for some")
    if config.temperature == 0:
        raise UserError("--answers compares answers that differ, and at temperature 0 they are "
                        "the same: give --temperature 0.5 or so")


def draw_samples(writer, length, config, device, held=None):
    """--num_samples texts of `length` tokens, --batch_size at a time, from nothing, or --answers
    to each of as many held-out questions, evenly spread. -> (n, length)"""
    torch.manual_seed(config.seed)
    n, given, frozen = config.num_samples, None, None
    if held:
        rows = questions_asked(held.x, n).repeat_interleave(config.answers)  # (n k,)
        given, frozen, n = held.x[rows], held.frozen[rows], len(rows)  # (n k, length) each
    texts = []
    for lo in range(0, n, config.batch_size):
        part = slice(lo, min(lo + config.batch_size, n))
        texts.append(generate(writer.method, writer.denoiser, part.stop - lo, length, writer.steps,
                              writer.sampler, writer.to_probs, device,
                              given if given is None else given[part],
                              frozen if frozen is None else frozen[part]))
    return torch.cat(texts)  # (n, length)


# ---- means over texts

def unigram_entropy(x):
    """Entropy of the tokens within each text, in nats. x (n, L) -> (n,)"""
    _, inverse = x.unique(return_inverse=True)  # (n, L)
    counts = torch.zeros(len(x), int(inverse.max()) + 1, dtype=torch.float64)  # (n, symbols)
    ones = torch.ones(x.shape, dtype=torch.float64)  # (n, L)
    counts.scatter_add_(1, inverse.cpu(), ones)  # (n, symbols)
    return torch.special.entr(counts / x.shape[1]).sum(-1)  # (n,)


def has_words(data):
    """Whether spaces stand between the words of the held-out text, so that words can be counted."""
    text = data.text(data.ids("val")[:50_000])
    parts = text.split()
    size = sum(map(len, parts))
    return size < LONG * len(parts) and 2 * len(UNSPACED.findall(text)) < size


def known_words(data):
    """The words of three letters or more in the corpus; none for data whose texts have no words."""
    if not data.is_text or data.language is not None or not has_words(data):
        return set()
    return {word for split in ("train", "val")
            for word in WHOLE_WORD.findall(data.text(data.ids(split)))}


def count_known_words(texts, known):
    """How many words of each text are in the set `known`, and how many there are.

    A word at the edge of a text may be cut, so it does not count. -> (n,), (n,)
    """
    words = [WHOLE_WORD.findall(text) for text in texts]
    found = [sum(word in known for word in row) for row in words]
    return torch.tensor(found), torch.tensor([len(row) for row in words])  # (n,) each


def judge_rows(judge, x, data, batch_size, independent=True):
    """Rows of generative perplexity: over all tokens (MDLM), and the mean over texts (SEDD)."""
    nats, scored = judge.nats(x, [data.text(row) for row in x.tolist()], batch_size)  # (n,) each
    rate, error = pooled_rate(nats, scored, independent)
    each = (nats / scored)[scored > 0].exp()  # (n',)
    return [(f"-log p by {judge.where}, nats/token", rate, error),
            (f"generative perplexity by {judge.where}", *perplexity_of(rate, error)),
            ("the same, mean over texts", *mean_error(each, independent))]


def exact_rows(x, data, label=None):
    """Rows of exact probabilities; with a label (1,) also those of its class."""
    x, language, n = x.cpu(), data.language, x.shape[1]  # (n, L)
    nats, lengths = -language.log_prob(x), data.lengths(x)  # (n,) each
    rows = [("exact -log p, nats/token", *mean_error(nats / n, True))]
    if lengths is not None:
        some = nats.isfinite()  # (n,)
        rows = [("texts of a possible length", *mean_error(some.double(), True)),
                ("exact -log p of these, nats/word", *pooled_rate(nats[some], lengths[some], True)),
                ("exact -log p of these, nats/text", *mean_error(nats[some], True))]
    if label is not None:
        of_class = -language.log_prob(x, label) / n  # (n,)
        posterior = language.topic_posterior(x)[:, label.cpu()][:, 0]  # (n,)
        rows += [("exact -log p given the class, nats/token", *mean_error(of_class, True)),
                 ("exact p(class | text)", *mean_error(posterior, True))]
    return rows


def rate_samples(x, data, judge, batch_size, label=None, independent=True):
    """Rows (what, mean, standard error) of texts x (n, L), which are samples or held-out text.

    label (1,): the class that was asked for. independent: False for windows of a stream, in order
    """
    entropy = mean_error(unigram_entropy(x), independent)
    rows = [("entropy of the tokens within a text, nats", *entropy)]
    if data.language is not None:
        rows += exact_rows(x, data, label)
    elif judge:
        rows += judge_rows(judge, x, data, batch_size, independent)
    rows += [(what, *mean_error(values, independent)) for what, values in data.score(x, label)]
    if known := known_words(data):
        found, words = count_known_words(map(data.text, x.tolist()), known)  # (n,) each
        what = f"words that stand in the corpus, of {int(words.sum()):,}"
        rows.append((what, *pooled_rate(found, words, independent)))
    return rows


# ---- figures of a set of texts

def count_ngrams(words, n):
    return Counter(zip(*(words[i:] for i in range(n))))


def jackknife(figure, texts, groups=20):
    """figure(texts), and its standard error from what it is without each group of neighbors:
    se^2 = (m - 1)/m sum_j (figure without group j - their mean)^2, of m groups."""
    m = min(groups, len(texts))
    edges = [len(texts) * j // m for j in range(m + 1)]
    without = [figure(texts[:a] + texts[b:]) for a, b in zip(edges, edges[1:])]
    mean = sum(without) / m
    error = math.sqrt((m - 1) / m * sum((value - mean) ** 2 for value in without))
    return figure(texts), error


def distinct_ngrams(texts, n):
    """Distinct n-grams over all n-grams of texts (lists of words)."""
    counts = [count_ngrams(words, n) for words in texts]
    distinct = {gram for grams in counts for gram in grams}
    return len(distinct) / max(1, sum(grams.total() for grams in counts))


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
        r = min(references, key=lambda m: (abs(m - c), m), default=c)
        logs[i] += min(0.0, 1 - r / c) if c else -math.inf
    return logs.exp()  # (n,)


def words_in_texts(x, data):
    """The words of texts x (n, L), or their characters where no spaces stand between words; of
    images their tokens. -> lists of strings, and what they are as the end of a name"""
    if not data.is_text:
        return [[*map(str, row)] for row in x.tolist()], " of tokens"
    texts = [data.text(row).split() for row in x.tolist()]
    if has_words(data):
        return texts, ""
    return [[*"".join(words)] for words in texts], " of characters"


def rate_diversity(x, data):
    """Rows (what, value, standard error) of the set x (n, L); none for images or a single text."""
    if not data.is_text or len(x) < 2:
        return []
    texts, of = words_in_texts(x, data)
    rows = [(f"distinct-{n}{of}, of {len(x)} texts",
             *jackknife(partial(distinct_ngrams, n=n), texts)) for n in (1, 2, 3)]
    groups = 20 if len(texts) <= 1000 else 5  # of many texts self-BLEU takes long
    bleu = jackknife(lambda texts: self_bleu(texts).mean().item(), texts, groups)
    return rows + [(f"self-BLEU{of} of {len(x)} texts", *bleu)]


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
    rows = [rate_samples(a, data, judge, config.batch_size, label, independent)
            + rate_diversity(part, data) + data.score_set(a.cpu())
            for a, part, independent in zip((samples, x), sets, (True, data.independent_texts))]
    figures = {"samples": rows[0], "held_out": rows[1], "num_samples": len(samples)}
    if data.is_text and not has_words(data):
        figures["no_words"] = "no words are counted: this text has no spaces between words"
    if config.mauve:
        texts = ([data.text(row) for row in a.tolist()] for a in sets)
        value, error = mauve_of(judge, *texts, config.batch_size, config.seed)
        figures |= {"mauve": value, "mauve_error": error, "mauve_texts": few}
    return figures
