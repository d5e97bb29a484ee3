"""
How weights follow the gradient: which optimizer has which weights, and how the rate changes over a run.
"""
import math

import torch


def learning_rate(step, config):
    """The share of the full learning rate at this step: linear warm-up, then the schedule down to min_lr."""
    if step < config.warmup_iters:
        return (step + 1) / config.warmup_iters
    done = (step - config.warmup_iters) / max(1, config.max_iters - config.warmup_iters)
    fall = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[config.lr_schedule]
    return config.min_lr + (1 - config.min_lr) * fall


def make_optimizers(model, config):
    """Muon (arXiv:2502.16982) turns the update of a matrix into the nearest orthogonal one; embeddings, head, norms
    and the condition stay with AdamW, as Muon's authors advise. Each group remembers its full rate as "full_lr"."""
    muon = [p for name, p in model.named_parameters() if config.optimizer == "muon" and p.ndim == 2
            and name.startswith(("blocks", "swap", "decoder")) and "adaln" not in name]
    others = [p for p in model.parameters() if not any(p is q for q in muon)]
    groups = [{"params": [p for p in others if p.ndim >= 2], "weight_decay": config.weight_decay},
              {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0}]
    made = [torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)]
    if muon:
        made.append(torch.optim.Muon(muon, lr=config.muon_lr, weight_decay=config.weight_decay))
    for group in (group for optimizer in made for group in optimizer.param_groups):
        group["full_lr"] = group["lr"]
    return made
