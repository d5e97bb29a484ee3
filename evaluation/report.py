"""
What evaluate.py prints, and what it saves: evaluation.json, beside the checkpoint.
"""
import contextlib
import json
import sys
from dataclasses import fields
from pathlib import Path

from filelock import FileLock

from checkpoints.file import as_json
from checkpoints.load import SHIPPED
from data.files import check_writable, remove_parts, write_file
from data.reading import parse_json
from evaluation.comparison import describe_difference
from evaluation.errors import with_error
from evaluation.likelihood import bytes_per_scored, format_nats
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
            print(as_json(self.figures, sys.stdout))
        if self.failures:
            raise UserError("; ".join(self.failures))


# ---- tables

def print_results(r, data, config, exact):
    """Print whatever of it is in the dict r."""
    bound = "" if exact else "at most "
    if "nats_per_token" in r:
        print_bound(r, data, config, bound)
    if "no_bound" in r:
        print(f"{r['data']}\n{r['method']}, step {r['step']}: loss on held-out text "
              f"{pair(r, 'loss_per_token')} nats/token ({r['texts']:,} texts of {data.block_size} "
              f"tokens, {r['draws']} noise draws each)\nno bound on -log p: {r['no_bound']}")
    for what, mean, error in r.get("measures", []):
        print(f"{what}: {with_error(mean, error)}")
    if "answers" in r:
        print_answers(r, config)
    if "samples" in r:
        print_samples(r)
    if "votes" in r:
        print_votes(r)
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
    return with_error(row[name], row[name + "_error"], f".{digits}f")


def percent(row, name):
    return with_error(row[name], row[name + "_error"], ".1%")


def print_bound(r, data, config, bound):
    print(r["data"])
    nats = format_nats(r["nats_per_token"], r["standard_error"], bytes_per_scored(data))
    kind = "bound" if bound else "exact"
    print(f"{r['method']}, step {r['step']}: {kind} on held-out text {nats} ({r['texts']:,} texts "
          f"of {data.block_size} tokens, {r['draws']} noise draws each)")
    line = f"perplexity {bound}{pair(r, 'perplexity', 2)}"
    if "bits_per_character" in r:
        line += f", {pair(r, 'bits_per_character')} bits/character"
    if "nats_per_answer" in r:
        line += f", {pair(r, 'nats_per_answer', 2)} nats/answer with its ends"
    print(f"{line}, over {r['tokens']:,} tokens")
    if "nats_per_text" in r:
        exact = (f", exact {pair(r, 'entropy_per_text', 2)}" if "entropy_per_text" in r else "")
        print(f"{bound}{pair(r, 'nats_per_text', 2)} nats/text{exact}; a token is a word, ends "
              "are scored and not counted")
    if "gap" in r:
        print(f"exact entropy {pair(r, 'entropy', 4)} nats/token: the model is "
              + describe_difference(r["gap"], r["gap_error"], "it"))
    if "law" in r:
        row = r["law"]
        known = f": exact {pair(row, 'nats_per_token')} nats/token" if len(row) > 1 else ""
        print(f"--sampler {config.sampler}: {row['says']}{known}. The figures above are those of "
              f"{r['method']} alone")
    if "against" in r:
        row = r["against"]
        other = describe_difference(row["difference"], row["difference_error"], row["name"])
        print(f"on the same texts, nats/token: {other}" + " (a bound, too)" * (not row["exact"]))


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
        print(f"{what:<58}  {with_error(mean, error):>17}  {with_error(other, other_error):>19}")
    if "calls_per_text" in r:
        print(f"{r['calls_per_text']:.1f} network calls for each text")
    if "mauve" in r:
        what = f"MAUVE, of {r['mauve_texts']} texts"
        print(f"{what:<58}{with_error(r['mauve'], r['mauve_error']):>19}")
    if "no_words" in r:
        print(r["no_words"])
    if "statistics" in r:
        print_statistics(r)


def print_statistics(r):
    """The rows of evaluation/statistics.py: compare_statistics."""
    head = f"{r['statistics_texts']} texts of each, {r['permutations']:,} permutations"
    print(f"\n{head:<44}{'samples':>17}{'held-out text':>18}{'distance':>11}{'p':>9}")
    for what, mean, error, other, other_error, distance, p in r["statistics"]:
        cells = ["" if value is None else f"{value:.3f}" if error is None else
                 with_error(value, error) for value, error in ((mean, error), (other, other_error))]
        print(f"{what:<44}{cells[0]:>17}{cells[1]:>18}{distance:>11.3f}{p:>9.4f}")


def print_votes(r):
    """The rows of votes.vote_figures."""
    head = "the most frequent of n answers"
    print(f"\n{head:<58}{r['votes']['what']:>19}{'calls for each text':>21}")
    for n, right, error in r["votes"]["rows"]:
        calls = n * r["calls_per_text"]
        print(f"{f'n = {n}':<58}  {with_error(right, error):>17}{calls:>21,.0f}")


def print_by_noise(rows):
    """The rows of held_out.classifier_rows."""
    names = ["", "exact_"] if "exact_nats" in rows[0] else [""]
    heads = ("the classifier", "exact")[:len(names)]
    print(f"\n{'held-out text':<16}" + "".join(f"{head:^48}" for head in heads))
    print("at noise t" + "".join(f"{'nats/text':>24}{'accuracy':>24}" for _ in names))
    for row in rows:
        cell = lambda key: f"{pair(row, key):>22}  "
        cells = "".join(cell(name + "nats") + cell(name + "accuracy") for name in names)
        print(f"{row['t']:<10.2f}{cells}")


# ---- evaluation.json

def evaluation_path(config):
    """The file for the figures of a model, beside its checkpoint: evaluation.json for ckpt.pt,
    evaluation.previous.json for ckpt.previous.pt."""
    where = Path(config.init_from or config.out_dir)
    published = Path("out", where.name)  # a model that is not on this disk, or comes with the code
    ships = where.parent.resolve() == SHIPPED
    there = where.exists() and not ships
    folder = published if not there else where if where.is_dir() else where.parent
    name = where.stem.removeprefix("ckpt").strip(".") if where.suffix == ".pt" else ""
    return folder / ".".join(["evaluation", *[name] * bool(name), "json"])


def read_evaluation(path):
    """What is in the file so far, {} if there is none. UserError if that is something else."""
    try:
        known = parse_json(path.read_bytes()) if path.exists() else {}
        if isinstance(known, dict):
            return known
        reason = "it is no JSON object: move it away"
    except OSError as error:
        reason = error.strerror
    except ValueError:
        reason = "it is no JSON object: move it away"
    raise UserError(f"cannot add to {path} ({reason}); what was in it stays")


def check_evaluation(config):
    """UserError, before anything is measured, if the figures cannot be saved."""
    if config.oracle:
        return
    try:
        check_writable(evaluation_path(config), makes_folder=True)
    except UserError as error:
        raise UserError(f"{error}; results go beside the checkpoint, or into a folder of your own "
                        f"with a link to it") from None
    read_evaluation(evaluation_path(config))


def save_evaluation(config, step, result):
    """Add the result to evaluation.json, under the step and the flags; all else in it stays."""
    if config.oracle:
        return
    path, left_out = evaluation_path(config), ("out_dir", "json", "device")
    flags = (f"--{f.name} {value}" for f in fields(config)
             if (value := vars(config)[f.name]) != f.default and f.name not in left_out)
    key = " ".join([f"step {step}", *flags])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".evaluation.lock"):
            remove_parts(path)
            merged = {**read_evaluation(path), key: json.loads(as_json(result))}
            write_file(path, json.dumps(merged, indent=1))
    except OSError as error:
        raise UserError(f"cannot add to {path} ({error.strerror}); what was in it stays") from None
