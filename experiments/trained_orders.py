"""
Chapter 24. What opening in parallel costs trained networks, on held-out text.

No oracle is needed: what a rule loses is -log q of the text (24.1), less that of the *same order*
one mask at a time. The order matters, since a network is no single distribution: it predicts a text
better from left to right than in the order of four streams, and that is no loss by opening four
masks at once. So -log q itself is printed, too.

`random` opens k masks a step, `ancestral` each mask at its own time, in steps of (0.3). Both follow
one permutation of each text at every number of steps, so differences vary less than those of two
walks. Runs that differ in their seed alone are one row: errors are those of texts and of seeds
(12.4). The share is a loss in units of that of `random` in as many calls.

How many calls would `ancestral` need? It loses less in more steps, and nothing in L calls; between
the rungs of a ladder of steps this is interpolated. "To lose as little" compares losses, "for the
same -log q" that sum.
"""
import statistics
from dataclasses import dataclass

import torch

from checkpoints.load import load_model
from data import load_data
from evaluation import parallel_cost as cost
from evaluation.errors import mean_error, mean_over_seeds, pooled_rate, with_error
from experiments.timing import hardware
from flags import UserError
from samplers.orders import Spread

LADDER = (0.5, 1, 2, 4)  # steps of ancestral, in texts' lengths


@dataclass(eq=False)
class RandomOrder(Spread):
    """The orders of first-hitting, or with `coins` of ancestral, from one random time per mask."""
    coins: bool = False

    def turns(self, masked, steps):
        """The step, from 0, in which each mask opens. masked (B, L) -> (B, L), -1 at text"""
        time = torch.rand(masked.shape, dtype=torch.float64).masked_fill(~masked, 2)  # (B, L)
        if self.coins:
            turn = (time * steps).long()  # (B, L)
        else:
            n = masked.sum(-1, keepdim=True)  # (B, 1)
            turn = time.argsort(-1).argsort(-1) * n.clamp(max=steps) // n.clamp(min=1)  # (B, L)
        return turn.masked_fill(~masked, -1)  # (B, L)


@dataclass(eq=False)
class OneByOne(Spread):
    """The order of a rule in `calls` steps, one mask at a time, each step from left to right."""
    rule: object = None
    calls: int = 1

    def turns(self, masked, steps):
        turn = self.rule.turns(masked, self.calls)  # (B, L)
        turn = turn.masked_fill(~masked, masked.shape[1])  # (B, L)
        return turn.argsort(dim=-1, stable=True).argsort(-1).masked_fill(~masked, -1)  # (B, L)


RULES = {"random": RandomOrder(), "streams": Spread(order="streams"),
         "golden ratio": Spread(order="golden")}
NESTED = "random", "golden ratio"  # in fewer steps, groups of the same order


def load_run(folder, texts):
    """The model of a folder, held-out texts (n, L), and whether they are independent."""
    model = load_model(folder)
    method, c = model.method, model.config
    if not method.opens_masks or method.left_to_right:
        raise UserError(f"{folder} opens no masks of a whole text: name runs of mdlm")
    data = load_data(c.data, c.block_size, c.tokenizer, c.vocab_size)
    return model, data.windows("val", texts)[:texts], data.independent_texts


def nats_per_text(model, x, sampler, steps):
    """-log q of the texts x (n, L), nats/token, and network calls per text. -> (n,), float"""
    torch.manual_seed(1)
    z, nothing = cost.from_nothing(model.method, *x.shape)  # (n, L) each
    walk = cost.follow(model.method, model.denoiser, z, nothing, steps, sampler, x=x)
    return -walk.log_q / x.shape[1], walk.calls  # (n,)


def measure_run(model, x, words):
    """-log q of the texts x (n, L) by every rule, and by the ladder of ancestral.

    -> {(rule, k): (nats in L / k calls (n,), nats of the same order one at a time (n,))},
       [(calls, nats (n,))] with L calls, one mask at a time, as the last
    """
    L, found = x.shape[1], {}
    nats = lambda rule, steps: nats_per_text(model, x, rule, steps)[0]  # (n,)
    for name, rule in RULES.items():
        one = nats(rule, L)  # (n,)
        found[name, 1] = one, one
        for k in words:
            m = -(-L // k)
            alone = one if name in NESTED else nats(OneByOne(rule=rule, calls=m), L)  # (n,)
            found[name, k] = nats(rule, m), alone
    ladder = [nats_per_text(model, x, RandomOrder(coins=True), round(share * L))[::-1]
              for share in LADDER]
    return found, [*ladder, (L, found["random", 1][0])]


def calls_to_match(ladder, target, independent):
    """The calls at which the mean of a ladder [(calls, nats (n,))] is that of target (n,), and the
    error from the choice of texts. None: in no number of calls. If the first rung is good enough,
    its calls, with nan as the error."""
    means = [float((nats - target).mean()) for _, nats in ladder]
    if means[0] <= 0:
        return ladder[0][0], float("nan")
    for i in range(1, len(ladder)):
        if means[i] <= 0:
            (c0, n0), (c1, n1) = ladder[i - 1:i + 1]
            w = means[i - 1] / (means[i - 1] - means[i])
            off = mean_error((1 - w) * n0 + w * n1 - target, independent)[1]
            return c0 + w * (c1 - c0), off * (c1 - c0) / (means[i - 1] - means[i])
    return None


# ---- what is printed

def pool(values, independent):
    """Mean and error (12.4) of figures (n,) of each run, on the same texts."""
    return mean_over_seeds(*zip(*(mean_error(v, independent) for v in values)))


def print_rules(runs, words, independent):
    """A line for each rule and number of calls: -log q, what is lost, and its share of random's."""
    L = runs[0][1][-1][0]
    print(f"{'':<22}{'calls':>5}{'-log q':>18}{'lost at once':>22}{'share':>16}")
    for name, rule in RULES.items():
        default = " (default)" if name != "random" and rule.order == Spread().order else ""
        for k in (1, *words):
            lost, usual = ([found[which, k][0] - found[which, k][1] for found, _ in runs]
                           for which in (name, "random"))  # (n,) of each run
            cells = [with_error(*pool([found[name, k][0] for found, _ in runs], independent))]
            if k > 1:
                share = [pooled_rate(a, b, independent) for a, b in zip(lost, usual)]
                cells += [with_error(*pool(lost, independent), ".4f"),
                          with_error(*mean_over_seeds(*zip(*share)), ".2f")]
            print(f"{(name + default) * (k == 1):<22}{-(-L // k):>5}"
                  + "".join(f"{c:>{w}}" for c, w in zip(cells, (18, 22, 16))))


def print_speed(runs, words, independent):
    """How many calls of ancestral match each rule in L / k calls."""
    L = runs[0][1][-1][0]
    print("calls of ancestral" + f"{'to lose as little':>30}{'for the same -log q':>32}")
    for name in list(RULES)[1:]:
        for k in words:
            little, same = [], []
            for found, ladder in runs:
                at_once, alone = found[name, k]  # (n,) each
                target = ladder[-1][1] + at_once - alone  # (n,)
                little.append(calls_to_match(ladder, target, independent))
                same.append(calls_to_match(ladder, at_once, independent))
            print(f"  {name + f' in {-(-L // k)}':<22}{format_calls(little):>24}"
                  f"{format_calls(same):>32}")


def format_calls(found):
    """Of all runs: the mean and its error, or that they are never enough."""
    if None in found:
        return f"never (in {found.count(None)} of {len(found)} runs)"
    calls, errors = zip(*found)
    if any(error != error for error in errors):
        return f"less than {statistics.mean(calls):.1f}"
    return with_error(*mean_over_seeds(calls, errors), ".1f")


def compare_on_held_out(config, words):
    """-log q of held-out text in each order, one mask at a time and several; a table per data set.
    """
    groups = {}
    for folder in config.out_dir.split(","):
        model, x, independent = load_run(folder, config.num_samples)
        c = model.config
        about = (f"{c.data}, {model.method.n_tokens} symbols, {model.step} steps of training: "
                 f"{len(x)} texts of {x.shape[1]} tokens, nats/token")
        groups.setdefault(about, []).append((model, x, independent))
    print(hardware(name=config.hardware))
    for about, members in groups.items():
        print(f"\n{about}; runs: {len(members)}", flush=True)
        runs = [measure_run(model, x, words) for model, x, _ in members]
        print_rules(runs, words, members[0][2])
        print_speed(runs, words, members[0][2])
