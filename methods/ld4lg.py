"""
Chapter 15. LD4LG (arXiv:2212.09462): a text as K vectors, v-prediction, words all at once.

The published system has a frozen BART between words and vectors: here encoder and decoder are
trained with the rest. The loss of stage two is |v - v'|^2 at uniform times under the cosine
schedule, half of the texts with the network's own first h' (self-conditioning). Classes are part of
the condition, and given words are read beside the latents, as its cross-attention to a source does.

Its decoder reads h without noise (--decode_at 0), and samples there end at h', so the last sigma of
the walk is lost. Here the walk ends at z_0, which the decoder was trained on, and there is a bound.
"""
from dataclasses import dataclass

from methods.latent import Latent


@dataclass(eq=False)
class LD4LG(Latent):
    """--method ld4lg: the base as it is."""
