"""
What methods share that read a text in any order (chapter 18): who sees whom, the exact denoiser.

The rank of a token is its place in the order. Tokens that nobody sees, such as masks, have a rank
beyond all others in `seen`.
"""
import torch
import torch.nn.functional as F

from model import causal, select_rows


def see_earlier(rank, seen):
    """A pattern: each token sees itself, and the tokens of a lower rank. rank, seen (B, n)

    Texts may have two rows in a batch, if they are guided.
    """
    def mask_mod(batch, head, query, key):
        text = batch % len(rank)
        return (query == key) | (seen[text, key] < rank[text, query])
    return mask_mod


def pack_rows(select):
    """The places of the True in each row of (B, L), in reading order, padded to the longest row.

    -> places (B, n), n of each row (B,), at least 1 for places
    """
    n = select.sum(-1)  # (B,)
    order = select.byte().argsort(dim=-1, descending=True, stable=True)  # (B, L)
    return order[:, :max(1, int(n.max()))], n


def predict_from_seen(language, ids, places, seen, target, topic=None):
    """p(x_l | the tokens ids (B, n) at `places` (B, n) where `seen`), l = target (B,). -> (B, V)"""
    L, rows = int(max(places.max(), target.max())) + 1, seen.nonzero()[:, 0]  # (N,)
    e = torch.ones(len(ids), L, language.V, dtype=torch.float64)  # (B, L, V) flat: not known
    e[rows, places[seen]] = F.one_hot(ids[seen], language.V).double()  # (N, V)
    return language.posterior(e, topic=topic)[torch.arange(len(ids)), target]  # (B, V)


def oracle_in_order(language, n_tokens):
    """The exact denoiser of a network that predicts from the text that a token sees.

    A token sees itself. The call is that of model.Transformer, with positions and a pattern.
    """
    def denoiser(z, t, at=None, label=None, positions=None, mask_mod=causal, **layout):
        (B, n), device = z.shape, z.device
        key = torch.arange(n, device=device)  # (n,)
        positions = (key if positions is None else positions).expand(B, 2, n)  # (B, 2, n)
        target, places = positions.cpu().unbind(1)  # (B, n) each
        wanted = torch.ones(B * n, dtype=torch.bool, device=device)  # (B n,)
        if at is not None:
            wanted = at.flatten() if at.dtype == torch.bool else (~wanted).index_fill(0, at, True)
        wanted = wanted.view(B, n)  # (B, n)
        p = torch.ones(B, n, n_tokens, dtype=torch.float64)  # (B, n, V)
        for q in wanted.any(0).nonzero()[:, 0]:
            rows = wanted[:, q].nonzero()  # (b, 1)
            seen = torch.as_tensor(mask_mod(rows, 0, q, key)).expand(len(rows), n)  # (b, n)
            seen = (seen & (z[rows[:, 0]] < n_tokens)).cpu()  # (b, n)
            q, rows = q.cpu(), rows[:, 0].cpu()  # (), (b,)
            topic = None if label is None else label.cpu().expand(B)[rows]  # (b,)
            p[rows, q] = predict_from_seen(language, z.cpu()[rows], places[rows], seen,
                                           target[rows, q], topic)
        return select_rows(p.log().to(device), at)
    return denoiser
