"""Stars: a way is made of edges, and some ways are left out while a network learns."""
import pytest
import torch

from data.planning import Planning2, Planning5


def test_a_way_is_made_of_edges_and_ends_at_the_goal():
    data = Planning2()
    graph = ".abcdeaghij"  # a-b-c-d-e-f and a-g-h-i-j-k
    for end, way, right in (("af", "bcdef", True), ("ak", "ghijk", True), ("af", "ghijk", False),
                            ("ak", "bcdek", False), ("bf", "bcdef", False), ("af", "bcdff", False),
                            ("jd", ".abcd", False), ("ak", "bcdef", False)):
        text = torch.tensor([[data.symbols.index(c) for c in graph + end + way]])  # (1, 18)
        assert bool(data.solved(text)) == right, way
    text[0, -1] = data.encoding.n_vocab  # a mask
    assert not data.solved(text)


@pytest.mark.parametrize("split", ["train", "val"])
def test_while_learning_some_ways_of_a_star_are_left_out(split):
    """1 to 5 of them are there, equally often; held-out stars have all five."""
    x = Planning5().examples(split, 2000, torch.Generator().manual_seed(0))[0]  # (2000, 33)
    table = x[:, :26]  # (n, 26)
    ways = (table == x[:, 26:27]).sum(-1)  # (n,) that begin at the start
    assert torch.equal((table < 26).sum(-1), 5 * ways)
    assert (table.gather(1, x[:, 26:27]) == 26).all()  # nothing leads to the start
    share = ways.bincount(minlength=6) / len(x)  # (6,)
    wanted = torch.tensor([0, 1, 1, 1, 1, 1]) / 5 if split == "train" else torch.eye(6)[5]  # (6,)
    assert (share - wanted).abs().max() < 0.03
    first = (x[:, 28:29] == x.gather(1, x[:, 27:28])).double().mean()  # 5 steps away, not 1
    assert first == 0 and len(x[:, 28].unique()) == 26
