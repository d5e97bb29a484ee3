"""
Chapter 11. Guidance by gradients, measured: the asked-for class against likelihood.

    python -m experiments.gradients                 each kind of gradient at several strengths
    python -m experiments.gradients --seconds 60    networks, after so many CPU seconds each

On the toy language with exact denoisers, so that only guidance can err: once with the exact
classifier, once with a trained one, which reads the same noise. Beside them stands label guidance
of `udlm`. With --seconds, networks of texts of 16 words write in place of exact denoisers: those
without labels are guided by gradients of the exact classifier, the others by labels. Control is the
exact p(topic | text) of samples, quality the exact -log p(text | topic) less that of the language:
what falls below 0 is likelier than the language's own text, and poorer.

Results are printed, and saved as JSON in --out_dir. A classifier that is there is used again.
"""
from dataclasses import dataclass

import torch

from data import load_data
from diffusion import ancestral
from experiments.command import run_experiment
from experiments.guidance import rate_texts
from experiments.learning import steps_in
from experiments.timing import hardware
from experiments.training import RATES, save_results, train_or_load
from flags import flag
from oracle import exact, exact_classifier
from samplers import SamplingFlags, make_sampler
from samplers.generate import generate
from samplers.gradients import guide_by_gradients
from samplers.guidance import guide_by_label

JUDGE = dict(data="toy", method="classifier", noise_of="plaid", labels=True, block_size=32,
             n_layer=2, n_embd=64, n_head=4, batch_size=64, max_iters=300, **RATES)
SETTINGS = [  # method, --gradient, --gradient_steps, strengths
    ("plaid", "noisy", 1, (0, 1, 2)), ("plaid", "clean", 1, (5, 20)), ("plaid", "clean", 3, (5,)),
    ("plaid", "control", 3, (1,)), ("diffusion_lm", "noisy", 1, (1,)), ("rdlm", "noisy", 1, (1,))]
SMALL = dict(data="toy", block_size=16, n_layer=3, n_embd=96, n_head=4, batch_size=64,
             warmup_iters=20, **RATES)
GENERATORS = {"plaid": dict(self_condition=0.0), "bfn": {}, "udlm": dict(labels=True),
              "mdlm": dict(labels=True)}


@dataclass
class Config:
    topic: int = flag(3, "the class asked for: 3 is school, a tenth of all texts", least=0, most=3)
    steps: int = flag(32, "of the sampler", least=1)
    num_samples: int = flag(32, "texts at each point", least=10)
    seeds: int = flag(1, "runs of each point, with other noise", least=1)
    seconds: float = flag(0.0, "of training of each network; 0: exact denoisers", least=0)
    share: float = flag(1.0, "share of the classifier's training steps, for a quick look",
                        least=0.0001, most=100)
    out_dir: str = flag("out/experiments", "where the classifier and results go")


def write(config, model, sampler, denoiser=None):
    """The texts of all seeds. -> (n, L)"""
    texts = []
    for seed in range(config.seeds):
        torch.manual_seed(seed)
        texts.append(generate(model.method, denoiser or model.denoiser, config.num_samples,
                              model.config.block_size, config.steps, sampler))
    return torch.cat(texts)  # (n, L)


def points(config, classifiers):
    """Yields what is measured: its name, and the texts (n, L)."""
    label, udlm = torch.tensor([config.topic]), exact("udlm")  # (1,)
    for strength in (1.0, 2.0):
        denoiser, sampler = guide_by_label(udlm.method, udlm.denoiser, ancestral, label,
                                           len(udlm.classes), strength)
        yield f"udlm, labels, strength {strength:g}", write(config, udlm, sampler, denoiser)
    for who, judge in classifiers.items():
        for method, gradient, steps, strengths in SETTINGS:
            model = exact(method)
            if who == "trained" and method != JUDGE["noise_of"]:
                continue  # other noise
            for strength in strengths[who == "trained" and strengths[0] == 0:]:
                flags = SamplingFlags(guidance=strength, gradient=gradient, gradient_steps=steps)
                sampler = guide_by_gradients(flags, model.method, ancestral, label, judge)
                name = f"{method}, {gradient}, {steps} step{'s' * (steps > 1)}, {who} classifier"
                yield f"{name}, strength {strength:g}", write(config, model, sampler)


def trained_points(config, judge):
    """The same for networks."""
    label = torch.tensor([config.topic])  # (1,)
    for name, own in GENERATORS.items():
        flags = dict(SMALL, method=name, **own)
        model = train_or_load(config, f"gradients-{name}",
                              max_iters=steps_in(config.seconds, **flags), **flags)
        sampler = make_sampler(model.method.first_choice, model.method)
        for strength in (0.0, 1.0, 2.0):
            if own.get("labels"):
                texts = write(config, model, *reversed(guide_by_label(
                    model.method, model.denoiser, sampler, label, len(model.classes), strength)))
            else:
                flags = SamplingFlags(guidance=strength, gradient="noisy", gradient_steps=1)
                texts = write(config, model, guide_by_gradients(flags, model.method, sampler, label,
                                                                judge))
            yield f"{name}, {model.step} steps, strength {strength:g}", texts


def main(config, given=()):
    length = 16 if config.seconds else 32
    language, rows = load_data("toy", length).language, []
    topic = torch.full((4000,), config.topic)  # (n,)
    real = language.sample(4000, length, torch.Generator().manual_seed(0), topic)  # (n, L)
    truth = rate_texts(language, real, topic)
    print(f"{hardware()}\ntexts of the topic itself: p(topic | text) {truth[0]:.3f}, -log p(text | "
          f"topic) {truth[2]:.3f} +- {truth[3]:.3f} nats/word, entropy of the words within a text "
          f"{truth[4]:.3f}\n\n{'':<58}{'p(topic | text)':>18}{'-log p above':>18}"
          f"{'entropy within':>18}")
    judge = exact_classifier(language, None)
    if config.seconds:
        found = trained_points(config, judge)
    else:
        trained = train_or_load(config, "gradients-classifier", **JUDGE).denoiser
        found = points(config, {"exact": judge, "trained": trained})
    for name, x in found:
        values = rate_texts(language, x, topic[:1].expand(len(x)))
        values[2] -= truth[2]
        rows.append([name, *values])
        cells = [f"{mean:.3f} +- {error:.3f}" for mean, error in zip(values[::2], values[1::2])]
        print(f"{name:<58}{cells[0]:>18}{cells[1]:>18}{cells[2]:>18}", flush=True)
    save_results(config, "gradients", rows)


if __name__ == "__main__":
    run_experiment(Config, main)
