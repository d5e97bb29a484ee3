"""
How weights follow the gradient: which optimizer has which weights, and how the rate changes over a run.

Muon (arXiv:2502.16982) moves a matrix by the nearest orthogonal one to its momentum: every direction in which the
gradient points at all gets the same step, where the gradient itself is nearly of low rank. An odd polynomial of a
matrix X acts on its singular values alone: a few rounds of X <- a X + (b XX' + c (XX')^2) X bring all of them near 1.
"""
import math

import torch

from parallel import part, whole

AT_ONCE = 1 << 28                                            # most numbers of equal matrices that are stacked


def learning_rate(step, config):
    """The share of the full learning rate at this step: linear warm-up, then the schedule down to min_lr."""
    if step < config.warmup_iters:
        return (step + 1) / config.warmup_iters
    done = (step - config.warmup_iters) / max(1, config.max_iters - config.warmup_iters)
    fall = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[config.lr_schedule]
    return config.min_lr + (1 - config.min_lr) * fall


def orthogonal(x, rounds=5):
    """Matrices (n, A, B) with the singular vectors of x and singular values of 0.7 to 1.2. In bfloat16, which is
    enough: the values need only be alike. The coefficients are Muon's, steepest at 0. -> (n, A, B)"""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[1] > x.shape[2]
    x = x.bfloat16().mT if tall else x.bfloat16()                                                   # (n, A, B), A <= B
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)                                        # (n, A, B)
    for _ in range(rounds):
        gram = x @ x.mT                                                                             # (n, A, A)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)           # (n, A, B)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For matrices alone. Equal shapes go through `orthogonal` together: a GPU would wait for the launches else.

    Where processes share the rows of a matrix, each gathers all of its momentum, and keeps its own rows of the result.
    """

    def __init__(self, params, lr, weight_decay=0.1, momentum=0.95):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

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
        grads, beta = [p.grad for p in params], group["momentum"]
        averages = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in params]
        torch._foreach_lerp_(averages, grads, 1 - beta)
        ahead = torch._foreach_lerp(grads, averages, beta)   # Nesterov's
        moves = orthogonal(torch.stack([whole(a) for a in ahead]))                                  # (n, A, B)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, move in zip(params, moves):
            p.add_(part(move.to(p.dtype), p), alpha=-group["lr"] * scale)


def make_optimizers(model, config):
    """Muon for the matrices inside blocks; embeddings, head, norms and the condition stay with AdamW, as Muon's
    authors advise. Each group remembers its full rate as "full_lr"."""
    muon = [p for name, p in model.named_parameters() if config.optimizer == "muon" and p.ndim == 2
            and name.startswith(("blocks", "swap", "decoder")) and "adaln" not in name]
    others = [p for p in model.parameters() if not any(p is q for q in muon)]
    groups = [{"params": [p for p in others if p.ndim >= 2], "weight_decay": config.weight_decay},
              {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0}]
    made = [torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)]
    if muon:
        made.append(Muon(muon, lr=config.muon_lr, weight_decay=config.weight_decay))
    for group in (group for optimizer in made for group in optimizer.param_groups):
        group["full_lr"] = group["lr"]
    return made
