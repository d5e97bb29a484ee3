"""Tiles of attention patterns: every allowed pair is visited, and full tiles need no mask."""
import pytest
import torch

from kernels_triton.block_mask import CAUSAL, FULL, LISTED, plan_tiles
from methods.bd3lm import block_diffusion_mask
from model import block_causal, causal

CPU = torch.device("cpu")
NOISE = torch.rand(2, 3, 90, 90, generator=torch.Generator().manual_seed(0))
GROUP = torch.rand(2, 90, generator=torch.Generator().manual_seed(1)) < 0.5
PATTERNS = {
    "none": None,
    "causal": causal,
    "blocks": block_causal(8, 16),
    "block diffusion": block_diffusion_mask(45, 9),
    "groups": lambda b, h, query, key: GROUP[b, query] == GROUP[b, key],
    "heads": lambda b, h, query, key: (query - key).abs() <= 20 * h,
    "sparse": lambda b, h, query, key: NOISE[b, h, query, key] < 0.002,
    "nothing": lambda b, h, query, key: query + key < 0,
}


def dense_pattern(name, Lq, Lk, first):
    mask_mod = PATTERNS[name] or (lambda b, h, query, key: query + key >= 0)
    b, h = torch.arange(2)[:, None, None, None], torch.arange(3)[:, None, None]
    mask = mask_mod(b, h, first + torch.arange(Lq)[:, None], torch.arange(Lk))
    return torch.as_tensor(mask).expand(2, 3, Lq, Lk)  # (B, H, Lq, Lk)


def follow(plan, owners, rows, cols, mask):
    """Visit tiles as a kernel does, which reads the mask except in full tiles.

    -> allowed, visited, (B, H, R, C) each
    """
    allowed, visited = torch.zeros_like(mask), torch.zeros_like(mask)  # (B, H, R, C) each
    for b in range(2):
        for h in range(3):
            pattern = b * plan.step_b + h * plan.step_h
            for i, (lo, hi, lo_full, hi_full) in enumerate(owners[0][pattern].tolist()):
                for j in range(lo, hi):
                    tile = int(owners[1][pattern, i, j]) if plan.pattern == LISTED else j
                    row, col = i * rows, tile * cols
                    at = (b, h, slice(row, row + rows), slice(col, col + cols))
                    full = lo_full <= j < hi_full
                    assert not visited[at].any()  # no tile is visited twice
                    assert not full or col + cols <= mask.shape[3]  # columns beyond need the mask
                    allowed[at], visited[at] = True if full else mask[at], True
    return allowed, visited


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("Lq, Lk, first", [(90, 90, 0), (64, 64, 0), (30, 90, 60), (1, 70, 69),
                                           (90, 32, 0)])
def test_a_plan_visits_all_allowed_pairs_and_masks_only_where_it_must(name, Lq, Lk, first):
    plan = plan_tiles(PATTERNS[name], 2, 3, Lq, Lk, first, CPU, (16, 32), (8, 32))
    dense = dense_pattern(name, Lq, Lk, first)  # (B, H, Lq, Lk)
    for owners, rows, cols, mask in ((plan.of_queries, 16, 32, dense),
                                     (plan.of_keys, 32, 8, dense.mT)):
        allowed, visited = follow(plan, owners, rows, cols, mask)
        assert torch.equal(allowed, mask)
        pool = lambda a: torch.nn.functional.max_pool2d(a.float(), (rows, cols), ceil_mode=True) > 0
        assert torch.equal(pool(mask), pool(visited))  # (B, H, n, m): no empty tile is visited


def test_a_pattern_is_recognized_by_its_values_and_full_and_causal_keep_no_mask():
    tiles = CPU, (32, 32), (32, 32)
    plans = {name: plan_tiles(mask_mod, 2, 3, 90, 90, 0, *tiles)
             for name, mask_mod in PATTERNS.items()}
    assert {name for name, plan in plans.items() if plan.pattern == FULL} == {"none"}
    assert {name for name, plan in plans.items() if plan.pattern == CAUSAL} == {"causal"}
    assert plans["none"].mask.numel() == plans["causal"].mask.numel() == 1
    assert plan_tiles(block_causal(1, 90), 2, 3, 90, 90, 0, *tiles).pattern == CAUSAL
    assert plan_tiles(causal, 2, 3, 30, 90, 60, *tiles).pattern == CAUSAL
    assert plan_tiles(causal, 2, 3, 1, 90, 89, *tiles).pattern == FULL  # the newest token sees all
    # one mask for each text or head that has a pattern of its own
    assert len(plans["block diffusion"].mask) == 1 and len(plans["groups"].mask) == 2
    assert len(plans["heads"].mask) == 3 and len(plans["sparse"].mask) == 6


def test_half_of_causal_and_three_quarters_of_block_diffusion_are_never_visited():
    count = lambda plan: int((plan.of_queries[0][..., 1] - plan.of_queries[0][..., 0]).sum())
    tiles = CPU, (64, 64), (64, 64)
    assert count(plan_tiles(None, 1, 1, 1024, 1024, 0, *tiles)) == 16 * 16
    assert count(plan_tiles(causal, 1, 1, 1024, 1024, 0, *tiles)) == 16 * 17 // 2
    plan = plan_tiles(block_diffusion_mask(512, 16), 1, 1, 1024, 1024, 0, *tiles)
    assert count(plan) == 8 + 8 * 9 // 2 + 8 * 9 // 2  # own tile; earlier clean text, twice
    full = plan.of_queries[0][..., 3] - plan.of_queries[0][..., 2]
    assert int(full.sum()) == 2 * 8 * 7 // 2  # only the other 24, at the edges, need the mask


def test_the_same_pattern_is_the_same_object_and_is_evaluated_once():
    calls = []

    def spy(batch, head, query, key):
        calls.append(query)
        return query >= key
    for _ in range(3):
        plan_tiles(spy, 1, 1, 64, 64, 0, CPU, (32, 32), (32, 32))
    assert len(calls) == 1
    assert block_diffusion_mask(64, 4) is block_diffusion_mask(64, 4)
    assert block_causal(4, 8) is block_causal(4, 8)
