"""
Gaps in held-out text, filled by two experts together, by each alone, and one mask at a time
(chapter 18).

    python -m experiments.infilling --out_dir out/python-maria     a run of maria holds its experts
    python -m experiments.infilling --out_dir RUN1,RUN2,RUN3       means of several runs

Of each text k tokens anywhere are masked, k uniform. Printed are nats per masked token: -log p of
what stood there under the joint law of each way to fill, as the chain rule gives it, and the
milliseconds that a token takes at batch size 1.
"""
import statistics
from dataclasses import dataclass

import torch

from checkpoints.load import load_model
from diffusion import ancestral, stratified
from evaluation.errors import mean_error, mean_over_seeds
from evaluation.held_out import data_of
from experiments.command import run_experiment
from experiments.timing import hardware, time_in_turns
from flags import UserError, flag
from methods import make_method
from methods.maria import TwoExperts
from methods.mdlm import any_order
from samplers import make_sampler
from samplers.generate import generate


@dataclass
class Config:
    out_dir: str = flag("out/python-maria", "runs of maria, with commas between", each=str)
    max_texts: int = flag(500, "held-out texts of each run", least=2)
    rounds: int = flag(5, "texts that are timed; 0: none", least=0)
    hardware: str = flag("", "the name of the machine, if it cannot be detected")


def half_of(network, part):
    """The expert `part` alone in the place of MARIA's network."""
    def denoiser(both, t, at=None, **layout):
        L = both.shape[1] // 2
        z = both[:, L:] if part == "ar" else both[:, :L]  # (B, L)
        return getattr(network, part)(z, at=at[:, :L])  # (N, V)
    return denoiser


def again_after_each(network):
    """The masked expert, called for each token with all that is written on its left."""
    def denoiser(both, t, at=None, **layout):
        z, x = both.chunk(2, 1)  # (B, L) each
        x, at, rows = x.roll(-1, 1), at[:, :z.shape[1]], []  # (B, L) each
        logits = {}
        for l in at.any(0).nonzero()[:, 0].tolist():
            here = torch.arange(z.shape[1]) == l  # (L,)
            seen = torch.cat([x[:, :l], z[:, l:]], 1)  # (B, L)
            logits[l] = iter(network.masked(seen, at=at & here))  # (n, V), one a text
        for _, l in at.nonzero().tolist():
            rows.append(next(logits[l]))
        return torch.stack(rows)  # (N, V)
    return denoiser


def ways(model, language):
    """{how to fill: the denoiser of MARIA.nats}"""
    network = model.denoiser
    found = {"ar alone": half_of(network, "ar"), "masked, one call": half_of(network, "masked"),
             "product of both": TwoExperts(network.ar, network.masked), "maria": network,
             "masked, a call per token": again_after_each(network)}
    return found | ({"exact": model.method.oracle(language)} if language else {})


@torch.no_grad()
def nats_per_mask(model, denoiser, x):
    """The mean over the masks of each text of -log p. -> (n,) nats"""
    torch.manual_seed(1)
    found = []
    for part in x.split(50):
        z, k, _ = any_order(model.method.noise, part, stratified(len(part)))  # (b, L), (b, 1)
        found.append(model.method.nats(denoiser, part, z).double().sum(-1) / k[:, 0])  # (b,)
    return torch.cat(found)  # (n,)


def milliseconds(model, x, rounds):
    """Of a token at batch size 1, half of the text masked: maria, ar alone, a call per token."""
    network, V = model.denoiser, model.encoding.n_vocab
    frozen = torch.arange(x.shape[1]) % 2 == 0  # (L,)
    masks, ar = make_method("mdlm", V), make_method("ar", V)
    one = {masks: make_sampler("first-hitting", masks)}  # at a time
    write = lambda method, part: generate(
        method, part, 1, x.shape[1], int((~frozen).sum()), one.get(method, ancestral),
        given=x[:1], frozen=frozen[None])
    found = time_in_turns({
        "maria": (lambda: write(model.method, network), 1),
        "ar alone": (lambda: write(ar, network.ar), 1),
        "masked, a call per token": (lambda: write(masks, network.masked), 1),
    }, rounds, torch.device("cpu"))
    return {name: 1000 * statistics.median(seconds) / int((~frozen).sum())
            for name, seconds in found.items()}


def main(config, given=()):
    models = [load_model(where) for where in config.out_dir.split(",")]
    for model, where in zip(models, config.out_dir.split(",")):
        if not isinstance(model.denoiser, TwoExperts):
            raise UserError(f"--out_dir {where} is a run of {model.method.name}: name runs of "
                            "maria")
    rows, times = {}, []
    for model in models:
        data = data_of(model)
        x = data.windows("val", config.max_texts)  # (n, L)
        for name, denoiser in ways(model, data.language).items():
            rows.setdefault(name, []).append(nats_per_mask(model, denoiser, x))
        times += [milliseconds(model, x, config.rounds)] if config.rounds else []
    print(f"{hardware(name=config.hardware)}\n{models[0].config.data}: {config.max_texts} held-out "
          f"texts, {len(models)} run{'s' * (len(models) > 1)}\n{'':<28}{'nats per token':>18}"
          f"{'less maria':>18}{'ms per token':>14}")
    for name, found in rows.items():
        cells = [mean_of(found), mean_of([a - b for a, b in zip(found, rows["maria"])])]
        shown = "".join(f"{mean:>9.3f} +- {error:.3f}" for mean, error in cells)
        ms = [time[name] for time in times if name in time]
        print(f"{name:<28}{shown}{statistics.median(ms) if ms else float('nan'):>14.2f}"
              .replace("nan", "  -"))


def mean_of(found):
    """The mean and its error, over texts and runs (12.4). found: [(n,)], one for each run"""
    return mean_over_seeds(*zip(*(mean_error(a, independent=True) for a in found)))


if __name__ == "__main__":
    run_experiment(Config, main)
