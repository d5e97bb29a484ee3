"""
Chapter 23. Sampling at equal law: how many texts a second, if all of them are as far from the
language as those of plain sampling are.

    python -m experiments.speed law                   KL of each way on the toy language
    python -m experiments.speed cpu --only law        seconds of each way, at 6 x 384, V = 50,258

Few steps are fast, and wrong where words that depend on each other open at once (chapter 24). So
each way gets as many steps as it needs to lose no more than a reference, in texts of 256 words of
the toy language, with the exact denoiser: KL(q || p) of (24.4), nats per token. The reference is
plain masked sampling in 32 steps of (0.3). Its order is random, so its KL has only a lower bound,
(24.7), and an upper one, (24.4). The others have to stay below the *lower* one.

    mdlm, pgm   spread: the same law, since both networks estimate the same distribution
    udlm        turns: the same law again, (24.10)
    bd3lm       blocks in order, `spread` inside each
    eso_lm      random words in parallel, the rest from left to right. Its KL is an upper bound
    ar          one word at a time, from left to right: KL is 0

A network with errors of its own has another KL; docs/results.md has what opening in parallel costs
trained ones. With one time for all tokens uniform noise has 32 steps, as plain sampling of it:
(24.6) bounds its KL, and no other grid of times took fewer for the same.

    flexmdm     insertions have no law like (24.1). On single sentences of the toy language, which
                end by themselves, KL(p || q) is bounded, nats per text, by (24.5) and (21.16): by
                the mean over random paths to a text, and closer by log of the mean of q over
                several of them. Plain sampling has 20 places, ends included, and the same bounds
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from data import load_data
from diffusion import Sampler, ancestral, probabilities
from evaluation import parallel_cost as cost
from evaluation.errors import mean_error, with_error
from evaluation.insertion_cost import path_nats
from experiments.orders import Toy
from experiments.workloads import our_sampler, untrained
from methods import make_method
from samplers import make_sampler
from samplers.orders import Spread

REFERENCE = 32  # steps of plain sampling
BLOCK = 16  # words of a block of bd3lm
SPREAD_STEPS, BLOCK_STEPS, ESO_STEPS = 8, 8, 64  # what `law` finds to be enough
SENTENCE, FLEX_STEPS = 20, 80  # places of a sentence; steps that insert and open masks
SENTENCE_WAYS = [("mdlm", "ancestral", [REFERENCE]), ("mdlm", "spread", [4, 8]),
                 ("flexmdm", "insertion", [32, 64, FLEX_STEPS])]  # method, sampler, steps to try
TURNS = 16  # of uniform noise, whose plain sampling has no lower bound that is worth the name


@dataclass(eq=False)
class InBlocks(Sampler):
    """The order of bd3lm as an order of mdlm: the words right of a block are masks, and masks tell
    nothing. inner: which masks of a block open, a sampler of masks."""
    inner: Sampler = ancestral
    block: int = BLOCK
    chooses_first = True

    def __call__(self, process, denoiser, z, frozen, steps, to_probs=probabilities):
        z = z.clone()  # (B, L)
        for lo in range(0, z.shape[1], self.block):
            place = slice(lo, lo + self.block)

            def within(part, t, at):
                behind = z.shape[1] - lo - part.shape[1]
                whole = torch.cat([z[:, :lo], part, z[:, lo + part.shape[1]:]], 1)  # (B, L)
                return denoiser(whole, t, at=F.pad(at, (lo, behind)))  # (N, V)
            start = z[:, place].clone()  # (B, L')
            for part in self.inner(process, within, start, frozen[:, place], steps, to_probs):
                z[:, place] = part
                yield z
                part.copy_(z[:, place])  # who follows a path may have put other words there


@dataclass(eq=False)
class EsoTurns(Spread):
    """The order of methods/eso_lm.py: a share of the words in random groups, the rest one by one.
    """
    method: object = None

    def turns(self, masked, steps):
        return self.method.group(*self.method.draw(~masked), ~masked, steps)  # (B, L)


def orders():
    """What `law` prints: name -> (sampler of masks, steps to try, whether KL is only bounded)."""
    spread, eso = make_sampler("spread", make_method("mdlm", 2)), make_method("eso_lm", 2)
    return {"plain: random, by (0.3)": (ancestral, [REFERENCE], True),
            "mdlm, pgm: spread; udlm: turns": (spread, [4, SPREAD_STEPS, 16], False),
            f"bd3lm, blocks of {BLOCK}: spread": (InBlocks(spread), [4, BLOCK_STEPS], False),
            "eso_lm, half of the words": (EsoTurns(method=eso), [32, ESO_STEPS], True)}


def measure_laws(texts=16, length=256):
    """-> [{name, steps, KL(q || p), its error, lower bound (24.7), calls, whether it is bounded}]
    """
    toy, rows = Toy(texts, length), []
    for name, (sampler, all_steps, bounded) in orders().items():
        for steps in all_steps:
            row = toy.measure("mdlm", sampler, steps=steps)
            kl, error = row["kl"][0]
            rows.append({"way": name, "steps": steps, "kl": kl, "error": error, "bounded": bounded,
                         "least": row["least"], "calls": row["calls"]})
            yield rows[-1]
    y = toy.measure("udlm", "ancestral", steps=REFERENCE)
    yield {"way": "uniform noise, by (0.3)", "steps": REFERENCE, "kl": y["kl"][0][0],
           "error": y["kl"][0][1], "bounded": True, "least": y["least"], "calls": y["calls"]}


def nats_of_paths(name, data, x, steps, sampler):
    """log q(path) of a path to each text x (n, L) with the exact denoiser, above its probability
    under the law that it is drawn from. -> (n,)"""
    method = make_method(name, data.encoding.n_vocab)
    method.on_data(data)
    sampler, denoiser = make_sampler(sampler, method), method.oracle(data.language)
    if method.any_length:
        return -path_nats(method, denoiser, x, steps, sampler)  # (n,)
    noise = cost.from_nothing(method, *x.shape)
    return cost.follow(method, denoiser, *noise, steps, sampler, x=x).log_q  # (n,)


def measure_sentences(texts=256, paths=16):
    """-> [{way, steps, paths, KL(p || q) by one path and by several, each with its error}]"""
    data = load_data("sentences", SENTENCE)
    x = data.language.sample(texts, SENTENCE, torch.Generator().manual_seed(1))  # (n, L)
    log_p = data.language.log_prob(x)  # (n,)
    for name, sampler, all_steps in SENTENCE_WAYS:
        for steps in all_steps:
            torch.manual_seed(1)
            log_q = torch.stack([nats_of_paths(name, data, x, steps, sampler)
                                 for _ in range(paths)])  # (paths, n)
            one = log_p - log_q.mean(0)  # (n,)
            several = log_p - log_q.logsumexp(0) + math.log(paths)  # (n,)
            yield {"way": f"{name}, {sampler}", "steps": steps, "paths": paths,
                   "one": mean_error(one, True), "several": mean_error(several, True)}


def print_sentences(rows):
    """A line for each, as soon as it is measured. -> rows"""
    print(f"{'KL(p || q), nats/sentence':<36}{'steps':>6}{'one path':>19}{'several':>19}")
    kept = []
    for row in rows:
        print(f"{row['way']:<36}{row['steps']:>6}" + "".join(
            f"{f'< {with_error(*row[key])}':>19}" for key in ("one", "several")), flush=True)
        kept.append(row)
    return kept


def print_laws(rows):
    """A line for each, as soon as it is measured. -> rows"""
    print(f"{'KL(q || p), nats/token':<36}{'steps':>6}{'calls':>7}{'':>3}KL")
    kept = []
    for row in rows:
        sign, least = "<" if row["bounded"] else " ", f"   > {row['least']:.4f}" * row["bounded"]
        print(f"{row['way']:<36}{row['steps']:>6}{row['calls']:>7.0f}{sign:>3}{row['kl']:.4f} +- "
              f"{row['error']:.4f}{least}", flush=True)
        kept.append(row)
    return kept


def samplers_at_equal_law(size, plain):
    """{name: (do, times)} as workloads.samplers, `plain` among it: what docs/speed.md compares."""
    L, models = size.length, {name: untrained(name, size) for name in ("mdlm", "pgm")}
    block = min(BLOCK, L)
    models["bd3lm"] = untrained("bd3lm", size, diffusion_block=block)
    models |= {name: untrained(name, size) for name in ("udlm", "eso_lm")}
    spread, turns = (make_sampler(name, models[method][0])
                     for name, method in (("spread", "mdlm"), ("turns", "udlm")))
    ours = lambda name, steps, sampler=ancestral: (
        our_sampler(size, *models[name], steps, sampler), 1)
    return {**plain,
            f"mdlm, spread in {SPREAD_STEPS}": ours("mdlm", SPREAD_STEPS, spread),
            f"pgm, spread in {SPREAD_STEPS}": ours("pgm", SPREAD_STEPS, spread),
            **{f"udlm, turns in {n}": ours("udlm", n, turns) for n in (SPREAD_STEPS, TURNS)},
            f"bd3lm, blocks of {block}, {BLOCK_STEPS} steps": ours("bd3lm", BLOCK_STEPS, spread),
            f"eso_lm, half in {ESO_STEPS}": ours("eso_lm", ESO_STEPS)}


def sentences_at_equal_law(size, plain):
    """The same for texts of SENTENCE places that end by themselves."""
    return {**plain, f"flexmdm in {FLEX_STEPS}": (
        our_sampler(size, *untrained("flexmdm", size), FLEX_STEPS), 1)}
