"""
Why PGM needs no mask kernel: sorted by group, each group is one dense piece, and rotary positions
move with the tokens.

Training does not sort. On CPUs the pieces, of another size in each row, take 2.9 times as long as
the predicate at 32 texts of 64 tokens, 0.86 times at 8 of 256, 0.52 times at 4 of 1,024 (attention
alone, forward and backward, float32; in bfloat16 8.6 and 1.3 times). docs/kernels.md has the table.
"""
import pytest
import torch
from test_pgm import close, each_net, random_case, random_net

from diffusion import stratified
from kernels_triton.block_mask import plan_tiles
from model import attention


def by_group(group):
    """Group 0 first, each group in reading order. -> places (B, L), size of group 0 (B,)"""
    return group.byte().argsort(dim=-1, stable=True), (~group).sum(-1)


@each_net
def test_sorted_by_group_the_network_has_the_same_values_and_gradients(options):
    net, (x, group) = random_net(**options), random_case()
    t, weight = torch.rand(6, 1), torch.randn(6, 9, 12)
    places, n = by_group(group)
    S, row = len(net.start), places[..., None].expand(-1, -1, 12)
    within = lambda b, h, query, key: (query < n[b]) == (key < n[b])
    across = lambda b, h, query, key: (key < S) | ((query < n[b]) != (key - S < n[b]))
    states = net.states(x.gather(1, places), places, places, within, across, t, None, None)
    ours, plain = net.head(states), net(x, t, group=group)  # (B, L, V) each
    close(ours, plain.gather(1, row))
    gradients = [torch.autograd.grad((logits * weight).sum(), list(net.parameters()),
                                     allow_unused=True)
                 for logits in (torch.zeros_like(ours).scatter(1, row, ours), plain)]
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b, 1e-4)


def test_a_group_that_is_one_piece_needs_no_mask():
    q, k, v = (torch.randn(1, 2, 9, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    within = lambda b, h, query, key: (query < 4) == (key < 4)
    pieces = [attention(*part) for part in zip(*(a.split([4, 5], 2) for a in (q, k, v)))]
    results = [(o, *torch.autograd.grad(o.square().sum(), (q, k, v)))
               for o in (torch.cat(pieces, 2), attention(q, k, v, within))]
    close(*results, 1e-12)


def test_sorting_empties_a_third_of_the_tiles_of_which_scattered_groups_empty_none():
    torch.manual_seed(0)
    group = torch.rand(16, 1024) < stratified(16)  # (B, L)
    _, n = by_group(group)
    count = lambda p: p.of_queries[0].diff(dim=-1)[..., ::2].sum((0, 1)).tolist()  # visited, whole
    by = 16, 1, 1024, 1024, 0, torch.device("cpu"), (64, 64), (64, 64)
    scattered = plan_tiles(lambda b, h, query, key: group[b, query] == group[b, key], *by)
    in_order = plan_tiles(lambda b, h, query, key: (query < n[b]) == (key < n[b]), *by)
    every, pairs = 16 * 16 * 16, (n ** 2 + (1024 - n) ** 2).sum() / 64 ** 2
    # a tile is whole where a group is all but empty
    assert count(scattered) == [every, pytest.approx(0, abs=300)]
    visited, whole = count(in_order)
    assert pairs <= visited < 0.75 * every
    assert whole >= visited - 16 * 31  # a row and a column of tiles of each text mix
