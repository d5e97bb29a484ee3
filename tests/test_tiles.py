"""Tiles of attention patterns: each pair that a predicate allows is visited, and no mask is needed where none is."""
import pytest
import torch

from block import doubled
from model import block_causal, causal
from tiles import CAUSAL, FULL, LISTED, plan

CPU = torch.device("cpu")
NOISE = torch.rand(2, 3, 90, 90, generator=torch.Generator().manual_seed(0))
GROUP = torch.rand(2, 90, generator=torch.Generator().manual_seed(1)) < 0.5
PATTERNS = {
    "none": None,
    "causal": causal,
    "blocks": block_causal(8, 16),
    "doubled": doubled(45, 9),
    "groups": lambda b, h, query, key: GROUP[b, query] == GROUP[b, key],
    "heads": lambda b, h, query, key: (query - key).abs() <= 20 * h,
    "sparse": lambda b, h, query, key: NOISE[b, h, query, key] < 0.002,
    "nothing": lambda b, h, query, key: query + key < 0,
}


def written_out(name, Lq, Lk, first):
    index = lambda n: torch.arange(n)
    mask = PATTERNS[name] or (lambda b, h, query, key: query + key >= 0)
    mask = mask(index(2)[:, None, None, None], index(3)[:, None, None], first + index(Lq)[:, None], index(Lk))
    return torch.as_tensor(mask).expand(2, 3, Lq, Lk)                                               # (B, H, Lq, Lk)


def replayed(p, owners, rows, cols, mask):
    """What a kernel does with a plan, in slow motion: it asks the mask but in whole tiles. -> may look, is visited"""
    may, visited = torch.zeros_like(mask), torch.zeros_like(mask)                             # (B, H, R, C) each
    for b in range(2):
        for h in range(3):
            which = b * p.step_b + h * p.step_h
            for i, (lo, hi, lo_whole, hi_whole) in enumerate(owners[0][which].tolist()):
                for j in range(lo, hi):
                    tile = int(owners[1][which, i, j]) if p.pattern == LISTED else j
                    at = (b, h, slice(i * rows, (i + 1) * rows), slice(tile * cols, (tile + 1) * cols))
                    whole = lo_whole <= j < hi_whole
                    assert not visited[at].any()             # nothing twice
                    assert not whole or (tile + 1) * cols <= mask.shape[3]       # what lies beyond must be masked
                    may[at], visited[at] = True if whole else mask[at], True
    return may, visited


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("Lq, Lk, first", [(90, 90, 0), (64, 64, 0), (30, 90, 60), (1, 70, 69), (90, 32, 0)])
def test_a_plan_visits_all_that_the_predicate_allows_and_asks_only_where_it_must(name, Lq, Lk, first):
    p = plan(PATTERNS[name], 2, 3, Lq, Lk, first, CPU, (16, 32), (8, 32))
    for owners, rows, cols, mask in ((p.of_queries, 16, 32, written_out(name, Lq, Lk, first)),
                                     (p.of_keys, 32, 8, written_out(name, Lq, Lk, first).mT)):
        may, visited = replayed(p, owners, rows, cols, mask)
        assert torch.equal(may, mask)
        tiles = torch.nn.functional.max_pool2d(mask.float(), (rows, cols), ceil_mode=True) > 0      # (B, H, n, m)
        assert torch.equal(tiles, torch.nn.functional.max_pool2d(visited.float(), (rows, cols), ceil_mode=True) > 0)


def test_a_pattern_is_known_by_its_values_and_full_and_causal_keep_no_mask():
    kinds = {name: plan(mask_mod, 2, 3, 90, 90, 0, CPU, (32, 32), (32, 32)) for name, mask_mod in PATTERNS.items()}
    assert {name for name, p in kinds.items() if p.pattern == FULL} == {"none"}
    assert {name for name, p in kinds.items() if p.pattern == CAUSAL} == {"causal"}
    assert kinds["none"].mask.numel() == kinds["causal"].mask.numel() == 1
    assert plan(block_causal(1, 90), 2, 3, 90, 90, 0, CPU, (32, 32), (32, 32)).pattern == CAUSAL
    assert plan(causal, 2, 3, 30, 90, 60, CPU, (32, 32), (32, 32)).pattern == CAUSAL
    assert plan(causal, 2, 3, 1, 90, 89, CPU, (32, 32), (32, 32)).pattern == FULL        # the newest token sees all
    assert len(kinds["doubled"].mask) == 1 and len(kinds["groups"].mask) == 2            # as far as texts, and heads,
    assert len(kinds["heads"].mask) == 3 and len(kinds["sparse"].mask) == 6              # have patterns of their own


def test_half_of_causal_and_three_quarters_of_block_diffusion_are_never_visited():
    count = lambda p: int((p.of_queries[0][..., 1] - p.of_queries[0][..., 0]).sum())
    by = (CPU, (64, 64), (64, 64))
    assert count(plan(None, 1, 1, 1024, 1024, 0, *by)) == 16 * 16
    assert count(plan(causal, 1, 1, 1024, 1024, 0, *by)) == 16 * 17 // 2
    blocks = plan(doubled(512, 16), 1, 1, 1024, 1024, 0, *by)
    assert count(blocks) == 8 + 8 * 9 // 2 + 8 * 9 // 2      # own tile; earlier clean text from either half
    whole = blocks.of_queries[0][..., 3] - blocks.of_queries[0][..., 2]
    assert int(whole.sum()) == 2 * 8 * 7 // 2                # and of these only the 24 at the edges are asked


def test_the_same_pattern_is_the_same_object_and_is_looked_at_once():
    asked = []

    def spy(batch, head, query, key):
        asked.append(query)
        return query >= key
    for _ in range(3):
        plan(spy, 1, 1, 64, 64, 0, CPU, (32, 32), (32, 32))
    assert len(asked) == 1
    assert doubled(64, 4) is doubled(64, 4) and block_causal(4, 8) is block_causal(4, 8)
