"""
The contract of a method, and what methods share: losses at selected positions.

A method is a dataclass: its fields are its flags, its functions are its equations, and its exact
oracle is one of them. To add one, write methods/NAME.py and one row in methods/__init__.py.

    loss(denoiser, x, frozen=None)      (B, L) nats, what training minimizes; may be a surrogate
    nelbo(denoiser, x, frozen=None)     (B, L) nats, an unbiased draw of a bound on -log p(x)
    sample(denoiser, z, frozen, steps)  yields (B, L) ids, from noise to text
    oracle(language)                    the exact denoiser of a language with known probabilities

`denoiser(z, t, at=None) -> logits` is a network, its average, a guided pair or an oracle. Logits
are (B, L, V), or (N, V) at the positions that `at` (B, L) selects. `frozen` (B, L) marks given
tokens, which are never noised, never scored and never resampled.

Select, then score. At V = 50,000 the head and its softmax are most of a training step, so the head
runs only at the positions that count. There are two ways to select them:

    exact    the positions `at` themselves. Their number depends on the noise, so a GPU must wait
             for it, and a compiled network is compiled again for each number
    fixed    always K positions, some of weight 0. For B stratified times with an expected share
             `share` of masks, at most K = share B L + L + 6 sqrt(B L / 6) are masked, except once
             in 10^9 steps: a stratum is off by L at most, and each token tosses its own coin. If
             more are masked, K of them are drawn with a higher weight, so the mean stays the same

kernels.py, if it is there, fuses head and loss. It computes the gradient of the head in the forward
pass, so it must know how losses are averaged: a method that passes `weight` promises the mean over
texts of the nats per token that is not frozen. If the promise is broken, gradients become nan.
"""
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from diffusion import ancestral, likelihood, probabilities, supports
from flags import UserError, flags_of
from model import Transformer, kernels, select_rows, texts_with


@dataclass(eq=False)
class Method:
    """What every method has. The attributes are facts, for code that must not name methods."""
    n_tokens: int  # symbols of the text; ids from n_tokens on are special
    # set in __post_init__
    process = None  # the noise, a process of diffusion.py; None: no noise
    vocab_size = None  # symbols of the network, special ones included

    # the network
    network = Transformer  # network(vocab_size, n_layer, ...) -> nn.Module
    predicts = "each token in its place"  # what a row of logits is: other networks do not fit
    adapts = ()  # what networks predict whose weights `weights_from` can change to fit
    uses_time = False  # the network reads the time t
    token_times = False  # and has learned to read another one for each token
    mask_mod = None  # the attention pattern; None: all tokens see all
    bidirectional = True  # one call reads the whole text, masks included: neither cache nor packing
    shardable = True  # all that is trained is read inside the network, so FSDP can spread it

    # the loss
    exact = False  # nelbo is -log p(x) itself, not a bound
    bounded = True  # nelbo is a bound on -log p(x), at least; else scripts print it as a loss only,
    unbounded_reason = ""  # and this, as the end of a sentence: why there is none
    classifies = False  # the loss is that of a class, and there is no text to sample
    pairs_at = None  # where classes are text and draws: (network, x, t) -> nats (n,), share right
    uniform_at_first = True  # to a fresh network all symbols are equally likely
    rate = None  # of an energy: (network, z, t, at) -> x (B, L) -> log p(x | z) + const
    draw_evidence = None  # where noise is of real numbers: (x, t, frozen) -> weights (B, L, V)
    fixed_positions = True  # the loss can score a fixed number of positions, see above
    counts_padding = False  # the loss of one token depends on all others, padding included
    stages = ()  # shares of a run at which its learning rate begins anew: something else is trained

    # sampling
    samplers = None  # names of the samplers that fit; None: all whose own `fits` agrees
    one_by_one = False  # it yields a state for each token at most, whatever `steps` says
    takes_steps = True  # of (0.3), or its own ones, guided or not; else `first_choice` alone writes
    opens_masks = False  # sampling is opening masks, and a sampler may choose which
    plans = False  # logit n_tokens is the log-odds that the word there is wrong
    scores_ratios = False  # logits are log-ratios of probabilities, not log x_theta
    reads_in_order = False  # the denoiser of a block has `in_order`: see methods/blockgen.py
    heads = 1  # tokens that one state predicts: its network takes `ahead`, as methods/ar.py says
    block_length = None  # of methods that write blocks in order: tokens per block
    max_steps = None  # the most steps there are (in a block); None: no limit
    edits = ""  # what its steps change: "text", tokens of any number; "tree"; else tokens in place
    first_token = None  # the id that every text of a published network begins with
    any_length = False  # gaps take any number of words, and where texts end they are filled up
    end_id = None  # .. with this id, which checkpoints/build.py sets

    # other scripts
    also_called = ()  # names that people know from elsewhere, for "did you mean ...?"
    distilled_by = ()  # methods of distill.py
    public_layout = None  # the public code of its networks, a row of LAYOUTS in tensor_layouts.py
    public_flags = {}  # values that flags must have, or that code would read a network wrongly
    defaults = {}  # other defaults for the flags of the scripts, as in dict(labels=True)

    @classmethod
    def build(cls, n_tokens, options):
        """The method with those of the options (a dict) that are its flags; UserError for a choice
        that it does not have."""
        own = {name: options[name] for name in flags_of(cls) if name in options}
        for name, value in own.items():
            choices = flags_of(cls)[name].metadata["choices"]
            if choices and value not in choices:
                raise UserError(f"--{name} {value} is not one of {', '.join(choices)}, which this "
                                "method has")
        return cls(n_tokens, **own)

    # ---- facts that follow from others

    @property
    def name(self):
        """As in --method, the name of its file. For messages."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def left_to_right(self):
        """It writes in order, so it has a cache, a window and an end of text."""
        return self.block_length is not None

    @property
    def first_choice(self):
        """The sampler where none is given: the one that loses least in few steps."""
        any_mask = self.opens_masks and self.samplers is None and not self.left_to_right
        return "spread" if any_mask else "ancestral"

    @property
    def revises_text(self):
        """Noise makes wrong words, so any word may change while sampling."""
        return self.process is not None and not self.process.text_stays

    @property
    def classifier_process(self):
        """The noise that a classifier must be trained on to guide this method; None: none can."""
        return self.process

    def count_states(self, length, steps):
        """How many states `sample` yields for texts of `length` tokens."""
        if self.one_by_one:
            return length
        steps = min(steps, self.max_steps or steps)
        return steps if self.block_length is None else length // self.block_length * steps

    # ---- what every method defines

    def loss(self, denoiser, x, frozen=None):
        raise NotImplementedError

    def nelbo(self, denoiser, x, frozen=None):
        raise NotImplementedError

    def prior(self, shape, device="cpu"):
        """Pure noise; without noise the first special id: no text yet. -> (B, L) ids"""
        empty = torch.full(shape, self.n_tokens, device=device)  # (B, L)
        return empty if self.process is None else self.process.draw_noise(1.0, empty)  # (B, L)

    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """From noise to text; yields z (B, L) after each step.

        window, end: for methods that write in order: tokens that they see, the id that ends a text
        """
        return sampler(self.process, denoiser, z, frozen, steps, to_probs)

    def likelihood(self, z, t):
        """q(z_t | x = v) for each text symbol v. -> (B, L, n_tokens)"""
        return likelihood(self.process, z, t)

    def oracle(self, language):
        """The exact denoiser: log of the leave-one-out distribution. -> (B, L, n_tokens)

        label (B,) conditions it on the class; n_topics stands for "no class".
        """
        def denoiser(z, t, at=None, label=None, **layout):
            p = language.posterior(self.likelihood(z, inside(t)), topic=label)  # (B, L, n_tokens)
            return select_rows(p.log().to(z.device), at)
        return skip_texts(denoiser)

    # ---- hooks that few methods need

    def check(self, config):
        """Raises UserError where flags of the script do not fit this method's."""

    def on_start(self, read_model):
        """Before a new run. read_model(flag, folder) -> another run: checkpoints/load.py."""

    def on_data(self, data):
        """Before a new run, and for an oracle: what to keep of the training text, a data set."""

    def on_step(self, step, trainer):
        """Before each training step: curricula, searches, schedules."""

    def extra_state(self):
        """What a checkpoint must hold besides flags and weights. -> dict of tensors"""
        return {}

    def load_extra_state(self, state):
        """Take back what extra_state() returned, from the dict of a checkpoint."""

    def weights_from(self, other, weights, fresh):
        """The weights to start with, from those of the method `other`, or None; fresh: new ones"""
        return weights if other.classifies == self.classifies else None

    def usage(self, folder, classes):
        """Of methods that classify: the flags of sample.py that name a run, {name: value}."""

    def measures(self, network, x, frozen=None, lengths=None):
        """Of texts x (n, L), lengths (n,): what only this method tells. -> [(what, values (n,))]"""
        return []

    def with_network(self, network):
        """The method to use with another network, such as the average, if it reads parts of it."""
        return self


def skip_texts(denoiser):
    """The same oracle, which is called for texts with selected positions only."""
    def call(z, t, at=None, label=None, **layout):
        if at is not None:
            z, t, at, label = texts_with(at, z, t, at, label)
        return denoiser(z, t, at=at, label=label, **layout)
    return call


def inside(t):
    """t in float64, away from 0 and 1, where a given token would be impossible."""
    return t.double().clamp(1e-9, 1 - 1e-9)


# ---- losses at selected positions

def to_float32(logits):
    """Losses are sums over V symbols, for which bf16 is too coarse."""
    return logits if logits.dtype == torch.float64 else logits.float()


def cross_entropy(logits, x):
    """-log x_theta(x). logits (N, V), x (N,) -> (N,) nats"""
    return F.cross_entropy(to_float32(logits), x, reduction="none")  # (N,)


def free_tokens(x, frozen):
    """Where tokens are not given. -> (B, L) bool"""
    return torch.ones_like(x, dtype=torch.bool) if frozen is None else ~frozen  # (B, L)


def scatter_nats(nats, at):
    """nats (N,) at the tokens `at` (B, L), 0 elsewhere. -> (B, L)"""
    zeros = torch.zeros(at.shape, dtype=nats.dtype, device=at.device)  # (B, L)
    return zeros.masked_scatter(at, nats)  # (B, L)


def capacity(B, L, share):
    """K, the number of positions of a fixed selection."""
    return B * L if share >= 1 else min(B * L, int(share * B * L + L + 6 * (B * L / 6) ** 0.5))


def select_fixed(at, share):
    """The fixed selection from `at` (B, L). -> distinct indices (K,) of all B L, weights (K,)"""
    if share >= 1:
        return torch.arange(at.numel(), device=at.device), at.flatten().float()  # (B L,) each
    order = at.flatten() + torch.rand(at.numel(), device=at.device)  # (B L,)
    numbers = order.argsort(descending=True)[:capacity(*at.shape, share)]  # (K,)
    return numbers, at.flatten()[numbers] * (at.sum() / len(numbers)).clamp(min=1)  # (K,), (K,)


def loss_at(denoiser, z, t, at, rule, facts, n_tokens, weight=None, frozen=None, share=1.0):
    """weight * rule(logits (N, n_tokens), *facts (N,)) at `at` (B, L), 0 elsewhere. -> (B, L) nats

    facts, weight: tensors that can be expanded to (B, L); weight may be a number"""
    fixed = supports(denoiser, "fixed_shapes")
    chosen, weights = select_fixed(at, share) if fixed else (at, None)  # (K,) each, or (B, L)

    def pick(a):
        return a.expand(at.shape).flatten()[chosen] if fixed else a.expand(at.shape)[at]  # (N,)
    facts = [pick(a) for a in facts]  # (N,) each
    if weight is not None and not torch.is_tensor(weight):
        weight = torch.full((), weight, device=at.device)  # () made there: a copy would wait
    scale = None if weight is None else pick(weight)  # (N,)
    if fixed:  # a position of weight 0 may have an infinite or undefined `weight`, near t = 0
        scale = weights if scale is None else torch.where(weights > 0, scale * weights, 0)  # (N,)
    if fast := fast_form(denoiser, rule, promised=weight is not None):
        free = None if frozen is None else pick(1 / (~frozen).sum(-1, keepdim=True).clamp(min=1))
        head = partial(fast, n_tokens=n_tokens, scale=scale, free=free, facts=facts)
        nats = denoiser(z, t, at=chosen, head=head)  # (N,)
    else:
        nats = rule(denoiser(z, t, at=chosen)[:, :n_tokens], *facts)  # (N,)
        nats = nats if scale is None else nats * scale.to(nats.dtype)  # (N,)
    zeros = torch.zeros(at.shape, dtype=nats.dtype, device=at.device)  # (B, L)
    if fixed:
        return zeros.flatten().scatter(0, chosen, nats).view(at.shape)  # (B, L)
    return zeros.masked_scatter(at, nats)  # (B, L)


def fast_form(denoiser, rule, promised):
    """The fused kernel for the head and this rule, of kernels.FAST, or None."""
    allowed = promised or not torch.is_grad_enabled()
    if kernels and allowed and supports(denoiser, "supports_fused_head"):
        return kernels.FAST.get(getattr(rule, "__name__", None))


def offset_positions(at, L, width):
    """Positions of texts (B, L) as positions of texts (B, width) that begin with them."""
    if at.dtype == torch.bool:
        return F.pad(at, (0, width - L))  # (B, width)
    return at // L * width + at % L  # (N,)


def copy_capabilities(denoiser, call):
    """`call`, a denoiser made from another one, with the abilities of that one."""
    call.supports_fused_head = supports(denoiser, "supports_fused_head")
    call.fixed_shapes = supports(denoiser, "fixed_shapes")
    return call
