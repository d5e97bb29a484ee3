"""
Chapters 7 and 10. Claims about Duo, SDTT and DCD (arXiv:2506.10892, 2602.21185, 2410.21035), small.

    python -m experiments.duo variance               variance of loss and gradient, with the
                                                     curriculum and without
    python -m experiments.duo variance --data python the same with 8,192 words
    python -m experiments.duo learn --seeds 3        which method reaches which bound when: duo,
                                                     udlm, mdlm, ar on the toy language
    python -m experiments.duo steps                  quality against steps, before and after
                                                     distillation; draws docs/steps.png

Results are printed, and saved as JSON in --out_dir. A model of the same flags that is there already
is used again.
"""
import json
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from data import load_data
from diffusion import ancestral, corrupt, probabilities, stratified
from evaluation.errors import mean_error, mean_over_seeds, with_error
from evaluation.likelihood import estimate_bound
from evaluation.sample_quality import unigram_entropy
from experiments.command import choose_command, run_experiment
from experiments.plotting import COLORS, load_pyplot, save_figure
from experiments.timing import hardware
from experiments.training import TOY, distill_or_load, save_results, train_or_load
from flags import flag
from methods.duo import Duo
from methods.udlm import mixture_bound, text_logits
from samplers.correctors import Greedy
from samplers.generate import generate
from samplers.psi import Psi

LOOKS = dict(eval_interval=100, eval_iters=4)


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word", ["variance", "learn", "steps"])
    data: str = flag("toy", "variance: toy, python, or a text file")
    seeds: int = flag(3, "learn: runs of each method, with seeds 1, 2, ...", least=1)
    share: float = flag(1.0, "share of the full number of training steps, for a quick look",
                        least=0.0001, most=100)
    num_samples: int = flag(256, "steps: samples at each point of a curve", least=2)
    most_steps: int = flag(256, "steps: where the curves end", least=1)
    out_dir: str = flag("out/experiments", "where checkpoints and results go")
    figure: str = flag("docs/steps.png", "steps: the picture; needs matplotlib")


# ---- the curriculum lowers the variance of loss and gradient

def uniform_times_loss(method, denoiser, x):
    """udlm as its paper trains it: times uniform in (0.001, 1). -> (B, L) nats"""
    t = 1e-3 + (1 - 1e-3) * stratified(len(x))  # (B, 1)
    z = corrupt(method.process, x, t)  # (B, L)
    log_x_theta = text_logits(denoiser, z, t, method.n_tokens)  # (B, L, N)
    return mixture_bound(method.process, log_x_theta, x, z, t)  # (B, L)


def curriculum_loss(tau, method, denoiser, x):
    """The curriculum's loss at temperature tau; at 0 its times, with hard inputs. -> (B, L) nats"""
    duo = Duo(method.n_tokens, curriculum=1.0, tau=tau)
    return duo.loss(denoiser, x)  # (B, L)


LOSSES = {
    "udlm, uniform times (the paper's)": uniform_times_loss,
    "udlm, times sin^2 (ours)": lambda method, denoiser, x: method.nelbo(denoiser, x),
    "the Gaussian's times, hard inputs (tau 0)": partial(curriculum_loss, 0.0),
    "curriculum, tau 0.001 (the paper's)": partial(curriculum_loss, 0.001),
    "curriculum, tau 0.01": partial(curriculum_loss, 0.01),
    "curriculum, tau 0.03": partial(curriculum_loss, 0.03),
}


def variances(model, loss, batches):
    """The variance of a text's loss; that of a batch's gradient, summed over all weights; its mean
    over the 100 weights with the highest variance. batches (n, B, L)"""
    weights, first, second, losses = list(model.denoiser.parameters()), 0.0, 0.0, []
    for i, x in enumerate(batches):
        torch.manual_seed(i)
        nats = loss(model.method, model.denoiser, x).mean(-1)  # (B,)
        gradients = torch.autograd.grad(nats.mean(), weights)
        gradient = torch.cat([g.flatten() for g in gradients]).double()  # (weights,)
        first, second = first + gradient, second + gradient ** 2  # (weights,) each
        losses.append(nats.detach())
    n = len(batches)
    variance = (second - first ** 2 / n) / (n - 1)  # (weights,)
    most = variance.topk(100).values.mean().item()
    return torch.cat(losses).var().item(), variance.sum().item(), most


def variance(config):
    toy = config.data == "toy"
    data, rows = load_data(config.data, 32 if toy else 64), []
    n = 64 if toy else 32
    batches = [data.batch("train", 32) for _ in range(n)]  # n x (B, L)
    sizes = TOY if toy else dict(data=config.data, max_iters=400)
    print(f"{hardware()}\n{data.about}\n{n} batches of 32 texts; each column also as a share of "
          f"the first row's\n\n{'':<44}{'loss':>16}{'gradient':>18}{'top 100 weights':>22}")
    for part in (0.1, 1.0):
        steps = max(2, round(sizes["max_iters"] * part))
        name = "learn-duo-1" if toy and part == 1 else f"{data.name}-duo-{part}"  # as in `learn`
        flags = {**sizes, **LOOKS, "max_iters": steps, "method": "duo", "seed": 1}
        model, base = train_or_load(config, name, **flags), None
        print(f"a duo network after {model.step} steps")
        for name, loss in LOSSES.items():
            values = variances(model, loss, batches)
            base = base or values
            rows.append([model.step, name, *values])
            cells = [f"{value:.3g} ({value / first:.2f})" for value, first in zip(values, base)]
            print(f"  {name:<42}{cells[0]:>16}{cells[1]:>18}{cells[2]:>22}", flush=True)
    save_results(config, f"variance-{data.name}", rows)


# ---- which method reaches which bound when

def learn(config):
    data, rows = load_data("toy", 32), []
    x, (entropy, error) = data.windows("val", 4000), data.language.entropy(32)  # (n, L)
    for seed in range(1, config.seeds + 1):
        for name in ["mdlm", "duo", "udlm"] + ["ar"] * (seed == 1):  # ar, far ahead, has one seed
            model = train_or_load(config, f"learn-{name}-{seed}", **TOY, **LOOKS, method=name,
                                  seed=seed)
            draws = 1 if model.method.exact else 8
            nats, se = estimate_bound(model.method, model.denoiser, x, draws, 256,
                                      independent=True)
            rows.append({"method": name, "seed": seed, "gap": nats - entropy, "se": se,
                         "curve": learning_curve(model)})
    save_results(config, "learn", rows)
    print(f"\n{hardware()}\nbound above the exact entropy of {entropy:.4f} +- {error:.4f}, "
          f"nats/token, {config.seeds} seeds")
    gaps = {}
    for row in rows:
        gaps.setdefault(row["method"], []).append(row["gap"])
    for name, values in gaps.items():
        errors = [row["se"] for row in rows if row["method"] == name]
        print(f"{name:<20}{with_error(*mean_over_seeds(values, errors), '.4f')}"
              f"{format_spread(values)}")
    less = [a - b for a, b in zip(gaps["duo"], gaps["udlm"])]  # on the same noise: less variance
    print(f"duo less udlm: {statistics.mean(less):+.4f}{format_spread(less)}")
    print("\nsteps until the bound is that of udlm at its last step, three quarters and half of "
          "its steps")
    for name in gaps:
        print(f"{name:<20}" + "".join(steps_to_match(rows, name)))


def steps_to_match(rows, name):
    """Cells of the last table for one method: how many of udlm's steps it needs for udlm's bound.
    """
    udlm = {row["seed"]: row for row in rows if row["method"] == "udlm"}
    mine = [row for row in rows if row["method"] == name]
    for part in (1.0, 0.75, 0.5):
        shares = [steps_ratio(row["curve"], udlm[row["seed"]]["curve"], part) for row in mine]
        if max(shares) < float("inf"):
            yield f"{statistics.mean(shares):>8.2f}{format_spread(shares)}"
        else:
            yield f"   not in {shares.count(float('inf'))} of {len(shares)} runs"


def format_spread(values):
    return f" (spread {statistics.stdev(values):.4f})" if len(values) > 1 else ""


def learning_curve(model):
    """[(step, held-out bound)] of the run, as train.py has logged it."""
    lines = map(json.loads, open(Path(model.config.out_dir, "metrics.jsonl"),
                                 encoding="utf-8"))
    return [(line["step"], line["val_bound"]) for line in lines if "val_bound" in line]


def steps_ratio(curve, other, part):
    """The step at which `curve` first reaches the bound that `other` has at `part` of its steps,
    over that step; inf if it never does."""
    step, target = min(other, key=lambda point: abs(point[0] - part * other[-1][0]))
    before = None
    for here, bound in curve:
        if bound <= target:
            if before is None:
                return here / step
            a, b = before
            return (a + (here - a) * (b - target) / (b - bound)) / step
        before = here, bound
    return float("inf")


# ---- quality against steps

SAMPLERS = {  # name -> sampler, top_p
    "ancestral": (ancestral, 1.0),
    "psi cap": (Psi("cap", 0.02), 1.0),
    "psi loop, top_p 0.92": (Psi("loop", 0.05), 0.92),
    "greedy": (Greedy().wrap(ancestral), 1.0),
}
STUDENTS = {"mdlm": dict(method="sdtt"), "duo": dict(method="dcd")}


def steps(config):
    load_pyplot()  # UserError before the work, not after
    data, rows = load_data("toy", 32), []
    entropy, _ = data.language.entropy(32)
    held_out = unigram_entropy(data.windows("val", 4000)).mean().item()
    print(f"{hardware()}\nsamples: exact -log p above the entropy, nats/token, and the entropy of "
          f"the tokens within a text (held-out text: {held_out:.3f})")
    models = {}
    for name, flags in STUDENTS.items():
        teacher = train_or_load(config, f"learn-{name}-1", **TOY, **LOOKS, method=name, seed=1)
        student = distill_or_load(config, f"{name}-{flags['method']}",
                                  teacher=f"{config.out_dir}/learn-{name}-1", **flags)
        models |= {name: teacher, f"{name} + {flags['method']}": student}
    for name, model in models.items():
        for what, (sampler, top_p) in SAMPLERS.items():
            if sampler.fits(model.method):
                continue  # the greedy corrector has no words to correct under masks
            for n in (2 ** k for k in range(20) if 2 ** k <= config.most_steps):
                torch.manual_seed(n)
                x = generate(model.method, model.denoiser, config.num_samples, 32, n, sampler,
                             partial(probabilities, top_p=top_p))  # (n, L)
                nats, error = mean_error(-data.language.log_prob(x) / 32, independent=True)
                inside, inside_error = mean_error(unigram_entropy(x), independent=True)
                rows.append([name, what, n, nats - entropy, error, inside, inside_error])
                print(f"{name:<12}{what:<22}{n:>4} steps   {nats - entropy:>7.3f} +- {error:.3f}   "
                      f"entropy {inside:.3f} +- {inside_error:.3f}", flush=True)
    save_results(config, "steps", rows)
    draw_steps(rows, held_out, config.figure)


def draw_steps(rows, held_out, path):
    """The curves, a column for each sampler: rows of (model, sampler, steps, nats, its error,
    entropy, its error)."""
    samplers = list(dict.fromkeys(row[1] for row in rows))
    figure, panels = load_pyplot().subplots(2, len(samplers), figsize=(3 * len(samplers), 5.6),
                                            sharex=True, sharey="row", squeeze=False)
    colors, lines = dict(zip(dict.fromkeys(row[0] for row in rows), COLORS)), {}
    for (above, below), sampler in zip(panels.T, samplers):
        for model in dict.fromkeys(row[0] for row in rows if row[1] == sampler):
            n, nats, error, inside, inside_error = zip(*(row[2:] for row in rows
                                                         if row[:2] == [model, sampler]))
            lines[model] = above.errorbar(n, nats, error, color=colors[model])
            below.errorbar(n, inside, inside_error, color=colors[model])
        above.axhline(0, color="black", linewidth=0.8)
        below.axhline(held_out, color="black", linewidth=0.8)
        above.set_yscale("symlog", linthresh=0.5)
        above.axhspan(-0.5, 0.5, color="black", alpha=0.05, linewidth=0)
        above.set_title(sampler, fontsize=10)
        below.set(xlabel="steps for 32 words")
        for axes in (above, below):
            axes.set_xscale("log", base=2)
            axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("-log p above the entropy,\nnats/word (linear where shaded)")
    panels[1, 0].set_ylabel("entropy within a text,\nnats (line: held-out text)")
    figure.legend(lines.values(), lines, loc="lower center", ncol=len(lines), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    save_figure(figure, path, dpi=110)


def main(config, given=()):
    choose_command(config, {"variance": variance, "learn": learn, "steps": steps})(config)


if __name__ == "__main__":
    run_experiment(Config, main)
