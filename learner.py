"""
All that learns, and one step of it: draw text, ask the method for its loss, follow the gradient.

Every draw of step n comes from the seed (seed, n, micro-batch), so that a run is the same whole, resumed, or shared by
several processes. train.py walks these steps; distill.py has a learner whose target is a teacher.
"""
import math
import os
from contextlib import nullcontext
from dataclasses import asdict, replace

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import checkpoint
from bounds import counted_in, estimate
from data import tokenizer
from model import Told
from optim import learning_rate, make_optimizers
from positions import compiled, like

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))      # set by torchrun


def per_token(nats, frozen, counted=None):
    """The mean over texts of nats per token that is not given; or over all tokens that count. nats (B, L) -> ()"""
    if counted is not None:
        return nats[counted].mean()                                                                     # ()
    return nats.mean() if frozen is None else (nats.sum(-1) / (~frozen).sum(-1).clamp(min=1)).mean()    # ()


class Learner:
    """All that learns: the network, its running average, the optimizers; and one step of it."""

    def __init__(self, config, corpus, device):
        torch.manual_seed(config.seed)
        self.config, self.corpus, self.device = config, corpus, device
        self.classes = checkpoint.classes_of(config, corpus)
        self.method = self.objective = checkpoint.method_of(config, corpus.encoding)
        self.model = checkpoint.network(config, self.method, len(self.classes)).to(device)
        self.average = AveragedModel(self.model)             # the same weights, averaged over the last steps
        self.optimizers = make_optimizers(self.model, config)
        self.model.static = bool(config.compile) or device.type == "cuda"        # no size that depends on the noise
        self.model.fuses = getattr(corpus, "layout", "") != "rows"       # what fills texts up does not count
        self.denoiser = compiled(self.model, config.compile)
        if WORLD > 1:
            self.denoiser = like(self.model, torch.nn.parallel.DistributedDataParallel(self.denoiser))
        self.half = config.dtype == "bfloat16"

    def step(self, step):
        """Draw text, ask the method for its loss, follow the gradient. -> (2,) loss, norm of the gradient"""
        if self.config.clip_search and step % self.config.eval_interval == 0 and hasattr(self.method, "clip"):
            self.search_clip(step)
        config, total = self.config, 0.0
        self.method.progress = step / config.max_iters       # for methods that teach in an order
        micros = range(RANK, config.gradient_accumulation_steps, WORLD)
        for micro in micros:
            number = step * config.gradient_accumulation_steps + micro
            torch.manual_seed(config.seed * 1_000_003 + number)      # all chance in it: text, noise, dropout
            x, frozen, label = self.on_device(self.texts(number))                                # (B, L) .. (B,)
            with nullcontext() if micro == micros[-1] or WORLD == 1 else self.denoiser.no_sync():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                    nats = self.objective.loss(self.told(label, config.label_dropout), x, frozen)       # (B, L)
                    loss = per_token(nats, frozen, counted_in(self.corpus, x)) / len(micros)               # ()
                loss.backward()                              # DDP takes the mean over processes
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or math.inf)    # ()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * learning_rate(step, config)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(config.ema, (1 + step) / (10 + step))    # a short memory at first
        self.average.multi_avg_fn = get_ema_multi_avg_fn(decay)
        self.average.update_parameters(self.model)
        return torch.stack([total, norm])                                                               # (2,)

    def texts(self, number):
        """Of the micro-batch `number`: those whose turn it is, where the corpus has an order, or random ones."""
        n, corpus = self.config.batch_size, self.corpus
        return corpus.turn(number, n, self.config.seed) if hasattr(corpus, "turn") else corpus.examples("train", n)

    def on_device(self, parts):
        return (part if part is None else part.to(self.device) for part in parts)

    def told(self, label, dropout):
        """The network, told the class of each text, if it has classes; a share `dropout` of the texts goes without."""
        if not self.classes:
            return self.denoiser
        dropped = torch.rand(label.shape, device=label.device) < dropout                                # (B,)
        return Told(self.denoiser, label.masked_fill(dropped, len(self.classes)))

    def search_clip(self, step):
        """The clip of least variance for the weights of this step. It becomes the flag: a resumed run has it too."""
        torch.manual_seed(self.config.seed * 1_000_003 + step)
        x = self.corpus.windows("val", self.config.eval_iters * self.config.batch_size).to(self.device)      # (n, L)
        self.method.clip = self.method.search_clip(self.average.module.eval(), x, self.config.batch_size)
        self.config = replace(self.config, clip="{},{}".format(*self.method.clip))

    def start_from(self, weights):
        self.model.load_state_dict(weights)
        self.average.module.load_state_dict(weights)

    def state(self, step):
        return {"model": self.model.state_dict(), "ema": self.average.module.state_dict(), "step": step,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "config": asdict(self.config), "encoding": tokenizer.to_json(self.corpus.encoding),
                "classes": self.classes, **getattr(self.method, "kept", {})}

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.average.module.load_state_dict(state["ema"])
        self.average.n_averaged.fill_(state["step"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):       # but rates are those of the flags
            optimizer.load_state_dict({**saved, "param_groups": optimizer.state_dict()["param_groups"]})

    def bound(self, split, texts, draws=1):
        """-> nats/token, standard error: of the averaged weights, on texts evenly spread over the split"""
        x, frozen, label = self.on_device(self.corpus.example_windows(split, texts))          # (n, L) .. (n,)
        return estimate(self.method, self.average.module.eval(), x, draws, self.config.batch_size, frozen,
                        label=label if self.classes else None, counted=counted_in(self.corpus, x))
