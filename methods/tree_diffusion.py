"""
Chapter 17. Tree diffusion (arXiv:2405.20519): a text is a tree, noise replaces subtrees, and a
network learns edits that lead back, while it sees what the tree is worth now.

A tree z is written in prefix notation (data/trees.py). Its size |z| is the number of its leaves.

    edit      e = (i, s): the subtree s of at most sigma leaves replaces that at node i      (17.6)
    mutation  K(e | z): a size k <= sigma of those that nodes of z have, a node of that      (17.7)
              size, a size of s from 1 to min(sigma, limit - |z| + k), s at random, each
              uniform; again if s is what stands there
    noise     z is x after n mutations, n ~ U{1..S}, or with probability rho another tree    (17.8)
    path      from z to x, in rounds. Walk down both trees from the root. Where symbols      (17.9)
              are equal, go on with the children; else replace the subtree of z there by
              that of x if this has at most sigma leaves, and by the symbol of x with leaves
              below it if not: those of x, and random ones for its larger children
    loss      -log pi(e | z, prompt, outcome(z)),  e a random step of the path from z       (17.10)
    bound     -log p(x) <= E[ sum_n log K(e_n | z_n-1) - log pi(undo e_n | z_n) ]           (17.11)
                           - log p_0(z_S),   z_0 = x, S mutations, p_0 a random tree
    search    of all trees that edits of the last ones make, those with the largest         (17.12)
              sum_n log pi(i_n | z_n) stay, or those with the least expected number of edits
              left; a tree that was there before does not return

pi(e | z) = pi(i | z) pi(s | z, i), symbol after symbol, by a causal network that reads

    [prompt ; z ; outcome(z) ; start ; place i ; s]

and that learns, at the last token before `start`, how many edits are left (--distance).

A path leads to x from any tree: after r rounds all nodes less than r below the root agree. Edits of
a round are disjoint. Those that shrink the tree come first, so no tree on the way is larger than z
and x are; the published order, the longest edit first, has no such limit. The published comparison
of nodes takes two symbols with one child each for equal, and finds no path then; ours does not.

Steps of a path are no undone mutations, so with --learn path (17.11) is a bound on the law of the
texts that S edits of a random tree write, but (17.10) does not minimize it. --learn last does.
"""
from dataclasses import dataclass, field
from math import log

import torch

from data import DATASETS
from data.trees import python_random
from diffusion import categorical, probabilities
from flags import UserError, flag, load_row
from methods.base import Method, cross_entropy, to_float32
from model import causal


# ---- edits of trees

def apply_edit(grammar, z, edit):
    """(17.6). -> the tree after it"""
    i, new = edit
    return (*z[:i], *new, *z[grammar.end(z, i):])


def undo(grammar, z, edit):
    """The edit that leads back from the tree after it to z."""
    return edit[0], z[edit[0]:grammar.end(z, edit[0])]


def nodes_by_size(grammar, z, sigma):
    """{size: where nodes of that size begin}, up to sigma leaves."""
    found = {}
    for i, end in enumerate(grammar.ends(z)):
        if (size := grammar.size(z[i:end])) <= sigma:
            found.setdefault(size, []).append(i)
    return found


def mutate(grammar, z, sigma, rng):
    """A draw of (17.7). -> an edit"""
    nodes = nodes_by_size(grammar, z, sigma)
    size = rng.choice(sorted(nodes))
    i, room = rng.choice(nodes[size]), min(sigma, grammar.limit - grammar.size(z) + size)
    old = z[i:grammar.end(z, i)]
    while (new := grammar.draw(rng.randint(1, room), rng)) == old:
        pass
    return i, new


def chance_of(grammar, z, edit, sigma):
    """K(e | z) of (17.7); 0 for an edit that is no mutation."""
    nodes, (i, new) = nodes_by_size(grammar, z, sigma), edit
    old = z[i:grammar.end(z, i)]
    size = grammar.size(old)
    room = min(sigma, grammar.limit - grammar.size(z) + size)
    if i not in nodes.get(size, ()) or grammar.size(new) > room or new == old:
        return 0.0
    derived = grammar.chance(new) / room
    kept = grammar.chance(old) / room if size <= room else 0.0
    return derived / (1 - kept) / len(nodes) / len(nodes[size])


def one_round(grammar, z, x, sigma, rng):
    """The edits of one round of (17.9), which are disjoint. -> [edit]"""
    edits, waiting = [], [(0, 0)]
    while waiting:
        i, j = waiting.pop()
        if z[i] == x[j]:
            waiting += zip(grammar.parts(z, i), grammar.parts(x, j))
            continue
        new = x[j:grammar.end(x, j)]
        if grammar.size(new) > sigma:
            below = [x[k] for k in grammar.parts(x, j)]
            new = (x[j], *(s if s in grammar.leaves else rng.choice(grammar.leaves) for s in below))
        edits.append((i, new))
    return edits


def find_path(grammar, z, x, sigma, rng):
    """(17.9). -> [(tree, edit)], the trees from z on, each before its edit; [] if z is x"""
    steps = []
    while z != x:
        edits = one_round(grammar, z, x, sigma, rng)
        rng.shuffle(edits)
        grows = lambda edit: grammar.size(edit[1]) - grammar.size(undo(grammar, z, edit)[1])
        edits.sort(key=grows)
        while edits:
            (i, new), *edits = edits
            longer = len(new) - (grammar.end(z, i) - i)
            steps.append((z, (i, new)))
            z = apply_edit(grammar, z, (i, new))
            edits = [(j + longer if j > i else j, other) for j, other in edits]
    return steps


# ---- the method

@dataclass(eq=False)
class TreeDiffusion(Method):
    """--method tree_diffusion, for data whose texts are trees: --data arithmetic."""
    also_called = ("treediffusion", "tree")
    sigma: int = flag(2, "leaves of the subtree that an edit writes, at most", least=2, most=9,
                      fixed=True)
    mutations: int = flag(5, "S, mutations of a text at most", least=1, most=100)
    unrelated: float = flag(0.2, "rho, the share of random trees in place of mutated ones", least=0,
                            most=1)
    learn: str = flag("path", "a step of the path to the text, or the last mutation undone",
                      ["path", "last"])
    distance: float = flag(0.1, "weight of the loss of how many edits are left", least=0)
    predicts, edits = "edits of a tree", "tree"
    mask_mod = staticmethod(causal)
    bidirectional, fixed_positions, takes_steps = False, False, False
    samplers, classifier_process, first_choice = ("tree-edits",), None, "tree-edits"
    task: object = field(default=None, init=False)  # a TreeTask, from the data

    # ---- what it knows of the data

    def check(self, config):
        if load_row(DATASETS, config.data).trees is None:
            raise UserError(f"--method tree_diffusion edits trees, and the texts of {config.data} "
                            "are none: give --data arithmetic")

    def on_data(self, data):
        if data.trees is None:
            raise UserError(f"tree_diffusion edits trees, and the texts of {data.name} are none: "
                            "give --data arithmetic")
        self.task, self.start = data.trees, self.n_tokens
        self.first_place = self.n_tokens + 1  # the id of place 0, and of "no edits left"
        self.vocab_size = self.first_place + self.task.width
        if max(self.task.children.values()) > self.sigma:
            raise UserError(f"--sigma {self.sigma} is less than the "
                            f"{max(self.task.children.values())} children of a symbol: give that")

    def load_extra_state(self, state):
        self.on_data(load_row(DATASETS, state["config"]["data"]))

    # ---- what the network reads and says

    @property
    def begin(self):
        """Where `start` stands in what the network reads."""
        return self.task.prompt + self.task.width + self.task.worth

    def read(self, prompts, trees, edits=()):
        """[prompt ; z ; outcome ; start ; place ; s] of B trees, s as far as it is written, then
        zeros. edits: [(i, s)], or nothing as yet. -> (B, T + 1) ids"""
        rows, longest = [], self.begin + 2 + 2 * self.sigma - 1
        for n, (prompt, z) in enumerate(zip(prompts, trees)):
            row = [*self.task.join(prompt, z), *self.task.outcome(prompt, z), self.start]
            if edits:
                row += [self.first_place + edits[n][0], *edits[n][1]]
            rows.append(row + [0] * (longest - len(row)))
        return torch.tensor(rows)  # (B, T + 1)

    def score(self, denoiser, prompts, trees, edits, left, device="cpu"):
        """-log pi(e | z), (17.10), and -log p(left), how many edits are left. -> (B,) nats each"""
        ids = self.read(prompts, trees, edits).to(device)  # (B, T + 1)
        target, place = ids[:, 1:].clone(), torch.arange(ids.shape[1] - 1, device=device)  # (B, T)
        most = self.task.width - 1
        target[:, self.begin - 1] = self.first_place + torch.tensor(left, device=device).clamp(
            max=most)  # (B,)
        written = torch.tensor([len(new) for _, new in edits], device=device)[:, None]  # (B, 1)
        at = (place >= self.begin - 1) & (place <= self.begin + written)  # (B, T)
        logits = to_float32(denoiser(ids[:, :-1], None, at=at))  # (N, V)
        nats = logits.new_zeros(at.shape).masked_scatter(at, cross_entropy(logits, target[at]))
        return nats[:, self.begin:].sum(-1), nats[:, self.begin - 1]  # (B,) each

    def allowed(self, old, room, new):
        """Symbols that may follow `new` in a subtree of at most `room` leaves in place of `old`."""
        task = self.task
        open = 1 + sum(task.children[s] - 1 for s in new)
        least = task.size(new) + open
        fits = [s for s, n in task.children.items() if least + max(0, n - 1) <= room]
        return [s for s in fits if (*new, s) != old]

    @torch.no_grad()
    def propose(self, denoiser, prompts, trees, to_probs=probabilities, device="cpu"):
        """A draw from pi(e | z) under the grammar, which also changes something.

        -> [edit], log pi(i | z) (B,), the expected number of edits that are left (B,)
        """
        task, B, first = self.task, len(trees), self.first_place
        ids = self.read(prompts, trees).to(device)  # (B, T + 1)
        at = torch.zeros_like(ids[:, :-1], dtype=torch.bool)  # (B, T)
        at[:, self.begin - 1:self.begin + 1] = True
        logits = denoiser(ids[:, :-1], None, at=at).view(B, 2, -1)[..., first:]  # (B, 2, width)
        number = torch.arange(task.width, device=device)  # (width,)
        left = (logits[:, 0].double().softmax(-1) * number).sum(-1)  # (B,)
        length = torch.tensor([len(z) for z in trees], device=device)[:, None]  # (B, 1)
        p = to_probs(logits[:, 1].masked_fill(number >= length, -torch.inf))  # (B, width)
        place = categorical(p)  # (B,)
        ids[:, self.begin + 1] = first + place  # (B,)
        old = [undo(task, z, (i, ()))[1] for z, i in zip(trees, place.tolist())]
        rooms = [min(self.sigma, task.limit - task.size(z) + task.size(part))
                 for z, part in zip(trees, old)]
        new, rows, step = [()] * B, [*range(B)], self.begin + 1
        while rows:
            at = torch.zeros_like(ids[rows, :-1], dtype=torch.bool)  # (b, T)
            at[:, step] = True
            logits = denoiser(ids[rows, :-1], None, at=at)[:, :self.n_tokens]  # (b, n_tokens)
            closed = torch.ones_like(logits, dtype=torch.bool)  # (b, n_tokens)
            for k, b in enumerate(rows):
                closed[k, self.allowed(old[b], rooms[b], new[b])] = False
            symbols = categorical(to_probs(logits.masked_fill(closed, -torch.inf)))  # (b,)
            step += 1
            ids[rows, step] = symbols
            for b, symbol in zip(rows, symbols.tolist()):
                new[b] = (*new[b], symbol)
            rows = [b for b in rows if task.end(new[b]) is None]
        log_p = p.gather(1, place[:, None])[:, 0].log()  # (B,)
        return [*zip(place.tolist(), new)], log_p, left

    @torch.no_grad()
    def edits_left(self, denoiser, prompts, trees, device="cpu"):
        """The expected number of edits that are left. -> (B,)"""
        ids = self.read(prompts, trees).to(device)[:, :self.begin]  # (B, begin)
        at = torch.arange(self.begin, device=device).expand_as(ids) == self.begin - 1
        logits = denoiser(ids, None, at=at)[:, self.first_place:]  # (B, width)
        return logits.double().softmax(-1) @ torch.arange(self.task.width, device=device).double()

    # ---- losses

    def split(self, x):
        """Texts (B, L) as prompts and trees. UserError if one does not parse."""
        prompts, trees = zip(*map(self.task.split, x.tolist()))
        if None in trees:
            raise UserError("tree_diffusion edits trees, and a text is none: its expression must "
                            "parse, and be given in no part")
        return prompts, trees

    def noised(self, x, rng):
        """A draw of (17.8) and what is learned there. -> z, edit, how many edits are left"""
        task, z, steps = self.task, x, []
        for _ in range(rng.randint(1, self.mutations)):
            before, edit = z, mutate(task, z, self.sigma, rng)
            z = apply_edit(task, z, edit)
            steps.append((z, undo(task, before, edit)))
        if self.learn == "last":
            return *steps[-1], len(steps)
        if rng.random() < self.unrelated:
            z = task.draw_any(rng)
        steps = find_path(task, z, x, self.sigma, rng)
        if not steps:  # mutations led back
            return self.noised(x, rng)
        k = rng.randrange(len(steps))
        return *steps[k], len(steps) - k

    def loss(self, denoiser, x, frozen=None):
        """(17.10), and the loss of how many edits are left, spread over the tokens that are not
        given. -> (B, L) nats"""
        rng = python_random()
        prompts, trees = self.split(x)
        trees, edits, left = zip(*(self.noised(tree, rng) for tree in trees))
        edit, distance = self.score(denoiser, prompts, trees, edits, left, x.device)  # (B,) each
        return self.spread(edit + self.distance * distance, x, frozen)  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """A draw of (17.11). -> (B, L) nats"""
        rng, task, S = python_random(), self.task, self.mutations
        prompts, trees = self.split(x)
        known, states, edits = [], [], []
        for x_0 in trees:
            z, nats = x_0, 0.0
            for _ in range(S):
                before, edit = z, mutate(task, z, self.sigma, rng)
                nats += log(chance_of(task, before, edit, self.sigma))
                z = apply_edit(task, z, edit)
                states.append(z)
                edits.append(undo(task, before, edit))
            known.append(nats - log(task.chance(z) / task.limit))
        asked = [prompt for prompt in prompts for _ in range(S)]
        nats, _ = self.score(denoiser, asked, states, edits, [0] * len(edits), x.device)  # (B S,)
        nats = nats.double().view(-1, S).sum(-1)  # (B,)
        return self.spread(nats + torch.tensor(known, device=x.device), x, frozen)  # (B, L)

    def spread(self, nats, x, frozen):
        """nats (B,) in equal parts over the tokens that are not given. -> (B, L)"""
        free = torch.arange(x.shape[1], device=x.device) >= self.task.prompt  # (L,)
        free = free.expand(x.shape) if frozen is None else ~frozen  # (B, L)
        return nats[:, None] * free / free.sum(-1, keepdim=True).clamp(min=1)  # (B, L)

    # ---- samples

    def random_edits(self, trees, rng):
        """A mutation of each tree, in place of `propose`. -> [edit]"""
        return [mutate(self.task, z, self.sigma, rng) for z in trees]

    def after(self, trees, edits):
        """-> [tree]"""
        return [apply_edit(self.task, z, edit) for z, edit in zip(trees, edits)]

    def prior(self, shape, device="cpu"):
        """Random trees behind prompts of zeros. -> (B, L) ids"""
        rng, empty = python_random(), [0] * self.task.prompt
        rows = [self.task.join(empty, self.task.draw_any(rng)) for _ in range(shape[0])]
        if len(rows[0]) != shape[1]:
            raise UserError(f"tree_diffusion edits texts of {len(rows[0])} tokens, not "
                            f"{shape[1]}: leave out --length, and give the target alone")
        return torch.tensor(rows, device=device)  # (B, L)

    def sample(self, denoiser, z, frozen, steps, sampler, to_probs=probabilities, window=None,
               end=None):
        """`steps` edits of each tree; yields z (B, L) after each."""
        given = torch.arange(z.shape[1], device=z.device) < self.task.prompt  # (L,)
        if (frozen != given).any():
            raise UserError(f"tree_diffusion rewrites whole expressions: give the first "
                            f"{self.task.prompt} tokens, and no others")
        yield from sampler(self, denoiser, z, frozen, steps, to_probs)
