"""
Scaling laws of methods on the toy language, above its exact entropy (chapter 25).

    python -m experiments.scaling laws       (25.1): A, a, B, b of each method, with errors
    python -m experiments.scaling isoflop    the best size for a fixed C = 6 N D, (25.2), and how
                                             much more compute a method needs than ar, (25.3)
    python -m experiments.figures scaling --measure --out_dir out/scaling     both as a picture

Both commands use the same runs, kept in --out_dir: what is finished is not trained again. Each size
has one run per seed at a constant rate after a warm-up, on fresh texts without end. At the numbers
of tokens C / (6 N) of the curves, the rate falls to 0 in a branch over the last fifth of the steps
(experiments/training.py: decayed_at), so every point is a complete schedule of its own.

N counts the weights that work on every token: those of the blocks, without embedding and head
(SMDM's convention, arXiv:2410.18514), and without what reads the time, which runs once per text.

The excess over the entropy is the mean of nelbo(network) - nelbo(exact denoiser), text by text
under the same noise. The mean of the second one is the entropy, and much of the variance cancels.
"""
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from checkpoints.file import as_json
from data import load_data
from data.files import write_file
from data.toy import ToyCorpus
from evaluation.errors import mean_error, with_error
from evaluation.likelihood import nats_of
from experiments import power_laws
from experiments.command import choose_command, run_experiment
from experiments.power_laws import Point
from experiments.timing import hardware, parse_numbers
from experiments.training import decayed_at, language_models, make_trainer, method_names
from flags import UserError, flag
from methods import make_method
from runtime.device import keep_memory

LENGTH = 32  # words per text
SIZES = ["1x8", "1x16", "2x16", "2x24", "2x32", "2x48"]  # blocks x width
COMPUTE = [1.5625e9, 3.125e9, 6.25e9, 1.25e10, 2.5e10, 5e10]  # C = 6 N D of the curves
FLAGS = dict(batch_size=32, block_size=LENGTH, cond_dim=16, lr_schedule="constant",
             warmup_iters=20, learning_rate=0.02, muon_lr=0.02, max_iters=10 ** 6, device="cpu",
             dtype="float32", muon_dtype="float32")


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word", ["laws", "isoflop"])
    methods: str = flag("ar,mdlm", "with commas between; isoflop compares with the first",
                        each=language_models())
    seeds: int = flag(3, "runs of each size, with seeds 1, 2, ...", least=1)
    sizes: str = flag(",".join(SIZES), "blocks x width, with commas between", each=str)
    compute: str = flag(",".join(map(str, COMPUTE)), "C of the curves, in operations",
                        each=float, least=1, most=1e24)
    least_tokens: int = flag(30_000, "fewest tokens of a point", least=30_000)
    most_tokens: int = flag(700_000, "most tokens of a point", least=30_000)
    most_excess: float = flag(1.0, "fit points with an excess below this, in nats/token: above it "
                              "a network knows little but how often each word occurs", least=0)
    max_texts: int = flag(2000, "held-out texts", least=2)
    out_dir: str = flag("out/scaling", "where the results of runs are kept")
    hardware: str = flag("", "the name of the machine, if it cannot be detected", text=True)


class FreshTexts(ToyCorpus):
    """The toy language, many batches drawn at a time, which takes a third of the time."""
    AT_ONCE, drawn = 32, (None, None)

    def micro_batch(self, number, n, seed, generator):
        group, place = divmod(number, self.AT_ONCE)
        key, x = self.drawn  # the trainer also draws ahead, in a thread
        if key != (group, n, seed):
            own = torch.Generator().manual_seed(seed * 1_000_003 + group)
            x = self.examples("train", n * self.AT_ONCE, own)[0]  # (32 n, L)
            self.drawn = (group, n, seed), x
        return x[place * n:(place + 1) * n], None, None  # (n, L)


class Excess:
    """L - H of networks of one method on held-out texts. -> nats/token, standard error"""

    def __init__(self, data, method, texts):
        self.x, self.draws = data.windows("val", texts), 1 if method.exact else 2  # (n, L)
        self.floor = self.nats(method, method.oracle(data.language))  # (n,)

    def nats(self, method, denoiser):
        return nats_of(method, denoiser, self.x, self.draws, 250)[0] / self.x.shape[1]  # (n,)

    def __call__(self, method, denoiser):
        return mean_error(self.nats(method, denoiser) - self.floor, independent=True)


# ---- runs

def shape_of(size):
    """'2x16' -> the flags of a network of 2 blocks of width 16; UserError for another form."""
    layers, _, width = size.partition("x")
    if not (layers.isdigit() and width.isdigit() and int(layers) and int(width)) or int(width) % 8:
        raise UserError(f"{size!r} is no size: give blocks x width, such as 2x32; the width is a "
                        "multiple of 8")
    return dict(n_layer=int(layers), n_embd=int(width), n_head=max(1, int(width) // 16))


def count_weights(network):
    """N: the weights that work on every token, without embedding and head."""
    inside = {name: p.numel() for name, p in network.named_parameters()
              if name.startswith(("blocks", "norm.")) and "adaln" not in name}
    return sum(inside.values())


def plan(config, N):
    """{steps: C} of the points of a size N, in order of the steps."""
    tokens = FLAGS["batch_size"] * LENGTH
    ends = {round(C / (6 * N * tokens)): C for C in numbers(config.compute)}
    return {steps: C for steps, C in sorted(ends.items())
            if config.least_tokens <= steps * tokens <= config.most_tokens}


def run_points(config, name, data, excess, plan_of, flags):
    """Train one network as far as --out_dir/NAME.json lacks points of this run.

    plan_of(N) -> {steps: what stands at that point} -> N, rows [that, tokens, excess, error]
    """
    path, trainer = Path(config.out_dir, f"{name}.json"), make_trainer(data, **flags)
    N, tokens = count_weights(trainer.model), flags["batch_size"] * LENGTH
    ends, rows = plan_of(N), {}
    made = {"flags": flags, "N": N, "texts": config.max_texts}
    if path.exists():
        kept = json.loads(path.read_text("utf-8"))
        if all(kept.get(key) == value for key, value in made.items()):
            rows = {row[0] // tokens: row for row in kept["rows"]}
    missing = [steps for steps in ends if steps not in rows]
    for steps in decayed_at(trainer, missing):
        found = excess(trainer.method, trainer.average)
        rows[steps] = [steps * tokens, *found]
        print(f"{name:<16}{N:>9,} weights{steps * tokens:>11,} tokens   excess "
              f"{with_error(*found, '.4f')}", flush=True)
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"rows": [*rows.values()], "hardware": hardware(name=config.hardware)}
        write_file(path, as_json({**made, **about}))
    return N, [[what, *rows[steps]] for steps, what in ends.items()]


def all_points(config):
    """{method: [Point]}; seeds come one after the other, so what is interrupted has whole ones."""
    keep_memory()
    names, sizes = method_names(config, []), [s for s in config.sizes.split(",") if s]
    shapes = {size: shape_of(size) for size in sizes}  # or UserError, before anything is trained
    numbers(config.compute)
    data, points, excess = FreshTexts(LENGTH), {name: [] for name in names}, {}
    for seed in range(1, config.seeds + 1):
        for name in names:
            if name not in excess:
                method = make_method(name, data.encoding.n_vocab)
                excess[name] = Excess(data, method, config.max_texts)
            for size, shape in shapes.items():
                flags = dict(FLAGS, method=name, data="toy", seed=seed, **shape)
                N, rows = run_points(config, f"{name}-{size}-{seed}", data, excess[name],
                                     partial(plan, config), flags)
                points[name] += [Point(N, D, C, seed, e, error) for C, D, e, error in rows]
    return points


def numbers(text):
    """'1e10,2e10' -> [1e10, 2e10]; or UserError"""
    values = parse_numbers(text, float)
    if min(values) <= 0:
        raise UserError(f"--compute {text}: give numbers of operations, above 0")
    return values


def points_to_fit(points, config):
    """The points that fits use: those whose excess is below --most_excess."""
    return [p for p in points if p.excess < config.most_excess]


# ---- (25.1)

def describe_law(points):
    """(25.1) with errors. -> dict of plain numbers; `values` are pairs of value and error"""
    law = power_laws.fit_law(points)
    names = "a", "b", "ln A", "ln B", "exponent of N*", "exponent of E*"
    values_of = lambda fit: [fit.a, fit.b, math.log(fit.A), math.log(fit.B), *fit.compute_exponents]
    errors, draws = power_laws.bootstrap(
        lambda points: values_of(power_laws.fit_law(points, law)), points)  # (6,), (m, 6)
    sizes = sorted({p.size for p in points})
    others = [power_laws.fit_law([p for p in points if p.size != size], law) for size in sizes
              if len(sizes) > 2]
    return {"fit": [*law], "values": dict(zip(names, zip(values_of(law), errors.tolist()))),
            "correlation": torch.corrcoef(draws[:, :2].T)[0, 1].item(),
            "without": [[fit.a, fit.b] for fit in others]}


def print_laws(config):
    """A, a, B, b of each method."""
    for name, points in all_points(config).items():
        chosen = points_to_fit(points, config)
        if len(chosen) < 6:
            print(f"\n{name}: {len(chosen)} of {len(points)} points are below "
                  f"{config.most_excess:g} nats/token, too few for a law")
            continue
        found = describe_law(chosen)
        print(f"\n{name}: {len(chosen)} of {len(points)} points, those below "
              f"{config.most_excess:g} nats/token; rms of log E {found['fit'][-1]:.3f}")
        for what, (value, error) in found["values"].items():
            print(f"  {what:<16}{with_error(value, error)}")
        print(f"  correlation of a and b {found['correlation']:+.2f}")
        for what, values in zip("ab", zip(*found["without"])):
            print(f"  {what} without one of the sizes: {min(values):.3f} to {max(values):.3f}")


# ---- (25.2), (25.3)

def describe_frontier(points):
    """(25.2) from isoFLOP minima, with errors. -> dict of plain numbers"""
    minima = power_laws.isoflop_minima(points)
    fit = power_laws.fit_frontier(minima)

    def estimate(points):
        fit = power_laws.fit_frontier(power_laws.isoflop_minima(points))
        return fit and [fit.size_exponent, fit.excess_exponent]
    if fit is None:
        return {"minima": minima, "fit": None}
    errors, _ = power_laws.bootstrap(estimate, points)  # (2,)
    pairs = zip((fit.size_exponent, fit.excess_exponent), errors.tolist())
    return {"minima": minima, "fit": [*fit],
            "values": dict(zip(("exponent of N*", "exponent of E*"), pairs))}


def describe_gap(first, second):
    """(25.3) by the laws (25.1) of both methods, in the middle of the excesses of their points.

    -> dict of the excess, the ratio of compute, its error as a factor, and the same by the lines
    (25.2) if both have them; None where there are few points or no excess in common
    """
    spans = [[p.excess for p in points] or [math.nan] for points in (first, second)]
    low, high = max(map(min, spans)), min(map(max, spans))
    if not low < high or min(map(len, spans)) < 6:
        return None
    E, laws = math.sqrt(low * high), [power_laws.fit_law(points) for points in (first, second)]
    lines = [power_laws.fit_frontier(power_laws.isoflop_minima(p)) for p in (first, second)]

    def estimate(*groups):
        fits = [power_laws.fit_law(points, law) for points, law in zip(groups, laws)]
        return [math.log(power_laws.compute_ratio(*fits, E))]
    errors, _ = power_laws.bootstrap(estimate, first, second)  # (1,)
    ratio, factor = power_laws.compute_ratio(*laws, E), math.exp(errors[0].item())
    return {"excess": E, "ratio": ratio, "factor": factor,
            "by lines": power_laws.compute_ratio(*lines, E) if all(lines) else None}


def print_gap(first, second, names, config):
    """The compute of the second as a multiple of that of the first: a bound, and by the laws."""
    if bound := power_laws.least_ratio(first, second):
        print(f"\n{names[1]} needs more than {bound[1]:.0f} times the compute of {names[0]} for an "
              f"excess of {bound[0]:.3f} nats/token, without a fit")
    gap = describe_gap(*(points_to_fit(points, config) for points in (first, second)))
    if gap is None:
        print("their points below --most_excess are too few or too far apart for a ratio by laws")
        return
    lines = f"; by the lines above {gap['by lines']:.1f}" if gap["by lines"] else ""
    print(f"{names[1]} needs {gap['ratio']:.1f} times the compute of {names[0]} for an excess of "
          f"{gap['excess']:.3f} nats/token, times or divided by {gap['factor']:.2f}{lines}")


def print_frontiers(config):
    """The best size at each C, and the compute that a method needs as a multiple of the first's."""
    points = all_points(config)
    for name in points:
        found = describe_frontier(points_to_fit(points[name], config))
        print(f"\n{name}{'C':>12}{'N*':>10}{'E*, nats/token':>18}")
        for C, (N, E) in found["minima"].items():
            print(f"{'':<{len(name)}}{C:>12.3g}{N:>10,.0f}{E:>18.3f}")
        for what, (value, error) in found.get("values", {}).items():
            print(f"  {what:<16}{with_error(value, error)}")
        if found["fit"] is None:
            print("  fewer than two curves have their minimum inside: no power law")
    first, *others = points
    for name in others:
        print_gap(points[first], points[name], (first, name), config)


COMMANDS = {"laws": print_laws, "isoflop": print_frontiers}


def main(config, given=()):
    command = choose_command(config, COMMANDS)
    print(hardware(name=config.hardware))
    command(config)


if __name__ == "__main__":
    run_experiment(Config, main)
