"""
Generation after generation: each one learns from texts that the one before it wrote (chapter 12).

    python -m experiments.collapse table        words alone: the exact decay (12.8), the tails first
    python -m experiments.collapse networks     ar, mdlm, udlm on the toy language, 5 generations
    python -m experiments.collapse networks --methods ar --keeps no,yes --temperatures 1

What a generation never writes, the next one cannot learn. In the table model a generation is its
word frequencies: n words are drawn from p_g, and their shares are p_g+1. A word that is not drawn
is lost for good. If a share c of the training text stays original, p_g+1 = c p_0 + (1 - c) of the
shares, and with k = (1 - c)^2 the expected diversity, the probability that two words differ, is

    D_g = E[1 - sum_v p_g(v)^2],    D_g+1 = (1 - k) D_0 + k (1 - 1/n) D_g                     (12.8)

exactly. For c = 0 it is the Wright-Fisher model of genetics, D_g = D_0 (1 - 1/n)^g, which falls to
0; for c > 0 it ends at D_0 (1 - k) / (1 - k + k/n), hardly below D_0.

Networks also err where they have seen enough, so their texts may drift away in place of becoming
poorer. On the toy language both are known: -log p of texts is exact, and so are their topics. The
training texts of a generation are as many as those of the first one, and all networks begin anew.
With the original text kept, half of the training text is original.
"""
import json
import math
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch

from checkpoints.file import as_json
from data.files import write_file
from data.toy import Toy
from diffusion import probabilities
from evaluation.errors import mean_error, with_error
from evaluation.sample_quality import unigram_entropy
from experiments.command import choose_command, run_experiment
from experiments.repetition import FewTexts
from experiments.scaling import FLAGS, shape_of
from experiments.timing import hardware, parse_numbers
from experiments.training import language_models, make_trainer, method_names
from flags import flag
from runtime.device import keep_memory
from samplers import make_sampler
from samplers.generate import generate
from train import train_step

SHARE = {"no": 0.0, "yes": 0.5}  # of original text in the training text
LENGTH = 16  # words per text
AT_ONCE = 256  # texts


@dataclass
class Config:
    command: str = flag("", "what to measure; also the first word", ["table", "networks"])
    generations: int = flag(5, "after the original text", least=1)
    keeps: str = flag("no,yes", "whether the original text is kept, with commas between",
                      each=[*SHARE])
    temperatures: str = flag("1,0.9", "at which texts are written", each=float, least=0.1)
    words: int = flag(1000, "table: words that a generation writes", least=2)
    draws: int = flag(200, "table: how often it is repeated", least=2)
    methods: str = flag("ar,mdlm,udlm", "networks: with commas between", each=language_models())
    num_texts: int = flag(512, "networks: texts that a generation writes", least=2)
    steps: int = flag(300, "networks: training steps of a generation", least=30)
    size: str = flag("2x32", "networks: blocks x width")
    seeds: int = flag(3, "networks: runs of each line, with seeds 1, 2, ..", least=1)
    out_dir: str = flag("out/collapse", "networks: where the results of runs are kept")
    hardware: str = flag("", "the name of the machine, if it cannot be detected", text=True)


def lines_of(config):
    """[(whether the original text is kept, temperature)]"""
    return [*product(config.keeps.split(","), parse_numbers(config.temperatures, float))]


def name_of(keep, temperature):
    original = "original text kept" if SHARE[keep] else "own texts only"
    return f"{original}, temperature {temperature:g}"


# ---- words alone

def diversity(p):
    """1 - sum p^2: the probability that two words differ. p (..., V) -> (...)"""
    return 1 - p.square().sum(-1)  # (...)


def expected_diversity(first, n, share, g):
    """D_g of (12.8), from D_0 = first."""
    k, D = (1 - share) ** 2, first
    for _ in range(g):
        D = (1 - k) * first + k * (1 - 1 / n) * D
    return D


def next_shares(p, original, n, share, temperature, generator):
    """One generation of the table model. p (draws, V), original (V,) -> (draws, V)"""
    law = p ** (1 / temperature)  # (draws, V) up to a factor
    words = law.multinomial(n, replacement=True, generator=generator)  # (draws, n)
    ones = torch.ones_like(words, dtype=p.dtype)  # (draws, n)
    shares = torch.zeros_like(p).scatter_add_(1, words, ones) / n  # (draws, V)
    return share * original + (1 - share) * shares  # (draws, V)


def words_of_language():
    """How often each word of the toy language stands in a text. -> (V,)"""
    toy = Toy()
    return toy.posterior(torch.ones(1, LENGTH, toy.V)).mean((0, 1))  # (V,)


def print_table(config):
    """Diversity beside (12.8), and which words are lost."""
    p0, n = words_of_language(), config.words  # (V,)
    thirds = p0.argsort().tensor_split(3)  # the rarest words first
    print(f"{len(p0)} words, {n:,} of them written by each generation, {config.draws} runs")
    for keep, temperature in lines_of(config):
        generator = torch.Generator().manual_seed(0)
        p = p0.expand(config.draws, -1)  # (draws, V)
        print(f"\n{name_of(keep, temperature)}\n{'generation':<12}{'diversity':>18}{'(12.8)':>10}"
              f"{'lost of the rarest third':>26}{'middle':>9}{'most frequent':>15}")
        for g in range(config.generations + 1):
            exact = expected_diversity(diversity(p0).item(), n, SHARE[keep], g)
            lost = ["%.2f" % (p[:, part] == 0).sum(-1).double().mean() for part in thirds]
            print(f"{g:<12}{with_error(*mean_error(diversity(p), True), '.4f'):>18}"
                  f"{f'{exact:.4f}' if temperature == 1 else '':>10}"
                  f"{lost[0]:>26}{lost[1]:>9}{lost[2]:>15}")
            p = next_shares(p, p0, n, SHARE[keep], temperature, generator)  # (draws, V)


# ---- networks

class GivenTexts(FewTexts):
    """Texts x (n, L) that are given, in a new order in each epoch."""

    def __init__(self, x):
        super().__init__(*x.shape)
        self.x = x

    def texts(self, seed):
        return self.x  # (n, L)


def learn(x, flags):
    """A network that was trained on texts x (n, L). -> its Trainer"""
    trainer = make_trainer(GivenTexts(x), **flags)
    for step in range(flags["max_iters"]):
        train_step(trainer, step)
    return trainer


def write(trainer, n, temperature, seed):
    """n texts of a trained network, in as many steps as a text has words. -> (n, L)"""
    torch.manual_seed(seed)
    method = trainer.method
    how = dict(length=LENGTH, steps=LENGTH, sampler=make_sampler(method.first_choice, method),
               to_probs=partial(probabilities, temperature=temperature))
    return torch.cat([generate(method, trainer.average, min(AT_ONCE, n - lo), **how)
                      for lo in range(0, n, AT_ONCE)])  # (n, L)


def describe(x, language):
    """What texts x (n, L) of a generation are like. -> dict of plain numbers"""
    counts = torch.bincount(x.flatten(), minlength=language.V)  # (V,)
    topics = language.topic_posterior(x)  # (n, K)
    found = torch.bincount(topics.argmax(-1), minlength=language.n_topics)  # (K,)
    return {"nats": (-language.log_prob(x) / x.shape[1]).mean().item(),
            "entropy": unigram_entropy(x).mean().item(),
            "diversity": diversity(counts / counts.sum()).item(),
            "words": (counts == 0).sum().item(), "topics": (found == 0).sum().item(),
            "shares": topics.mean(0).tolist()}


def run_line(x, first, flags, keep, temperature, config, language):
    """The generations of one line. x (n, L): original texts; first: a Trainer that learned from
    them. -> one `describe` for each, that of the original texts first"""
    rows, trainer, n = [describe(x, language)], first, len(x)
    for g in range(1, config.generations + 1):
        own = write(trainer, n, temperature, 1_000_003 * flags["seed"] + g)  # (n, L)
        rows.append(describe(own, language))
        print(f"  generation {g}: {rows[-1]['nats']:.3f} nats/word, {rows[-1]['words']} words lost",
              flush=True)
        if g < config.generations:
            trainer = learn(torch.cat([x, own]) if SHARE[keep] else own, flags)
    return rows


def measure(config):
    """{method: {line: [rows of each seed]}}; what is in --out_dir is not trained again."""
    keep_memory()
    language, found = Toy(), {}
    for seed, name in product(range(1, config.seeds + 1), method_names(config, [])):
        flags = dict(FLAGS, block_size=LENGTH, lr_schedule="linear", max_iters=config.steps,
                     data="toy", method=name, seed=seed, **shape_of(config.size))
        first, own = None, torch.Generator().manual_seed(seed * 1_000_003)
        x = language.sample(config.num_texts, LENGTH, own)  # (n, L)
        for keep, temperature in lines_of(config):
            path = Path(config.out_dir, f"{name}-{keep}-{temperature:g}-{seed}.json")
            made = {"flags": flags, "texts": len(x), "generations": config.generations}
            kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
            if any(kept.get(key) != value for key, value in made.items()):
                first = first or learn(x, flags)
                print(f"{name}, {name_of(keep, temperature)}, seed {seed}", flush=True)
                rows = run_line(x, first, flags, keep, temperature, config, language)
                kept = {**made, "rows": rows, "hardware": hardware(name=config.hardware)}
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(path, as_json(kept))
            found.setdefault(name, {}).setdefault((keep, temperature), []).append(kept["rows"])
    return found


def over_seeds(values, digits=3):
    """'mean +- standard error over seeds'; of one seed its value."""
    mean, error = mean_error(torch.tensor(values, dtype=torch.float64), True)
    return f"{mean:.{digits}f}" if math.isnan(error) else with_error(mean, error, f".{digits}f")


def print_networks(config):
    """A table for each method and line."""
    for name, lines in measure(config).items():
        for line, seeds in lines.items():
            print(f"\n{name}, {name_of(*line)}\n{'generation':<12}{'-log p, nats/word':>20}"
                  f"{'entropy in a text':>20}{'diversity':>20}{'words lost':>16}"
                  f"{'topics lost':>16}{'rarest topic':>18}")
            for g, rows in enumerate(zip(*seeds)):
                cell = lambda key, digits=3: over_seeds([row[key] for row in rows], digits)
                rarest = over_seeds([min(row["shares"]) for row in rows])
                print(f"{g:<12}{cell('nats'):>20}{cell('entropy'):>20}{cell('diversity', 4):>20}"
                      f"{cell('words', 1):>16}{cell('topics', 1):>16}{rarest:>18}")


COMMANDS = {"table": print_table, "networks": print_networks}


def main(config, given=()):
    command = choose_command(config, COMMANDS)
    print(hardware(name=config.hardware))
    command(config)


if __name__ == "__main__":
    run_experiment(Config, main)
