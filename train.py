"""
Train any method on any text: one loop.

    python train.py                                     masked diffusion on your Python's docstrings, some minutes
    python train.py --data toy --method udlm            the toy language, of known entropy; any method of methods.py
    python train.py --data input.txt --tokenizer chars  your own text
    python train.py --data chat --sft --init_from out/chat-mdlm     after --data chat: learn to answer (LLaDA's recipe)
    python train.py --init_from resume                  go on where a run stopped, exactly
    python train.py --method bd3lm --init_from out/python-mdlm      start from the weights of another run
    python train.py --init_from kuleshov-group/mdlm-owt --data input.txt    fine-tune a published model (hub.py)
    torchrun --nproc_per_node 2 train.py --gradient_accumulation_steps 2      one run, shared by two processes

A step draws text, asks the method for its loss, and follows the gradient; all theory is in the method files. Every
draw of step n comes from the seed (seed, n, micro-batch), so a run is the same whole, resumed, or shared.
"""
import os
from dataclasses import dataclass, fields, replace

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    data: str = flag("python", "toy, digits, chat, names, python, the path of a text file or folder, chats.jsonl, or "
                     "what is downloaded: shakespeare, text8, openwebtext, ... (data/corpora.py)")
    sft: bool = flag(False, "fine-tune on the answers of chats: questions are given, never noised, never scored")
    tokenizer: str = flag("auto", "auto, chars, bytes, bpe, a tiktoken name such as gpt2; model: that of --init_from")
    vocab_size: int = flag(8192, "symbols of a bpe that is trained on the data", least=1)
    method: str = flag("mdlm", "what to train", choices=[
        "ar", "mdlm", "md4", "genmd4", "radd", "bd3lm", "pgm", "udlm", "gidd", "duo", "sedd", "d3pm", "classifier"])
    weighting: str = flag("simple", "train on the method's bounded weights or on its bound", ["simple", "bound"])
    diffusion_block: int = flag(4, "bd3lm: tokens per block; 1 is ar, --block_size (a text's length) is mdlm", least=1)
    clip: str = flag("", "bd3lm: train at mask rates from LOW,HIGH only, as in 0.45,0.95; empty: any number of masks")
    clip_search: bool = flag(False, "bd3lm: look for the clip of least variance at every evaluation")
    mask_schedule: str = flag("cosine", "md4: share of masks over time", ["linear", "polynomial", "cosine"])
    power: float = flag(2.0, "md4: of the polynomial", least=0.1, most=100)
    radd_objective: str = flag("k-dce", "radd: form of the bound", ["t-dse", "t-dce", "lambda-dce", "k-dce"])
    p_uniform: float = flag(0.1, "gidd: share of random text at half time, mdlm to udlm", least=0.001, most=0.999)
    decoder_share: float = flag(0.5, "pgm: share of the blocks that decode", least=0, most=1)
    curriculum: float = flag(0.5, "duo: share of training on relaxed inputs, 0 to 1", least=0, most=1)
    tau: float = flag(0.001, "duo: temperature of relaxed inputs; 0 shows the largest coordinate", least=0, most=10)
    top_k: int = flag(2, "duo: coordinates drawn of a relaxed input; 0 draws all of them", least=0)
    transition: str = flag("absorbing", "d3pm, sedd: what noise does", ["absorbing", "uniform", "gaussian", "nearest"])
    diffusion_steps: int = flag(128, "d3pm: steps between text and noise", least=1, most=100_000)
    embedding: str = flag("", "d3pm, nearest: the folder of a checkpoint whose input embeddings say what is near")
    aux: float = flag(0.01, "d3pm: weight of a cross-entropy that is added to the bound", least=0)
    noise_schedule: str = flag("loglinear", "sedd: how fast the noise grows", ["loglinear", "geometric"])
    labels: bool = flag(False, "tell the network the class of each text; toy has topics, digits digits")
    label_dropout: float = flag(0.1, "share of texts that go without their class", least=0, most=1)
    noise_of: str = flag("mdlm", "classifier: the method whose noise it reads; mdlm serves radd, pgm and ar, udlm duo",
                         choices=["mdlm", "md4", "udlm", "gidd"])
    out_dir: str = flag("", "where the checkpoint goes; empty means out/DATA-METHOD")
    init_from: str = flag("scratch", "scratch, resume, or whose weights to start from: a checkpoint's folder, or a "
                                     "published model, by its name")
    max_iters: int = flag(2300, "training steps", least=1, toy=1000, chat=1400, sft=1000)
    batch_size: int = flag(32, "texts per micro-batch", least=1, toy=64)
    gradient_accumulation_steps: int = flag(1, "micro-batches per step, over all processes", least=1)
    block_size: int = flag(64, "tokens per text", least=1, toy=32, chat=48)
    n_layer: int = flag(4, "blocks", least=1)
    n_head: int = flag(4, "attention heads", least=1)
    n_embd: int = flag(128, "width", least=2)
    cond_dim: int = flag(128, "width of the noise condition, for methods that need the time", least=1)
    qk_norm: bool = flag(True, "normalise queries and keys; the published networks do not")
    norm_bias: bool = flag(False, "biases in the layer norms, which the published networks of radd have")
    clock: str = flag("auto", "what the network is told of the time: auto the time itself where the method needs it; "
                              "published networks -log alpha, or always 0", choices=["auto", "sigma", "none"])
    dropout: float = flag(0.0, "dropout", least=0, most=0.99)
    optimizer: str = flag("muon", "for the matrices inside blocks; adamw does the rest", choices=["muon", "adamw"])
    learning_rate: float = flag(0.01, "of adamw", least=0, sft=0.003)
    muon_lr: float = flag(0.01, "of muon", least=0, sft=0.003)
    min_lr: float = flag(0.0, "last learning rate, as a share of the first", least=0, most=1)
    lr_schedule: str = flag("cosine", "after warm-up", choices=["cosine", "linear", "constant"])
    warmup_iters: int = flag(100, "steps of linear warm-up", least=0)
    weight_decay: float = flag(0.1, "of matrices", least=0)
    beta1: float = flag(0.9, "of adamw", least=0, most=0.9999)
    beta2: float = flag(0.99, "of adamw", least=0, most=0.9999)
    grad_clip: float = flag(1.0, "largest gradient norm; 0 for none", least=0)
    ema: float = flag(0.999, "decay of the averaged weights, which evaluation and samples use", least=0, most=1)
    eval_interval: int = flag(500, "steps between evaluations, samples and checkpoints", least=1)
    eval_iters: int = flag(8, "batches per evaluation", least=1)
    device: str = flag("auto", "auto, cpu, cuda, cuda:1")
    dtype: str = flag("auto", "of matrix products; auto times which is faster", ["auto", "float32", "bfloat16"])
    matmul_precision: str = flag("highest", "of float32 products; high, medium: TF32 on GPUs, TF32, bfloat16 on CPUs",
                                 choices=["highest", "high", "medium"])
    compile: str = flag("", "torch.compile the network; reduce-overhead: CUDA graphs, for small batches", [
        "", "default", "reduce-overhead", "max-autotune"], alone="default")
    attention: str = flag("auto", "who computes it: PyTorch, FlexAttention (GPUs), our Triton kernel (GPUs), or the "
                          "best for each call", choices=["auto", "sdpa", "flex", "triton"])
    recompute: bool = flag(False, "forget what is inside blocks, compute it again for the gradient: saves memory")
    shard: bool = flag(False, "torchrun: spread weights and optimizers over the processes (FSDP2), no copies (DDP)")
    log_interval: int = flag(10, "steps between looks at the loss", least=1)
    tensorboard: bool = flag(False, "metrics for TensorBoard too, in out_dir/tensorboard")
    seed: int = flag(1337, "of all draws", least=0, most=10**9)


CONFIG, GIVEN = parse(Config) if __name__ == "__main__" else (None, ())     # before torch, which takes seconds to load
if CONFIG and os.environ.get("RANK", "0") == "0":
    what = f"{CONFIG.method} on {CONFIG.data}" if CONFIG.init_from != "resume" else "going on"
    print(f"palimpsest: {what}", flush=True)

import sys  # noqa: E402
import time
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoint
import hub
import parallel
from data import BadInput, text, tokenizer
from interrupt import Stop, look
from learner import GRAPHS, Learner
from methods import METHODS
from model import kernels
from optim import learning_rate
from report import final, report, scalars

SHAPE = ["data", "sft", "tokenizer", "vocab_size", "method", "diffusion_block", "p_uniform", "curriculum", "tau",
         "top_k", "block_size", "n_layer", "n_head", "n_embd", "cond_dim", "decoder_share", "qk_norm", "labels",
         "noise_of", "seed", "optimizer", "batch_size", "gradient_accumulation_steps", "transition", "diffusion_steps",
         "noise_schedule", "norm_bias", "clock"]                                            # fixed for a run

MADE = ["method", "block_size", "diffusion_block", "p_uniform", "mask_schedule", "power", "radd_objective",
        "transition", "noise_schedule", "labels"]                                           # as a published model was


# ---- the run

def train(learner, folder, stop, report=report):
    """From the last step saved to max_iters, or until asked to stop. folder is None but in the first process."""
    config, losses, first, began, shown = learner.config, [], stop.saved, time.time(), 0.0
    with tqdm(range(first, config.max_iters), initial=first, total=config.max_iters,
              disable=None if folder else True) as bar:      # None: where stderr is no terminal
        for step in bar:
            if step == first or step % config.eval_interval == 0:
                learner.gather()
                if folder:
                    report(learner, step, folder)
            stop.unsaved = True
            losses.append(learner.step(step))
            done, stopping = step + 1, stop.everywhere()
            due = stopping or done % config.eval_interval == 0 or done == config.max_iters
            if due or step == first or done % config.log_interval == 0:
                loss, losses, seconds = look(losses, done, stop.saved, config), [], time.time() - began
                bar.set_postfix_str(f"loss {loss:.3f}")
                if folder:
                    rate = learning_rate(step, config) * config.learning_rate
                    folder.log(step=done, loss=loss, lr=rate, seconds=round(seconds, 3))
                if folder and bar.disable and time.time() - shown > 10:          # no terminal: a line now and then
                    print(f"step {done:>5} of {config.max_iters}  loss {loss:.3f}  {seconds:.0f} s", flush=True)
                    shown = time.time()
            if due:
                state = learner.state(done)
                if folder:
                    folder.save(state)
                stop.saved, stop.unsaved = done, False
            if stopping:
                break


# ---- start

def resumed(config, given):
    """The flags of the run to resume, but for those given now; and its state."""
    state = checkpoint.load(config.out_dir)
    if not state["optimizers"]:
        raise BadInput(f"{config.out_dir} is an exported model, without what a run needs to go on: start from it with "
                       f"--init_from {config.out_dir} and another --out_dir")
    checkpoint.assemble(state, config.out_dir)               # or BadInput, if its parts do not fit each other
    if "distilled" in state:
        raise BadInput(f"{config.out_dir} is a run of distill.py: go on with distill.py --init_from resume "
                       f"--out_dir {config.out_dir}")
    old = {f.name: state["config"].get(f.name, f.default) for f in fields(Config)}
    for name in given:
        if name in SHAPE and getattr(config, name) != old[name]:
            raise BadInput(f"--{name} {getattr(config, name)} does not fit the run in {config.out_dir}, which has "
                           f"{old[name]}: leave the flag out, or start anew with another --out_dir")
    now = {name: getattr(config, name) for name in [*given, "out_dir", "init_from"]}
    return Config(**{**old, **now}), state


def adopted(config, given):
    """The flags for fine-tuning a published model: its network and its tokens; its method and length if none is given.

    BadInput where another network or other tokens were asked for.
    """
    theirs = checkpoint.load(config.init_from)["config"]
    if "n_start" in theirs:
        raise BadInput(f"{config.init_from} needs a first token that is always there, which train.py does not promise:"
                       f" sample from it and evaluate it, or train --method pgm from scratch")
    fixed = {name: theirs.get(name, default) for name, default in {**checkpoint.NETWORK, "cond_dim": 128}.items()}
    fixed["tokenizer"] = theirs["tokenizer"]
    for name in given:
        if name in fixed and getattr(config, name) not in (fixed[name], "auto", "model"):
            raise BadInput(f"--{name} {getattr(config, name)} does not fit {config.init_from}, which has "
                           f"{fixed[name]}: leave the flag out")
    free = {name: theirs[name] for name in MADE if name in theirs and name not in given}
    return replace(config, **{**fixed, **free, "tokenizer": "model"})


def check(config):
    """What no single flag can tell is wrong."""
    if config.n_embd % config.n_head or config.n_embd // config.n_head % 2:
        raise BadInput(f"--n_embd {config.n_embd} must be --n_head {config.n_head} times an even number")
    if config.gradient_accumulation_steps % parallel.WORLD:
        raise BadInput(f"--gradient_accumulation_steps {config.gradient_accumulation_steps} cannot be shared by "
                       f"{parallel.WORLD} processes: give a multiple of {parallel.WORLD}")
    if config.compile in GRAPHS and config.method in ("sedd", "genmd4", "d3pm"):
        raise BadInput(f"--compile {config.compile} holds steps of one shape, and {config.method} scores as many "
                       f"positions as are masked: take --compile, or leave it out")
    if config.shard and (parallel.WORLD == 1 or config.method == "genmd4"):
        raise BadInput("--shard cannot spread genmd4, whose schedule is read outside of the network: leave it out"
                       if config.method == "genmd4" else
                       "--shard spreads the weights over processes, and there is one: start it with torchrun, or go "
                       "on with --no_shard")
    if config.method == "bd3lm" and config.block_size % config.diffusion_block:
        raise BadInput(f"--block_size {config.block_size} must be a multiple of --diffusion_block "
                       f"{config.diffusion_block}")
    if config.clock == "sigma" and (config.method == "pgm" or
                                    config.method == "md4" and config.mask_schedule != "linear"):
        raise BadInput(f"--clock sigma tells -log(1 - t), and 1 - t is not the share of text that {config.method} "
                       f"shows: leave it out, no mask needs a clock")


def prepare(config, given):
    """-> the learner, the folder that this process writes to (None but in the first), and the step to go on from"""
    if hub.known(config.init_from):
        config = adopted(config, given)
    name = f"{Path(config.data).resolve().stem}-{config.method}" + "-sft" * config.sft
    config = replace(config, out_dir=config.out_dir or f"out/{name}")
    config, state = resumed(config, given) if config.init_from == "resume" else (config, None)
    if config.method == "classifier":                        # the class is what it answers: never told, never dropped
        config = replace(config, labels=True, label_dropout=0.0)
    elif not state and config.labels and config.clock == "auto" and not getattr(
            METHODS[config.method], "uses_time", True):      # the class brings layers for the time: no mask needs it
        config = replace(config, clock="none")
    learner, folder, first = equip(config, state, Learner)
    if folder and config.tensorboard:
        folder.board = scalars(folder.path / "tensorboard", first)
    if config.init_from not in ("scratch", "resume"):
        encoding = learner.corpus.encoding
        learner.start_from(checkpoint.weights(config.init_from, learner.config, encoding, len(learner.classes),
                                              learner.device))
    return learner, folder, first


def equip(config, state, make, teacher=None):
    """Device, folder, text and precision for make(config, corpus, device). state: what to go on from, or None;
    teacher: whose tokens the text is read with, if not those that the flags say"""
    check(config)
    device = checkpoint.device_of(parallel.device_name(config.device))
    torch.set_float32_matmul_precision(config.matmul_precision)
    if kernels:
        kernels.attend_by(config.attention, device)
    elif config.attention not in ("auto", "sdpa"):
        raise BadInput(f"--attention {config.attention} needs the file kernels.py, which is not here")
    folder = checkpoint.Folder(config.out_dir, bool(state)) if parallel.RANK == 0 else None
    try:
        learner = on_text(config, state, make, teacher, device)
    except BadInput:
        if folder:
            folder.leave()
        raise
    if state:
        learner.load(state)
    return learner, folder, state["step"] if state else 0


def on_text(config, state, make, teacher, device):
    """What learns, with its text, in all processes."""
    corpus = text.load(config.data, config.block_size, checkpoint.tokens_of(config, state or teacher),
                       config.vocab_size, sft=config.sft)
    if config.method == "genmd4" and getattr(corpus, "layout", "") == "rows":
        raise BadInput(f"{config.data} fills its texts up, and the gradient of genmd4's schedule would count that: "
                       f"take --method md4")
    if state and state["encoding"] != tokenizer.to_json(corpus.encoding):
        raise BadInput(f"{config.data} gives other tokens now than when {config.out_dir} was trained: restore the "
                       f"text (or the Python) of then, or start anew with another --out_dir")
    parallel.start(device)
    dtype = parallel.agree(checkpoint.dtype_of(config.dtype, device))
    return make(replace(config, dtype=dtype), corpus, device)                # saved: a resumed run does not choose


def lost(error, saved, out_dir):
    """What failed in the middle of a run, and what is safe, in one line."""
    where = f": {error.filename}" if error.filename else ""
    rest = kept_in(out_dir, saved) if saved else "nothing was saved yet"
    return f"{error.strerror or error}{where}; {rest}"


def kept_in(out_dir, step):
    return f"step {step} is saved in {out_dir}, go on with --init_from resume --out_dir {out_dir}"


def run(learner, folder, first, report, final):
    """The whole run, however it ends: trained to the last step, stopped and saved, or stopped with nothing to save."""
    if folder:
        size, dtype = sum(p.numel() for p in learner.model.parameters()), "bfloat16" if learner.half else "float32"
        print(f"{learner.corpus.about}\n{size:,} parameters, {learner.device}, {dtype}, "
              f"{parallel.WORLD} process{'es' * (parallel.WORLD > 1)}, to {learner.config.out_dir}")
        if first:
            folder.rewind(first)                             # now that nothing is left to refuse
    with Stop(first) as stop:
        try:
            train(learner, folder, stop, report)
            learner.gather()
            if folder and not stop.asked:
                report(learner, stop.saved, folder)
                final(learner)
        except KeyboardInterrupt:
            if stop.unsaved:
                raise
            stop.asked = True
        except OSError as error:                             # the text or the disk failed: what is safe?
            if isinstance(error, BrokenPipeError):
                raise
            raise BadInput(lost(error, stop.saved, learner.config.out_dir)) from None
        parallel.stop()
    if folder and stop.asked:
        print(f"stopped: {kept_in(learner.config.out_dir, stop.saved)}" if stop.saved else
              "stopped before the first step: nothing to save")
    if folder:
        folder.lock.release()


def main(config, given=()):
    checkpoint.keep_memory()
    run(*prepare(config, given), report, final)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)              # so that `| cat` shows each line at once
    with one_line_errors():
        main(CONFIG, GIVEN)
