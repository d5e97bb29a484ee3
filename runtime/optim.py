"""
Optimizers: which weights follow which rule, and how the learning rate changes over a run.

Muon (arXiv:2502.16982) moves a matrix along the orthogonal matrix that is nearest to its momentum:
the step has the same size in every direction, while the gradient itself is nearly of low rank. An
odd polynomial of a matrix X acts on its singular values alone: a few rounds of
X <- a X + (b X X' + c (X X')^2) X bring all of them near 1 (Newton-Schulz).
"""
import math
from dataclasses import dataclass

import torch
from torch.optim.adamw import adamw

from flags import flag
from runtime.distributed import gather_full, local_shard

AT_ONCE = 1 << 28  # numbers in a stack of equal matrices, at most
ROOM = 1 << 20  # numbers of a sparse gradient that are laid out at once
NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315  # a, b, c above: those of Muon, steepest at 0


@dataclass
class OptimFlags:
    """Optimizer (runtime/optim.py)."""
    optimizer: str = flag("muon", "for the matrices inside blocks; adamw does the rest",
                          ["muon", "adamw"], fixed=True)
    learning_rate: float = flag(0.02, "of adamw", least=0, sft=0.003)
    muon_lr: float = flag(0.006, "of muon", least=0, sft=0.003)
    min_lr: float = flag(0.0, "last learning rate, as a share of the first", least=0, most=1)
    lr_schedule: str = flag("cosine", "after warm-up", ["cosine", "linear", "constant"])
    warmup_iters: int = flag(100, "steps of linear warm-up", least=0)
    weight_decay: float = flag(0.1, "of matrices", least=0)
    beta1: float = flag(0.9, "of adamw", least=0, most=0.9999)
    beta2: float = flag(0.99, "of adamw", least=0, most=0.9999)
    grad_clip: float = flag(1.0, "largest gradient norm; 0 for none", least=0)
    ema: float = flag(0.999, "decay of the averaged weights, which evaluation and samples use",
                      least=0, most=1)
    muon_dtype: str = flag("auto", "of Muon's products; auto: the faster one",
                           ["auto", "float32", "bfloat16"])


def learning_rate(step, config, stages=()):
    """The share of the full rate at this step: linear warm-up, then the schedule to min_lr.

    stages: shares of the run at which this begins anew, `methods/base.py: Method.stages`; then a
    tenth of a stage is warm-up, at most
    """
    steps, warmup = config.max_iters, config.warmup_iters
    if stages:
        starts = [0, *(math.ceil(share * config.max_iters) for share in stages)]
        first = max(start for start in starts if start <= step)
        steps = min([start for start in starts if start > first], default=config.max_iters) - first
        step, warmup = step - first, min(warmup, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    shares = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
    return config.min_lr + (1 - config.min_lr) * shares[config.lr_schedule]


def orthogonalize(x, dtype=torch.float32, rounds=5):
    """Matrices with the singular vectors of x, and singular values of 0.7 to 1.2. -> (n, A, B)

    dtype: of the products. bfloat16 is precise enough, since the values need only be similar, but
    many CPUs are slow in it (runtime/device.py).
    """
    tall = x.shape[1] > x.shape[2]
    x = x.to(dtype).mT if tall else x.to(dtype)  # (n, A, B), A <= B
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # (n, A, B)
    wide = dtype == torch.float32 and 2 * x.shape[2] >= 3 * x.shape[1]
    x = rounds_of_squares(x, rounds) if wide else rounds_of_x(x, rounds)  # (n, A, B)
    return x.mT if tall else x  # (n, A, B)


def rounds_of_x(x, rounds):
    """Newton-Schulz as it stands: 2 B/A + 1 products of A x A matrices in a round. (n, A, B)"""
    a, b, c = NEWTON_SCHULZ
    for _ in range(rounds):
        gram = x @ x.mT  # (n, A, A)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # (n, A, A)
        x = torch.baddbmm(x, gram, x, beta=a)  # (n, A, B)
    return x


def rounds_of_squares(x, rounds):
    """The same, by 4 products in a round, which never touch x. -> (n, A, B)

    A round multiplies x by P = a + b G + c G^2, G = x x'. So G becomes P G P, and the product of
    all P is applied to x once. Squares lose small singular values: float32 only.
    """
    a, b, c = NEWTON_SCHULZ
    gram, product = x @ x.mT, None  # (n, A, A)
    for left in reversed(range(rounds)):
        P = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # (n, A, A)
        P.diagonal(dim1=1, dim2=2).add_(a)
        product = P if product is None else P @ product  # (n, A, A)
        gram = P @ gram @ P if left else None  # (n, A, A)
    return product @ x  # (n, A, B)


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW, which also takes a sparse gradient: that of a table of which few rows
    were read. All rows move. The gradient is laid out for a few rows at a time, so it takes no
    memory of the size of the table, and stays in the cache.
    """

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.is_sparse:
                    self.move_table(p, group)
                    p.grad = None
        return super().step(closure)

    def move_table(self, p, group):
        """The step of a table p (V, D)."""
        if not (state := self.state[p]):
            state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(p),
                         exp_avg_sq=torch.zeros_like(p))
        grad, n = p.grad.coalesce(), max(1, ROOM // p.shape[1])  # n rows at a time
        counts = torch.bincount(grad.indices()[0] // n, minlength=-(-len(p) // n)).tolist()
        options = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad",
                                                  "maximize")}
        parts = (a.split(n) for a in (p, state["exp_avg"], state["exp_avg_sq"]))
        rows = zip(grad.indices()[0].split(counts), grad.values().split(counts))
        for (ids, values), weights, first, second in zip(rows, *parts):
            dense = torch.zeros_like(weights)  # (n, D)
            dense[ids % n] = values
            adamw([weights], [dense], [first], [second], [], [state["step"].clone()], fused=True,
                  beta1=group["betas"][0], beta2=group["betas"][1], **options)
        state["step"] += 1


class Muon(torch.optim.Optimizer):
    """Muon, for matrices only.

    Matrices of one shape are orthogonalized in one batch, since launch latency dominates on a GPU.
    If the rows of a matrix are sharded, each process gathers the whole momentum and keeps its own
    rows of the result.
    """

    def __init__(self, params, lr, weight_decay=0.1, momentum=0.95, dtype=torch.float32):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in (p for p in group["params"] if p.grad is not None):
                shapes.setdefault(p.shape, []).append(p)
            for (A, B), same in shapes.items():
                for i in range(0, len(same), n := max(1, AT_ONCE // (A * B))):
                    self.move(same[i:i + n], group, math.sqrt(max(1, A / B)))

    def move(self, params, group, scale):
        """One step of matrices of one shape."""
        grads, beta = [p.grad for p in params], group["momentum"]
        averages = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))  # (A, B)
                    for p in params]
        torch._foreach_lerp_(averages, grads, 1 - beta)
        ahead = torch._foreach_lerp(grads, averages, beta)  # (A, B) each, Nesterov's momentum
        moves = orthogonalize(torch.stack([gather_full(a) for a in ahead]), self.dtype)  # (n, A, B)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, move in zip(params, moves):
            p.add_(local_shard(move.to(p.dtype), p), alpha=-group["lr"] * scale)


def make_optimizers(model, config):
    """Muon for the matrices inside blocks, AdamW for all other weights, as Muon's authors advise.

    Embeddings, the head, norms and conditioning layers are other weights. Vectors do not decay, nor
    does a table that noise is added to ("space"): its norm decides how much noise that is. Each
    group keeps its full learning rate as "full_lr".
    """
    inside = "blocks", "swap", "decoder"
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    muon = [p for name, p in trained.items()
            if config.optimizer == "muon" and p.ndim == 2
            and (name.startswith(inside) or ".blocks." in name) and "adaln" not in name]
    others = [p for p in trained.values() if not any(p is q for q in muon)]
    free = [p for name, p in trained.items() if p.ndim < 2 or name.startswith("space.")]
    matrices, vectors = ([p for p in others if any(p is q for q in free) == is_free]
                         for is_free in (False, True))
    groups = [{"params": matrices, "weight_decay": config.weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    optimizers = [AdamW(groups, lr=config.learning_rate,
                        betas=(config.beta1, config.beta2), fused=True)]
    if muon:
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.muon_dtype]
        optimizers.append(Muon(muon, config.muon_lr, config.weight_decay, dtype=dtype))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["full_lr"] = group["lr"]
    return optimizers
