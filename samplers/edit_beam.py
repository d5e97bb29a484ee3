"""
Chapter 17. The likeliest edits: a search over the outcomes of a step, and over steps.

A path is a text for each time, from the start at t = 1 to the answer. Its chance is that of all
coins of (17.17), one for what happens to each token and one for each gap:

    log p(path) = sum over steps and places  log (1 - q)                if nothing happens  (17.20)
                                             log q + log lam(a) - log R    if a does,
                  q = min(1, R (1 - s/t))

DiffusER's beam is two-dimensional. `edits` is its width within a step: of each text the likeliest
outcomes of the step. `beam` is its width between steps: of all texts that these outcomes make, the
likeliest stay. Places are independent, so the outcomes of a step are found in order, exactly: of k
outcomes the best has the likeliest choice everywhere, and the others deviate from it by choices
among the k - 1 that cost least. Equal texts are one, which has the likelier path. So a search that
is wide enough finds the likeliest path of all. It is no draw: where an answer has many paths, or
many answers are right, the likeliest path need not lead to the likeliest answer.
"""
from dataclasses import dataclass

import torch

from diffusion import Sampler, probabilities
from flags import flag


@dataclass(eq=False)
class EditBeam(Sampler):
    """--sampler edit-beam: the likeliest path of edits, as far as a beam finds it."""
    beam: int = flag(4, "texts of each source that stay after a step", least=1, most=1_000_000)
    edits: int = flag(4, "likeliest outcomes of a step for each of them", least=1, most=1_000_000)
    draws_from_model, rewrites = False, True

    def fits(self, method):
        if method.edits != "text":
            return f"edits the tokens of a source, which {method.name} does not do"

    def __call__(self, method, denoiser, sources, texts, times, to_probs=probabilities):
        for queues in self.search(method, denoiser, sources, texts, times, to_probs):
            yield [[*max(queue, key=queue.get)] for queue in queues]

    @torch.no_grad()
    def search(self, method, denoiser, sources, texts, times, to_probs=probabilities):
        """The texts that stay, after each step. -> for each source {text: log p of its path}"""
        queues = [{tuple(text): 0.0} for text in texts]
        for t, s in zip(times[:-1], times[1:]):
            of = [b for b, queue in enumerate(queues) for _ in queue]
            before = [[*text] for queue in queues for text in queue]
            scores = [score for queue in queues for score in queue.values()]
            log_rate, at = method.rates(denoiser, [sources[b] for b in of], before,
                                        t.expand(len(of), 1))
            tables = [log_chances(*group) for group in method.groups(log_rate, 1 - s / t, to_probs)]
            rows, found = at.sum(-1).tolist(), [{} for _ in queues]
            parts = zip(of, before, scores, *(table.split(rows) for table in tables))
            for b, z, score, *own in parts:
                for gain, (changes, inserts) in best_outcomes(own, self.edits):
                    text = tuple(method.edited(z, changes, inserts))
                    found[b][text] = max(score + gain, found[b].get(text, -torch.inf))
            queues = [dict(sorted(queue.items(), key=lambda item: -item[1])[:self.beam])
                      for queue in found]
            yield queues


def log_chances(q, p):
    """(17.20) of all that may happen at a place: nothing, or action a. q (N,) P(something happens),
    p (N, A) what -> (N, 1 + A), nothing first"""
    return torch.cat([torch.log1p(-q)[:, None], q.log()[:, None] + p.double().log()], 1)


def best_outcomes(tables, k):
    """The k likeliest outcomes of a step of one text, best first. tables: for each kind of edits
    (m, 1 + A), log p of what may happen at each place -> [(log p, [choices of each kind])], where
    a choice is an action, or None for nothing"""
    best = [table.max(-1) for table in tables]  # (m,) values and indices each
    costs = [(own.values[:, None] - table).scatter(1, own.indices[:, None], torch.inf).flatten()
             for own, table in zip(best, tables)]
    where = [(kind, *divmod(i, tables[kind].shape[1]))
             for kind, cost in enumerate(costs) for i in range(len(cost))]
    cost, chosen = torch.cat(costs).topk(min(k - 1, len(where)), largest=False)  # (k - 1,) each
    outcomes = [(0.0, {})]  # cost, {(kind, place): choice}
    for more, i in zip(cost.tolist(), chosen.tolist()):
        kind, place, choice = where[i]
        wider = [(so_far + more, {**own, (kind, place): choice}) for so_far, own in outcomes
                 if (kind, place) not in own and more < torch.inf]
        outcomes = sorted(outcomes + wider, key=lambda outcome: outcome[0])[:k]
    top, usual = sum(own.values.sum().item() for own in best), [own.indices.tolist()
                                                               for own in best]
    action = lambda choice: choice - 1 if choice else None
    return [(top - so_far, [[action(own.get((kind, place), choice))
                             for place, choice in enumerate(choices)]
                            for kind, choices in enumerate(usual)]) for so_far, own in outcomes]
