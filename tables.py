"""
What evaluate.py prints, and what it keeps: evaluation.json, beside the checkpoint.
"""
import json
from dataclasses import fields
from pathlib import Path

from filelock import FileLock

from bounds import unit
from checkpoint import as_json
from data import BadInput, beside


def show(r, corpus, config, exact):
    """Whatever of it is in the dict r."""
    bound = "" if exact else "at most "
    if "nats_per_token" in r:
        show_bound(r, corpus, bound)
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
        print(f"{'MAUVE, of ' + str(r['mauve_texts']) + ' texts':<58}{r['mauve']:>10.3f} +- {r['mauve_error']:.3f}")
    for name, row in r.get("zero_shot", {}).items():
        told = f"perplexity {bound}{row['perplexity']:.2f} +- {row['perplexity_error']:.2f}"
        if "bits_per_byte" in row:
            told += f", {row['bits_per_byte']:.3f} +- {row['bits_per_byte_error']:.3f} bits/byte"
        print(f"\n{name}, {row['split']}: {told} ({row['texts']:,} texts, {row['tokens']:,} tokens, "
              f"{row['draws']} draws)")
    if "last_words" in r:
        row = r["last_words"]
        print(f"\nlast words: {row['accuracy']:.1%} +- {row['accuracy_error']:.1%} found; perplexity of a word {bound}"
              f"{row['perplexity']:.2f} +- {row['perplexity_error']:.2f} ({row['passages']:,} passages, "
              f"{row['draws']} draws)")
    if "choices" in r:
        row = r["choices"]
        print(f"\nchoices: {row['accuracy']:.1%} +- {row['accuracy_error']:.1%} right, per byte "
              f"{row['accuracy_per_byte']:.1%} +- {row['accuracy_per_byte_error']:.1%}, by chance {row['chance']:.1%} "
              f"({row['questions']:,} questions, {row['draws']} draws)")


def show_bound(r, corpus, bound):
    print(r["data"])
    print(f"{r['method']}, step {r['step']}: {'bound' if bound else 'exact'} on held-out text "
          f"{unit(r['nats_per_token'], r['standard_error'], corpus.bytes_per_token)} "
          f"({r['texts']:,} texts of {corpus.block_size} tokens, {r['draws']} noise draws each)")
    told = f"perplexity {bound}{r['perplexity']:.2f} +- {r['perplexity_error']:.2f}"
    if "bits_per_character" in r:
        told += f", {r['bits_per_character']:.3f} +- {r['bits_per_character_error']:.3f} bits/character"
    print(f"{told}, over {r['tokens']:,} tokens")
    if "gap" in r:
        print(f"exact entropy {r['entropy']:.4f} +- {r['entropy_error']:.4f} nats/token: the model is "
              f"{r['gap']:.4f} +- {r['gap_error']:.4f} above it")


def show_by_noise(rows):
    names = ["", "exact_"] if "exact_nats" in rows[0] else [""]
    print(f"\n{'held-out text':<16}" + "".join(f"{name:^48}" for name in ("the classifier", "exact")[:len(names)]))
    print("at noise t" + "".join(f"{'nats/text':>24}{'accuracy':>24}" for _ in names))
    for row in rows:
        cell = lambda key: f"{row[key]:>13.3f} +- {row[key + '_error']:.3f}  "
        print(f"{row['t']:<10.2f}" + "".join(cell(name + "nats") + cell(name + "accuracy") for name in names))


def keep(config, step, result):
    """The result into evaluation.json beside the checkpoint, under its step and flags; what else is there stays."""
    if config.oracle:
        return
    where = Path(getattr(config, "init_from", "") or config.out_dir)
    folder = where if where.is_dir() else where.parent if where.exists() else Path("out", where.name)
    path, apart = folder / "evaluation.json", ("out_dir", "json", "device")
    key = " ".join([f"step {step}", *(f"--{f.name} {getattr(config, f.name)}" for f in fields(config)
                                      if f.name not in apart and getattr(config, f.name) != f.default)])
    try:
        folder.mkdir(parents=True, exist_ok=True)            # of a model that is not from here
        with FileLock(folder / ".evaluation.lock"):
            known = json.loads(path.read_text("utf-8")) if path.exists() else {}
            with beside(path) as file:
                file.write(json.dumps({**known, key: json.loads(as_json(result))}, indent=1).encode())
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or "it is no JSON object: move it away"
        raise BadInput(f"cannot add to {path} ({reason}); what was in it stays") from None
