"""
How good is a model? The bound on held-out text with its standard error, and the samples: never one without the other.

    python evaluate.py                                   the checkpoint in out/python-mdlm on its own held-out text
    python evaluate.py --out_dir out/toy-mdlm            toy: also the exact entropy, and the distance to it
    python evaluate.py --judge out/python-ar             samples are rated by an ar model of this code
    python evaluate.py --judge gpt2-large --mauve        ... or by a causal model of transformers, also for MAUVE
    python evaluate.py --zero_shot ptb,wikitext-2        perplexity on text that it was not trained on
    python evaluate.py --lambada test.jsonl --choices quiz.jsonl     last words, and multiple choice, by bound
    python evaluate.py --oracle udlm --steps 8           the exact denoiser: what the sampler alone does wrong
    python evaluate.py --oracle mdlm --label sea --guidance 3    guided samples: are they of the class, are they good?
    python evaluate.py --out_dir out/toy-classifier      a classifier, at several levels of noise
    python evaluate.py --chat                            a network that answers: how many held-out questions rightly
    python evaluate.py --init_from s-sahoo/duo --data my.txt     a published model, by its name (hub.py)

A bound is a mean over texts and over noise. `draws` noise draws are taken per text, and the standard error is that of
the mean over texts, so it counts both kinds of chance. Nats per token are comparable between methods on the same
tokens; bits per byte always. Samples are given by two numbers: their negative log-likelihood (exact on the toy
language, by the judge elsewhere) and the entropy of the tokens within a text. A sampler can lower the first by
repeating itself; then the second falls too. The figures are in bounds.py, quality.py and judge.py, the conventions in
docs/evaluation.md. All that is measured is kept in evaluation.json, beside the checkpoint.
"""
from dataclasses import dataclass, replace

from flags import flag, one_line_errors
from sampling import Sampling, parsed


@dataclass
class Config(Sampling):
    chat: bool = flag(False, "decode answers as sample.py --chat does")
    data: str = flag("", "evaluate on other text, in the checkpoint's own tokens; empty means its own data")
    split: str = flag("val", "which text; the papers' tables have either", choices=["val", "test"])
    draws: int = flag(8, "noise draws per text", least=1)
    max_texts: int = flag(2000, "held-out texts at most, evenly spread", least=2)        # one has no standard error
    batch_size: int = flag(64, "texts at once; 0: as many as half the free memory holds, 64 at most (GPU: 512)",
                           least=0)
    num_samples: int = flag(64, "samples to judge, or questions to ask; 0 for none", least=0, chat=1000)
    judge: str = flag("", "rates the samples: an ar checkpoint of the same tokens, or a model of transformers")
    mauve: bool = flag(False, "MAUVE of samples and held-out text, in the eyes of a --judge of transformers")
    zero_shot: str = flag("", "other text, with commas between: ptb,lm1b,... or files; perplexity and bits of each")
    lambada: str = flag("", 'a .jsonl file of {"text"}: is the last word of each found, and how likely is it?')
    choices: str = flag("", 'a .jsonl file of {"prompt", "choices", "answer"}: is the right one the likeliest?')
    ends: bool = flag(False, "lambada, choices: an end of text on both sides, for models that were trained with them")
    json: bool = flag(False, "one JSON object instead of the table")


CONFIG, GIVEN = parsed(Config) if __name__ == "__main__" else (None, ())   # before torch, which takes seconds to load

import math  # noqa: E402
from importlib.util import find_spec

import torch

import chat
from bounds import (average, counted_in, figures, last_words, mean_error, multiple_choice, nats_of, passages_of,
                    questions_of)
from checkpoint import as_json, device_of, keep_memory, restore
from classifier import examine
from data import BadInput, text
from data.tokenizer import to_json
from guidance import label_of
from judge import judge_of
from memory import fitting, per_text
from oracle import classifier as exact_classifier
from oracle import exact
from quality import mauve_of, quality, variety
from sample import Counted, begun, generate
from steering import compiled_by, end_of_text, law_of, sampler_of, steer
from tables import keep, show, show_by_noise

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)                            # levels of noise at which a classifier is examined


def answered(model, corpus, config, device):
    """How held-out questions are answered, see chat.examine; and in how many network calls."""
    sampler = sampler_of(config, model.config.method, model.encoding)
    if hasattr(model.method, "stop"):                        # ar and bd3lm
        model.method.stop = end_of_text(model.encoding)
    denoiser = Counted(compiled_by(config, model))
    rows = chat.examine(model, denoiser, corpus, config, sampler, law_of(config), device)
    return {"answers": rows, "network_calls": denoiser.calls, "steps": config.steps, "sampler": config.sampler}


def draw(model, corpus, config, device):
    """Samples of the model, in batches, each as long as its training texts. -> (num_samples, L)"""
    torch.manual_seed(config.seed)
    law, sampler = law_of(config), sampler_of(config, model.config.method, model.encoding)
    denoiser, sampler = steer(config, model, compiled_by(config, model), sampler, device)
    sizes = [len(part) for part in torch.arange(config.num_samples).split(config.batch_size)]
    return torch.cat([generate(model.method, denoiser, n, corpus.block_size, config.steps, sampler, law, device)
                      for n in sizes])                                                                  # (n, L)


def measure(model, corpus, held, config):
    """The bound on the texts of `held_out`, and toy: beside the entropy. -> dict of plain numbers"""
    x, frozen, label, told = held                                                                       # (n, L) ..
    counted = counted_in(corpus, x)                                                                     # (n, L)
    nats, scored = nats_of(model.method, model.denoiser, x, config.draws, config.batch_size, frozen, config.seed, told,
                           counted)                                                                     # (n,) each
    mean, error = average(nats, scored, counted)
    result = {**figures(nats, scored, x, corpus, frozen, counted), "method": model.config.method, "data": corpus.about,
              "split": config.split, "step": model.step, "draws": config.draws, "exact": model.config.method == "ar",
              "nats_per_token": mean, "standard_error": error,
              "bits_per_byte": mean / math.log(2) / corpus.bytes_per_token}
    if corpus.name == "toy":
        topic = label if told is not None else None
        entropy, entropy_error = corpus.language.entropy(corpus.block_size) if label is None else mean_error(
            -corpus.language.log_prob(x.cpu(), topic) / x.shape[1])                  # of just these texts
        result |= {"entropy": entropy, "entropy_error": entropy_error, "gap": mean - entropy,
                   "gap_error": math.hypot(error, entropy_error)}
    return result


def rate(model, corpus, judge, x, label, config, device):
    """Samples, rated beside the held-out texts x (n, L). -> dict of plain numbers"""
    samples = draw(model, corpus, config, device)                                                       # (m, L)
    few = min(len(samples), len(x))                          # what belongs to a set is compared on sets of one size
    sets = samples[:few], x[torch.linspace(0, len(x) - 1, few).long().to(x.device)]                     # 2 x (few, L)
    rows = [quality(a, corpus, judge, config.batch_size, label) + variety(some, corpus)
            for a, some in zip((samples, x), sets)]
    steps = min(config.steps, getattr(model.method, "T", config.steps))              # d3pm: at most its own
    result = {"samples": rows[0], "held_out": rows[1], "steps": steps, "sampler": config.sampler,
              "num_samples": config.num_samples}
    if config.mauve:
        texts = ([corpus.text(row) for row in a.tolist()] for a in sets)
        result["mauve"], result["mauve_error"] = mauve_of(judge, *texts, config.batch_size, config.seed)
        result["mauve_texts"] = few
    return result


def windows_of(corpus, config):
    """Held-out texts: x (n, L), frozen (n, L) or None, labels (n,) or None."""
    try:
        return corpus.example_windows(config.split, config.max_texts)
    except (AttributeError, KeyError):
        raise BadInput(f"{corpus.name} has no text of the split {config.split}: leave out --split") from None


def held_out(model, corpus, config, device):
    """-> texts x (n, L), of --label alone if it is given; frozen (n, L), or None; that label (1,), or None; what the
    model is told, or None"""
    x, frozen, labels = windows_of(corpus, config)                                                      # (n, L), (n,)
    _, frozen = begun(model.method, x, torch.zeros_like(x, dtype=torch.bool) if frozen is None else frozen)
    frozen = frozen if frozen.any() else None
    if not config.label:
        return x.to(device), frozen if frozen is None else frozen.to(device), None, None
    if labels is None:
        raise BadInput(f"--label {config.label}: {corpus.name} has no classes")
    label = label_of(config.label, corpus.classes, device)                                              # (1,)
    x = x[labels == label.cpu()].to(device)                                                             # (n', L)
    if len(x) < 2:
        raise BadInput(f"of {config.max_texts} held-out texts fewer than two are {config.label}: raise --max_texts")
    return x, None, label, label.expand(len(x)) if model.classes and not config.classifier else None


def entropy_of(corpus, told=False):
    """The exact entropy of the toy language, the class of a text being told or not. -> nats/token, its error"""
    language, L = corpus.language, corpus.block_size
    entropy, error = language.entropy(L)
    if not told:
        return entropy, error
    left = torch.special.entr(language.topic_posterior(corpus.windows("val", 4000))).sum(-1)            # (n,) H(k | x)
    left, left_error = mean_error(left)
    return (entropy - (torch.special.entr(language.prior).sum().item() - left) / L,
            math.hypot(error, left_error / L))


def by_noise(method, network, corpus, texts, device, batch_size=64, seed=1337, split="val"):
    """A classifier on held-out text at several times; toy: beside the exact p(y | z). -> [dict of plain numbers]"""
    x, _, label = corpus.example_windows(split, texts)                                                  # (n, L), (n,)
    judges = {"": network}
    if corpus.name == "toy":
        judges["exact_"] = exact_classifier(corpus.language, method.process)
    rows = examine(method.process, judges.values(), x.to(device), label.to(device), TIMES, batch_size, seed)
    return [{"t": t} | {name + key: value for name, (nats, right) in zip(judges, row)
                        for key, value in zip(("nats", "nats_error", "accuracy", "accuracy_error"),
                                              (*mean_error(nats), *mean_error(right.double())))}
            for t, row in rows.items()]


def corpus_of(model, data):
    """The text to evaluate on, in the model's own tokens: its own data as train.py prepared it, or other data."""
    known, sft = model.config, getattr(model.config, "sft", False)
    if not (data or known.data):
        raise BadInput("a published model has no text of its own: give --data, what to evaluate it on")
    if not data and known.data != "toy" and known.tokenizer != "model":
        corpus = text.load(known.data, known.block_size, known.tokenizer, known.vocab_size, sft=sft)
        if to_json(corpus.encoding) == to_json(model.encoding):
            return corpus                                # else the file or the Python is not that of the training
    return in_tokens_of(model, data or known.data, sft)


def in_tokens_of(model, data, sft=False):
    """Text in the model's own tokens, or BadInput: some data has tokens of its own, and takes no others."""
    corpus = text.load(data, model.config.block_size, model.encoding, sft=sft)
    if to_json(corpus.encoding) != to_json(model.encoding):
        raise BadInput(f"{data} has tokens of its own, on which this model was not trained: give other text")
    return corpus


# ---- other text, last words, choices

def zero_shot(model, name, config, device):
    """The figures of the model on a corpus of which it knows the tokens alone. -> dict of plain numbers"""
    corpus = in_tokens_of(model, name)
    x, frozen, _, _ = held_out(model, corpus, replace(config, label=""), device)                        # (n, L) each
    counted = counted_in(corpus, x)                                                                     # (n, L)
    nats, scored = nats_of(model.method, model.denoiser, x, config.draws, config.batch_size, frozen, config.seed,
                           counted=counted)                                                             # (n,) each
    return {**figures(nats, scored, x, corpus, frozen, counted), "draws": config.draws, "split": config.split,
            "data": corpus.about}


def more(model, config, device):
    """What else the flags ask for: [(name, how to measure it)]; files of questions are read now."""
    sets = list(dict.fromkeys(filter(None, map(str.strip, config.zero_shot.split(",")))))
    tasks = [(name, lambda name=name: {"zero_shot": {name: zero_shot(model, name, config, device)}}) for name in sets]
    if config.ends and end_of_text(model.encoding) is None:
        raise BadInput(f"--ends: the tokens of {config.init_from or config.out_dir} have no end of text")
    common = config.draws, config.seed, device, config.ends
    if config.lambada:
        passages = passages_of(config.lambada)
        tasks.append(("last words", lambda: {"last_words": last_words(model, passages, *common)}))
    if config.choices:
        questions = questions_of(config.choices)
        tasks.append(("choices", lambda: {"choices": multiple_choice(model, questions, *common)}))
    return tasks


def judged(config, model, device):
    """The judge, or None; BadInput if what it is to do cannot be done here."""
    needs = "--mauve needs a --judge of transformers, such as gpt2-large, to look at texts"
    if config.mauve and not config.judge:
        raise BadInput(needs)
    if config.mauve and find_spec("mauve") is None:          # before gigabytes are downloaded
        raise BadInput("--mauve needs a package that is not here: pip install mauve-text")
    judge = judge_of(config.judge, model, device)
    if config.mauve and not hasattr(judge, "states"):
        raise BadInput(needs)
    return judge


def main(config):
    if config.oracle and config.data not in ("", "toy"):
        raise BadInput(f"--oracle {config.oracle} knows the toy language alone: leave out --data {config.data}")
    if config.num_samples == 1:
        raise BadInput("--num_samples 1 has no standard error: give 0 or at least two")
    device = device_of(config.device)
    torch.set_float32_matmul_precision(config.matmul_precision)
    keep_memory()
    model = exact(config.oracle) if config.oracle else restore(config.init_from or config.out_dir, device)
    if not config.batch_size:
        need = None if config.oracle else per_text(model.denoiser, model.config.block_size)
        config = replace(config, batch_size=fitting(need, device) if need else 64)
    if model.config.method == "classifier":
        corpus = corpus_of(model, config.data)
        rows = by_noise(model.method, model.denoiser, corpus, config.max_texts, device, config.batch_size, config.seed,
                        config.split)
        print(as_json(rows)) if config.json else show_by_noise(rows)
        return keep(config, model.step, rows)
    if config.guidance != 1 and not (config.label or config.chat):
        raise BadInput("--guidance needs something to lean on: a --label, or the questions of --chat")
    config = chat.settled(config, model.config.method)
    sampler = sampler_of(config, model.config.method, model.encoding)
    steer(config, model, model.denoiser, sampler, device)    # or BadInput, now
    judge, others, exactly = judged(config, model, device), more(model, config, device), model.config.method == "ar"
    corpus = corpus_of(model, config.data)
    held = held_out(model, corpus, config, device)
    tasks = [("bound", lambda: measure(model, corpus, held, config))]
    if config.num_samples:
        tasks.append(("samples", lambda: answered(model, corpus, config, device) if hasattr(corpus, "sft") else
                      rate(model, corpus, judge, *held[::2], config, device)))
    result, failed = {}, []
    for name, task in [*tasks, *others]:                     # each is shown and kept, whatever fails after it
        try:
            found = task()
            if not config.json:
                show(found, corpus, config, exactly)
            for key, value in found.items():
                result[key] = {**result.get(key, {}), **value} if key == "zero_shot" else value
            keep(config, model.step, result)
        except BrokenPipeError:
            raise
        except (BadInput, OSError) as error:
            failed.append(f"{name}: {getattr(error, 'strerror', None) or error}")
    if config.json:
        print(as_json(result))
    if failed:
        raise BadInput("; ".join(failed))


if __name__ == "__main__":
    with one_line_errors():
        main(CONFIG)
