"""
Chapter 22. Texts of a grammar: draws of a masked model, given that the text parses.

Words that are drawn at once may not fit each other. Where all texts must follow an automaton A, a
table of states delta(state, word), the words q_l of a factorised prediction can be drawn given that
they do, visible words being certain:

    q_A(x) = [x in A] prod_l q_l(x_l) / Z,   q_l = x_theta^l at masks, the word itself elsewhere
                                                                                           (22.18)
    beta_l(h) = sum_v q_l(v) beta_(l+1)(delta(h, v)),   beta_(L+1) = 1,   Z = beta_1(start)
    x_l ~ q_l(v) beta_(l+1)(delta(h_l, v)) / beta_l(h_l),   h_(l+1) = delta(h_l, x_l)      (22.19)

A step draws a whole text by (22.19), and opens masks as (0.3) does, with its words. So every text
parses, in any number of steps. In one step the law is (22.18), that of draws which are thrown away
until one parses. In more steps it is not the model's law given A: each step conditions on A anew,
and what follows from A counts twice where the network has learned it. With the exact denoiser of a
language inside A, many steps of (0.3) are exact and those of (22.18) are not.

The automaton must be deterministic: with two ways to read a text, (22.19) would count it twice.
"""
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from diffusion import categorical, probabilities
from flags import UserError
from samplers.base import MaskSampler
from samplers.rewards import data_of_model
from samplers.search import open_from_texts


def backward(q, table):
    """beta of (22.19), up to a factor for each text and place. q (B, L, V) float64; table (S, V)
    -> (B, L + 1, S + 1), whose last state is that of words that do not fit"""
    B, S = len(q), len(table)
    alive = (torch.arange(S + 1, device=q.device) < S).double()  # (S + 1,)
    beta = [alive.expand(B, -1)]  # (B, S + 1)
    for q_l in q.flip(1).unbind(1):
        mass = (q_l[:, None] * beta[-1][:, table]).sum(-1)  # (B, S) from (B, S, V)
        mass = mass / mass.amax(-1, keepdim=True).clamp(min=1e-300)  # (B, S)
        beta.append(F.pad(mass, (0, 1)))  # (B, S + 1)
    return torch.stack(beta[::-1], 1)  # (B, L + 1, S + 1)


def draw_inside(q, table):
    """One draw of (22.18) for each text. q (B, L, V) float64; table (S, V), -1 where no word fits
    -> (B, L)"""
    beta, words = backward(q, table), []  # (B, L + 1, S + 1)
    if not (beta[:, 0, 0] > 0).all():
        raise UserError("--sampler grammar: no text of the grammar has the given tokens, or "
                        "--temperature and --top_p leave none")
    state = torch.zeros(len(q), dtype=torch.long, device=q.device)  # (B,)
    for l, q_l in enumerate(q.unbind(1)):
        after = table[state]  # (B, V)
        word = categorical(q_l * beta[:, l + 1].gather(1, after % beta.shape[-1]))  # (B,)
        state = after.gather(1, word[:, None])[:, 0]  # (B,)
        words.append(word)
    return torch.stack(words, 1)  # (B, L)


@dataclass(eq=False)
class Grammar(MaskSampler):
    """--sampler grammar: every text follows the grammar of the data set, in any number of steps."""
    table: torch.Tensor = None  # (S, V) the automaton, from `prepare`; None: all texts parse

    @property
    def draws_from_model(self):
        return self.table is None

    def fits(self, method):
        if reason := super().fits(method):
            return reason
        if not method.bidirectional or method.left_to_right:
            return f"draws whole texts, and {method.name} does not write them at once"

    def prepare(self, model):
        self.table = data_of_model(model).automaton
        if self.table is None:
            raise UserError(f"--sampler grammar: {model.config.data} has no grammar that is known")

    def follows(self, config):
        return None, ("the likelihood of these texts is not known: each step draws them given that "
                      "they parse")

    def draw(self, process, denoiser, z, t, to_probs):
        """Texts (22.18) around the visible words of z (b, L). -> (b, L)"""
        at, V = z == process.mask, process.n_tokens  # (b, L)
        p = to_probs(denoiser(z, t, at=at)[:, :V])  # (N, V)
        if self.table is None:
            return z.masked_scatter(at, categorical(p))  # (b, L)
        q = F.one_hot(z.clamp(max=V - 1), V).double()  # (b, L, V)
        q[at] = p
        return draw_inside(q, self.table.to(z.device))  # (b, L)

    @torch.no_grad()
    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        draw = partial(self.draw, process, denoiser, to_probs=to_probs)
        yield from open_from_texts(process, z, steps, draw)
