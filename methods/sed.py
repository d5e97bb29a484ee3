"""
Chapter 13. SED (arXiv:2211.04236): a fixed table. And GlyphDiffusion's idea: letters as pictures.

    loss       |e - x_hat|^2  -  log p(x | z),   p and x_hat of (13.3)

A table that is not trained cannot collapse, so no term has to keep its rows apart. The published
one comes from another model; here it is random, the bitmaps of letters, or that of another run on
the same tokens (`--rows_from`). The schedule is cosine. No public code was found: this is after the
abstract and a summary.

`--table glyphs` draws a character as 5 x 7 pixels of +-1 / sqrt(35). GlyphDiffusion (2304.12519)
renders whole texts as images and denoises these; the idea that is left of it here is that a token
is a picture, and that similar pictures (c and e) are near each other.
"""
from dataclasses import dataclass

import torch

from flags import UserError, flag
from gaussian import EmbeddingSpace
from methods.base import free_tokens, scatter_nats
from methods.embedding import TRAINED, Embedding
from methods.gammas import Alpha2
from methods.glyphs import PIXELS, draw_glyph

PLAIN = 16  # --dim where it is not given


@dataclass(eq=False)
class SED(Embedding):
    """--method sed: trained on squared errors and cross-entropies."""
    table: str = flag("random", "the fixed rows: random, or bitmaps of one character a token",
                      ["random", "glyphs"], fixed=True)
    rows_from: str = flag("", "the folder of a checkpoint whose embeddings are the rows; --dim is "
                          "their width", fixed=True)

    def __post_init__(self):
        if self.table == "glyphs" and self.dim not in (PLAIN, PIXELS):
            raise UserError(f"--table glyphs has --dim {PIXELS}, 5 x 7 pixels: leave --dim out")
        if self.table == "glyphs" and self.rows_from:
            raise UserError("--table glyphs has rows: leave out --rows_from")
        super().__post_init__()

    def space(self):
        rows = self.random_table()  # (V, D)
        if self.table == "glyphs":
            rows = torch.zeros(self.n_tokens, PIXELS)  # (V, D) until the tokens are known
        return EmbeddingSpace(rows, "unit", Alpha2("cosine", -5.0, 9.0), fixed=True,
                              feeds_back=self.self_condition > 0)

    def on_data(self, data):
        """Draws the characters, which a checkpoint keeps with the weights."""
        super().on_data(data)
        if self.table == "glyphs":
            glyphs = [draw_glyph(data.encoding, id) for id in range(self.n_tokens)]  # V of (D,)
            self.process.table.data = torch.stack(glyphs)  # (V, D)

    def on_start(self, read_model):
        """Takes the rows of another run: what its network reads of each token."""
        if not self.rows_from:
            return
        other = read_model("--rows_from", self.rows_from)
        rows = other.method.process.rows() if other.method.draw_evidence else other.denoiser.embed
        if rows.shape[1] != self.dim:
            raise UserError(f"--rows_from {self.rows_from} has rows of {rows.shape[1]} numbers: "
                            f"give --dim {rows.shape[1]}")
        self.process.table.data = rows[:self.n_tokens].detach().clone()  # (V, D)

    def loss(self, denoiser, x, frozen=None):
        """Squared errors and cross-entropies, no bound. -> (B, L)"""
        at = free_tokens(x, frozen)  # (B, L)
        t = self.useful_times(at, *TRAINED)  # (B, 1|L)
        fed_back = self.choose_fed_back(len(x), x.device)  # (B,)
        e, _, found = self.denoise(denoiser, x, t, at, frozen, fed_back)  # (N, D)
        ce = -found.log_p.gather(-1, x[at][:, None])[:, 0]  # (N,)
        return scatter_nats((e - found.x_hat).square().sum(-1) + ce, at)  # (B, L)
