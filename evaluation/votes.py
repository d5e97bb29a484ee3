"""
Chapter 20. Votes: of several answers to a question, the most frequent one counts.

Self-consistency (arXiv:2203.11171; with diffusion, 2402.07754). a_j is the answer of the j-th of k
independent texts, whatever thoughts lead to it:

    vote    argmax_a sum_j [a_j = a],   and among equals the one that came first              (20.6)

If a text has the answer a with probability p(a), the vote tends to the mode of p as k grows. So it
helps where the right answer is the likeliest one, and does harm where a wrong one is. At
temperature 0 all k are the same.
"""
from dataclasses import replace

import torch

from evaluation.errors import mean_error
from evaluation.sample_quality import draw_samples
from flags import UserError


def vote(texts, extract):
    """(20.6). texts (k, n, L), k texts for each of n questions; extract(x (m, L)) -> their answers
    (m, a). -> (n, L), a text with the answer that most of the k have"""
    k, n, _ = texts.shape
    answers = extract(texts.flatten(0, 1)).unflatten(0, (k, n))  # (k, n, a)
    agree = (answers[:, None] == answers[None]).all(-1).sum(1)  # (k, n) texts with this answer
    earlier = torch.arange(k, 0, -1, device=texts.device)[:, None]  # (k, 1)
    return texts[((k + 1) * agree + earlier).argmax(0), torch.arange(n)]  # (n, L)


def check_samples(config, data):
    """UserError where there are no samples to rate, or no answers to count."""
    if config.num_samples == 1:
        raise UserError("--num_samples 1 has no standard error: give 0, or at least 2")
    if config.judge and config.num_samples == 0:
        raise UserError("--judge rates samples: leave it out, or --num_samples 0")
    if config.judge and data.answers:
        raise UserError("--judge rates samples, and answers to chats are compared: leave it out")
    if config.votes == 1:
        return
    if not data.prompted or not config.num_samples:
        raise UserError(f"--votes counts answers to questions, and here are none: leave it out, or "
                        f"give {'--num_samples' if data.prompted else '--data'} for some")
    if config.temperature == 0:
        raise UserError("--votes needs answers that differ, and at temperature 0 they are the "
                        "same: give --temperature 0.5 or so")


def vote_figures(samples, writer, counter, data, held, config, device):
    """How many answers are right: of the samples (n, L) and --votes - 1 more of each question on
    average, and of the votes among all. -> {} without votes

    counter: the CallCounter inside writer.denoiser
    """
    if config.votes == 1:
        return {}
    texts, calls = [samples], counter.calls
    for i in range(1, config.votes):
        again = replace(config, seed=config.seed + i)
        texts.append(draw_samples(writer, data.block_size, again, device, held))
    calls = (counter.calls - calls) // (config.votes - 1)  # of one answer to each question
    texts = torch.stack(texts)  # (k, n, L)
    (what, each), *_ = data.score(texts.flatten(0, 1))  # (k n,)
    (_, voted), *_ = data.score(vote(texts, data.answer_of))  # (n,)
    rows = [(n, *mean_error(right, True), n * calls) for n, right in
            ((1, each.view(len(texts), -1).mean(0)), (len(texts), voted))]
    return {"votes": {"what": what, "rows": rows}}
