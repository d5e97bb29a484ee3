"""
Chapter 24. What opening in parallel costs trained networks, on held-out text.

No oracle is needed: the loss of a rule is -log q of the text (24.1), less that of the same order
one mask at a time. For random orders this is a mean over orders. `random` opens k masks a step,
`ancestral` each mask at its own time, in steps of (0.3). Both follow one permutation of each text
at every number of steps, so differences vary less than those of two walks.

Runs that differ in their seed alone are one row: errors are those of texts and of seeds (12.4). The
share is a loss in units of that of `random` in as many calls.

How many calls would `ancestral` need? Its loss falls with the number of steps, and both are zero at
L calls; between the rungs of a ladder of steps it is interpolated. "Loses as little" compares
losses, "as good" compares -log q itself: one order may be easier to predict than another.
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


RULES = {"random": RandomOrder(), "streams": Spread(order="streams"),
         "golden ratio": Spread(order="golden")}


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
    """-log q of every rule in L and in L / k calls, for k in words, and the ladder of ancestral.

    -> {(rule, k): nats (n,)}, [(calls, nats (n,))] with L calls, one mask at a time, as the last
    """
    L = x.shape[1]
    nats = {(name, k): nats_per_text(model, x, rule, -(-L // k))[0]
            for name, rule in RULES.items() for k in (1, *words)}
    ladder = [nats_per_text(model, x, RandomOrder(coins=True), round(share * L))[::-1]
              for share in LADDER]
    return nats, [*ladder, (L, nats["random", 1])]


def calls_to_match(ladder, target, independent):
    """The calls at which the mean of a ladder [(calls, nats (n,))] is that of target (n,), and the
    error from the choice of texts. None: it is not in any number of calls. Of less than the first
    rung it says the calls of that rung, as a float("nan") error."""
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
    """A line for each rule: -log q one at a time; the loss in L / k calls, and its share."""
    print(f"{'':<16}{'one at a time':>18}" + "".join(f"{f'L/{k} calls':>20}{'share':>18}"
                                                     for k in words))
    for name, rule in RULES.items():
        cells = [with_error(*pool([nats[name, 1] for nats, _ in runs], independent))]
        for k in words:
            lost = [nats[name, k] - nats[name, 1] for nats, _ in runs]
            usual = [nats["random", k] - nats["random", 1] for nats, _ in runs]
            share = [pooled_rate(a, b, independent) for a, b in zip(lost, usual)]
            cells += [with_error(*pool(lost, independent), ".4f"),
                      with_error(*mean_over_seeds(*zip(*share)), ".2f")]
        default = " (default)" if name != "random" and rule.order == Spread().order else ""
        print(f"{name + default:<19}" + "".join(f"{c:>{19 if '.' in c else 0}}" for c in cells))


def print_speed(runs, words, independent):
    """How many calls of ancestral match each rule in L / k calls."""
    for name in RULES:
        for k in words if name != "random" else ():
            found = {"loses as little": [], "as good": []}
            for nats, ladder in runs:
                less = nats[name, k] - nats[name, 1]  # (n,)
                found["loses as little"].append(
                    calls_to_match(ladder, nats["random", 1] + less, independent))
                found["as good"].append(calls_to_match(ladder, nats[name, k], independent))
            L = runs[0][1][-1][0]
            says = ", ".join(f"{what} {format_calls(calls)}" for what, calls in found.items())
            print(f"{name} in {-(-L // k)} of {L} calls; ancestral, calls: {says}")


def format_calls(found):
    """Of all runs: the mean and its error, or that they are never enough."""
    if None in found:
        return f"never (in {found.count(None)} of {len(found)} runs)"
    calls, errors = zip(*found)
    if any(error != error for error in errors):
        return f"fewer than {statistics.mean(calls):.1f}"
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
