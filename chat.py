"""
Talk to a network that was fine-tuned on answers (train.py --sft).

    python chat.py                                       with out/chat-mdlm-sft
    python chat.py --out_dir out/chat-ar-sft --watch     another one; watch the answers
    python chat.py --prompt "Where does Ada live?"       one question
    python chat.py --json < questions.txt > answers.txt  one JSON object for each answer

Questions are read line by line, from the terminal or a pipe, and the network remembers the
conversation as far as there is room. An empty line or /quit ends it. How an answer is decoded:
samplers/reply.py; what the network has learned: evaluate.py --chat.
"""
import sys
import time
from dataclasses import dataclass

import torch

from checkpoints.file import as_json
from checkpoints.load import load_chosen
from data.chat import MARKS
from data.prompt import read_prompt
from data.reading import tidy
from data.tokenizer import encode
from flags import UserError, flag
from runtime.compile import compile_for_sampling
from runtime.device import dtype_of, start_device
from runtime.memory import check_length
from samplers import SamplingFlags
from samplers.generate import CallCounter, writer_of
from samplers.reply import answer, chat_template, default_sampler, reply
from script import run_script

try:
    from viewer.terminal import Terminal
except ImportError:  # viewer/ is optional
    Terminal = None


@dataclass
class Config(SamplingFlags):
    chat: bool = flag(True, "flags have the defaults of chats")
    prompt: str = flag("", "one question, in place of a conversation; FILE:path reads it",
                       text=True, once="ask one, or leave --prompt out and type them")
    length: int = flag(0, "tokens of the conversation; 0: as in training", least=0)
    window: int = flag(0, "tokens that a model sees if it writes from left to right; 0: as in "
                       "training", least=0)
    dtype: str = flag("float32", "of matrix products; auto: bfloat16 if it is faster, which rounds",
                      ["float32", "bfloat16", "auto"], idle=["oracle"])
    watch: bool = flag(False, "show the answer while it is denoised", idle=["json"])
    json: bool = flag(False, "one JSON object per answer")


class AnswerTerminal:
    """--watch: the answer alone, blank after its first [end]."""

    def __init__(self, start, length, encoding):
        self.terminal = Terminal(encoding, torch.zeros(length - start, dtype=torch.bool))
        self.start, self.end, self.blank = start, encoding.eot_token, int(encode(encoding, " ")[0])

    def show(self, step, z):
        words = z[:, self.start:]  # (1, n)
        ended = (words == self.end).cumsum(-1) > 0  # (1, n)
        self.terminal.show(step, words.masked_fill(ended, self.blank))

    def close(self):
        self.terminal.close()


def questions(prompt, echo):
    """The prompt, or each line of the input up to an empty line, /quit or its end."""
    if prompt:
        yield prompt
        return
    typed = sys.stdin.isatty()
    while True:
        if typed:
            print("> ", end="", flush=True)
        try:
            line = tidy(sys.stdin.readline()).strip()
        except UnicodeDecodeError:
            raise UserError("the input is not UTF-8 text") from None
        if line in ("", "/quit"):
            return
        if echo and not typed:
            print(f"> {line}")  # so that the output of a pipe reads as a conversation
        yield line


def words_of_reply(config, model, denoiser, given, frozen):
    """The answer after the tokens given (L,) where frozen (L,)."""
    start, encoding = int(frozen.sum()), model.encoding
    writer = writer_of(config, model, denoiser, frozen, window=config.window, stride=None)
    watch = config.watch and not config.json
    terminal = AnswerTerminal(start, len(frozen), encoding) if watch else None
    try:
        z = reply(writer, given[None], frozen[None], encoding.eot_token, terminal and terminal.show)
    finally:
        if terminal:
            terminal.close()
    return answer(z[0], start, encoding)


def talk(config, model, prompt, device):
    """Answer questions until there are no more."""
    check_length(config.length)
    denoiser, messages, n = CallCounter(compile_for_sampling(config, model)), [], 0
    length, began = config.length or model.config.block_size, time.time()
    for question in questions(prompt, echo=not config.json):
        try:
            given, frozen = chat_template([*messages, question], model.encoding, length)  # (L,)
        except UserError as error:  # too long, or a character that is not in the vocabulary
            if prompt:
                raise
            print(f"({error})", file=sys.stderr, flush=True)
            continue
        calls, asked = denoiser.calls, time.time()
        words = words_of_reply(config, model, denoiser, given.to(device), frozen.to(device))
        messages, n = [*messages, question, words], n + 1
        facts = {"prompt": question, "text": words, "network_calls": denoiser.calls - calls,
                 "seconds": round(time.time() - asked, 3)}
        print(as_json(facts, sys.stdout) if config.json else words or "(no answer)", flush=True)
    print(f"{'-' * 8} {n} answer{'s' * (n != 1)}, {model.config.method}, {config.sampler}: "
          f"{denoiser.calls} network calls, {denoiser.positions:,} positions scored, "
          f"{time.time() - began:.1f} s", file=sys.stderr)


def main(config, given=()):
    if Terminal is None and config.watch:
        raise UserError("--watch needs the folder viewer/, which is missing")
    device = start_device(config)
    model = load_chosen(config, device)
    if not set(MARKS) <= model.encoding.special_tokens_set:
        raise UserError("the tokenizer has no chat tokens: train a network with --data chat, then "
                        "with --sft")
    config, prompt = default_sampler(config, model.method), read_prompt(config.prompt)
    torch.manual_seed(config.seed)
    half = dtype_of(config.dtype, device) == "bfloat16"
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        talk(config, model, prompt, device)


if __name__ == "__main__":
    sys.argv.insert(1, "--chat")
    run_script(Config, main)
