"""
How good is a model? The bound on held-out text with its standard error, and its samples beside it.

    python evaluate.py                                 out/python-mdlm on its own held-out text
    python evaluate.py --out_dir out/toy-mdlm          toy: also the gap to the exact entropy
    python evaluate.py --judge out/python-ar           an ar model of this code rates the samples
    python evaluate.py --judge gpt2-large --mauve      ... or a causal model of transformers
    python evaluate.py --against out/python-ar         how much better or worse on the same texts
    python evaluate.py --zero_shot ptb,wikitext-2      perplexity on text it was not trained on
    python evaluate.py --lambada test.jsonl --choices quiz.jsonl     last words, multiple choice
    python evaluate.py --oracle udlm --steps 8         exact denoiser: errors of the sampler only
    python evaluate.py --permutations 1000             Zipf, Heaps, repetition, with p-values
    python evaluate.py --out_dir out/toy-classifier    a classifier, at several levels of noise
    python evaluate.py --chat                          how many held-out questions it answers right
    python evaluate.py --answers 8                     questions: the best of eight answers to each
    python evaluate.py --init_from s-sahoo/duo --data my.txt         a published model, by its name

A bound is a mean over texts and noise (--draws draws for each text), and so is its standard error.
Nats per token compare methods on the same tokens, bits per byte on any tokens. Samples have -log p
(exact on the toy language, else by the judge) and the entropy of the tokens within a text, which
repetition lowers. Conventions: docs/evaluation.md. All is saved beside the checkpoint.
"""
import sys
from dataclasses import dataclass, replace

import torch

from checkpoints.file import as_json
from checkpoints.load import load_classifier, load_chosen
from data.tokenizer import end_of_text
from evaluation.chosen_answers import answer_figures
from evaluation.chat import score_answers
from evaluation.comparison import check_comparable, load_rival
from evaluation.downstream import last_words, multiple_choice, read_passages, read_questions
from evaluation.held_out import bound_figures, classifier_rows, data_of, texts_of, zero_shot_figures
from evaluation.judges import load_judge
from evaluation.report import Report, check_evaluation, print_by_noise, save_evaluation
from evaluation.sample_quality import check_samples, draw_samples
from flags import UserError, flag
from runtime.compile import compile_for_sampling
from runtime.device import start_device
from runtime.memory import batch_size_that_fits, bytes_per_text
from samplers import SamplingFlags, choose_sampler, model_name
from samplers.generate import CallCounter, writer_of
from samplers.reply import default_sampler
from script import run_script


@dataclass
class Config(SamplingFlags):
    chat: bool = flag(False, "decode answers as chat.py does")
    data: str = flag("", "other text, in the model's own tokens; empty: the data it was trained on",
                     once="--zero_shot takes several")
    split: str = flag("val", "which text; the tables of papers have either", ["val", "test"])
    draws: int = flag(8, "noise draws per text", least=1)
    max_texts: int = flag(2000, "held-out texts at most, evenly spread", least=2)
    batch_size: int = flag(64, "texts at once; 0: as many as half the free memory holds", least=0)
    num_samples: int = flag(64, "samples, or questions of a chat; 0 for none", least=0, chat=1000)
    answers: int = flag(1, "answers to each question, of which the best is chosen", least=1)
    against: str = flag("", "another checkpoint, or ngram: the difference on the same texts")
    judge: str = flag("", "rates samples: an ar checkpoint, or the name of a transformers model")
    mauve: bool = flag(False, "MAUVE of samples and held-out text, by a --judge of transformers")
    permutations: int = flag(0, "of texts, for p-values of Zipf, Heaps, repetition and more",
                             least=0, needs=["num_samples"], idle=["chat"])
    zero_shot: str = flag("", "perplexity on other data: ptb,lm1b,my.txt", each=str)
    lambada: str = flag("", 'a .jsonl file: {"text"}, for its last word', once="name one file")
    choices: str = flag("", 'a .jsonl file: {"prompt", "choices", "answer"}', once="name one file")
    ends: bool = flag(False, "lambada, choices: put an end of text on both sides",
                      needs=["lambada", "choices"])
    json: bool = flag(False, "one JSON object instead of the tables")


def adapt_flags(config, model, device):
    """The flags as they hold for a model, or UserError, before anything is measured."""
    if config.oracle and config.data not in ("", model.config.data):
        raise UserError(f"--oracle {config.oracle} knows {model.config.data} only: leave out "
                        f"--data {config.data}")
    if config.batch_size == 0:
        size = 64 if config.oracle else batch_size_that_fits(
            bytes_per_text(model.denoiser, model.config.block_size), device)
        config = replace(config, batch_size=size)
    if model.method.classifies:
        return config
    if config.guidance != 1 and not (config.label or config.chat):
        raise UserError("--guidance requires --label, or the questions of --chat")
    if config.ends and end_of_text(model.encoding) is None:
        raise UserError(f"--ends: the tokens of {model_name(config)} have no end of text")
    return default_sampler(config, model.method) if config.chat else config


def evaluate_classifier(config, model, device):
    rows = classifier_rows(model.method, model.denoiser, data_of(model, config.data),
                           config.max_texts, device, config.batch_size, config.seed, config.split)
    print(as_json(rows, sys.stdout)) if config.json else print_by_noise(rows)
    save_evaluation(config, model.step, rows)


def main(config, given=()):
    check_evaluation(config)
    device = start_device(config)
    model = load_chosen(config, device)
    config = adapt_flags(check_comparable(config, model.method), model, device)
    if model.method.classifies:
        return evaluate_classifier(config, model, device)
    passages = read_passages(config.lambada, model, config.ends) if config.lambada else []
    questions = read_questions(config.choices, model, config.ends) if config.choices else []
    denoiser = CallCounter(compile_for_sampling(config, model))
    classifier = (load_classifier(config, model, device)
                  if config.classifier and config.label else None)
    data = data_of(model, config.data)
    check_samples(config, data)
    held = texts_of(model, data, config, device)
    given = held.frozen.all(0) if data.prompted else torch.zeros_like(held.x[0]).bool()  # (L,)
    writer = writer_of(config, model, denoiser, given, classifier)
    rival = load_rival(config.against, model, data, device)
    judge = load_judge(config.judge, model, device, config.mauve)

    report = Report(config, model, data)
    with report.part("bound"):
        report.add(**bound_figures(model, data, held, config, rival, writer.sampler))
    chosen = choose_sampler(config, model, given)
    how = dict(sampler=chosen.sampler, steps=min(chosen.steps, model.method.max_steps or 10**9))
    if config.num_samples and data.answers:
        with report.part("answers"):
            report.add(answers=score_answers(model, denoiser, data, config, device),
                       network_calls=denoiser.calls, **how)
    elif config.num_samples:
        with report.part("samples"):
            samples = draw_samples(writer, data.block_size, config, device, data.prompted and held)
            report.add(**answer_figures(samples, held.x, data, judge, held.label, config), **how,
                       calls_per_text=denoiser.texts / len(samples))
    for name in dict.fromkeys(filter(None, map(str.strip, config.zero_shot.split(",")))):
        with report.part(name):
            report.add(zero_shot={name: zero_shot_figures(model, name, config, device)})
    common = config.draws, config.seed, device, config.ends
    if passages:
        with report.part("last words"):
            report.add(last_words=last_words(model, passages, *common))
    if questions:
        with report.part("choices"):
            report.add(choices=multiple_choice(model, questions, *common))
    report.finish()


if __name__ == "__main__":
    run_script(Config, main)
