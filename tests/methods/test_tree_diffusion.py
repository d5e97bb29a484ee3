"""Tree diffusion: edits, paths, mutations on 74 trees by sums, the bound of a policy, proposals.

trees.npz: edits and paths of the public code of tree diffusion (commit of 2024), tree/*; and sums
over the 74 trees of at most three leaves 1, 2 under + and *, treeworld/*, computed apart from this
code.
"""
import random
import re
from functools import cache
from itertools import product
from math import log
from types import SimpleNamespace

import numpy
import pytest
import torch
from bounds import close, close_in_the_mean
from networks import random_net
from references import FOLDER

import world
from data import load_data
from data.trees import TreeGrammar, TreeTask
from methods import make_method
from methods.d3pm import D3PM, kl_term
from methods.tree_diffusion import (
    apply_edit,
    chance_of,
    mutate,
    find_path,
    one_round,
    undo,
)
from model import causal

FIGURES = numpy.load(FOLDER / "trees.npz")
SMALL = TreeGrammar({"1": 0, "2": 0, "+": 2, "*": 2}, limit=3)
TREES = [tuple(tree) for tree in FIGURES["treeworld/tree"]]  # 74
NUMBER = {tree: i for i, tree in enumerate(TREES)}
P = torch.from_numpy(FIGURES["treeworld/p"])  # (74,)
K = torch.from_numpy(FIGURES["treeworld/kernel"])  # (74, 74)
PUBLIC = TreeGrammar({**dict.fromkeys("123456789", 0), **dict.fromkeys("+-*", 2)}, limit=99)
DATA = load_data("arithmetic", 0)


def figure(key):
    return FIGURES[key].tolist()


def symbols(text):
    return tuple(re.findall(r"[^() ]+", text))


@cache
def edits_of(tree):
    """Every edit (17.6) of one of the 74 trees, with those that change nothing. -> [(edit, after)]
    """
    pairs = [((i, new), apply_edit(SMALL, tree, (i, new))) for i in range(len(tree))
             for new in TREES[:10]]  # of one and two leaves
    return [pair for pair in pairs if pair[1] in NUMBER]


# ---- trees and edits

def test_a_node_ends_where_as_many_subtrees_are_complete_as_it_asks_for():
    tree = symbols("+ * 1 2 + 1 1")
    assert SMALL.ends(tree) == [SMALL.end(tree, i) for i in range(7)] == [7, 4, 3, 4, 7, 6, 7]
    assert SMALL.parts(tree) == [1, 4] and SMALL.size(tree) == 4 and not SMALL.parses(tree)
    assert all(SMALL.parses(tree) for tree in TREES)
    for wrong in ("", "+", "+ 1", "1 1", "+ 1 3", "+ 1 1 1"):
        assert not SMALL.parses(symbols(wrong))


@pytest.mark.parametrize("prefix, key", [("", "mutated"), ("back_", "expression")])
def test_edits_are_those_of_the_public_code_and_undone_by_its_own(prefix, key):
    """A place in its text, with brackets, is the number of symbols before it."""
    trees = figure("tree/mutated" if prefix else "tree/expression")
    parts = zip(trees, figure(f"tree/{prefix}start"), figure(f"tree/{prefix}replacement"),
                figure(f"tree/{key}"))
    for text, start, new, wanted in parts:
        edit = sum(c not in "() " for c in text[:start]), symbols(new)
        z, after = symbols(text), apply_edit(PUBLIC, symbols(text), edit)
        assert after == symbols(wanted)
        assert apply_edit(PUBLIC, after, undo(PUBLIC, z, edit)) == z


def test_random_trees_have_the_chance_that_is_computed():
    for n in (1, 2, 3):
        trees = [tree for tree in TREES if SMALL.size(tree) == n]
        assert sum(map(SMALL.chance, trees)) == pytest.approx(1, abs=1e-12)
    rng = random.Random(0)
    drawn = torch.tensor([NUMBER[SMALL.draw_any(rng)] for _ in range(6000)])  # (n,)
    p = torch.tensor([SMALL.chance(tree) / 3 for tree in TREES], dtype=torch.float64)  # (74,)
    assert abs(world.surprise(drawn, p)) < 4.5
    three = TreeGrammar({"a": 0, "b": 0, "f": 2, "g": 3}, limit=4)  # operators of two and three
    drawn = [three.draw(4, rng) for _ in range(4000)]
    for tree in {*drawn}:
        share = three.chance(tree)
        assert abs(drawn.count(tree) / 4000 - share) < 5 * (share / 4000) ** 0.5


# ---- mutations: a chain on 74 trees

def test_the_chance_of_a_mutation_sums_to_the_kernel():
    for z in TREES[:12] + TREES[12::8]:
        found = torch.zeros(74, dtype=torch.float64)  # (74,)
        for edit, after in edits_of(z):
            found[NUMBER[after]] += chance_of(SMALL, z, edit, 2)
        close(found, K[NUMBER[z]], 1e-12)
    assert (K.diagonal() == 0).all()  # a mutation changes something


@pytest.mark.parametrize("tree", ["1", "+11", "*+211"])
def test_mutations_are_drawn_from_the_kernel(tree):
    rng, z = random.Random(1), tuple(tree)
    drawn = [NUMBER[apply_edit(SMALL, z, mutate(SMALL, z, 2, rng))] for _ in range(3000)]
    assert abs(world.surprise(torch.tensor(drawn), K[NUMBER[z]])) < 4.5


def test_the_chain_is_d3pm_with_one_token_of_74_symbols_and_its_reverse_is_exact():
    """Marginals, steps back, and the bound of four steps, which is -log p of every tree, once p of
    the noise is that of the chain."""
    chain, x = D3PM(74, matrices=K.expand(4, -1, -1)).chain, torch.arange(74)  # (74,)
    marginal = torch.stack([P @ chain.cumulative[k] for k in range(5)])  # (5, 74)
    close(marginal, torch.from_numpy(FIGURES["treeworld/REF_marginal"]), 1e-12)
    exact, bound, back = P.expand(74, -1), torch.zeros(74, dtype=torch.float64), []
    for k in range(1, 5):
        s, t = (torch.full((74,), step / 4, dtype=torch.float64) for step in (k - 1, k))  # (74,)
        law = chain.reverse(exact, x, s, t)  # (74, 74) of z_k-1, for each z_k
        close(marginal[k] @ law, marginal[k - 1], 1e-12)
        back.append(law.T)  # (74, 74)
        for z in range(74):
            term = kl_term(chain, exact, x, torch.full((74,), z), s, t)  # (74,) of each tree
            bound += torch.where(chain.cumulative[k, :, z] > 0, chain.cumulative[k, :, z] * term, 0)
    close(torch.stack([back[0], back[3]]), torch.from_numpy(FIGURES["treeworld/REF_back_step1_4"]),
          1e-12)
    last = chain.cumulative[4]  # (74, 74)
    bound += (torch.special.xlogy(last, last) - torch.special.xlogy(last, marginal[4])).sum(-1)
    close(bound, -P.log(), 1e-10)
    close(bound, torch.from_numpy(FIGURES["treeworld/REF_bound_4_steps"]), 1e-10)


# ---- paths

def test_every_pair_of_trees_has_a_path_of_small_edits_that_stays_within_the_limit():
    """No shorter than the distance in the graph of mutations; after r rounds all nodes less than r
    below the root agree."""
    rng, far = random.Random(2), FIGURES["treeworld/REF_distance"]
    lengths = []
    for (i, z), (j, x) in product(enumerate(TREES), enumerate(TREES)):
        steps = find_path(SMALL, z, x, 2, rng)
        lengths.append(len(steps))
        assert bool(steps) == (z != x) and len(steps) >= min(1, far[i, j])
        for tree, edit in steps:
            assert tree == z and SMALL.parses(z) and SMALL.size(edit[1]) <= 2
            z = apply_edit(SMALL, z, edit)
        assert z == x
    assert max(lengths) <= 4


def test_after_each_round_one_more_level_of_the_tree_is_right():
    task, rng = DATA.trees, random.Random(3)

    def top(tree, i, depth):
        below = [top(tree, k, depth - 1) for k in task.parts(tree, i)] if depth > 1 else []
        return tree[i], below
    for _ in range(200):
        z, x = task.draw_any(rng), task.draw_any(rng)
        for r in range(1, 7):
            for i, new in sorted(one_round(task, z, x, 2, rng), reverse=True):  # from the right
                z = apply_edit(task, z, (i, new))
            assert top(z, 0, r) == top(x, 0, r)
        assert z == x


def test_paths_are_as_long_as_those_of_the_public_code_and_pass_the_same_trees():
    """Its reference paths have no limit of leaves, and equal edits in any order."""
    rng = random.Random(4)
    for z, x, length, public in zip(*(figure(f"tree/path_{key}") for key in ("from", "to",
                                                                             "length")),
                                    figure("tree/path")):
        steps = find_path(PUBLIC, symbols(z), symbols(x), 99, rng)
        assert len(steps) == length
        first = one_round(PUBLIC, symbols(z), symbols(x), 99, rng)
        reached = {apply_edit(PUBLIC, symbols(z), edit) for edit in first}
        assert symbols(public[1]) in reached


def test_symbols_with_one_child_are_compared_by_themselves():
    """The public code compares their children, finds (Box red) equal to (Ball red), and no path."""
    shapes = TreeGrammar(dict(Box=1, Ball=1, Arrange=3, red=0, blue=0, v=0), limit=9)
    for z, x, public in zip(*(figure(f"tree/unary_{key}") for key in ("from", "to",
                                                                      "path_length"))):
        edit, = one_round(shapes, symbols(z), symbols(x), 2, random.Random(0))
        assert apply_edit(shapes, symbols(z), edit) == symbols(x) and public in (-1, 1)
    assert figure("tree/unary_path_length") == [-1, -1, 1]


def test_noise_is_mutations_and_other_trees_and_the_step_leads_on():
    method, rng = make_method("tree_diffusion", 15, mutations=2), random.Random(5)
    method.on_data(DATA)
    task, x = method.task, (10, 1, 2)  # 1 + 2
    for learn in ("path", "last"):
        method.learn = learn
        for _ in range(100):
            z, edit, left = method.noised(x, rng)
            after = apply_edit(task, z, edit)
            assert task.parses(z) and task.parses(after) and after != z and left >= 1
            if learn == "path":
                assert after == x or left > 1
    method.unrelated, method.learn = 1.0, "path"
    sizes = [task.size(method.noised((1,), rng)[0]) for _ in range(300)]
    assert set(sizes) == {1, 2, 3, 4, 5}


# ---- the policy

class Small(TreeTask):
    """The 74 trees behind a prompt of one token, without a hint of what they are worth."""
    prompt, fill, width, worth = 1, 4, 5, 1

    def outcome(self, prompt, tree):
        return [len(tree) % 4]

    def solves(self, prompt, tree):
        return tree == (0,)


def policy(task, n_tokens, **flags):
    """A method for a task, and a random network for it."""
    method = make_method("tree_diffusion", n_tokens, **flags)
    method.on_data(SimpleNamespace(trees=task, name="small"))
    return method, random_net(3, method.vocab_size, cond_dim=0, mask_mod=causal)


SMALL_TASK = Small({0: 0, 1: 0, 2: 2, 3: 2}, limit=3)
IDS = [tuple("12+*".index(s) for s in tree) for tree in TREES]


def test_the_loss_is_that_of_the_edit_symbol_after_symbol():
    """By single calls, each of which reads only what comes before."""
    method, net = policy(DATA.trees, 15)
    task, z, prompt = method.task, (10, 1, 12, 2, 3), (10, 2, 4, 13)  # 1 + 2 * 3, for 24
    edit, left = (2, (11, 4, 5)), 3
    begin = [*task.join(prompt, z), *[10, 0, 0, 7]]  # it is worth 7
    read = [*begin, method.start, method.first_place + 2, 11, 4]
    wanted = 0.0
    for n, symbol in ((1, method.first_place + 2), (2, 11), (3, 4), (4, 5)):
        ids = torch.tensor([read[:len(begin) + n]])  # (1, n)
        wanted -= net(ids)[0, -1].log_softmax(-1)[symbol]
    distance = -net(torch.tensor([begin]))[0, -1].log_softmax(-1)[method.first_place + left]
    other = ((3,), (0, (5,)))  # a shorter edit beside it changes nothing
    found = method.score(net, [prompt, prompt], [z, other[0]], [edit, other[1]], [left, 1])
    close(torch.stack([found[0][0], found[1][0]]), torch.stack([wanted, distance]), 1e-5)
    x = torch.tensor([task.join(prompt, z)])  # (1, 13)
    torch.manual_seed(0)
    nats = method.loss(net, x, torch.arange(13)[None] < 4)  # (1, 13)
    assert (nats[:, :4] == 0).all() and (nats[:, 4:] == nats[:, 4:5]).all()


def test_proposals_parse_fit_the_limit_and_change_something():
    method, net = policy(SMALL_TASK, 5)
    torch.manual_seed(0)
    trees = IDS * 4
    edits, log_p, left = method.propose(net, [(0,)] * len(trees), trees)
    assert (log_p <= 0).all() and ((left >= 0) & (left < 5)).all()
    for z, edit in zip(trees, edits):
        after = apply_edit(SMALL_TASK, z, edit)
        assert SMALL_TASK.parses(after) and after != z and SMALL_TASK.size(edit[1]) <= 2


@torch.no_grad()
def test_proposals_have_the_law_of_the_network_within_the_grammar():
    """Of an edit of the tree 1: its symbols, one after the other, where those that are not allowed
    have no share; and of the places of 1 + 1."""
    method, net = policy(SMALL_TASK, 5)
    begin = torch.tensor([[*SMALL_TASK.join((0,), (0,)), 1, method.start, method.first_place]])

    def law(new, allowed):
        ids = torch.cat([begin, torch.tensor([new], dtype=torch.long)], 1)  # (1, n)
        closed = torch.ones(5, dtype=torch.bool)
        closed[allowed] = False
        return net(ids)[0, -1, :5].double().masked_fill(closed, -torch.inf).softmax(-1)  # (5,)
    p = {(1,): law([], [1, 2, 3])[1]}
    for op, a, b in product((2, 3), (0, 1), (0, 1)):
        p[op, a, b] = law([], [1, 2, 3])[op] * law([op], [0, 1])[a] * law([op, a], [0, 1])[b]
    torch.manual_seed(0)
    edits, log_p, _ = method.propose(net, [(0,)] * 2000, [(0,)] * 2000)
    drawn = torch.tensor([[*p].index(new) for _, new in edits])  # (n,)
    assert abs(world.surprise(drawn, torch.stack([*p.values()]))) < 4.5 and (log_p == 0).all()
    edits, log_p, _ = method.propose(net, [(0,)] * 1500, [(2, 0, 0)] * 1500)
    ids = torch.tensor([[*SMALL_TASK.join((0,), (2, 0, 0)), 3, method.start]])  # (1, 8)
    places = net(ids)[0, -1, method.first_place:][:3].double().softmax(-1)  # (3,)
    drawn = torch.tensor([i for i, _ in edits])  # (n,)
    close(log_p.exp(), places[drawn], 1e-6)
    assert abs(world.surprise(drawn, places)) < 4.5


@cache
def mutations_of(z):
    """[(K(e | z), the tree after e, the edit that undoes it)] of a tree in ids"""
    chances = [(chance_of(SMALL_TASK, z, edit, 2), edit, after) for edit, after in edits_of_ids(z)]
    return [(k, after, undo(SMALL_TASK, z, edit)) for k, edit, after in chances if k > 0]


@cache
def edits_of_ids(z):
    ids = lambda tree: tuple("12+*".index(s) for s in tree)
    return [((i, ids(new)), ids(after))
            for (i, new), after in edits_of(tuple("12+*"[s] for s in z))]


def walked(start, steps, nats):
    """(17.11) of each tree, by sums. start (74,): log p_0; nats {(z, edit): -log pi} -> (74,)"""
    value = dict(zip(IDS, (-start).tolist()))
    for _ in range(steps):
        value = {z: sum(k * (log(k) + nats[after, back] + value[after])
                        for k, after, back in mutations_of(z)) for z in IDS}
    return torch.tensor([value[z] for z in IDS], dtype=torch.float64)  # (74,)


RANDOM_TREE = torch.tensor([SMALL.chance(tree) / 3 for tree in TREES], dtype=torch.float64)  # (74,)


def test_the_bound_holds_for_any_policy_and_its_draws_have_its_mean():
    method, net = policy(SMALL_TASK, 5, mutations=2)
    pairs = [(z, edit, after) for z in IDS for edit, after in edits_of_ids(z)]
    trees, edits, after = zip(*pairs)
    with torch.no_grad():
        nats, _ = method.score(net, [(0,)] * len(pairs), trees, edits, [0] * len(pairs))
    step = torch.zeros(74, 74, dtype=torch.float64)  # (74, 74) of the texts that edits write
    where = [torch.tensor([IDS.index(z) for z in row]) for row in (trees, after)]
    step.index_put_(tuple(where), (-nats.double()).exp(), accumulate=True)
    bound = walked(RANDOM_TREE.log(), 2, dict(zip(zip(trees, edits), nats.tolist())))  # (74,)
    assert (bound >= -(RANDOM_TREE @ step @ step).log()).all()
    x = torch.tensor([SMALL_TASK.join((0,), IDS[n]) for n in (0, 40)]).repeat(200, 1)  # (n, 6)
    torch.manual_seed(0)
    with torch.no_grad():
        close_in_the_mean(lambda: method.nelbo(net, x).sum(-1), bound[[0, 40]].mean(), batches=10)


def test_the_exact_law_of_the_last_mutation_costs_only_what_the_start_differs():
    """One mutation: the bound is the entropy, plus KL(trees after it || random trees)."""
    joint, after = {}, P @ K  # (74,)
    for z, p in zip(IDS, P.tolist()):
        for k, tree, back in mutations_of(z):
            joint[tree, back] = joint.get((tree, back), 0.0) + p * k
    nats = {key: -log(p / after[IDS.index(key[0])].item()) for key, p in joint.items()}
    bound = P @ walked(RANDOM_TREE.log(), 1, nats)
    close(bound, -(P * P.log()).sum() + (after * (after / RANDOM_TREE).log()).sum(), 1e-10)
