"""
Chapter 11. Guidance, measured: class control against quality, under masks and under wrong words.

    python -m experiments.guidance toy     strength 0 to 5, mdlm and udlm, 8, 32 and 256 steps;
                                           draws docs/guidance.png
    python -m experiments.guidance digits  8 x 8 images: strength 0, 1, 2 at 8, 32 and 128 steps;
                                           PNG grids in --out_dir

The claim is that of D-CFG (arXiv:2412.10193): with guidance, models whose words may be wrong are
better in few steps than masked ones, which cannot take back what guidance made them write early. On
the toy language control is the exact p(topic | text) and quality the exact -log p(text | topic),
once with the exact denoiser, so that only sampler and guidance can err, and once with trained
networks. Images are judged by the nearest training image, and by the Frechet distance between the
pixels of samples and of training images.

Results are printed, and saved as JSON in --out_dir. A model of the same flags that is there already
is used again.
"""
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from data import load_data
from data.digits import write_png
from diffusion import ancestral
from evaluation.errors import mean_error
from evaluation.sample_quality import unigram_entropy
from experiments.command import choose_command, run_experiment
from experiments.plotting import COLORS, load_pyplot, save_figure
from experiments.timing import hardware, parse_numbers
from experiments.training import (RATES, TOY, language_models, method_names, save_results,
                                  train_or_load)
from flags import flag
from oracle import exact
from samplers.generate import generate
from samplers.guidance import guide_by_label

DIGITS = dict(data="digits", labels=True, batch_size=64, n_layer=4, dropout=0.1, max_iters=2000,
              **RATES)
BANDS = {"d3pm": dict(transition="gaussian")}  # flags of a method besides its name


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word", ["toy", "digits"])
    methods: str = flag("", "with commas between; empty means mdlm,udlm, and for digits also d3pm "
                        "with gaussian transitions", each=language_models())
    strengths: str = flag("", "with commas between; empty means 0,1,2,3,5 for toy, 0,1,2 for "
                          "digits", each=float, least=0)
    steps: str = flag("", "with commas between; empty means 8,32,256 for toy, 8,32,128 for digits",
                      each=int, least=1)
    num_samples: int = flag(320, "samples at each point, of all classes alike", least=20)
    share: float = flag(1.0, "share of the full number of training steps, for a quick look",
                        least=0.0001, most=100)
    out_dir: str = flag("out/experiments", "where checkpoints, results and grids go")
    figure: str = flag("docs/guidance.png", "toy: the picture; needs matplotlib")


def points(config, strengths, steps):
    """The strengths and the steps of the flags, or these."""
    return (parse_numbers(config.strengths or strengths, float),
            parse_numbers(config.steps or steps))


def guided_samples(model, n, length, steps, gamma):
    """n texts of all classes in turn. -> x (n, L), label (n,)"""
    torch.manual_seed(steps)
    classes = len(model.classes)
    label = torch.arange(n) % classes  # (n,)
    denoiser, sampler = guide_by_label(model.method, model.denoiser, ancestral, label, classes,
                                       gamma)
    return generate(model.method, denoiser, n, length, steps, sampler), label  # (n, L), (n,)


# ---- the toy language

def rate_texts(language, x, label):
    """Means and standard errors of p(topic | text), of -log p(text | topic) / L, and of the entropy
    within a text."""
    control = language.topic_posterior(x).gather(1, label[:, None])[:, 0]  # (n,)
    nats = -language.log_prob(x, label) / x.shape[1]  # (n,)
    inside = unigram_entropy(x)  # (n,)
    return [figure for values in (control, nats, inside) for figure in mean_error(values, True)]


def toy(config):
    load_pyplot()  # UserError before the work, not after
    data, rows = load_data("toy", 32), []
    language, label = data.language, torch.arange(8000) % 4  # (n,)
    real = language.sample(8000, 32, torch.Generator().manual_seed(0), label)  # (n, L)
    truth = rate_texts(language, real, label)
    print(f"{hardware()}\ntexts of the language itself: p(topic | text) {truth[0]:.3f}, "
          f"-log p(text | topic) {truth[2]:.3f} +- {truth[3]:.3f} nats/word, entropy of the words "
          f"within a text {truth[4]:.3f}\n\n{'':<24}{'p(topic | text)':>18}"
          f"{'-log p above theirs':>24}{'entropy within':>20}")
    strengths, steps = points(config, "0,1,2,3,5", "8,32,256")
    for kind, name in product(("exact", "trained"), method_names(config, ["mdlm", "udlm"])):
        model = exact(name) if kind == "exact" else train_or_load(
            config, f"guidance-toy-{name}", **TOY, labels=True, method=name)
        print(f"{name}, {kind}")
        for n, gamma in product(steps, strengths):
            values = rate_texts(language, *guided_samples(model, config.num_samples, 32, n, gamma))
            values[2] -= truth[2]
            rows.append([kind, name, n, gamma, *values])
            cells = [f"{mean:.3f} +- {error:.3f}" for mean, error in zip(values[::2], values[1::2])]
            print(f"{n:>5} steps, strength {gamma:<4g}{cells[0]:>18}{cells[1]:>24}{cells[2]:>20}",
                  flush=True)
    save_results(config, "guidance-toy", rows)
    draw_control(rows, config.figure)


MOST = 0.9995  # of p(topic | text), on an axis that spreads what is near 1


def draw_control(rows, path):
    """Control against quality: (kind, method, steps, strength, control, error, nats, error, ..)."""
    kinds, steps = (list(dict.fromkeys(row[i] for row in rows)) for i in (0, 2))
    names = dict.fromkeys(row[1] for row in rows)
    colors = dict(zip(names, COLORS))
    size = 3.8 * len(steps), 3.4 * len(kinds)
    figure, axes = load_pyplot().subplots(len(kinds), len(steps), figsize=size, sharex=True,
                                          sharey="row", squeeze=False)
    for (i, kind), (j, n), name in product(enumerate(kinds), enumerate(steps), names):
        mine = [row for row in rows if row[:3] == [kind, name, n]]
        gamma, x, _, y, y_error = zip(*(row[3:8] for row in mine))
        x = [min(p, MOST) for p in x]
        axes[i, j].errorbar(x, y, y_error, color=colors[name], marker="o", markersize=3, label=name)
        for number, (strength, at) in enumerate(zip(gamma, zip(x, y))):
            offset = (4, 4) if number % 2 else (4, -9)  # neighbors on different sides
            axes[i, j].annotate(f"{strength:g}", at, textcoords="offset points", xytext=offset,
                                fontsize=7, color=colors[name])
        axes[i, j].set_title(f"{kind} denoiser, {n} steps", fontsize=9)
        axes[i, j].axhline(0, color="black", linewidth=0.8)
        axes[i, j].grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xscale("logit")
        axis.set_xlabel(f"exact p(topic | text), at most {MOST}; numbers: strength", fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("-log p(text | topic), nats/word\nabove the language's own", fontsize=8)
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    save_figure(figure, path, dpi=110)


# ---- images

def frechet_distance(a, b):
    """Between two sets of images as if they were Gaussian, in gray levels squared: what FID is for
    features, on pixels. a (n, D), b (m, D) -> float"""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.double().mean(0), x.double().T.cov()) for x in (a, b))
    both = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()  # () tr (C D)^1/2
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * both)


def digits(config):
    data, rows = load_data("digits", 64), []
    real, held = data.windows("train"), data.windows("val")  # (n, 64) each
    digit, distance = data.nearest(held)  # (n,) each
    right = (digit == data.example_windows("val")[2]).double().mean()  # ()
    print(f"{hardware()}\n{data.about}\nthe judge: the nearest training image. On held-out images "
          f"it has {right:.1%} of the digits right, {distance.mean():.2f} levels away; Frechet "
          f"distance of these to the training images {frechet_distance(held, real):.1f}\n\n"
          f"{'':<32}{'digit asked for':>18}{'Frechet':>12}{'levels away':>18}")
    Path(config.out_dir).mkdir(parents=True, exist_ok=True)
    strengths, steps = points(config, "0,1,2", "8,32,128")
    for name in method_names(config, ["mdlm", "udlm", *BANDS]):
        model = train_or_load(config, f"guidance-digits-{name}", **DIGITS, method=name,
                              **BANDS.get(name, {}))
        for n, gamma in product(steps, strengths):
            x, label = guided_samples(model, config.num_samples, 64, n, gamma)  # (n, 64), (n,)
            (_, distance), (_, right) = data.score(x, label)  # (n,) each
            control, away = mean_error(right, True), mean_error(distance, True)
            far = frechet_distance(x, real)
            rows.append([name, n, gamma, *control, far, *away])
            write_png(Path(config.out_dir, f"digits-{name}-{n}-{gamma:g}.png"), x[:100])
            print(f"{name:<7}{n:>5} steps, strength {gamma:<4g}{control[0]:>17.1%} +- "
                  f"{control[1]:.1%}{far:>9.1f}{away[0]:>12.2f} +- {away[1]:.2f}", flush=True)
    save_results(config, "guidance-digits", rows)
    print(f"grids of 10 x 10, a column for each digit, in "
          f"{config.out_dir}/digits-METHOD-STEPS-STRENGTH.png\n")
    for sentence in conclusions(rows, max(strengths)):
        print(sentence)


def conclusions(rows, gamma):
    """Does strong guidance favor wrong words over masks in the fewest steps, and more than in the
    most?"""
    few, most = min(row[1] for row in rows), max(row[1] for row in rows)
    found = {tuple(row[:3]): row for row in rows}
    if ("mdlm", few, gamma) not in found:
        return
    for name in dict.fromkeys(row[0] for row in rows if row[0] != "mdlm"):
        lead = {}
        for n in dict.fromkeys((few, most)):
            ours, masks = found[name, n, gamma], found["mdlm", n, gamma]
            error = (ours[4] ** 2 + masks[4] ** 2) ** 0.5
            lead[n] = ours[3] - masks[3], error, masks[5] / ours[5]
            yield (f"{name} against mdlm, strength {gamma:g}, {n} steps: the digit asked for "
                   f"{lead[n][0]:+.1%} +- {error:.1%}, Frechet distance {ours[5]:.1f} against "
                   f"{masks[5]:.1f}")
        better = lead[few][0] > 2 * lead[few][1] and lead[few][2] > 1
        more = "more" if lead[few][2] > lead[most][2] else "no more"
        yield (f"guidance in few steps favors {name} over masks: "
               f"{'holds' if better else 'does not hold'}; and {more} in {few} steps than in "
               f"{most}")


def main(config, given=()):
    choose_command(config, {"toy": toy, "digits": digits})(config)


if __name__ == "__main__":
    run_experiment(Config, main)
