"""
All that learns, and one step of it: draw text, ask the method for its loss, follow the gradient.

Every draw of step n comes from the seed (seed, n, micro-batch), so that a run is the same whole, resumed, or shared by
several processes. Text has a generator of its own, so that it is drawn while the step before still runs. Nothing in a
step waits for the device: the host runs ahead of it. train.py walks these steps; distill.py has a learner whose target
is a teacher.
"""
import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint as recomputed

import checkpoint
import parallel
from bounds import counted_in, estimate
from data import tokenizer
from model import Block, Told
from optim import learning_rate, make_optimizers
from positions import compiled, like


GRAPHS = "reduce-overhead", "max-autotune"                   # modes of torch.compile that record CUDA graphs


def per_token(nats, frozen, counted=None):
    """The mean over texts of nats per token that is not given; or over all tokens that count. nats (B, L) -> ()"""
    if counted is not None:
        return torch.where(counted, nats, 0).sum() / counted.sum()                                      # ()
    return nats.mean() if frozen is None else (nats.sum(-1) / (~frozen).sum(-1).clamp(min=1)).mean()    # ()


def forget(network):
    """Activation checkpointing (arXiv:1604.06174): keep what goes into a block, and compute what is inside it again
    when the gradient asks for it. A third more arithmetic, for a fraction of the memory."""
    for block in network.modules():
        if isinstance(block, Block):
            block.forward = partial(recomputed, block.forward, use_reentrant=False,
                                    preserve_rng_state=block.dropout > 0)


class Ahead:
    """draw(key), made in a thread while the caller still works with the draw before.

    A draw is a function of its key alone: nobody can tell who made it, and one that is not asked for is forgotten.
    """

    def __init__(self, draw):
        self.draw, self.thread, self.key = draw, ThreadPoolExecutor(1), None

    def __call__(self, key, then):
        """The draw of `key`; `then` is the key that will be asked for next."""
        made = self.made.result() if key == self.key else self.draw(key)
        self.key, self.made = then, self.thread.submit(self.draw, then)
        return made


class Learner:
    """All that learns: the network, its running average, the optimizers; and one step of it."""

    def __init__(self, config, corpus, device):
        torch.manual_seed(config.seed)
        self.config, self.corpus, self.device = config, corpus, device
        self.classes = checkpoint.classes_of(config, corpus)
        self.method = self.objective = checkpoint.method_of(config, corpus.encoding)
        self.model = checkpoint.network(config, self.method, len(self.classes))
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)    # weights of the last steps, averaged
        self.gathered = self.average                         # the same, whole; see `gather`
        self.model.static = bool(config.compile) or device.type == "cuda"        # no size that depends on the noise
        self.model.fuses = getattr(corpus, "layout", "") != "rows"       # what fills texts up does not count
        if config.recompute:
            forget(self.model)
        if config.shard:
            parallel.shard(self.model, device)
            parallel.shard(self.average, device)
        self.model, self.average = self.model.to(device), self.average.to(device)
        self.shared = self.model if config.shard else parallel.share(self.model)
        self.denoiser = like(self.model, compiled(self.shared, config.compile))          # it sees where DDP sums
        self.optimizers = make_optimizers(self.model, config)
        self.half = config.dtype == "bfloat16"
        self.text = Ahead(self.drawn)

    def step(self, step):
        """Draw text, ask the method for its loss, follow the gradient. -> (2,) loss, norm of the gradient"""
        if self.config.clip_search and step % self.config.eval_interval == 0 and hasattr(self.method, "clip"):
            self.search_clip(step)
        config, total = self.config, 0.0
        self.method.progress = step / config.max_iters       # for methods that teach in an order
        micros = range(parallel.RANK, config.gradient_accumulation_steps, parallel.WORLD)
        for micro in micros:
            number = step * config.gradient_accumulation_steps + micro
            x, frozen, label = self.on_device(self.text(number, then=number + parallel.WORLD))   # (B, L) .. (B,)
            torch.manual_seed(2 * self.seed(number))         # all chance in this micro-batch but its text
            with parallel.last(self.shared, micro == micros[-1]):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                    nats = self.objective.loss(self.told(label, config.label_dropout), x, frozen)       # (B, L)
                    loss = per_token(nats, frozen, counted_in(self.corpus, x)) / len(micros)            # ()
                loss.backward()                              # and takes the mean over processes
            if micro != micros[-1] and config.compile in GRAPHS:
                self.own_gradients()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or math.inf)
        norm = parallel.whole(norm)                                                                     # ()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * learning_rate(step, config)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(config.ema, (1 + step) / (10 + step)) if step else 0.0       # a short memory at first
        torch._foreach_lerp_([*self.average.parameters()], [p.detach() for p in self.model.parameters()], 1 - decay)
        return torch.stack([total, norm])                                                               # (2,)

    def own_gradients(self):
        """CUDA graphs write each gradient to the same place: what the next micro-batch adds to is a copy of it."""
        for p in self.model.parameters():
            p.grad = None if p.grad is None else p.grad.clone()

    def seed(self, number):
        """Of a micro-batch: its text is drawn from 2 n + 1, all else from 2 n."""
        return self.config.seed * 1_000_003 + number

    def drawn(self, number):
        """The text of a micro-batch, in pinned memory if it goes to a GPU: such a copy does not wait."""
        generator = torch.Generator().manual_seed(2 * self.seed(number) + 1)
        n, corpus = self.config.batch_size, self.corpus
        parts = (corpus.turn(number, n, self.config.seed) if hasattr(corpus, "turn") else       # whose turn it is
                 corpus.examples("train", n, generator))                                        # (B, L), .., (B,)
        pin = self.device.type == "cuda"
        return [a.pin_memory() if pin and a is not None else a for a in parts]

    def on_device(self, parts):
        return (a if a is None else a.to(self.device, non_blocking=True) for a in parts)

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
        self.method.clip = self.method.search_clip(self.average, x, self.config.batch_size)
        self.config = replace(self.config, clip="{},{}".format(*self.method.clip))

    def start_from(self, weights):
        for network in (self.model, self.average):
            parallel.load_weights(network, weights)

    def gather(self):
        """Make the averaged network whole in the first process, for reports. All processes must call it."""
        if self.config.shard:
            weights = parallel.weights(self.average)
            with torch.device("meta"):
                self.gathered = checkpoint.network(self.config, self.method, len(self.classes))
            if weights:
                self.gathered.load_state_dict(weights, assign=True)
                self.gathered = self.gathered.to(self.device).eval()

    def state(self, step):
        """What a checkpoint holds. All processes must call it; of weights that are spread, the first one gets all."""
        return {"model": parallel.weights(self.model), "ema": parallel.weights(self.average), "step": step,
                "optimizers": [parallel.memory(self.model, optimizer) for optimizer in self.optimizers],
                "config": asdict(self.config), "encoding": tokenizer.to_json(self.corpus.encoding),
                "classes": self.classes, **getattr(self.method, "kept", {})}

    def load(self, state):
        parallel.load_weights(self.model, state["model"])
        parallel.load_weights(self.average, state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            parallel.load_memory(self.model, optimizer, saved)

    @property
    def settled(self):
        """The method as reports use it, and as it is restored: what the network carries of it is averaged, too."""
        return self.method.of(self.gathered) if hasattr(self.method, "of") else self.method

    def bound(self, split, texts, draws=1):
        """-> nats/token, standard error: of the averaged weights, on texts evenly spread over the split"""
        x, frozen, label = self.on_device(self.corpus.example_windows(split, texts))          # (n, L) .. (n,)
        return estimate(self.settled, self.gathered, x, draws, self.config.batch_size, frozen,
                        label=label if self.classes else None, counted=counted_in(self.corpus, x))
