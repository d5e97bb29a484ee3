"""
Numbers computed with public research code, tests/reference/*.npz, and the inputs that they share.

reference.npz was made with the code of MDLM (commit c112c52), UDLM (edb0f8c) and GIDD (f67acc9) on
random inputs: B = 4 texts of L = 8 tokens, V = 12 symbols, of which the mask is 11. net/* holds two
tiny networks and their outputs.
"""
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F

FOLDER = Path(__file__).parent / "reference"
# names in the published DiT (SEDD, MDLM, UDLM) and ours: loading one is a rename
RENAME = {"vocab_embed.embedding": "embed", "sigma_map.mlp.": "noise_mlp.",
          "cond_map.embedding_table": "label_embed", "attn_qkv": "qkv", "attn_out": "out",
          "adaLN_modulation": "adaln", "output_layer.norm_final": "norm",
          "output_layer.linear": "head", "output_layer.": ""}


class Figures:
    """A file of reference numbers: figures(key) -> tensor."""

    def __init__(self, name):
        self.arrays = numpy.load(FOLDER / f"{name}.npz")

    def __call__(self, key):
        return torch.from_numpy(self.arrays[key])

    def keys(self, prefix=""):
        return sorted(key for key in self.arrays if key.startswith(prefix))

    def weights(self, prefix, rename=RENAME):
        """The weights of a published network, by our names."""
        found = {}
        for key in self.keys(prefix):
            ours = key.removeprefix(prefix)
            for theirs, new in rename.items():
                ours = ours.replace(theirs, new)
            if "inv_freq" not in key:
                found[ours] = self(key)
        return found


figure = Figures("reference")
V = 12  # 11 text symbols and the mask, 11; under uniform noise all are text
T = figure("in/t")[:, None]  # (B, 1)
S = T - 0.0625  # (B, 1)
LOG_P = figure("in/logits")[..., :11].log_softmax(-1)  # (B, L, 11)
X_THETA = F.pad(LOG_P.exp(), (0, 1))  # (B, L, 12)
X, Z = figure("in/x0"), figure("in/zt_abs")  # (B, L) each
LOG_P_U = figure("in/logits_u").log_softmax(-1)  # (B, L, 12)
X_U, Z_U = figure("in/x0_u"), figure("in/zt_u")  # (B, L) each


def same(ours, theirs, tolerance=1e-9):
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
