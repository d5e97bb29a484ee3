"""
Chapter 20. Votes: of several answers to a question, the most frequent one counts.

Self-consistency (arXiv:2203.11171; with diffusion, 2402.07754). a_j is the answer of the j-th of k
independent texts, whatever thoughts lead to it:

    vote    argmax_a sum_j [a_j = a],   and among equals the one that came first              (20.6)

If a text has the answer a with probability p(a), the vote tends to the mode of p as k grows. So it
helps where the right answer is the likeliest one, and does harm where a wrong one is. At
temperature 0 all k are the same.
"""
import torch

from evaluation.errors import mean_error


def vote(texts, extract):
    """(20.6). texts (k, n, L), k texts for each of n questions; extract(x (m, L)) -> their answers
    (m, a). -> (n, L), a text with the answer that most of the k have"""
    k, n, _ = texts.shape
    answers = extract(texts.flatten(0, 1)).unflatten(0, (k, n))  # (k, n, a)
    agree = (answers[:, None] == answers[None]).all(-1).sum(1)  # (k, n) texts with this answer
    earlier = torch.arange(k, 0, -1, device=texts.device)[:, None]  # (k, 1)
    return texts[((k + 1) * agree + earlier).argmax(0), torch.arange(n)]  # (n, L)


def vote_figures(texts, data):
    """How many answers are right: of all k on average, and of the votes among them. texts
    (n, k, L), k texts for each of n questions -> what is counted, rows (k, mean, standard error)"""
    n, k, _ = texts.shape
    (what, each), *_ = data.score(texts.flatten(0, 1))  # (n k,)
    (_, voted), *_ = data.score(vote(texts.transpose(0, 1), data.answer_of))  # (n,)
    return {"what": what, "rows": [(1, *mean_error(each.view(n, k).mean(-1), True)),
                                   (k, *mean_error(voted, True))]}
