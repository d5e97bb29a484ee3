"""
Chapter 12. The protocol of SEDD's evaluation (arXiv:2406.11473), in small: continue a prompt.

    python -m experiments.continuations            networks of the toy language, trained first
    python -m experiments.continuations --exact    the exact denoisers: what the sampler alone costs

A model continues prompts of several lengths, cut from held-out texts. Since the language is known,
each continuation has two figures of quality that no judge can get wrong:

    nats/word   -log p(continuation | prompt) per word, less that of the true continuations
    in grammar  the share of its words that the grammar allows after all words before them: whose
                exact p(x_l | x_<l) is more than a slip of the pen has

and a cost: CPU time for one text, alone, as somebody waits for it, and calls of the network. `ar`
and `bd3lm` keep keys and values in a cache. The choice is the zero-shot task of the paper: given
the prompt, does the bound prefer the true continuation to that of the next text?
"""
from dataclasses import dataclass

import torch

from data import load_data
from data.toy_grammar import TYPO
from evaluation.errors import mean_error, with_error
from evaluation.likelihood import nats_of
from experiments.command import run_experiment
from experiments.timing import hardware, seconds_of
from experiments.training import train_or_load
from flags import flag
from oracle import exact
from samplers import make_sampler
from samplers.generate import CallCounter, generate

LENGTH = 32  # words
RECIPE = dict(data="toy", block_size=LENGTH, n_layer=2, n_embd=64, batch_size=32, max_iters=1000,
              learning_rate=0.02, muon_lr=0.006, seed=1, device="cpu")


@dataclass
class Config:
    exact: bool = flag(False, "the exact denoisers in place of networks, without times")
    methods: str = flag("ar,mdlm,bd3lm", "which models, with commas between",
                        each=["ar", "mdlm", "bd3lm"])
    prompts: str = flag("0,8,16,24", f"words that are given, of {LENGTH}", each=int, least=0)
    texts: int = flag(400, "continuations of each kind", least=4)
    share: float = flag(1.0, "share of the training steps", least=0.001, most=100,
                        idle=["exact"])
    out_dir: str = flag("out/continuations", "where the checkpoints go")
    hardware: str = flag("", "the name of the machine, if it cannot be detected", text=True)


def ways(model):
    """The ways to write with a model: (line of the table, sampler, steps)."""
    method = model.method
    if method.exact:
        return [(f"{method.name}, cache", make_sampler("ancestral", method), 1)]
    first, most = make_sampler(method.first_choice, method), method.block_length or LENGTH
    name = f"{method.name}, blocks of {most}, cache," if method.left_to_right else method.name + ","
    counts = [2 ** k for k in range(most.bit_length())]
    return [(f"{name} {n} step{'s' * (n > 1)}", first, n) for n in counts]


def grammatical(language, x):
    """Which words the grammar allows after those before them. x (n, L) -> (n, L) bool"""
    p = language.predict(x).gather(-1, x[..., None])[..., 0]  # (n, L)
    return p > 2 * TYPO / language.V


def quality(language, x, x_true, given):
    """Nats per word above those of the true continuations, and the share of words in the grammar,
    each with its error. x (n, L), the first `given` words are the prompt"""
    def nats(x):
        prompt = language.log_prob(x[:, :given]) if given else 0.0  # (n,)
        return (prompt - language.log_prob(x)) / (x.shape[1] - given)  # (n,)
    fits = grammatical(language, x)[:, given:].double().mean(-1)  # (n,)
    return mean_error(nats(x) - nats(x_true), True), mean_error(fits, True)


def chooses(model, x, given):
    """How often the bound of the true continuation is the lower one, with its error."""
    other = torch.cat([x[:, :given], x.roll(1, 0)[:, given:]], 1)  # (n, L)
    frozen = torch.arange(LENGTH).expand_as(x) < given  # (n, L)
    draws = 1 if model.method.exact else 16
    ours, theirs = (nats_of(model.method, model.denoiser, text, draws, 200, frozen)[0]
                    for text in (x, other))  # (n,) each
    return mean_error((ours < theirs).double(), True)


def measure(config, model, data, given):
    """The lines of the table of a model for prompts of `given` words."""
    x = data.windows("val", config.texts)  # (n, L)
    frozen = torch.arange(LENGTH).expand_as(x) < given  # (n, L)
    choice = with_error(*chooses(model, x, given), ".2f") if given else "-"
    for name, sampler, steps in ways(model):
        spy = CallCounter(model.denoiser)

        def write(n, spy=spy, sampler=sampler, steps=steps):
            return generate(model.method, spy, n, LENGTH, steps, sampler, given=x[:n],
                            frozen=frozen[:n])
        torch.manual_seed(given)
        nats, fits = quality(data.language, write(len(x)), x, given)
        calls, cost = spy.calls, "-"
        if not config.exact:
            write(1)  # warm
            spy.calls = 0
            times = [seconds_of(lambda: write(1), torch.device("cpu")) for _ in range(8)]
            calls, cost = spy.calls / 8, f"{1000 * sorted(times)[4]:.1f}"
        print(f"{given:>6}  {name:<34}{with_error(*nats):>16}{with_error(*fits):>17}{calls:>7.1f}"
              f"{cost:>8}{choice:>15}", flush=True)


def main(config, given=()):
    machine = hardware(name=config.hardware)
    data, prompts = load_data("toy", LENGTH), [int(n) for n in config.prompts.split(",")]
    models = [exact(name) if config.exact else train_or_load(
        config, f"toy-{name}", method=name, **RECIPE)
        for name in config.methods.split(",")]
    print(f"{machine}; {config.texts} continuations of each kind, {LENGTH} words with the prompt\n"
          f"{'prompt':>6}  {'':<34}{'nats/word above':>16}{'in grammar':>17}{'calls':>7}"
          f"{'CPU ms':>8}{'right choice':>15}", flush=True)
    for n in prompts:
        for model in models:
            measure(config, model, data, n)


if __name__ == "__main__":
    run_experiment(Config, main)
