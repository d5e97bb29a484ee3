"""
Both sweeps of (1.3) at once, for few texts: there each call of torch costs more than its numbers.

data/toy.py takes one word after the other, forward and then backward, in memory that is used again;
here one product moves both sweeps by a word, and what follows from them is computed for all words
in one call. That takes half the time for up to eight texts or so, and for many it takes more.
"""
import torch

FEW = 10  # texts


def combine_at_once(toy, likelihood, log_prior):
    """Toy.combine_sweeps: likelihood (n, L, V), log_prior (n, K) -> (n, L, V)"""
    n, L, _ = likelihood.shape
    K, Q = toy.n_topics, len(toy.places)
    e = torch.tensordot(likelihood.transpose(0, 1), toy.by_word, 1)  # (L, n, K, Q) evidence
    both = torch.stack([e, e.flip(0)], 1).flatten(2, 3)  # (L, 2, n K, Q) from either end
    moves = torch.stack([toy.transition, toy.transition.T])  # (2, Q, Q)
    state = torch.stack([toy.initial, torch.ones_like(toy.initial)])[:, None]  # (2, 1, Q)
    states, norms = [], []
    for e_l in both:
        states.append(state.expand(-1, n * K, -1))
        state = state * e_l  # (2, n K, Q)
        norms.append(state.sum(-1, keepdim=True))  # (2, n K, 1)
        state = state.div_(norms[-1]) @ moves  # (2, n K, Q)
    forward, backward = torch.stack(states).unbind(1)  # (L, n K, Q) each
    q = (forward * backward.flip(0)).view(L, n, K, Q)
    q /= q.sum(-1, keepdim=True)  # (L, n, K, Q)
    log_all = torch.stack(norms)[:, 0].log().sum(0).view(n, K)  # (n, K) log p(evidence | k)
    own = torch.linalg.vecdot(q, e)  # (L, n, K) the word's own evidence
    w = (log_prior + log_all - own.log()).softmax(-1)  # (L, n, K)
    return toy.mix_words(w.flatten(0, 1), q.flatten(0, 1)).view(L, n, -1).transpose(0, 1)
