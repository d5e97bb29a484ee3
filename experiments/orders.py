"""
What choosing the masks that open costs, for every sampler, with the exact denoiser and with
trained networks (chapter 24).

    python -m experiments.orders oracle                 KL between the toy language and each sampler
                                                        in both directions, and the calls it takes
    python -m experiments.orders trained --out_dir RUNS the loss by opening in parallel on held-out
                                                        text, for networks of train.py, over seeds
    python -m experiments.orders networks --out_dir RUNS  KL of trained networks, such as teachers
                                                        and students, on the toy language
    python -m experiments.figures frontier --measure    both terms of KL over temperatures

Where q(x) is known, `oracle` prints KL exactly (24.4), (24.5), or `<` an upper bound, if the order
is random or noise makes wrong words, (24.6). Elsewhere it prints `>` the lower bound (24.7).
"""
from dataclasses import dataclass
from functools import partial

import torch

from checkpoints.load import load_model
from data import load_data
from diffusion import probabilities
from evaluation import parallel_cost as cost
from evaluation.likelihood import mean_error
from evaluation.sample_quality import unigram_entropy
from experiments.command import choose_command, run_experiment
from experiments.timing import hardware
from experiments.trained_orders import compare_on_held_out
from flags import UserError, flag, load_row
from methods import METHODS, make_method
from samplers import SAMPLERS, make_sampler
from samplers.generate import CallCounter, generate

ONE = 10 ** 6  # steps for one mask at a time
RULES = {  # what is printed: method, sampler, its flags, corrector
    "random, by (0.3)": ("mdlm", "ancestral"),
    "random": ("mdlm", "first-hitting"),
    "spread: streams": ("mdlm", "spread"),
    "spread: streams, shifted": ("mdlm", "spread", dict(shift=True)),
    "spread: golden ratio": ("mdlm", "spread", dict(order="golden")),
    "spread: golden ratio, shifted": ("mdlm", "spread", dict(order="golden", shift=True)),
    "least entropy": ("mdlm", "entropy"),
    "widest margin": ("mdlm", "margin"),
    "KLASS": ("mdlm", "klass"),
    "confidence: draws, then chooses": ("mdlm", "confidence"),
    "semi-ar, blocks of 8": ("mdlm", "semi-ar", dict(decode_block=8)),
    "top-k (RDM)": ("mdlm", "top-k"),
    "remdm-conf": ("mdlm", "remdm-conf"),
    "P2": ("mdlm", "p2"),
    "P2, trust 0": ("mdlm", "p2", dict(trust=0.0)),
    "edit (LLaDA2.1)": ("mdlm", "edit"),
    "edit, mask again": ("mdlm", "edit", dict(again=True)),
    "ProSeCo": ("mdlm", "proseco"),
    "uniform noise, by (0.3)": ("udlm", "ancestral"),
    "uniform noise, in turns": ("udlm", "turns"),
    "uniform noise, psi": ("udlm", "psi"),
    "DDPD": ("udlm", "ddpd"),
    "DDPD, greedy": ("udlm", "ddpd", dict(greedy=True)),
    "uniform noise, informed": ("udlm", "ancestral", dict(rounds=8), "informed"),
    "hybrid noise, by (0.3)": ("gidd", "ancestral"),
}
BUDGETS = [(first, budget) for first in ("golden", "left", "least") for budget in (1.0, 2.0, 3.0)]


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word",
                        ["oracle", "trained", "networks"])
    num_samples: int = flag(256, "texts of each row", least=2)
    steps: str = flag("16,8", "oracle, networks: network calls, with commas between")
    samplers: str = flag("ancestral,spread", "networks: rules, with commas between")
    words: str = flag("2,4,8", "trained: masks that open in a call, with commas between")
    out_dir: str = flag("", "trained, networks: folders of runs, with commas between")
    hardware: str = flag("", "the name of the machine, if it cannot be detected")


# ---- the exact denoiser

@dataclass
class Toy:
    """The toy language, texts of it, and what is known of them."""
    texts: int
    length: int = 32

    def __post_init__(self):
        self.language = load_data("toy", self.length).language
        self.entropy, _ = self.language.entropy(self.length)
        generator = torch.Generator().manual_seed(1)
        self.x = self.language.sample(self.texts, self.length, generator)  # (n, L)
        self.log_p = self.language.log_prob(self.x)  # (n,)
        many = self.language.sample(4096, self.length, generator)  # (4096, L)
        self.many = self.language.log_prob(many)  # (4096,)

    def measure(self, method, sampler, options=None, corrector="draw", steps=8, model=None,
                head=True):
        """Both KL with their errors, or bounds, -log p of samples, calls and positions per text.

        sampler: its name, or itself; model: a trained one, in place of the exact denoiser of
        `method`; head: it may be asked for wrong words, if it has one
        """
        method = model.method if model else make_method(method, self.language.V)
        if isinstance(sampler, str):
            sampler = make_sampler(sampler, method, corrector, **options or {})
        oracle = model.denoiser if model else method.oracle(self.language)
        if model and head:
            sampler.prepare(model)
        torch.manual_seed(1)
        known = sampler.chooses_first and method.opens_masks or sampler.draws_once
        if known and corrector == "draw":
            z, nothing = cost.from_nothing(method, self.texts, self.length)
            walk = cost.follow(method, oracle, z, nothing, steps, sampler)
            led = cost.follow(method, oracle, z, nothing, steps, sampler, x=self.x)
            x, calls, positions = walk.x, walk.calls, walk.positions
            log_p = self.language.log_prob(x)  # (n,)
            kl = cost.reverse_kl(walk, log_p), cost.forward_kl(led, self.log_p)
        else:
            spy = CallCounter(oracle)
            x = generate(method, spy, self.texts, self.length, steps, sampler)  # (n, L)
            log_p, kl = self.language.log_prob(x), (None, None)  # (n,)
            calls, positions = spy.texts / self.texts, spy.positions / self.texts
            if method.revises_text and sampler.chooses_first and corrector == "draw":
                y, ours, theirs = cost.path_costs(method.process, oracle, self.x, steps)
                kl = (mean_error((ours - self.language.log_prob(y)) / self.length),
                      mean_error((self.log_p - theirs) / self.length))
        return {"kl": kl, "x": x, "log_p": log_p, "calls": calls, "positions": positions,
                "least": cost.least_kl(log_p, self.many) / self.length}


def cell(value, sign):
    """A KL with its error, as text."""
    return f"{sign}{value[0]:.4f} +- {value[1]:.4f}" if value else f"{'-':>17}"


def print_head(toy, config):
    print(f"{hardware(name=config.hardware)}\n{toy.texts} texts of {toy.length} words of the toy "
          f"language, entropy {toy.entropy:.4f} nats/token; nats/token\n"
          f"{'':<34}{'KL(q || p)':>18}{'KL(p || q)':>20}{'-log p - H':>18}{'within':>7}"
          f"{'calls':>7}{'scored':>8}")


def print_row(name, toy, row, exact):
    """exact: the sign before a KL, ' ' or '<'"""
    first = cell(row["kl"][0], exact) if row["kl"][0] else f">{row['least']:.4f}{'':>10}"
    excess, error = mean_error(-row["log_p"] / toy.length - toy.entropy)
    print(f"{name:<34}{first:>18}{cell(row['kl'][1], exact):>20}{excess:>9.3f} +- {error:.3f}"
          f"{unigram_entropy(row['x']).mean():>7.3f}{row['calls']:>7.1f}{row['positions']:>8.0f}",
          flush=True)


def is_exact(method, sampler, options=None, *corrector):
    """Whether the order follows from what is open, so that (24.4) and (24.5) are no bounds."""
    random = sampler in ("ancestral", "first-hitting") or (options or {}).get("shift")
    return (method.opens_masks or load_row(SAMPLERS, sampler).draws_once) and not random


def compare_rules(config):
    """Every rule at the same numbers of network calls."""
    toy = Toy(config.num_samples)
    print_head(toy, config)
    for steps in numbers(config.steps):
        print(f"{steps} steps")
        for name, rule in RULES.items():
            sign = " " if is_exact(load_row(METHODS, rule[0]), *rule[1:]) else "<"
            print_row(name, toy, toy.measure(*rule, steps=steps), sign)
    print("one mask at a time, or as many as a budget allows")
    for name in ("least entropy", "confidence: draws, then chooses"):
        print_row(name, toy, toy.measure(*RULES[name], steps=ONE), " ")
    for first, budget in BUDGETS:
        rule = "mdlm", "entropy-budget", dict(first=first, budget=budget)
        print_row(f"budget {budget:g}, {first}", toy, toy.measure(*rule), " ")


def numbers(text, name="steps"):
    """'16,8' -> [16, 8]; or UserError"""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise UserError(f"--{name} {text}: give whole numbers from 1 on, with commas between")
    return found


# ---- trained networks on the toy language

def compare_networks(config):
    """KL of networks of train.py and distill.py on the toy language, in few steps."""
    toy = Toy(config.num_samples)
    print_head(toy, config)
    for folder in config.out_dir.split(","):
        model = load_model(folder)
        if model.config.data != "toy" or model.config.block_size != toy.length:
            raise UserError(f"{folder} is no run on texts of {toy.length} words of the toy "
                            "language, which alone has exact probabilities: see trained")
        print(f"{folder}, {model.method.name}, step {model.step}")
        for steps in numbers(config.steps):
            for sampler in config.samplers.split(","):
                asks = model.method.plans and sampler in ("p2", "ddpd")
                for head in [True, False][not asks:]:
                    row = toy.measure("", sampler, steps=steps, model=model, head=head)
                    sign = " " if is_exact(model.method, sampler) else "<"
                    name = f"  {sampler}{', by its head' * (asks and head)}, {steps} steps"
                    print_row(name, toy, row, sign)


# ---- frontiers

FRONTIER = {"streams, 16 calls": ("spread", {}, 16), "streams, 8 calls": ("spread", {}, 8),
            "random, 16 calls": ("first-hitting", {}, 16),
            "random, 8 calls": ("first-hitting", {}, 8), "one at a time": ("spread", {}, ONE)}
TEMPERATURES = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2]


def measure_frontier(config):
    """KL(q || p) = -H(q) - E_q log p: both terms over temperatures, and what confidence reaches.

    -> {name: [[temperature, H(q), -E_q log p]]}, nats per token
    """
    toy = Toy(config.num_samples)
    method = make_method("mdlm", toy.language.V)
    oracle, rows = method.oracle(toy.language), {"": [[1.0, toy.entropy, toy.entropy]]}
    for name, (sampler, options, steps) in FRONTIER.items():
        rows[name] = []
        for T in TEMPERATURES:
            to_probs = partial(probabilities, temperature=T)
            torch.manual_seed(1)
            z, nothing = cost.from_nothing(method, toy.texts, toy.length)
            order = make_sampler(sampler, method, **options)
            walk = cost.follow(method, oracle, z, nothing, steps, order, to_probs)
            nats = -walk.log_q.mean(), -toy.language.log_prob(walk.x).mean()
            rows[name].append([T, *(round(float(a) / toy.length, 4) for a in nats)])
    row = toy.measure("mdlm", "confidence", steps=ONE)
    nats = -float(row["log_p"].mean()) / toy.length
    rows["confidence, at most"] = [[1.0, round(nats - row["least"], 4), round(nats, 4)]]
    return rows


def draw_frontier(rows, pyplot):
    """H(q) against -E_q log p. The distance above the diagonal is KL(q || p)."""
    figure, ax = pyplot.subplots(figsize=(7, 5), layout="constrained")
    (_, entropy, _), = rows[""]
    span = [0.9, 3.6]
    for kl in (0.0, 0.5, 1.0):
        ax.plot(span, [h + kl for h in span], color="0.8", lw=0.8, zorder=0)
        ax.text(span[0], span[0] + kl, f" KL {kl:g}", color="0.5", va="bottom", fontsize=8)
    for name, points in list(rows.items())[1:]:
        T, h, nats = zip(*points)
        line, = ax.plot(h, nats, "o-" if len(points) > 1 else "<", ms=3.5, label=name)
        if 1.0 in T and len(T) > 1:
            ax.plot(h[T.index(1.0)], nats[T.index(1.0)], "o", ms=8, color=line.get_color())
    ax.axhline(entropy, color="0.5", lw=0.8, ls=":")
    ax.set(xlabel="H(q), nats/token", ylabel="-E log p, nats/token (its exponential: perplexity)",
           xlim=span, ylim=(0.9, 4.2))
    ax.legend(fontsize=8)
    return figure


# ---- trained networks

def compare_trained(config):
    """Networks of train.py on held-out text: trained_orders.py."""
    compare_on_held_out(config, numbers(config.words, "words"))


COMMANDS = {"oracle": compare_rules, "trained": compare_trained, "networks": compare_networks}


def main(config, given=()):
    command = choose_command(config, COMMANDS)
    numbers(config.steps)  # UserError before minutes of work, not after
    numbers(config.words, "words")
    if command is not compare_rules and not config.out_dir:
        raise UserError("--out_dir names the runs to measure, with commas between")
    command(config)


if __name__ == "__main__":
    run_experiment(Config, main)
