"""
What evaluate.py prints, and what it saves: evaluation.json, beside the checkpoint.
"""
import contextlib
import json
from dataclasses import fields
from pathlib import Path

from filelock import FileLock

from checkpoints.file import as_json
from data.base import atomic_write
from data.reading import parse_json
from evaluation.likelihood import format_nats
from flags import UserError


class Report:
    """The results of an evaluation. Each part is printed and saved even if a later part fails."""

    def __init__(self, config, model, data):
        self.config, self.model, self.data = config, model, data
        self.figures, self.failures = {}, []

    @contextlib.contextmanager
    def part(self, name):
        """A part of the evaluation: if it fails, the others go on, and `finish` says so."""
        try:
            yield
        except BrokenPipeError:  # `| head` has read enough
            raise
        except (UserError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            self.failures.append(f"{name}: {reason or error}")

    def add(self, **figures):
        """Print figures, and save them beside those so far."""
        if not self.config.json:
            print_results(figures, self.data, self.config, self.model.method.exact)
        for key, value in figures.items():
            known = self.figures.get(key)
            self.figures[key] = known | value if isinstance(known, dict) else value
        save_evaluation(self.config, self.model.step, self.figures)

    def finish(self):
        if self.config.json:
            print(as_json(self.figures))
        if self.failures:
            raise UserError("; ".join(self.failures))


# ---- tables

def print_results(r, data, config, exact):
    """Print whatever of it is in the dict r."""
    bound = "" if exact else "at most "
    if "nats_per_token" in r:
        print_bound(r, data, bound)
    if "answers" in r:
        print_answers(r, config)
    if "samples" in r:
        print_samples(r)
    for name, row in r.get("zero_shot", {}).items():
        line = f"perplexity {bound}{pair(row, 'perplexity', 2)}"
        if "bits_per_byte" in row:
            line += f", {pair(row, 'bits_per_byte')} bits/byte"
        print(f"\n{name}, {row['split']}: {line} ({row['texts']:,} texts, {row['tokens']:,} "
              f"tokens, {row['draws']} draws)")
    if "last_words" in r:
        row = r["last_words"]
        print(f"\nlast words: {percent(row, 'accuracy')} found; perplexity of a word {bound}"
              f"{pair(row, 'perplexity', 2)} ({row['passages']:,} passages, {row['draws']} draws)")
    if "choices" in r:
        row = r["choices"]
        print(f"\nchoices: {percent(row, 'accuracy')} right, per byte "
              f"{percent(row, 'accuracy_per_byte')}, by chance {row['chance']:.1%} "
              f"({row['questions']:,} questions, {row['draws']} draws)")


def pair(row, name, digits=3):
    """A figure and its standard error: '1.234 +- 0.005'"""
    return f"{row[name]:.{digits}f} +- {row[name + '_error']:.{digits}f}"


def percent(row, name):
    return f"{row[name]:.1%} +- {row[name + '_error']:.1%}"


def print_bound(r, data, bound):
    print(r["data"])
    nats = format_nats(r["nats_per_token"], r["standard_error"], data.bytes_per_token)
    kind = "bound" if bound else "exact"
    print(f"{r['method']}, step {r['step']}: {kind} on held-out text {nats} ({r['texts']:,} texts "
          f"of {data.block_size} tokens, {r['draws']} noise draws each)")
    line = f"perplexity {bound}{pair(r, 'perplexity', 2)}"
    if "bits_per_character" in r:
        line += f", {pair(r, 'bits_per_character')} bits/character"
    print(f"{line}, over {r['tokens']:,} tokens")
    if "gap" in r:
        print(f"exact entropy {pair(r, 'entropy', 4)} nats/token: the model is {pair(r, 'gap', 4)} "
              "above it")


def print_answers(r, config):
    print(f"\n{r['sampler']:<16}{'held-out questions':>20}{'right':>9}{'right choice of 4':>20}"
          f"{'of training':>14}{'right':>9}")
    share = lambda value: "" if value is None else f"{value:.1%}"
    for kind, n, right, choice, m, seen in r["answers"]:
        print(f"{kind:<16}{n:>20}{share(right):>9}{share(choice):>20}{m:>14}{share(seen):>9}")
    print(f"{r['network_calls']} network calls, {config.batch_size} questions at a time")


def print_samples(r):
    head = f"{r['num_samples']} samples, {r['sampler']}, {r['steps']} steps"
    print(f"\n{head:<58}{'samples':>19}{'held-out text':>21}")
    for (what, mean, error), (_, other, other_error) in zip(r["samples"], r["held_out"]):
        print(f"{what:<58}{mean:>10.3f} +- {error:.3f}{other:>12.3f} +- {other_error:.3f}")
    if "mauve" in r:
        what = f"MAUVE, of {r['mauve_texts']} texts"
        print(f"{what:<58}{r['mauve']:>10.3f} +- {r['mauve_error']:.3f}")


def print_by_noise(rows):
    """The rows of held_out.classifier_rows."""
    names = ["", "exact_"] if "exact_nats" in rows[0] else [""]
    heads = ("the classifier", "exact")[:len(names)]
    print(f"\n{'held-out text':<16}" + "".join(f"{head:^48}" for head in heads))
    print("at noise t" + "".join(f"{'nats/text':>24}{'accuracy':>24}" for _ in names))
    for row in rows:
        cell = lambda key: f"{row[key]:>13.3f} +- {row[key + '_error']:.3f}  "
        cells = "".join(cell(name + "nats") + cell(name + "accuracy") for name in names)
        print(f"{row['t']:<10.2f}{cells}")


# ---- evaluation.json

def save_evaluation(config, step, result):
    """Add the result to evaluation.json, under the step and the flags; all else in it stays."""
    if config.oracle:
        return
    where = Path(config.init_from or config.out_dir)
    published = Path("out", where.name)  # a model that is not on this disk
    folder = where if where.is_dir() else where.parent if where.exists() else published
    path, left_out = folder / "evaluation.json", ("out_dir", "json", "device")
    flags = (f"--{f.name} {value}" for f in fields(config)
             if (value := vars(config)[f.name]) != f.default and f.name not in left_out)
    key = " ".join([f"step {step}", *flags])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".evaluation.lock"):
            known = parse_json(path.read_text("utf-8")) if path.exists() else {}
            with atomic_write(path) as file:
                merged = {**known, key: json.loads(as_json(result))}
                file.write(json.dumps(merged, indent=1).encode())
    except (OSError, ValueError, TypeError) as error:
        reason = isinstance(error, OSError) and error.strerror
        reason = reason or "it is no JSON object: move it away"
        raise UserError(f"cannot add to {path} ({reason}); what was in it stays") from None
