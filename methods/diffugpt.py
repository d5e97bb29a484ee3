"""
Chapter 18. From an AR model to masked diffusion: DiffuGPT, DiffuLLaMA (arXiv:2410.17891).

An AR network has learned the next token from those before it. Three changes keep what it knows:

    shift      row l reads [start, z_0, .., z_(L-1)], stands at z_(l-1), and predicts x_l
    attention  row q looks at key k  if  k <= q  or  u_qk < r,   u_qk ~ U(0, 1)               (18.9)
               r = min( 1, (n + 1) / (anneal N) ) in step n of N

and the loss is that of masked diffusion (methods/mdlm.py). u is drawn anew for each batch, and all
its texts, layers and heads share it. At r = 0 this is the AR network, which predicts a mask from
the tokens before it; at r = 1 all see all. Whatever r and u are, the network reads z alone, where
a token that is scored is a mask, so (0.2) and (3.1) stay bounds.

Without the shift the rows would be one place off: an AR row predicts the token behind it. start
and the mask are two symbols: an AR text begins with start, and a text may begin with a mask.
GPT-2's published weights are read, too (checkpoints/hub.py); its end of text serves as start.
"""
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from diffusion import ancestral, probabilities
from flags import UserError, flag
from methods.base import copy_capabilities, offset_positions
from methods.mdlm import MDLM
from model import Transformer, causal


class ShiftedTransformer(Transformer):
    """model.Transformer on [start, z_0, .., z_(L-1)], whose row l predicts x_l. start is the last
    symbol. A call reads the whole text, so it has no cache."""
    supports_cache = False

    def forward(self, z, noise=None, at=None, **layout):
        """As Transformer.forward, for positions of z (B, L). -> (B, L, V) or (N, V)"""
        B, L = z.shape
        z = F.pad(z, (1, 0), value=self.vocab_size - 1)  # (B, L + 1)
        if at is None:
            return super().forward(z, noise, **layout)[:, :-1]  # (B, L, V)
        return super().forward(z, noise, offset_positions(at, L, L + 1), **layout)  # (N, V)


class GPT2Transformer(ShiftedTransformer):
    """The same with what GPT-2 has and model.py has not: a learned vector for each position in
    place of rotary ones, and biases around attention."""

    def __init__(self, vocab_size, *sizes, positions, **options):
        super().__init__(vocab_size, *sizes, **options)
        D = self.embed.shape[1]
        self.places = torch.nn.Parameter(torch.zeros(positions, D))
        for block in self.blocks:
            block.qkv.bias = torch.nn.Parameter(torch.zeros(3 * D))
            block.out.bias = torch.nn.Parameter(torch.zeros(D))

    def embedding(self, z):
        """z (B, L + 1) with start. -> (B, L + 1, D)"""
        n = z.shape[1]
        if n > len(self.places):
            raise UserError(f"texts of {n - 1} tokens need --positions {n}, start included, and "
                            f"this network has {len(self.places)}")
        return super().embedding(z) + self.places[:n]  # (B, L + 1, D)

    def forward(self, z, noise=None, at=None, **layout):
        nowhere = torch.zeros(z.shape[1] + 1, dtype=torch.long, device=z.device)  # (L + 1,)
        return super().forward(z, noise, at, positions=nowhere, **layout)  # turned by no angle


def annealed(r, n, device="cpu"):
    """(18.9) for n tokens: a mask_mod, or None at r = 1, where all see all."""
    if r >= 1:
        return None
    if r <= 0:
        return causal
    opened = torch.rand(n, n, device=device) < r  # (n, n)
    return lambda batch, head, query, key: (query >= key) | opened[query, key]


def insert_row(weight, fresh, row):
    """`weight` (V, ..) with row number `row` of `fresh` (V + 1, ..) between its own. -> (V + 1, ..)
    """
    return torch.cat([weight[:row], fresh[row:row + 1].to(weight), weight[row:]])  # (V + 1, ..)


@dataclass(eq=False)
class DiffuGPT(MDLM):
    """--method diffugpt: starts from an ar run (--init_from) and becomes masked diffusion."""
    weighting: str = flag("simple", "train on bounded weights, or on the bound itself as published",
                          ["simple", "bound"])
    anneal: float = flag(0.3, "share of the steps over which attention opens to the right; 0: at "
                         "once, as in fine-tuning and from scratch", least=0, most=1)
    positions: int = flag(0, "the network of GPT-2, for that many tokens, start included; 0: that "
                             "of ar", least=0, fixed=True)
    opened: float = 1.0  # r of (18.9)
    predicts = "each token in the place before it"
    adapts = ("the next token",)
    network = ShiftedTransformer
    distilled_by, public_layout = (), "gpt2"

    def __post_init__(self):
        super().__post_init__()
        self.start, self.vocab_size = self.n_tokens + 1, self.n_tokens + 2
        if self.positions:
            self.network = partial(GPT2Transformer, positions=self.positions)

    def check(self, config):
        if self.positions and config.learned_places:
            raise UserError("--positions is a network with learned places: give "
                            "--no_learned_places")
        if 0 < self.positions <= config.block_size:
            raise UserError(f"--positions {self.positions} must be more than --block_size "
                            f"{config.block_size}, since start is a token, too")

    # ---- attention

    def on_start(self, read_weights):
        self.opened = 0.0 if self.anneal else 1.0

    def on_step(self, step, trainer):
        """r of (18.9) for step number `step` from 0 on."""
        steps = self.anneal * trainer.config.max_iters
        self.opened = min(1.0, (step + 1) / steps) if steps else 1.0

    def extra_state(self):
        """A run that was stopped goes on, and is evaluated, with the attention it has reached."""
        return {"opened": torch.tensor(self.opened, dtype=torch.float64)}

    def load_extra_state(self, state):
        self.opened = float(state.get("opened", 1.0))

    def seen_by(self, denoiser, z):
        """The denoiser with one draw of (18.9) for texts z (B, L)."""
        pattern = annealed(self.opened, z.shape[1] + 1, z.device)
        if pattern is None:
            return denoiser
        return copy_capabilities(denoiser, partial(denoiser, mask_mod=pattern))

    def cross_entropy(self, denoiser, x, z, t, *options):
        """As in mdlm, with this attention. -> (B, L) nats"""
        return super().cross_entropy(self.seen_by(denoiser, z), x, z, t, *options)  # (B, L)

    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        return super().sample(self.seen_by(denoiser, z), z, frozen, steps, sampler, to_probs)

    # ---- weights

    def weights_from(self, other, theirs, fresh):
        """Those of an ar network, whose start moves behind the mask. The mask has a fresh vector,
        and the head a fresh row for it, which is never read. -> state dict"""
        if other.predicts not in self.adapts:
            return super().weights_from(other, theirs, fresh)
        grown = {name: insert_row(theirs[name], fresh[name], self.process.mask)
                 for name in ("embed", "head.weight", "head.bias")}
        return {**theirs, **grown}
