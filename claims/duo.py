"""
Claims about Duo, SDTT and DCD (arXiv:2506.10892, 2602.21185, 2410.21035), measured again on a small scale.

    python -m claims.duo variance                 variance of loss and gradient, with the curriculum and without
    python -m claims.duo variance --data python   the same with 8,192 words
    python -m claims.duo learn --seeds 3          who reaches which bound when: duo, udlm, mdlm, ar on the toy language
    python -m claims.duo steps                    quality against steps, before and after distilling; docs/steps.png

Results are printed, and kept as JSON in out/claims. A model that is there already, of the same flags, is used again.
"""
import sys
from dataclasses import dataclass

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word", choices=["variance", "learn", "steps"])
    data: str = flag("toy", "of `variance`: toy, python, or a text file")
    seeds: int = flag(3, "of `learn`: runs of each method, with seeds 1, 2, ...", least=1)
    share: float = flag(1.0, "share of the full number of training steps, for a quick look", least=0.0001, most=100)
    num_samples: int = flag(256, "of `steps`: samples at each point of a curve", least=2)
    most_steps: int = flag(256, "of `steps`: where the curves end", least=1)
    out_dir: str = flag("out/claims", "where checkpoints and results go")
    figure: str = flag("docs/steps.png", "of `steps`: the picture; needs matplotlib")


if __name__ == "__main__":
    words = sys.argv[1:] if sys.argv[1:2] == [] or sys.argv[1].startswith("-") else ["--command", *sys.argv[1:]]
    CONFIG, GIVEN = parse(Config, words)

import json  # noqa: E402
import statistics
from functools import partial
from pathlib import Path

import torch

import checkpoint
import distill
import train
from bench import hardware
from bounds import estimate, mean_error
from data import BadInput
from data.text import load
from diffusion import ancestral, corrupt, probabilities, stratified
from duo import Duo
from psi import greedy_tail, psi
from quality import unigram_entropy
from sample import generate
from uniform import mixture_bound, text_logits

TOY = dict(data="toy", batch_size=64, block_size=32, max_iters=1800)


def trained(config, name, **flags):
    """A model trained by train.py in out_dir/name, or found there if its flags and its last step are these."""
    out_dir = f"{config.out_dir}/{name}"
    flags = {"eval_interval": 10**6, **flags, "out_dir": out_dir}
    wanted = train.Config(**flags)
    wanted.max_iters = max(2, round(wanted.max_iters * config.share))
    if not found(out_dir, {**flags, "max_iters": wanted.max_iters}):
        train.main(wanted)
    return checkpoint.restore(out_dir)


def distilled(config, name, **flags):
    """The same for distill.py."""
    out_dir = f"{config.out_dir}/{name}"
    wanted = distill.Config(**flags, out_dir=out_dir)
    wanted.iters_per_round = max(1, round(wanted.iters_per_round * config.share))
    if not found(out_dir, {"max_iters": wanted.rounds * wanted.iters_per_round}):
        distill.main(wanted)
    return checkpoint.restore(out_dir)


def found(out_dir, flags):
    if not Path(out_dir, "ckpt.pt").exists():
        return False
    state = checkpoint.load(out_dir)
    same = all(state["config"].get(key) == value for key, value in flags.items())
    return same and state["step"] == flags["max_iters"]


def keep(config, name, rows):
    """The result as JSON, with the machine that it was measured on."""
    path = Path(config.out_dir, f"{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(checkpoint.as_json({"hardware": hardware(), "rows": rows}))
    print(f"kept in {path}")


# ---- 1. the curriculum lowers the variance of loss and gradient

def plain(method, denoiser, x):
    """udlm as its paper trains it: times uniform in (0.001, 1). -> (B, L) nats"""
    t = 1e-3 + (1 - 1e-3) * stratified(len(x))                                                      # (B, 1)
    z = corrupt(method.process, x, t)                                                               # (B, L)
    return mixture_bound(method.process, text_logits(denoiser, z, t, method.n_tokens), x, z, t)     # (B, L)


def gaussian(tau, method, denoiser, x):
    """The curriculum's loss at temperature tau; at 0 its times without its soft inputs. -> (B, L) nats"""
    duo = Duo(method.n_tokens, curriculum=1.0, tau=tau)
    return duo.loss(denoiser, x)                                                                    # (B, L)


LOSSES = {
    "udlm, uniform times (the paper's)": plain,
    "udlm, times sin^2 (ours)": lambda method, denoiser, x: method.nelbo(denoiser, x),
    "the Gaussian's times, hard inputs (tau 0)": partial(gaussian, 0.0),
    "curriculum, tau 0.001 (the paper's)": partial(gaussian, 0.001),
    "curriculum, tau 0.01": partial(gaussian, 0.01),
    "curriculum, tau 0.03": partial(gaussian, 0.03),
}


def spread(model, loss, batches):
    """-> variance of a text's loss; sum over weights of the variance of a batch's gradient; its mean over the 100
    weights that have most. batches (n, B, L)"""
    weights, first, second, losses = list(model.denoiser.parameters()), 0.0, 0.0, []
    for i, x in enumerate(batches):
        torch.manual_seed(i)
        nats = loss(model.method, model.denoiser, x).mean(-1)                                       # (B,)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(nats.mean(), weights)])      # (weights,)
        first, second = first + gradient.double(), second + gradient.double() ** 2
        losses.append(nats.detach())
    n = len(batches)
    variance = (second - first ** 2 / n) / (n - 1)                                                  # (weights,)
    return torch.cat(losses).var().item(), variance.sum().item(), variance.topk(100).values.mean().item()


def variance(config):
    corpus, rows = load(config.data, 32 if config.data == "toy" else 64), []
    n = 64 if corpus.name == "toy" else 32
    batches = [corpus.batch("train", 32) for _ in range(n)]                                         # (n, B, L)
    sizes = TOY if config.data == "toy" else dict(data=config.data, max_iters=400)
    print(f"{hardware()}\n{corpus.about}\n{n} batches of 32 texts; each column also as a share of the first row's\n")
    print(f"{'':<44}{'loss':>16}{'gradient':>18}{'top 100 weights':>22}")
    for part in (0.1, 1.0):
        flags = {**sizes, "max_iters": max(2, round(sizes["max_iters"] * part)), "method": "duo", "seed": 1}
        known = corpus.name == "toy" and part == 1           # `learn` and `steps` have the same
        model = trained(config, "learn-duo-1" if known else f"{corpus.name}-duo-{part}", **flags, **LOOKS)
        print(f"a duo network after {model.step} steps")
        base = None
        for name, loss in LOSSES.items():
            values = spread(model, loss, batches)
            base = base or values
            rows.append([model.step, name, *values])
            cells = [f"{value:.3g} ({value / first:.2f})" for value, first in zip(values, base)]
            print(f"  {name:<42}{cells[0]:>16}{cells[1]:>18}{cells[2]:>22}", flush=True)
    keep(config, f"variance-{corpus.name}", rows)


# ---- 2. and 3. who reaches which bound when

METHODS, RANDOM = ["mdlm", "duo", "udlm", "ar"], ["mdlm", "duo", "udlm"]     # ar, far ahead, has one seed
LOOKS = dict(eval_interval=100, eval_iters=4)


def learn(config):
    corpus, rows = load("toy", 32), []
    x, (entropy, error) = corpus.windows("val", 4000), corpus.language.entropy(32)                  # (n, L)
    for seed in range(1, config.seeds + 1):
        for name in METHODS if seed == 1 else RANDOM:
            model = trained(config, f"learn-{name}-{seed}", **TOY, **LOOKS, method=name, seed=seed)
            nats, se = estimate(model.method, model.denoiser, x, 1 if name == "ar" else 8, 256)
            rows.append({"method": name, "seed": seed, "gap": nats - entropy, "se": se, "curve": curve(model)})
    keep(config, "learn", rows)
    print(f"\n{hardware()}\nbound above the exact entropy of {entropy:.4f} +- {error:.4f}, nats/token, "
          f"{config.seeds} seeds")
    gaps = {name: [row["gap"] for row in rows if row["method"] == name] for name in METHODS}
    for name, values in gaps.items():
        se = statistics.mean(row["se"] for row in rows if row["method"] == name)
        print(f"{name:<20}{statistics.mean(values):.4f} +- {se:.4f}{spread_of(values)}")
    less = [a - b for a, b in zip(gaps["duo"], gaps["udlm"])]                    # on the same noise: little chance
    print(f"duo less udlm: {statistics.mean(less):+.4f}{spread_of(less)}")
    print("\nsteps until the bound is that of udlm at its last step, three quarters and half of its steps")
    for name in METHODS:
        shares = [[reached(row, rival["curve"], part) for part in (1.0, 0.75, 0.5)] for row, rival in
                  ((row, next(r for r in rows if r["method"] == "udlm" and r["seed"] == row["seed"]))
                   for row in rows if row["method"] == name)]
        cells = (f"{statistics.mean(column):>8.2f}{spread_of(column)}" if max(column) < float("inf") else
                 f"   not in {sum(share == float('inf') for share in column)} of {len(column)} runs"
                 for column in zip(*shares))
        print(f"{name:<20}" + "".join(cells))


def spread_of(values):
    return f" (spread {statistics.stdev(values):.4f})" if len(values) > 1 else ""


def curve(model):
    """[(step, held-out bound)] of the run, as train.py wrote it down."""
    lines = map(json.loads, open(Path(model.config.out_dir, "metrics.jsonl")))
    return [(line["step"], line["val_bound"]) for line in lines if "val_bound" in line]


def reached(row, rival, part):
    """The step at which `row` first had the bound that its rival has at `part` of its steps, over that step."""
    last = rival[-1][0]
    step, target = min(rival, key=lambda point: abs(point[0] - part * last))
    before = None
    for here, bound in row["curve"]:
        if bound <= target:
            if before is None:
                return here / step
            a, b = before
            return (a + (here - a) * (b - target) / (b - bound)) / step
        before = here, bound
    return float("inf")


# ---- 4. and 5. quality against steps

SAMPLERS = {                                                 # the walk, and the share of its nucleus
    "ancestral": (ancestral, 1.0),
    "psi cap": (partial(psi, schedule="cap", eta=0.02), 1.0),
    "psi loop, top_p 0.92": (partial(psi, schedule="loop", eta=0.05), 0.92),
    "greedy tail": (partial(greedy_tail, walk=ancestral), 1.0),
}
STUDENTS = {"mdlm": dict(method="sdtt"), "duo": dict(method="dcd")}


def steps(config):
    corpus, rows = load("toy", 32), []
    entropy, _ = corpus.language.entropy(32)
    held_out, _ = mean_error(unigram_entropy(corpus.windows("val", 4000)))
    print(f"{hardware()}\nsamples: exact -log p above the entropy, nats/token, and the entropy of the tokens within a "
          f"text (held-out text: {held_out:.3f})")
    models = {}
    for name, flags in STUDENTS.items():
        teacher = trained(config, f"learn-{name}-1", **TOY, **LOOKS, method=name, seed=1)
        student = distilled(config, f"{name}-{flags['method']}", teacher=f"{config.out_dir}/learn-{name}-1", **flags)
        models |= {name: teacher, f"{name} + {flags['method']}": student}
    for name, model in models.items():
        for sampler, (walk, top_p) in SAMPLERS.items():
            if name.startswith("mdlm") and sampler == "greedy tail":
                continue                                     # masks leave no text to proofread
            for n in (2 ** k for k in range(20) if 2 ** k <= config.most_steps):
                torch.manual_seed(n)
                law = partial(probabilities, top_p=top_p)
                x = generate(model.method, model.denoiser, config.num_samples, 32, n, walk, law)    # (n, L)
                nats, error = mean_error(-corpus.language.log_prob(x) / 32)
                inside, inside_error = mean_error(unigram_entropy(x))
                rows.append([name, sampler, n, nats - entropy, error, inside, inside_error])
                print(f"{name:<12}{sampler:<22}{n:>4} steps   {nats - entropy:>7.3f} +- {error:.3f}   "
                      f"entropy {inside:.3f} +- {inside_error:.3f}", flush=True)
    keep(config, "steps", rows)
    draw(rows, held_out, config.figure)


def draw(rows, held_out, path):
    """The curves as a picture: rows of (model, sampler, steps, nats, its error, entropy, its error)."""
    try:
        import matplotlib
    except ImportError:
        raise BadInput("the picture needs matplotlib: pip install matplotlib, and run again") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    colours = dict(zip(dict.fromkeys(row[0] for row in rows), ("tab:gray", "tab:red", "tab:blue", "tab:green")))
    styles = dict(zip(SAMPLERS, ("-", "--", "-.", ":")))
    for model, sampler in dict.fromkeys((row[0], row[1]) for row in rows):
        points = [row for row in rows if (row[0], row[1]) == (model, sampler)]
        n = [row[2] for row in points]
        look = dict(color=colours[model], linestyle=styles[sampler], label=f"{model}, {sampler}")
        left.errorbar(n, [row[3] for row in points], [row[4] for row in points], **look)
        right.errorbar(n, [row[5] for row in points], [row[6] for row in points], **look)
    left.axhline(0, color="black", linewidth=0.8)
    right.axhline(held_out, color="black", linewidth=0.8)
    left.set(xscale="log", yscale="symlog", xlabel="steps for 32 words", ylabel="-log p above the entropy, nats/word")
    right.set(xscale="log", xlabel="steps for 32 words", ylabel="entropy of the words within a text, nats")
    left.set_yscale("symlog", linthresh=0.5)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
    right.legend(fontsize=7)
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"drawn in {path}")


if __name__ == "__main__":
    with one_line_errors():
        if not CONFIG.command:
            raise BadInput("say what to measure: python -m claims.duo variance, learn or steps; --help tells more")
        {"variance": variance, "learn": learn, "steps": steps}[CONFIG.command](CONFIG)
