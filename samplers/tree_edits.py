"""
Chapter 17. Edits of trees, (17.12): chains side by side, or a search that keeps the best ones.

Each text has `beam` trees. The first is the random tree that it starts from, the others are random
trees as well. In a step, `tries` edits of each tree are drawn; what was there before is dropped,
and the `beam` best of the new trees stay (the old ones, if nothing is new). A text is finished when
one of its trees solves it: its other trees are forgotten.

With `tries` 1 nothing competes: that is `beam` chains. `--edits random` draws mutations (17.7) in
place of the network's edits. It is what the network must beat: the checker helps both.

The rank `likelihood` is that of the paper, the sum of log pi(i | z) along a chain, so it prefers
chains of sure edits, wherever they lead. `value` is the network's guess of how few edits are left.
"""
from dataclasses import dataclass

import torch

from data.trees import python_random
from diffusion import Sampler, probabilities
from flags import flag


@dataclass(eq=False)
class TreeEdits(Sampler):
    """--sampler tree-edits: edits trees until one of them solves the text."""
    edits: str = flag("policy", "who proposes them: the network, or random mutations",
                      ["policy", "random"])
    beam: int = flag(1, "trees of each text", least=1, most=10_000)
    tries: int = flag(1, "edits that are drawn for each of them in a step", least=1, most=1000)
    rank: str = flag("likelihood", "which trees stay: those of the likeliest places, or with the "
                     "fewest edits left", ["likelihood", "value"])
    draws_from_model, rewrites = False, True

    def fits(self, method):
        if method.edits != "tree":
            return f"edits trees, which {method.name} does not write"

    @torch.no_grad()
    def __call__(self, method, denoiser, z, frozen, steps, to_probs=probabilities):
        task, rng, device = method.task, python_random(), z.device
        prompts, first = method.split(z)
        queues = [[(0.0, tree), *((0.0, task.draw_any(rng)) for _ in range(self.beam - 1))]
                  for tree in first]  # (score, tree) of each text
        seen = [{tree for _, tree in queue} for queue in queues]
        queues = [solved_first(task, prompt, queue) for prompt, queue in zip(prompts, queues)]
        for _ in range(steps):
            open = [b for b, queue in enumerate(queues) if not task.solves(prompts[b], queue[0][1])]
            if not open:
                break
            found = self.children(method, denoiser, prompts, {b: queues[b] for b in open}, rng,
                                  to_probs, device)
            for b in open:
                new = {tree: score for score, tree in found[b] if tree not in seen[b]}
                seen[b] |= new.keys()
                best = sorted(((score, tree) for tree, score in new.items()), key=lambda a: -a[0])
                queues[b] = solved_first(task, prompts[b], best)[:self.beam] or queues[b]
            rows = [task.join(prompt, queue[0][1]) for prompt, queue in zip(prompts, queues)]
            yield torch.tensor(rows, device=device)  # (B, L)

    def children(self, method, denoiser, prompts, queues, rng, to_probs, device):
        """What edits of the trees of each text make. -> {text: [(score, tree)]}"""
        states = [(b, *state) for b, queue in queues.items() for state in queue
                  for _ in range(self.tries)]
        of, scores, trees = zip(*states)
        asked = [prompts[b] for b in of]
        if self.edits == "random":
            edits, gains = method.random_edits(trees, rng), [0.0] * len(of)
        else:
            edits, gains, _ = method.propose(denoiser, asked, trees, to_probs, device)  # .., (n,)
            gains = gains.tolist()
        trees = method.after(trees, edits)
        scores = [score + gain for score, gain in zip(scores, gains)]
        if self.rank == "value":
            scores = (-method.edits_left(denoiser, asked, trees, device)).tolist()  # (n,)
        found = {b: [] for b in queues}
        for b, score, tree in zip(of, scores, trees):
            found[b].append((score, tree))
        return found


def solved_first(task, prompt, queue):
    """The tree that solves the text alone, if there is one. queue: [(score, tree)]"""
    right = [state for state in queue if task.solves(prompt, state[1])]
    return right[:1] or queue
