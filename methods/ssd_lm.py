"""
Chapter 14. SSD-LM (arXiv:2210.17432): the channel of TESS in blocks, from left to right.

    -log p(x) = sum_b -log p(x_b | x_<b) <= sum_b (14.4) of the block x_b,                   (14.15)
    whose network reads [ clean x_<b ; noisy x_b ] and nothing behind them

Attention goes both ways among what is read, so no cache can keep what is written. In a training
step one block is drawn for all texts of the batch, and its loss counts as often as there are
blocks. As published a block has 25 tokens, and a context of 1 to 175 tokens stands before it; here
the first block has none, so that whole texts have a bound. The schedule, k and the cross-entropy
are those of TESS, without self-conditioning.

The published steps are --sampler renoise: its script goes to all words of a nucleus at once
(--projection multi-hot), which is biased towards likely texts (measured).
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from diffusion import Ancestral, ancestral, probabilities
from flags import UserError, flag
from methods.base import end_texts
from methods.embedding import free_tokens
from methods.simplex import LogitNoise
from samplers.evidence import WordEvidence


@dataclass(eq=False)
class SSDLM(LogitNoise):
    """--method ssd_lm: the channel of tess, block after block."""
    diffusion_block: int = flag(4, "tokens per block; 25 as published", least=1, fixed=True)

    @property
    def block_length(self):
        return self.diffusion_block

    def check(self, config):
        self.count_blocks(config.block_size)

    def count_blocks(self, length):
        """Blocks of a text; UserError if they do not fill it."""
        if length % self.diffusion_block:
            raise UserError(f"{length} tokens are not whole blocks of {self.diffusion_block}: "
                            "change --diffusion_block or --block_size")
        return length // self.diffusion_block

    def of_block(self, score, denoiser, x, frozen, b):
        """score(denoiser, text, given) of block b after its clean context, 0 elsewhere. -> (B, L)
        """
        lo, hi = b * self.diffusion_block, (b + 1) * self.diffusion_block
        given = ~free_tokens(x[:, :hi], None if frozen is None else frozen[:, :hi])  # (B, hi)
        given[:, :lo] = True
        nats = score(denoiser, x[:, :hi], given)  # (B, hi)
        return F.pad(nats, (0, x.shape[1] - hi))  # (B, L)

    def loss(self, denoiser, x, frozen=None):
        """Cross-entropies of one block, times the number of blocks. -> (B, L) nats"""
        K = self.count_blocks(x.shape[1])
        b = int(torch.randint(K, (1,)))
        return K * self.of_block(super().loss, denoiser, x, frozen, b)  # (B, L)

    def nelbo(self, denoiser, x, frozen=None):
        """(14.15), a draw for every block. -> (B, L) nats"""
        blocks = range(self.count_blocks(x.shape[1]))
        return sum(self.of_block(super(SSDLM, self).nelbo, denoiser, x, frozen, b) for b in blocks)

    @torch.no_grad()
    def sample(self, denoiser, z, frozen, steps, sampler=ancestral, to_probs=probabilities,
               window=None, end=None):
        """Block by block, in `steps` steps each; yields z (B, L) after each step.

        What is given to the right of a block is kept, but the block does not see it.
        window: how many tokens a block sees, itself included
        """
        walk = WordEvidence() if isinstance(sampler, Ancestral) else sampler
        L, n = z.shape[1], self.diffusion_block
        self.count_blocks(L)
        going = torch.arange(len(z), device=z.device)  # (b,) texts that have not ended
        for hi in range(n, L + 1, n):
            lo, first = hi - n, max(0, hi - (window or hi))
            place = torch.arange(first, hi, device=z.device)  # (w,)
            given = frozen[going][:, place]  # (b, w)
            given[:, :lo - first] = True
            if given.all():
                continue
            for part in walk(self.process, denoiser, z[going][:, place], given, steps, to_probs):
                z = z.index_put((going[:, None], place), part)  # (B, L)
                yield z
            texts = len(going)
            z, going = end_texts(z, frozen, lo, hi, end, going, None)  # (B, L), (b',)
            if len(going) < texts:
                yield z
