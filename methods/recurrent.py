"""
Chapter 3, recurrence. Blocks that read the text word by word, from either side (--recurrent n).

The exact denoiser of the toy language is two sweeps over the text and a product, (1.3): what the
words to the left say of the place in the grammar, and what those to the right say. A block here
has the same two sweeps, learned, in the place of attention:

    from the left    f_l = gru(h_l, f_l-1)                                                    (3.13)
    from the right   g_l = gru'(h_l, g_l+1)
    the block        h_l += W [f_l ; g_l],   then its MLP, as in model.py

    gru(x, f) = (1 - u) n + u f,   n = tanh(A x + r (B f + b)),   r, u = sigmoid(C [x ; f])   (3.14)

(GRU, arXiv:1406.1078.) A word ten places away is ten steps away, and each step is the same, where
attention learns a way of reading for every distance and every pattern of masks. What all words say
together, such as the topic, is learned slowly by sweeps alone (measured), and soon by attention. So
the last n blocks are recurrent, and those before them are not. BiMamba, the network of Caduceus
(arXiv:2403.03234) with which MDLM and UDLM read DNA, is a recurrence from either side, too.

The sweeps read the whole text, so there is no cache, and no method whose tokens may not see all.
"""
import torch.nn as nn

from flags import UserError
from model import Block, Transformer


class RecurrentBlock(Block):
    """(3.13), with states as wide as the network."""

    def __init__(self, n_embd, n_head, cond_dim, dropout, qk_norm, norm_bias=False):
        super().__init__(n_embd, n_head, cond_dim, dropout, qk_norm, norm_bias)
        del self.qkv
        self.gru = nn.GRU(n_embd, n_embd, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * n_embd, n_embd, bias=False)
        if not cond_dim:
            nn.init.zeros_(self.out.weight)  # the block starts as the identity

    def attend(self, h, rotary, mask_mod, remember):
        """(3.13) for h (B, L, D). -> (B, L, D); UserError where not all tokens see all"""
        if mask_mod is not None or remember:
            raise UserError("--recurrent reads whole texts, and this would read parts: leave out "
                            "what asks for it, or train without --recurrent")
        return self.out(self.gru(h)[0])  # (B, L, D)


def make_recurrent(network, method, config):
    """Put fresh recurrent blocks in the place of the last --recurrent ones; or UserError."""
    first = config.n_layer - config.recurrent
    if first < 0:
        raise UserError(f"--recurrent {config.recurrent} is more than --n_layer {config.n_layer}: "
                        "lower it")
    if vars(config).get("sides", "joined") != "joined":
        raise UserError("--recurrent reads source and target alike: leave out --sides")
    ours = type(network) is Transformer or method.draw_evidence
    if not method.bidirectional or method.mask_mod or not ours:
        raise UserError(f"--recurrent is for methods whose tokens all see each other, and "
                        f"{method.name} has a pattern or a network of its own: train without it")
    shape = config.n_embd, config.n_head, config.cond_dim if network.adaln else 0
    for layer in range(first, config.n_layer):
        network.blocks[layer] = RecurrentBlock(*shape, config.dropout, config.qk_norm,
                                               config.norm_bias)
    network.supports_cache = False
