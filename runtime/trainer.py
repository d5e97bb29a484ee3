"""
What learns: the network, its running average, the optimizers, and the batches that they learn from.

The step itself is in train.py. Every draw of step n comes from the seed (seed, n, micro-batch), so
a run is the same whether it is whole, resumed, or shared by several processes. Batches have their
own random generator, so they can be drawn ahead. Nothing in a step waits for the device.
"""
import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint as recomputed

from checkpoints.build import build_network
from data import tokenizer
from diffusion import Labeled
from evaluation.likelihood import mean_nats, nats_of
from flags import UserError
from methods.base import copy_capabilities
from model import Block
from runtime import distributed
from runtime.compile import compile_network
from runtime.optim import learning_rate, make_optimizers

CUDA_GRAPHS = "reduce-overhead", "max-autotune"  # modes of torch.compile that record CUDA graphs


def checkpoint_activations(network):
    """Activation checkpointing (arXiv:1604.06174): a third more arithmetic, far less memory.

    Only the input of each block is kept; the backward pass recomputes its activations.
    """
    for block in network.modules():
        if isinstance(block, Block):
            block.forward = partial(recomputed, block.forward, use_reentrant=False,
                                    preserve_rng_state=block.dropout > 0)


class Prefetcher:
    """draw(key) for the next key, computed in a thread while the caller uses the last result.

    A batch depends only on its key, so one that was drawn ahead for another key is dropped.
    """

    def __init__(self, draw):
        self.draw, self.thread, self.key = draw, ThreadPoolExecutor(1), None

    def __call__(self, key, then):
        """The batch of `key`; `then` is the key of the next call."""
        batch = self.made.result() if key == self.key else self.draw(key)
        self.key, self.made = then, self.thread.submit(self.draw, then)
        return batch


class EMA:
    """The running average of a network's weights, which is evaluated, sampled and exported."""

    def __init__(self, model, decay):
        self.average, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model, step):
        """After `step`. The decay warms up, so that early weights do not count for long."""
        decay = min(self.decay, (1 + step) / (10 + step)) if step else 0.0
        weights = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_([*self.average.parameters()], weights, 1 - decay)


class Trainer:
    """The network and all that changes with it.

    objective: what gives the loss; None for the method, else what distills a teacher
    """

    def __init__(self, config, data, method, device, objective=None):
        torch.manual_seed(config.seed)
        self.config, self.data, self.device = config, data, device
        if config.labels and not data.classes:
            raise UserError(f"--labels needs texts with classes, such as --data toy: {config.data} "
                            "has none")
        self.classes = list(data.classes) if config.labels else []
        self.method, self.objective = method, objective or method
        self.model = build_network(config, method, len(self.classes))
        self.ema = EMA(self.model, config.ema)
        # shapes must not depend on the noise
        self.model.fixed_shapes = bool(config.compile) or device.type == "cuda"
        self.model.supports_fused_head = not data.pads  # the mean leaves padding out
        # few rows of a large table are read; GPUs would wait for their number
        few = config.batch_size * config.block_size < method.vocab_size
        alone = distributed.WORLD == 1 and device.type == "cpu" and not config.compile
        self.model.sparse_gradient = few and alone
        if config.recompute:
            checkpoint_activations(self.model)
        if config.shard:
            distributed.wrap_fsdp(self.model, device)
            distributed.wrap_fsdp(self.ema.average, device)
        self.model, self.ema.average = self.model.to(device), self.ema.average.to(device)
        self.gathered = self.ema.average  # the whole average: see gather_average
        self.shared = self.model if config.shard else distributed.wrap_ddp(self.model)
        self.denoiser = copy_capabilities(self.model, compile_network(self.shared, config.compile))
        self.optimizers = make_optimizers(self.model, config)
        self.prefetch = Prefetcher(self.draw_batch)

    # ---- the parts of a step

    def micro_batches(self, step):
        """The numbers of this process's micro-batches of a step."""
        n = self.config.gradient_accumulation_steps
        return range(step * n + distributed.RANK, (step + 1) * n, distributed.WORLD)

    def seed(self, number):
        """The seed of the noise of a micro-batch; that of its text is one higher."""
        return 2 * (self.config.seed * 1_000_003 + number)

    def draw_batch(self, number):
        """The text of a micro-batch, in pinned memory for a GPU, since that copy does not wait."""
        generator = torch.Generator().manual_seed(self.seed(number) + 1)
        config, pin = self.config, self.device.type == "cuda"
        parts = self.data.micro_batch(number, config.batch_size, config.seed, generator)
        return [a.pin_memory() if pin and a is not None else a for a in parts]  # (B, L), .., (B,)

    def batch(self, number):
        """x (B, L), frozen (B, L) or None, label (B,) or None, on the device."""
        return self.to_device(self.prefetch(number, then=number + distributed.WORLD))

    def to_device(self, parts):
        return [a if a is None else a.to(self.device, non_blocking=True) for a in parts]

    def denoiser_for(self, label):
        """The network, conditioned on the class of each text, if there are classes. label (B,)

        A share --label_dropout of the texts gets no class.
        """
        if not self.classes:
            return self.denoiser
        dropped = torch.rand(label.shape, device=label.device) < self.config.label_dropout  # (B,)
        return Labeled(self.denoiser, label.masked_fill(dropped, len(self.classes)))

    def autocast(self):
        enabled = self.config.dtype == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def sync_on(self, last):
        """A context that exchanges gradients between processes in a step's last micro-batch."""
        return distributed.sync_gradients_on(self.shared, last)

    def own_gradients(self):
        """Copy the gradients, since a CUDA graph overwrites its own in the next micro-batch."""
        if self.config.compile in CUDA_GRAPHS:
            for p in self.model.parameters():
                p.grad = None if p.grad is None else p.grad.clone()

    def clip_gradients(self):
        """-> () the norm of the gradient before it is clipped"""
        params = [p for p in self.model.parameters() if p.grad is not None]
        for p in params:
            p.grad = p.grad.coalesce() if p.grad.is_sparse else p.grad  # each row once
        norm = torch.nn.utils.get_total_norm(
            [p.grad.values() if p.grad.is_sparse else p.grad for p in params])  # ()
        torch.nn.utils.clip_grads_with_norm_(params, self.config.grad_clip or math.inf, norm)
        return distributed.gather_full(norm)  # ()

    def learning_rate(self, step):
        """The share of the full rate. Stages are those of the method's own loss."""
        stages = self.method.stages if self.objective is self.method else ()
        return learning_rate(step, self.config, stages)

    def step_optimizers(self, step):
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * self.learning_rate(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    # ---- weights and checkpoints

    @property
    def average(self):
        """The averaged network."""
        return self.ema.average

    def start_from(self, weights):
        for network in (self.model, self.average):
            distributed.load_full_weights(network, weights)

    def gather_average(self):
        """Make the averaged network whole in the first process; all processes must call it."""
        if self.config.shard:
            weights = distributed.full_weights(self.average)
            with torch.device("meta"):
                self.gathered = build_network(self.config, self.method, len(self.classes))
            if weights:
                self.gathered.load_state_dict(weights, assign=True)
                self.gathered = self.gathered.to(self.device).eval()

    def state(self, step):
        """What a checkpoint holds. All processes must call it; the first one gets whole weights."""
        return {"model": distributed.full_weights(self.model),
                "ema": distributed.full_weights(self.average),
                "optimizers": [distributed.optimizer_state(self.model, optimizer)
                               for optimizer in self.optimizers],
                "step": step, "config": asdict(self.config),
                "encoding": tokenizer.to_json(self.data.encoding), "classes": self.classes,
                "text": self.data.fingerprint,
                **self.extra_state()}

    def extra_state(self):
        """What method and objective keep besides weights."""
        return {**self.method.extra_state(), **self.objective.extra_state()}

    def load(self, state):
        distributed.load_full_weights(self.model, state["model"])
        distributed.load_full_weights(self.average, state["ema"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            distributed.load_optimizer_state(self.model, optimizer, saved)
        self.objective.load_extra_state(state)

    # ---- evaluation

    @property
    def averaged_method(self):
        """The method for reports: what it reads from the network comes from the average, too."""
        return self.method.with_network(self.gathered)

    def nats(self, split, texts, draws=1):
        """What the averaged network makes of `texts` texts, evenly spaced over the split.

        -> x (n, L), nats (n,), how many tokens were scored (n,)
        """
        x, frozen, label = self.to_device(self.data.example_windows(split, texts))  # (n, L) .. (n,)
        nats, scored = nats_of(
            self.averaged_method, self.gathered, x, draws, self.config.batch_size, frozen,
            label=label if self.classes else None, padding=self.data.padding(x))  # (n,) each
        lengths = self.data.lengths(x)  # (n,)
        return x, nats, scored if lengths is None else lengths

    def bound(self, split, texts, draws=1):
        """nats/token of these texts. -> mean, standard error"""
        x, nats, scored = self.nats(split, texts, draws)  # (n, L), (n,), (n,)
        return mean_nats(nats, scored, self.data.unequal(x), self.data.independent_texts)
