"""
Generate text with a trained model: from nothing, after a prompt, or in the gaps of a text.

    python sample.py                                             three texts from out/python-mdlm
    python sample.py --prompt "Return the" --num_samples 2       continue
    python sample.py --prompt "Return ____ of the ____ object."  fill in: each _ is one token
    python sample.py --oracle flexmdm --prompt "the ... dog ... ."    gaps of any number of words
    python sample.py --prompt FILE:notes.txt --gap "?"           a prompt from a file, another gap
    python sample.py --watch --steps 64                          watch it denoise in the terminal
    python sample.py --sampler psi --help                        the flags of one sampler
    python sample.py --oracle mdlm --steps 4                     exact denoiser of the toy language
    python sample.py --oracle udlm --label farm --guidance 2     texts of a class
    python sample.py --out_dir out/toy-bd3lm --length 4096       of any length, through a window
    python sample.py --num_samples 1000 --json > texts.jsonl     one line for each finished text
    python sample.py --chat                                      talk to a network: see chat.py
    python sample.py --init_from kuleshov-group/mdlm-owt         a published model, by its name
    python sample.py --html out.html --beside out/toy-udlm       a page that plays two models

Texts are written --batch_size at a time, and printed as they are finished, with their number.
A batch shares one random stream, so a seed reproduces texts at the same --batch_size only.
"""
import sys
import time
from dataclasses import dataclass

import torch

import chat
from checkpoints.file import as_json
from checkpoints.load import load_classifier, load_chosen
from data import DATASETS
from data.files import check_writable
from data.prompt import encode_prompt, read_prompt
from data.tokenizer import decode
from flags import UserError, change, flag, load_row
from methods import METHODS
from runtime.compile import compile_for_sampling
from runtime.device import dtype_of, start_device
from runtime.memory import check_length, texts_at_once
from samplers import SamplingFlags, choose_sampler, model_name
from samplers.generate import (
    CallCounter,
    generate_in_batches,
    prepend_bos,
    truncate_at_eos,
    writer_of,
)
from script import run_script, spell
from suggest import suggest

try:
    from viewer import html_player
    from viewer.terminal import Terminal
except ImportError:  # viewer/ is optional
    html_player = Terminal = None


@dataclass
class Config(SamplingFlags):
    chat: bool = flag(False, "read questions line by line and answer them: chat.py")
    prompt: str = flag("", "given text, with or without gaps; FILE:path reads it from a file",
                       text=True, once="start one command for each prompt")
    gap: str = flag("_", "the character in the prompt that stands for one token to fill in",
                    text=True, needs=["prompt"], idle=["chat"])
    num_samples: int = flag(3, "texts", least=1, idle=["chat"])
    batch_size: int = flag(0, "texts at once; 0: what half of the free memory holds, up to 64 "
                           "(GPU: 512)", least=0, idle=["chat", "html"])
    dtype: str = flag("float32", "of matrix products; auto: bfloat16 if it is faster, which rounds",
                      ["float32", "bfloat16", "auto"], idle=["oracle"])
    length: int = flag(0, "tokens per text; 0: as in training, or those of a prompt with gaps",
                       least=0)
    window: int = flag(0, "tokens that a model sees if it writes from left to right; 0: as in "
                       "training", least=0)
    stride: int = flag(0, "new tokens per window of other models, for long texts; 0: half a window",
                       least=0, idle=["chat"])
    png: str = flag("", "images: write them to this file", idle=["chat"])
    watch: bool = flag(False, "show the text while it is denoised", idle=["json"])
    html: str = flag("", "write a page to this file that plays how the texts come about")
    beside: str = flag("", "more models for the page: folders or oracles, with commas between",
                       each=str, needs=["html"])
    json: bool = flag(False, "one JSON object per text")


NOT_IN_JSON = ("out_dir", "init_from", "oracle", "chat", "gap", "num_samples", "length", "png",
               "watch", "html", "beside", "json", "device")


def models_beside(config):
    """The flags of each model: of one, or for --beside of several."""
    others = [name for name in config.beside.split(",") if name]
    for name in others:
        if config.oracle and name not in METHODS:
            raise UserError(f"--beside {name} is no oracle{suggest(name, METHODS)}: name others")
    other = lambda name: dict(oracle=name) if config.oracle else dict(out_dir=name, init_from="")
    return [config, *(change(config, **other(name)) for name in others)]


def check(config, model, length):
    """Raises UserError if the flags do not fit the model, for texts of `length` tokens."""
    if model.method.classifies:
        use = spell(model.method.usage(model_name(config), model.classes))
        raise UserError(f"{model_name(config)} writes no text: use it as {use}")
    if config.guidance != 1 and not (config.label or config.prompt):
        raise UserError("--guidance requires --label or --prompt")
    if config.png:
        load_row(DATASETS, model.config.data).check_render(length)


def print_text(number, text, ids, config, facts):
    """Print a text, or for --json all about it. One write, so that no line is ever truncated."""
    shown = f"{'-' * 8} text {number}\n{text}\n"
    if config.json:
        flags = {key: value for key, value in vars(config).items() if key not in NOT_IN_JSON}
        about = {"text": text, "ids": ids, "number": number, **flags, **facts}
        shown = as_json(about, sys.stdout) + "\n"
    sys.stdout.write(shown)
    sys.stdout.flush()


def print_texts(config, model, device):
    """Print the texts of one model as they are finished. -> their Recording, for --html, or None"""
    encoding, L, prompt = model.encoding, model.config.block_size, read_prompt(config.prompt)
    given, frozen = encode_prompt(prompt, config.gap, encoding, check_length(config.length), L,
                                  model.config.data, config.seed, model.method.end_id)  # (L,) each
    check(config, model, len(given))
    given, frozen = (a[0].to(device) for a in prepend_bos(model.method, given[None], frozen[None]))
    config = choose_sampler(config, model, frozen)
    counter = CallCounter(compile_for_sampling(config, model))
    classifier = load_classifier(config, model, device) if config.classifier else None
    writer = writer_of(config, model, counter, frozen, classifier, config.window, config.stride)
    end, marks = writer.end, frozen & (not model.method.any_length)  # (L,) of words that stay there
    read = len(given) if model.method.left_to_right else min(len(given), L)  # tokens at once
    size, viewers, recording = texts_at_once(config, model, read, device), [], None
    if config.beside and not config.json:
        print(f"{'=' * 8} {model_name(config)}")
    images, began = [], time.time()
    if config.html:
        size = config.num_samples  # a page plays one batch
        recording = html_player.record(config, model, writer, counter, frozen.expand(size, -1))
        viewers.append(recording)
    states, last = writer.count_states(len(given)), model.method.end_id
    terminal = Terminal(encoding, marks, states, last) if config.watch else None
    viewers += [terminal] if terminal and not config.json else []
    texts = generate_in_batches(writer, counter, given, frozen, config.num_samples, size,
                                config.seed, viewers)
    half = dtype_of(config.dtype, device) == "bfloat16"
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        for number, ids, costs in texts:
            whole, ids = ids, truncate_at_eos(ids, marks.tolist(), end)
            facts = {"model": model_name(config), "batch_size": size, **costs}
            if not (terminal in viewers and terminal.still_shows(whole) and ids == whole):
                print_text(number, decode(encoding, ids, config.gap), ids, config, facts)
            images += [(number, ids)] if config.png else []
    if config.png:  # last, so that a failure loses no text
        load_row(DATASETS, model.config.data).render([ids for _, ids in sorted(images)], config.png)
    if not config.json:
        print(f"{'-' * 8} {config.num_samples} x {len(given)} tokens, {size} at a time, "
              f"{model.config.method}, {config.sampler}: {counter.explained(writer, len(given))}, "
              f"{time.time() - began:.1f} s", file=sys.stderr)
    return recording


def main(config, given=()):
    if config.chat:
        if config.html:
            raise UserError("--html plays texts that are written at once: leave out --chat")
        return chat.main(config, given)
    if Terminal is None and (config.watch or config.html):
        raise UserError("--watch and --html need the folder viewer/, which is missing")
    for path in filter(None, (config.html, config.png)):
        check_writable(path)
    device = start_device(config)
    models = [(one, load_chosen(one, device)) for one in models_beside(config)]
    recordings = [print_texts(one, model, device) for one, model in models]
    if config.html:
        html_player.write_page(config.html, read_prompt(config.prompt), recordings)


if __name__ == "__main__":
    run_script(Config, main)
