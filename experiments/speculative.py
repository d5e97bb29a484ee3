"""
What drafts are worth on trained networks, one text at a time (chapter 18).

    python -m experiments.speculative --out_dir out/names-ar --masked out/names-mdlm-small \\
        --small out/names-ar-small --streak out/names-mdlm-small-streak --heads out/names-ar-heads

`out_dir` is the ar that checks, with its cache; rows whose run is not named are left out. Every row
writes a text in each round, in turns, after one to warm up. Times are CPU times, medians over the
rounds, and the speed-up is the median over rounds of the time without a draft by that with one.
"""
import itertools
import statistics
from dataclasses import dataclass

import torch

from checkpoints.file import as_json
from checkpoints.load import load_beside, load_model
from experiments.command import run_experiment
from experiments.timing import hardware, paired_ratio, time_in_turns
from flags import UserError, flag
from samplers import make_sampler
from samplers.generate import CallCounter, generate


@dataclass
class Config:
    out_dir: str = flag("out/names-ar", "the ar that checks")
    masked: str = flag("", "a run with masks that drafts")
    small: str = flag("", "another ar that drafts")
    streak: str = flag("", "a run of distill.py --method streak that drafts")
    heads: str = flag("", "an ar with several heads, which drafts for itself")
    gamma: int = flag(4, "tokens that a draft has", least=2, most=1000)
    rounds: int = flag(20, "texts of each row", least=2)
    hardware: str = flag("", "the name of the machine, if it cannot be detected")
    json: bool = flag(False, "one JSON object for each row")


def rows_of(config):
    """{row: (the flag of the run that checks, the flag of the run that drafts, flags of the
    sampler, None: no draft)}"""
    g = config.gamma
    rows = {"no draft": ("out_dir", "", None),
            "n-grams": ("out_dir", "", dict(draft="ngram", gamma=g))}
    for name in ("masked", "streak") if config.masked else ():
        called = {"masked": "masks", "streak": "masks, after streak"}[name]
        rows |= {f"{called}: one call": ("out_dir", name, dict(gamma=g)),
                 f"{called}: one call, gamma {2 * g}": ("out_dir", name, dict(gamma=2 * g)),
                 f"{called}: 2 leftmost groups": ("out_dir", name, dict(gamma=g, draft_groups=2)),
                 f"{called}: 4 drafts": ("out_dir", name, dict(gamma=g, drafts=4))}
    rows |= {"a small ar": ("out_dir", "small", dict(gamma=g)),
             "a small ar, 4 drafts": ("out_dir", "small", dict(gamma=g, drafts=4)),
             "several heads, no draft": ("heads", "", None),
             "several heads": ("heads", "heads", dict(draft="heads"))}
    return {name: row for name, row in rows.items()
            if all(getattr(config, which) for which in filter(None, row[:2]))}


class Row:
    """A way to write: .write() writes one text, the next at each call."""

    def __init__(self, model, draft, options):
        self.model, self.numbers = model, itertools.count(1)
        self.sampler = make_sampler("speculative" if options else "ancestral", model.method,
                                    **options or {})
        if draft:
            self.sampler.model = draft
        elif options:
            self.sampler.prepare(model)
        self.denoiser = CallCounter(model.denoiser)

    def write(self):
        torch.manual_seed(next(self.numbers))
        generate(self.model.method, self.denoiser, 1, self.model.config.block_size, 1, self.sampler)

    def costs(self):
        """Calls of the ar and of the draft per text, and tokens per call."""
        texts = next(self.numbers) - 1
        calls, L = self.denoiser.calls / texts, self.model.config.block_size
        spent = self.sampler.costs(whole=True) if self.sampler.write_in_order else {}
        return calls, spent.get("draft_calls", 0) / texts, L / calls


def measure(config):
    """-> a dict of plain numbers for each row"""
    made, rows = {}, rows_of(config)
    for name, (which, draft, options) in rows.items():
        model = load_model(getattr(config, which))
        if not (model.method.exact and model.method.left_to_right):
            raise UserError(f"--{which} {getattr(config, which)} is a run of {model.method.name}: "
                            "give one of ar")
        beside = None
        if draft not in ("", "heads"):
            where = getattr(config, draft)
            beside = load_beside(f"--{draft}", where, model.encoding, "cpu")
            options = {**options, "draft": where}
        made[name] = Row(model, beside, options)
    seconds = time_in_turns({name: (row.write, 1) for name, row in made.items()}, config.rounds,
                            torch.device("cpu"))
    found = []
    for name, (which, _, _) in rows.items():
        plain = seconds["no draft" if which == "out_dir" else "several heads, no draft"]
        calls, drafts, tokens = made[name].costs()
        median, least, most = paired_ratio(plain, seconds[name])
        ms = 1000 * statistics.median(seconds[name]) / made[name].model.config.block_size
        found.append({"row": name, "calls": calls, "draft_calls": drafts, "tokens_per_call": tokens,
                      "ms_per_token": ms, "speed_up": median, "from": least, "to": most})
    return found


def main(config, given=()):
    found = measure(config)
    if config.json:
        return print(*(as_json(row) for row in found), sep="\n")
    print(f"{hardware(name=config.hardware)}\n{config.rounds} texts of each row, one at a time, "
          f"gamma {config.gamma}\n{'':<36}{'calls':>8}{'of draft':>10}{'tokens/call':>13}"
          f"{'ms/token':>10}{'speed-up':>20}")
    for row in found:
        print(f"{row['row']:<36}{row['calls']:>8.1f}{row['draft_calls']:>10.1f}"
              f"{row['tokens_per_call']:>13.2f}{row['ms_per_token']:>10.2f}"
              f"{row['speed_up']:>8.2f} ({row['from']:.2f}-{row['to']:.2f})")


if __name__ == "__main__":
    run_experiment(Config, main)
