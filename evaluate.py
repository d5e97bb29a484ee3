"""
How good is a model? The bound on held-out text with its standard error, and the samples: never one without the other.

    python evaluate.py                                   the checkpoint in out/python-mdlm on its own held-out text
    python evaluate.py --out_dir out/toy-mdlm            toy: also the exact entropy, and the distance to it
    python evaluate.py --judge out/python-ar             samples are judged by an ar model of this code
    python evaluate.py --oracle udlm --steps 8           the exact denoiser: what the sampler alone does wrong
    python evaluate.py --oracle mdlm --label sea --guidance 3    guided samples: are they of the class, are they good?
    python evaluate.py --out_dir out/toy-classifier      a classifier, at several levels of noise
    python evaluate.py --chat                            a network that answers: how many held-out questions rightly

A bound is a mean over texts and over noise. `draws` noise draws are taken per text, and the standard error is that of
the mean over texts, so it counts both kinds of chance. Nats per token are comparable between methods on the same
tokens; bits per byte always. Samples are given by two numbers: their negative log-likelihood (exact on the toy
language, by the judge elsewhere) and the entropy of the tokens within a text. A sampler can lower the first by
repeating itself; then the second falls too.
"""
from dataclasses import dataclass, replace

from flags import flag, one_line_errors, parse
from sampling import Sampling


@dataclass
class Config(Sampling):
    chat: bool = flag(False, "decode answers as sample.py --chat does")
    data: str = flag("", "evaluate on other text, in the checkpoint's own tokens; empty means its own data")
    draws: int = flag(8, "noise draws per text", least=1)
    max_texts: int = flag(2000, "held-out texts at most, evenly spread", least=2)        # one has no standard error
    batch_size: int = flag(64, "texts at once; 0: as many as half the free memory holds", least=0)
    num_samples: int = flag(64, "samples to judge, or questions to ask; 0 for none", least=0, chat=1000)
    judge: str = flag("", "folder of an ar checkpoint with the same tokens, which rates the samples")
    json: bool = flag(False, "one JSON object instead of the table")


CONFIG, GIVEN = parse(Config) if __name__ == "__main__" else (None, ())     # before torch, which takes seconds to load

import math  # noqa: E402
import re

import torch

import chat
from checkpoint import as_json, device_of, restore
from classifier import examine
from data import BadInput, text
from data.ngram import witten_bell
from data.tokenizer import to_json
from guidance import label_of
from memory import fitting, per_text
from model import Told
from oracle import classifier as exact_classifier
from oracle import exact
from sample import Counted, generate
from steering import end_of_text, law_of, sampler_of, steer

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)                            # levels of noise at which a classifier is examined


@torch.no_grad()
def estimate(method, denoiser, x, draws=1, batch_size=64, frozen=None, seed=1337, label=None):
    """The mean of method.nelbo over the texts x (n, L) and `draws` draws of noise each. -> (mean, its standard error)

    In nats/token. A seed fixes the noise, so that two models, or one at two times, are compared on the same noise.
    """
    torch.manual_seed(seed)
    device = x.device
    total = torch.zeros(len(x), dtype=torch.float64, device=device)                                     # (n,)
    for _ in range(draws):
        order = torch.randperm(len(x)).to(device)        # (n,) any text may meet any stratum of time
        for rows in order.split(batch_size):                                                            # (b,)
            given = None if frozen is None else frozen[rows]                                            # (b, L)
            told = denoiser if label is None else Told(denoiser, label[rows])
            nats = method.nelbo(told, x[rows], given).double()                                          # (b, L)
            scored = nats.shape[1] if given is None else (~given).sum(-1)                               # (b,)
            total[rows] += nats.sum(-1) / scored / draws                                                # (b,)
    return mean_error(total)


def mean_error(values):
    return values.mean().item(), (values.std() / len(values) ** 0.5).item() if len(values) > 1 else math.nan


def unit(nats, error, bytes_per_token):
    """'1.234 +- 0.005 nats/token = 2.345 bits/byte'"""
    return f"{nats:.3f} +- {error:.3f} nats/token = {nats / math.log(2) / bytes_per_token:.3f} bits/byte"


def league(corpus):
    """What counting alone reaches on the same held-out text: [(name, nats/token or None, bits/byte)]"""
    def bits(nats, bytes_per_symbol):
        return nats / math.log(2) / bytes_per_symbol

    rows = [("uniform over tokens", math.log(corpus.encoding.n_vocab))]
    rows += [] if hasattr(corpus, "sft") else [(f"{n}-gram of tokens", nats) for n, nats in
             witten_bell(corpus.train, corpus.val, corpus.encoding.n_vocab).items()]
    rows = [(name, nats, bits(nats, corpus.bytes_per_token)) for name, nats in rows]
    if corpus.encoding.name in ("chars", "pixels", "words") or hasattr(corpus, "sft"):
        return rows                                      # the tokens are the smallest part; or questions are given
    train, val = (corpus.text(ids).encode("utf-8", "replace") for ids in (corpus.train, corpus.val))
    train, val = (torch.frombuffer(bytearray(raw), dtype=torch.uint8).numpy() for raw in (train, val))
    return rows + [(f"{n}-gram of bytes", None, bits(nats, 1.0)) for n, nats in witten_bell(train, val, 256).items()]


def unigram_entropy(x):
    """Entropy of the tokens within each text, in nats: what repetition lowers. (n, L) -> (n,)"""
    _, inverse = x.unique(return_inverse=True)                                                          # (n, L)
    counts = torch.zeros(len(x), int(inverse.max()) + 1, dtype=torch.float64).scatter_add_(
        1, inverse.cpu(), torch.ones(x.shape, dtype=torch.float64))                                     # (n, symbols)
    return torch.special.entr(counts / x.shape[1]).sum(-1)                                              # (n,)


def known_words(texts, corpus):
    """Share of the words of three or more letters that the corpus knows. Words cut by a text's edge do not count."""
    whole = re.compile(r"(?<=[^A-Za-z])[A-Za-z]{3,}(?=[^A-Za-z])")
    known = {word for ids in (corpus.train, corpus.val) for word in whole.findall(corpus.text(ids))}
    words = [word for text in texts for word in whole.findall(text)]
    return sum(word in known for word in words) / max(1, len(words)), len(words)


def quality(x, corpus, judge, batch_size, label=None):
    """Rows (what, mean, standard error) on texts x (n, L); the same function rates samples and held-out text. With a
    label (1,) also whether they are of that class."""
    rows = [("entropy of the tokens within a text, nats", *mean_error(unigram_entropy(x)))]
    if corpus.name == "toy":
        rows.append(("exact -log p, nats/token", *mean_error(-corpus.language.log_prob(x.cpu()) / x.shape[1])))
        if label is not None:
            rows.append(("exact -log p given the class, nats/token",
                         *mean_error(-corpus.language.log_prob(x.cpu(), label) / x.shape[1])))
            rows.append(("exact p(class | text)",
                         *mean_error(corpus.language.topic_posterior(x.cpu())[:, label.cpu()][:, 0])))
    elif judge:
        rows.append((f"-log p by {judge.where}, nats/token",
                     *estimate(judge.method, judge.denoiser, x, batch_size=batch_size)))
    rows += [(what, *mean_error(values)) for what, values in getattr(corpus, "rate", lambda *a: [])(x, label)]
    if corpus.name not in ("toy", "digits"):
        share, n = known_words([corpus.text(row) for row in x.tolist()], corpus)
        rows.append((f"words that stand in the corpus, of {n:,}", share, (share * (1 - share) / max(1, n)) ** 0.5))
    return rows


def answered(model, corpus, config, device):
    """How held-out questions are answered, see chat.examine; and in how many network calls."""
    sampler = sampler_of(config, model.config.method, model.encoding)
    if hasattr(model.method, "stop"):                        # ar and bd3lm
        model.method.stop = end_of_text(model.encoding)
    denoiser = Counted(model.denoiser)
    rows = chat.examine(model, denoiser, corpus, config, sampler, law_of(config), device)
    return {"answers": rows, "network_calls": denoiser.calls, "steps": config.steps, "sampler": config.sampler}


def draw(model, corpus, config, device):
    """Samples of the model, in batches, each as long as its training texts. -> (num_samples, L)"""
    torch.manual_seed(config.seed)
    law, sampler = law_of(config), sampler_of(config, model.config.method, model.encoding)
    denoiser, sampler = steer(config, model, model.denoiser, sampler, device)
    sizes = [len(part) for part in torch.arange(config.num_samples).split(config.batch_size)]
    return torch.cat([generate(model.method, denoiser, n, corpus.block_size, config.steps, sampler, law, device)
                      for n in sizes])                                                                  # (n, L)


def measure(model, corpus, judge, config, device):
    """Everything that is known about the model, as a dict of plain numbers."""
    x, frozen, label, told = held_out(model, corpus, config, device)                                    # (n, L) ..
    nats, error = estimate(model.method, model.denoiser, x, config.draws, config.batch_size, frozen, config.seed, told)
    result = {"method": model.config.method, "data": corpus.about, "step": model.step, "texts": len(x),
              "draws": config.draws, "exact": model.config.method == "ar", "nats_per_token": nats,
              "standard_error": error, "bits_per_byte": nats / math.log(2) / corpus.bytes_per_token}
    if corpus.name == "toy":
        topic = label if told is not None else None
        entropy, entropy_error = corpus.language.entropy(corpus.block_size) if label is None else mean_error(
            -corpus.language.log_prob(x.cpu(), topic) / x.shape[1])                  # of just these texts
        result |= {"entropy": entropy, "entropy_error": entropy_error, "gap": nats - entropy,
                   "gap_error": math.hypot(error, entropy_error)}
    if config.num_samples and hasattr(corpus, "sft"):
        result |= answered(model, corpus, config, device)
    elif config.num_samples:
        samples = draw(model, corpus, config, device)                                                   # (n, L)
        result |= {"samples": quality(samples, corpus, judge, config.batch_size, label),
                   "held_out": quality(x, corpus, judge, config.batch_size, label),
                   "steps": config.steps, "sampler": config.sampler, "num_samples": config.num_samples}
    return result


def held_out(model, corpus, config, device):
    """-> texts x (n, L), of --label alone if it is given; frozen (n, L), or None; that label (1,), or None; what the
    model is told, or None"""
    x, frozen, labels = corpus.example_windows("val", config.max_texts)                                 # (n, L), (n,)
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


def by_noise(method, network, corpus, texts, device, batch_size=64, seed=1337):
    """A classifier on held-out text at several times; toy: beside the exact p(y | z). -> [dict of plain numbers]"""
    x, _, label = corpus.example_windows("val", texts)                                                  # (n, L), (n,)
    judges = {"": network}
    if corpus.name == "toy":
        judges["exact_"] = exact_classifier(corpus.language, method.process)
    rows = examine(method.process, judges.values(), x.to(device), label.to(device), TIMES, batch_size, seed)
    return [{"t": t} | {name + key: value for name, (nats, right) in zip(judges, row)
                        for key, value in zip(("nats", "nats_error", "accuracy", "accuracy_error"),
                                              (*mean_error(nats), *mean_error(right.double())))}
            for t, row in rows.items()]


def show_by_noise(rows):
    names = ["", "exact_"] if "exact_nats" in rows[0] else [""]
    print(f"\n{'held-out text':<16}" + "".join(f"{name:^48}" for name in ("the classifier", "exact")[:len(names)]))
    print("at noise t" + "".join(f"{'nats/text':>24}{'accuracy':>24}" for _ in names))
    for row in rows:
        cell = lambda key: f"{row[key]:>13.3f} +- {row[key + '_error']:.3f}  "
        print(f"{row['t']:<10.2f}" + "".join(cell(name + "nats") + cell(name + "accuracy") for name in names))


def corpus_of(model, data):
    """The text to evaluate on, in the model's own tokens: its own data as train.py prepared it, or other data."""
    known, sft = model.config, getattr(model.config, "sft", False)
    if not data and known.data != "toy":
        corpus = text.load(known.data, known.block_size, known.tokenizer, known.vocab_size, sft=sft)
        if to_json(corpus.encoding) == to_json(model.encoding):
            return corpus                                # else the file or the Python is not that of the training
    return text.load(data or known.data, known.block_size, model.encoding, sft=sft)


def judge_of(config, model, device):
    """The model that rates samples, or None."""
    if not config.judge:
        return None
    judge = restore(config.judge, device)
    if judge.config.method != "ar" or to_json(judge.encoding) != to_json(model.encoding):
        raise BadInput(f"--judge {config.judge} must be an ar checkpoint with the same tokens as {config.out_dir}")
    judge.where = config.judge
    return judge


def main(config):
    if config.oracle and config.data not in ("", "toy"):
        raise BadInput(f"--oracle {config.oracle} knows the toy language alone: leave out --data {config.data}")
    if config.num_samples == 1:
        raise BadInput("--num_samples 1 has no standard error: give 0 or at least two")
    device = device_of(config.device)
    model = exact(config.oracle) if config.oracle else restore(config.out_dir, device)
    if not config.batch_size:
        need = None if config.oracle else per_text(model.denoiser, model.config.block_size)
        config = replace(config, batch_size=fitting(need, device) if need else 64)
    if model.config.method == "classifier":
        corpus = corpus_of(model, config.data)
        rows = by_noise(model.method, model.denoiser, corpus, config.max_texts, device, config.batch_size, config.seed)
        return print(as_json(rows)) if config.json else show_by_noise(rows)
    if config.guidance != 1 and not (config.label or config.chat):
        raise BadInput("--guidance needs something to lean on: a --label, or the questions of --chat")
    config = chat.settled(config, model.config.method)
    sampler = sampler_of(config, model.config.method, model.encoding)
    steer(config, model, model.denoiser, sampler, device)    # or BadInput, now
    judge = judge_of(config, model, device)
    corpus = corpus_of(model, config.data)
    r = measure(model, corpus, judge, config, device)
    if config.json:
        return print(as_json(r))
    print(r["data"])
    print(f"{r['method']}, step {r['step']}: {'exact' if r['exact'] else 'bound'} on held-out text "
          f"{unit(r['nats_per_token'], r['standard_error'], corpus.bytes_per_token)} "
          f"({r['texts']:,} texts of {corpus.block_size} tokens, {r['draws']} noise draws each)")
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


if __name__ == "__main__":
    with one_line_errors():
        main(CONFIG)
