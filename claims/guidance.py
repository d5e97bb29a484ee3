"""
Guidance, measured: how much of the class for how much of the quality, under masks and under wrong words.

    python -m claims.guidance toy        strength 0 to 5, mdlm and udlm, 8, 32 and 256 steps; docs/guidance.png
    python -m claims.guidance digits     8 x 8 images: strength 0, 1, 2 at 8, 32 and 128 steps; PNG grids in out_dir

The claim is that of D-CFG (arXiv:2412.10193): guided, models whose words may be wrong do better in few steps than
masked ones, which cannot take back what guidance made them say in haste. On the toy language control is the exact
p(topic | text), and quality the exact -log p(text | topic), once through the exact denoiser, so that nothing is at
fault but the sampler and guidance themselves, and once through trained networks. Images are judged by the nearest of
the training images, and by the Frechet distance between the pixels of samples and of training images.

Results are printed, and kept as JSON in out_dir. A model that is there already, of the same flags, is used again.
"""
import sys
from dataclasses import dataclass

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word", choices=["toy", "digits"])
    methods: str = flag("", "with commas between; empty: mdlm,udlm, and for digits d3pm in bands")
    strengths: str = flag("", "with commas between; empty: 0,1,2,3,5 for toy, 0,1,2 for digits")
    steps: str = flag("", "with commas between; empty: 8,32,256 for toy, 8,32,128 for digits")
    num_samples: int = flag(320, "samples at each point, of all classes alike", least=20)
    share: float = flag(1.0, "share of the full number of training steps, for a quick look", least=0.0001, most=100)
    out_dir: str = flag("out/claims", "where checkpoints, results and grids go")
    figure: str = flag("docs/guidance.png", "toy: the picture; needs matplotlib")


if __name__ == "__main__":
    words = sys.argv[1:] if sys.argv[1:2] == [] or sys.argv[1].startswith("-") else ["--command", *sys.argv[1:]]
    CONFIG, GIVEN = parse(Config, words)

from itertools import product  # noqa: E402
from pathlib import Path

import torch

from bench import TWO_MINUTES, hardware, names_of
from bounds import mean_error
from claims.duo import keep, trained
from data import BadInput
from data.digits import png
from data.text import load
from diffusion import ancestral
from guidance import by_label
from oracle import exact
from quality import unigram_entropy
from sample import generate

DIGITS = dict(data="digits", labels=True, batch_size=64, dropout=0.1, max_iters=2000)
BANDS = {"d3pm": dict(transition="gaussian")}                # flags of a method beyond its name


def numbers(text, default, kind):
    try:
        return [kind(part) for part in text.split(",")] if text else default
    except ValueError:
        raise BadInput(f"{text} must be numbers with commas between") from None


def guided(model, n, length, steps, gamma):
    """n texts, the classes dealt out in turn. -> x (n, L), label (n,)"""
    torch.manual_seed(steps)
    label = torch.arange(n) % len(model.classes)                                                    # (n,)
    denoiser, walk = by_label(model.method, model.denoiser, ancestral, label, len(model.classes), gamma)
    return generate(model.method, denoiser, n, length, steps, walk), label                          # (n, L)


# ---- the toy language

def rated(language, x, label):
    """Means and standard errors of p(topic | text), -log p(text | topic) / L, and the entropy within a text."""
    control = language.topic_posterior(x).gather(1, label[:, None])[:, 0]                           # (n,)
    nats = -language.log_prob(x, label) / x.shape[1]                                                # (n,)
    return [*mean_error(control), *mean_error(nats), *mean_error(unigram_entropy(x))]


def toy(config):
    corpus, rows = load("toy", 32), []
    language, label = corpus.language, torch.arange(8000) % 4                                       # (n,)
    real = language.sample(8000, 32, torch.Generator().manual_seed(0), label)                       # (n, L)
    truth = rated(language, real, label)
    print(f"{hardware()}\ntexts of the language itself: p(topic | text) {truth[0]:.3f}, -log p(text | topic) "
          f"{truth[2]:.3f} +- {truth[3]:.3f} nats/word, entropy of the words within a text {truth[4]:.3f}\n\n"
          f"{'':<24}{'p(topic | text)':>18}{'-log p above theirs':>24}{'entropy within':>20}")
    strengths, steps = numbers(config.strengths, [0, 1, 2, 3, 5], float), numbers(config.steps, [8, 32, 256], int)
    for kind in ("exact", "trained"):
        for name in names_of(config, ["mdlm", "udlm"]):
            model = exact(name) if kind == "exact" else trained(
                config, f"guidance-toy-{name}", data="toy", labels=True, method=name, **TWO_MINUTES)
            print(f"{name}, {kind}")
            for n in steps:
                for gamma in strengths:
                    values = rated(language, *guided(model, config.num_samples, 32, n, gamma))
                    values[2] -= truth[2]
                    rows.append([kind, name, n, gamma, *values])
                    cells = [f"{mean:.3f} +- {error:.3f}" for mean, error in zip(values[::2], values[1::2])]
                    print(f"{n:>5} steps, strength {gamma:<4g}{cells[0]:>18}{cells[1]:>24}{cells[2]:>20}", flush=True)
    keep(config, "guidance-toy", rows)
    draw(rows, config.figure)


def draw(rows, path):
    """Control against quality: rows of (kind, method, steps, strength, control, error, nats, error, ...)."""
    try:
        import matplotlib
    except ImportError:
        raise BadInput("the picture needs matplotlib: pip install matplotlib, and run again") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    kinds, steps = (list(dict.fromkeys(row[i] for row in rows)) for i in (0, 2))
    names = dict.fromkeys(row[1] for row in rows)
    colours = dict(zip(names, ("tab:gray", "tab:red", "tab:blue", "tab:green")))
    figure, axes = pyplot.subplots(len(kinds), len(steps), figsize=(3.8 * len(steps), 3.4 * len(kinds)), sharex=True,
                                   sharey="row", squeeze=False)
    for (i, kind), (j, n), name in product(enumerate(kinds), enumerate(steps), names):
        points = [row for row in rows if row[:3] == [kind, name, n]]
        x, y = [row[4] for row in points], [row[6] for row in points]
        axes[i, j].errorbar(x, y, [row[7] for row in points], [row[5] for row in points], color=colours[name],
                            marker="o", markersize=3, label=name)
        for row in points:
            axes[i, j].annotate(f"{row[3]:g}", (row[4], row[6]), textcoords="offset points", xytext=(3, 4), fontsize=7)
        axes[i, j].set_title(f"{kind} denoiser, {n} steps", fontsize=9)
        axes[i, j].axhline(0, color="black", linewidth=0.8)
        axes[i, j].grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("exact p(topic | text); numbers: strength", fontsize=8)
    for axis in axes[:, 0]:
        axis.set_ylabel("-log p(text | topic), nats/word\nabove the language's own", fontsize=8)
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"drawn in {path}")


# ---- images

def frechet(a, b):
    """The Frechet distance of two clouds as if they were Gaussian, in grey levels squared: what FID is to features,
    this is to pixels. a (n, D), b (m, D) -> float"""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.double().mean(0), x.double().T.cov()) for x in (a, b))
    both = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()                       # () tr (C D)^1/2
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * both)


def digits(config):
    corpus, rows = load("digits", 64), []
    real, held = corpus.windows("train"), corpus.windows("val")                                     # (n, 64) each
    print(f"{hardware()}\n{corpus.about}\nthe judge: the nearest training image. On held-out images it has "
          f"{(corpus.nearest(held)[0] == corpus.example_windows('val')[2]).double().mean():.1%} of the digits right, "
          f"{corpus.nearest(held)[1].mean():.2f} levels away; Frechet distance of these to the training images "
          f"{frechet(held, real):.1f}\n\n{'':<32}{'digit asked for':>18}{'Frechet':>12}{'levels away':>18}")
    Path(config.out_dir).mkdir(parents=True, exist_ok=True)
    strengths, steps = numbers(config.strengths, [0, 1, 2], float), numbers(config.steps, [8, 32, 128], int)
    for name in names_of(config, ["mdlm", "udlm", *BANDS]):
        model = trained(config, f"guidance-digits-{name}", **DIGITS, method=name, **BANDS.get(name, {}))
        for n in steps:
            for gamma in strengths:
                x, label = guided(model, config.num_samples, 64, n, gamma)
                (_, distance), (_, right) = corpus.rate(x, label)
                control, away, far = mean_error(right), mean_error(distance), frechet(x, real)
                rows.append([name, n, gamma, *control, far, *away])
                png(Path(config.out_dir, f"digits-{name}-{n}-{gamma:g}.png"), x[:100])
                print(f"{name:<7}{n:>5} steps, strength {gamma:<4g}{control[0]:>17.1%} +- {control[1]:.1%}"
                      f"{far:>9.1f}{away[0]:>12.2f} +- {away[1]:.2f}", flush=True)
    keep(config, "guidance-digits", rows)
    print(f"grids of 10 x 10, a column for each digit, in {config.out_dir}/digits-METHOD-STEPS-STRENGTH.png\n")
    for sentence in verdict(rows, max(strengths)):
        print(sentence)


def verdict(rows, gamma):
    """Does strong guidance favour wrong words over masks in the fewest steps, and more so than in the most?"""
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
            yield (f"{name} against mdlm, strength {gamma:g}, {n} steps: the digit asked for {lead[n][0]:+.1%} "
                   f"+- {error:.1%}, Frechet distance {ours[5]:.1f} against {masks[5]:.1f}")
        better = lead[few][0] > 2 * lead[few][1] and lead[few][2] > 1
        yield (f"guidance in few steps favours {name} over masks: {'holds' if better else 'does not hold'}; "
               f"and {'more' if lead[few][2] > lead[most][2] else 'no more'} in {few} steps than in {most}")


if __name__ == "__main__":
    with one_line_errors():
        if not CONFIG.command:
            raise BadInput("say what to measure: python -m claims.guidance toy or digits; --help tells more")
        {"toy": toy, "digits": digits}[CONFIG.command](CONFIG)
