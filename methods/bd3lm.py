"""
Chapter 8. Block diffusion, BD3-LM (arXiv:2503.09573): masks inside blocks, in order across them.

    likelihood   -log p(x) = sum_b -log p(x^b | x^<b)                                          (8.1)
    bound        -log p(x^b | x^<b) <= E_k E_z sum_l [z_l = m] (L'/k) CE_l,                    (8.2)
                 CE_l = -log x_theta(x_l | z^b, x^<b),   k ~ Uniform{1..L'} for each block
    attention    one pass for all blocks over [z ; x], 2L tokens at positions 0..L-1, twice.   (8.3)
                 A token sees its own block in its own half, and the clean tokens of earlier blocks
    clipped      (1/t) CE at the masks, t ~ U(low, high) for each block                        (8.4)

Blocks have L' tokens. (8.2) is (3.1) in each block. L' = 1 is autoregression: the one token is
always masked, k = 1, and (8.2) is exact. L' = L is masked diffusion: the clean half is empty, and
bound and samples are those of methods/mdlm.py to the last bit.

Training draws the number of masks as in (8.2). With a rate t of (0, 1) many small blocks would have
no mask, and weights would be unbounded. The paper uses (8.4), with an interval that suits the size
of the block, or in which the loss varies least. It is a bound only for low, high = 0, 1: `nelbo`
never uses it. The paper's code also redraws blocks whose share of masks is outside the interval, so
it never trains on a block that is all masks, which is how every block is sampled at first. Ours
draws each block once: at rates of .45 to .95, three in ten blocks of four are all masks.

Complementary masks, (3.9), are drawn by their number here, too: k ~ Uniform{0..L'} in z and L' - k
in z'. A mask weighs (L' + 1)/k in z, (L' + 1)/(L' - k) in z'; without these weights, each token
counts once.
"""
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from diffusion import ancestral, corrupt, probabilities, stratified
from flags import UserError, flag
from methods.base import (
    copy_capabilities,
    end_texts,
    new_cache,
    offset_positions,
    read_with_cache,
    skip_texts,
)
from methods.mdlm import MDLM, any_order, complement, masked_weight
from model import block_causal, select_rows


@lru_cache
def block_diffusion_mask(L, block, reach=None):
    """(8.3) as an attention pattern on [z ; x], L tokens each; None for one block, which sees all.

    reach: how many tokens before its block a token sees, a multiple of the block; None: all
    """
    def mask_mod(batch, head, query, key):
        # exercise 17: who may look at whom, (8.3), 3 lines
        back = query % L // block - key % L // block  # blocks from the query back to the key
        own = (back == 0) & (query // L == key // L)  # halves: inductor fails on bool == bool
        return own | (back > 0) & (back * block <= (L if reach is None else reach)) & (key >= L)
        # end
    mask_mod.cacheable = True
    return None if block == L else mask_mod


def stratified_times(B, K, device="cpu"):
    """A time for each of K blocks in B texts, one in each (B K)-th of (0, 1), shuffled. -> (B, K)

    In order, the k-th block would get times from a few strata only, and its bound would be wrong. A
    single block needs no shuffling, since the texts of a batch are random.
    """
    u = stratified(B * K, device)[:, 0]  # (B K,)
    return (u[torch.randperm(B * K, device=device)] if K > 1 else u).view(B, K)  # (B, K)


def clip_grid():
    """The paper's intervals (low, high): (0, 1), and all of width .5 to .9 on a grid of .05."""
    widths = (0.5, 0.6, 0.7, 0.8, 0.9)
    return [(0.0, 1.0)] + [(round(i * 0.05, 2), round(i * 0.05 + w, 2))
                           for w in widths for i in range(round((1 - w) / 0.05) + 1)]


def least_variance(t, nats, grid):
    """The interval of least variance of (8.4), from times t of (0, 1) and losses (n,) of blocks.

    The times that fall into an interval are uniform in it, so one set of draws does for all.
    """
    inside = [(t >= low) & (t <= high) for low, high in grid]  # (n,) each
    spread = [nats[rows].var().item() if rows.sum() > 1 else float("inf") for rows in inside]
    return grid[min(range(len(grid)), key=spread.__getitem__)]


def parse_interval(clip):
    """--clip as numbers low, high; None if it is empty."""
    try:
        low, high = map(float, clip.split(",")) if clip else (0, 1)
    except ValueError:
        low = high = -1
    if not 0 <= low <= high <= 1 or not high:
        raise UserError(f"--clip {clip} must be two rates between 0 and 1, the lower first, as in "
                        "0.45,0.95")
    return (low, high) if clip else None


@dataclass(eq=False)
class BD3LM(MDLM):
    """--method bd3lm: mdlm in blocks of --diffusion_block tokens.

    (--block_size is the length of a training text, as in nanoGPT. LLaDA's blocks in
    samplers/semi_ar.py are a way to sample from mdlm, not another model.)
    """
    also_called = ("block", "blocks", "bd3", "bd3_lm", "block_diffusion")
    diffusion_block: int = flag(4, "tokens per block; 1 is ar, --block_size (a text's length) is "
                                "mdlm", least=1, fixed=True)
    weighting: str = flag("simple", "train on equal weights or on the bound itself",
                          ["simple", "bound"])
    clip: str = flag("", "train at mask rates from LOW,HIGH only, as in 0.45,0.95; empty: any "
                     "number of masks")
    clip_search: bool = flag(False, "look for the clip of least variance at every evaluation")
    bidirectional, classifier_process = False, None
    spare_tokens = 0  # room in the cache beside the text
    distilled_by, public_layout = (), "bd3lm"

    def __post_init__(self):
        super().__post_init__()
        self.block_length, self.interval = self.diffusion_block, parse_interval(self.clip)
        if self.complement and (self.interval or self.clip_search):
            raise UserError("--clip trains at some rates, and complementary masks have others: "
                            "leave out --complement, or --clip and --clip_search")

    def check(self, config):
        if config.block_size % self.block_length:
            raise UserError(f"--block_size {config.block_size} must be a multiple of "
                            f"--diffusion_block {self.block_length}")

    # ---- --clip_search

    def on_step(self, step, trainer):
        """Find the interval anew at every evaluation."""
        config = trainer.config
        if self.clip_search and step % config.eval_interval == 0:
            torch.manual_seed(config.seed * 1_000_003 + step)
            x = trainer.data.windows("val", config.eval_iters * config.batch_size)  # (n, L)
            self.interval = self.find_clip(trainer.average, x.to(trainer.device), config.batch_size)

    @torch.no_grad()
    def find_clip(self, denoiser, x, batch_size):
        """The interval of clip_grid() in which (8.4) varies least over blocks of x (n, L)."""
        if self.block_length == 1:
            return 1.0, 1.0  # always a mask, so there is no noise at all
        draws = [self.clipped(denoiser, part, low_high=(0.0, 1.0)) for part in x.split(batch_size)]
        blocks = lambda parts: torch.cat(parts).reshape(-1, self.block_length)  # (n K, L')
        nats, t = (blocks(parts).mean(-1) for parts in zip(*draws))  # (n K,) each
        return least_variance(t, nats, clip_grid())

    def extra_state(self):
        """The interval that was found, for a run that is resumed between two searches."""
        if not (self.clip_search and self.interval):
            return {}
        return {"clip": torch.tensor(self.interval, dtype=torch.float64)}  # (2,)

    def load_extra_state(self, state):
        if self.clip_search and "clip" in state:
            self.interval = tuple(state["clip"].tolist())

    # ---- losses

    def given_before(self, denoiser, x, reach=None):
        """A denoiser of z (B, L) that also shows each block the clean tokens of x (B, L) before it.

        One pass of (8.3). The clean half has no last block, since nothing could see it.
        -> logits in the rows `at` (B, L)
        """
        L, n, layout = self.whole_blocks(x.shape[1]), self.block_length, {}
        if n < L:
            place = torch.arange(L, device=x.device)  # (L,)
            layout = dict(positions=torch.cat([place, place[:-n]]),  # (2L - L',)
                          mask_mod=self.pattern(L, reach))

        def given(z, t, at, **head):
            both = torch.cat([z, x[:, :-n]], 1)  # (B, 2L - L')
            at = offset_positions(at, L, both.shape[1])  # (B, 2L - L')
            return denoiser(both, None, at=at, **layout, **head)  # (N, V) no t: masks show it
        return copy_capabilities(denoiser, given)

    def pattern(self, L, reach=None):
        """Who sees whom of [z ; x], L tokens each. reach: see block_diffusion_mask"""
        return block_diffusion_mask(L, self.block_length, reach)

    def whole_blocks(self, L):
        """L, or UserError if it is not a multiple of the block."""
        n = self.block_length
        if L % n:
            raise UserError(f"{L} tokens are no whole number of blocks of {n}: make it "
                            f"{-(-L // n) * n} with --length")
        return L

    def loss(self, denoiser, x, frozen=None):
        """(8.2); without its weights for `simple`; (8.4) with --clip. -> (B, L) nats"""
        if self.interval:
            return self.clipped(denoiser, x, frozen)[0]  # (B, L)
        if self.complement:
            return self.complementary_loss(denoiser, x, frozen)  # (B, L)
        z, k, n = self.any_order(x, frozen)  # (B, L) each
        weight = 2 * n / (n + 1) if self.weighting == "simple" else n / k  # both 1 for L' = 1
        given, share = self.given_before(denoiser, x), self.most_masked(x.shape[1])
        return self.cross_entropy(given, x, z, None, weight, frozen, share)  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """One draw of (8.2), however training draws. -> (B, L) nats"""
        z, k, n = self.any_order(x, frozen)  # (B, L) each
        return n / k * self.cross_entropy(self.given_before(denoiser, x), x, z, None)  # (B, L)

    def most_masked(self, L):
        """The share of masks that `loss` expects: k is uniform in 1 .. L'."""
        return (self.block_length + 1) / (2 * self.block_length)

    def times_of(self, x):
        """A time for each block of x (B, L). -> (B, K)"""
        return stratified_times(len(x), x.shape[1] // self.block_length, x.device)  # (B, K)

    def any_order(self, x, frozen=None):
        """The draw of (8.2): mask k of the n free tokens of each block. -> z, k, n (B, L) each"""
        blocks = lambda a: None if a is None else a.reshape(-1, self.block_length)  # (B K, L')
        u = self.times_of(x).reshape(-1, 1)  # (B K, 1)
        drawn = any_order(self.process, blocks(x), u, blocks(frozen))  # (B K, L'|1) each
        return (a.expand(-1, self.block_length).reshape(x.shape) for a in drawn)

    def complementary_loss(self, denoiser, x, frozen=None):
        """(3.9), by the number of masks in each block. -> (B, L) nats"""
        blocks = lambda a: a.reshape(-1, self.block_length)  # (B K, L')
        x_b, given = blocks(x), blocks(torch.zeros_like(x).bool() if frozen is None else frozen)
        n = (~given).sum(-1, keepdim=True)  # (B K, 1)
        u = self.times_of(x).reshape(-1, 1)  # (B K, 1)
        k = (u * (n + 1)).floor()  # (B K, 1) of 0 .. n
        z, _, _ = any_order(self.process, x_b, (k - 0.5) / n.clamp(min=1), given)  # (B K, L')
        z = torch.where(k > 0, z, x_b)  # (B K, L')
        denoiser, nats = self.given_before(denoiser, x), 0.0
        for z, k in ((z, k), (complement(self.process, x_b, z, given), n - k)):
            weight = (n + 1) / k / 2 if self.weighting == "bound" else torch.ones_like(k)
            z, weight = z.reshape(x.shape), weight.expand_as(z).reshape(x.shape)  # (B, L) each
            nats = nats + self.cross_entropy(denoiser, x, z, None, weight, frozen, 0.5)  # (B, L)
        return nats

    def clipped(self, denoiser, x, frozen=None, low_high=None):
        """(8.4) for --clip, or for `low_high`; `simple` as in mdlm. -> nats, t (B, L) each"""
        low, high = low_high or self.interval
        simple = self.weighting == "simple" and not low_high
        u = self.times_of(x)  # (B, K)
        u = 1 - (1 - u).sqrt() if simple else u  # (B, K)
        t = (low + (high - low) * u).repeat_interleave(self.block_length, 1)  # (B, L)
        z = corrupt(self.process, x, t, frozen)  # (B, L)
        weight = 3 / (2 * low + high) if simple else masked_weight(self.process, t)  # (B, L)
        share = (2 * low + high) / 3 if simple else (low + high) / 2  # the mean of t
        given = self.given_before(denoiser, x)
        return self.cross_entropy(given, x, z, t, weight, frozen, share), t  # (B, L) each

    # ---- samples

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """Block by block, in `steps` steps each, with a sampler of masks; yields z after each step.

        What is given to the right of a block is kept, but the block does not see it.
        window: how many tokens a block sees, itself included
        """
        L, n = self.whole_blocks(z.shape[1]), self.block_length
        cache = self.new_cache(denoiser, L, window)
        going = torch.arange(len(z), device=z.device)  # (b,) texts that have not ended
        for lo in range(0, L, n):
            place = torch.arange(lo, lo + n, device=z.device)  # (L',)
            given = frozen[going][:, place]  # (b, L')
            if given.all():
                continue
            inner = self.next_block(denoiser, z[going, :lo], cache, window)
            start = z[going][:, place]  # (b, L')
            for block in sampler(self.process, inner, start, given, steps, to_probs):
                z = z.index_put((going[:, None], place), block)  # (B, L)
                yield z
            texts = len(going)
            z, going = end_texts(z, frozen, lo, lo + n, end, going, cache)  # (B, L), (b',)
            if len(going) < texts:
                yield z

    def new_cache(self, denoiser, length, window=None):
        return new_cache(denoiser, length + self.spare_tokens, self.block_length, window)

    def next_block(self, denoiser, past, cache, window=None):
        """A denoiser of the block after the clean text `past` (B, lo). -> logits at `at` (B, L')"""
        lo, n = past.shape[1], self.block_length

        def cached(z, t, at):
            return self.read_block(denoiser, cache, torch.cat([past, z], 1), at)  # (N, V)

        def uncached(z, t, at):
            text = torch.cat([past, z], 1)  # (B, lo + L')
            reach = None if window is None else window - n
            return self.given_before(denoiser, text, reach)(text, t, F.pad(at, (lo, 0)))  # (N, V)
        return cached if cache else uncached

    def read_block(self, denoiser, cache, text, at):
        """Logits in the last block of a text whose beginning is in the cache. -> (N, V)"""
        n = self.block_length
        pattern = block_causal(n, cache.reach)
        return read_with_cache(denoiser, cache, text, at, text.shape[1] - n, pattern)

    def oracle(self, language):
        """The distribution given the clean text before the block and the rest of the block."""
        def denoiser(z, t, at=None, label=None, positions=None, **layout):
            """z = [noisy ; clean but for its last block]; p = 0 in the clean half. `positions` show
            the size of the blocks."""
            L = z.shape[1] if positions is None else int(positions.max()) + 1
            n = 2 * L - z.shape[1]
            half = torch.full((1, 1), 0.5, dtype=torch.float64, device=z.device)  # (1, 1) any time
            e = self.likelihood(z, half)  # (B, 2L - L', V)
            p = torch.zeros_like(e, device="cpu")  # (B, 2L - L', V)
            for lo in range(0, L, n):
                if at is None or at[:, lo:lo + n].any():  # a sampler needs one block only
                    seen = torch.cat([e[:, L:L + lo], e[:, lo:lo + n]], 1)  # (B, lo + L', V)
                    p[:, lo:lo + n] = language.posterior(seen, topic=label)[:, lo:]  # (B, L', V)
            return select_rows(p.to(z.device).log(), at)
        return skip_texts(denoiser)
