"""
What evaluate.py prints, and what it keeps: evaluation.json, beside the checkpoint.
"""
import json
from dataclasses import fields
from pathlib import Path

from filelock import FileLock

from bounds import unit
from checkpoint import as_json, beside
from data import BadInput


def show(r, corpus, config):
    print(r["data"])
    print(f"{r['method']}, step {r['step']}: {'exact' if r['exact'] else 'bound'} on held-out text "
          f"{unit(r['nats_per_token'], r['standard_error'], corpus.bytes_per_token)} "
          f"({r['texts']:,} texts of {corpus.block_size} tokens, {r['draws']} noise draws each)")
    told = f"perplexity {'' if r['exact'] else 'at most '}{r['perplexity']:.2f} +- {r['perplexity_error']:.2f}"
    if "bits_per_character" in r:
        told += f", {r['bits_per_character']:.3f} +- {r['bits_per_character_error']:.3f} bits/character"
    print(f"{told}, over {r['tokens']:,} tokens")
    if "gap" in r:
        print(f"exact entropy {r['entropy']:.4f} +- {r['entropy_error']:.4f} nats/token: the model is "
              f"{r['gap']:.4f} +- {r['gap_error']:.4f} above it")
    if "answers" in r:
        print(f"\n{r['sampler']:<16}{'held-out questions':>20}{'right':>9}{'right choice of 4':>20}"
              f"{'of training':>14}{'right':>9}")
        share = lambda part: "" if part is None else f"{part:.1%}"
        for kind, n, right, choice, m, seen in r["answers"]:
            print(f"{kind:<16}{n:>20}{share(right):>9}{share(choice):>20}{m:>14}{share(seen):>9}")
        print(f"{r['network_calls']} network calls, {config.batch_size} questions at a time")
    if "samples" in r:
        head = f"{r['num_samples']} samples, {r['sampler']}, {r['steps']} steps"
        print(f"\n{head:<58}{'samples':>19}{'held-out text':>21}")
        for (what, mean, error), (_, other, other_error) in zip(r["samples"], r["held_out"]):
            print(f"{what:<58}{mean:>10.3f} +- {error:.3f}{other:>12.3f} +- {other_error:.3f}")
    if "mauve" in r:
        print(f"{'MAUVE':<58}{r['mauve']:>10.3f} +- {r['mauve_error']:.3f}")


def show_more(name, r, exact):
    """One line for each of `more`."""
    bound = "" if exact else "at most "
    if "tokens" in r:
        told = f"perplexity {bound}{r['perplexity']:.2f} +- {r['perplexity_error']:.2f}"
        if "bits_per_byte" in r:
            told += f", {r['bits_per_byte']:.3f} +- {r['bits_per_byte_error']:.3f} bits/byte"
        told += f" ({r['split']}, {r['texts']:,} texts, {r['tokens']:,} tokens, {r['draws']} draws)"
    elif "passages" in r:
        told = f"{r['accuracy']:.1%} +- {r['accuracy_error']:.1%} found; perplexity of a word {bound}" \
               f"{r['perplexity']:.2f} +- {r['perplexity_error']:.2f} ({r['passages']:,} passages, {r['draws']} draws)"
    else:
        told = f"{r['accuracy']:.1%} +- {r['accuracy_error']:.1%} right, per byte {r['accuracy_per_byte']:.1%} +- " \
               f"{r['accuracy_per_byte_error']:.1%}, by chance {r['chance']:.1%} ({r['questions']:,} questions, " \
               f"{r['draws']} draws)"
    print(f"{name}: {told}", flush=True)


def show_by_noise(rows):
    names = ["", "exact_"] if "exact_nats" in rows[0] else [""]
    print(f"\n{'held-out text':<16}" + "".join(f"{name:^48}" for name in ("the classifier", "exact")[:len(names)]))
    print("at noise t" + "".join(f"{'nats/text':>24}{'accuracy':>24}" for _ in names))
    for row in rows:
        cell = lambda key: f"{row[key]:>13.3f} +- {row[key + '_error']:.3f}  "
        print(f"{row['t']:<10.2f}" + "".join(cell(name + "nats") + cell(name + "accuracy") for name in names))


def keep(config, step, result):
    """The result into evaluation.json beside the checkpoint, under the step and the flags; others in it stay."""
    if config.oracle:
        return
    folder = Path(config.out_dir) if Path(config.out_dir).is_dir() else Path(config.out_dir).parent
    path, apart = folder / "evaluation.json", ("out_dir", "json", "device")
    key = " ".join([f"step {step}", *(f"--{f.name} {getattr(config, f.name)}" for f in fields(config)
                                             if f.name not in apart and getattr(config, f.name) != f.default)])
    try:
        with FileLock(folder / ".evaluation.lock"):
            known = json.loads(path.read_text("utf-8")) if path.exists() else {}
            with beside(path) as file:
                file.write(json.dumps({**known, key: json.loads(as_json(result))}, indent=1).encode())
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "it is no JSON object: move it away"
        raise BadInput(f"cannot add to {path} ({reason}): what was in it stays") from None
