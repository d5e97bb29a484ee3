"""
Train any method on any text: one loop.

    python train.py                                     masked diffusion on your Python's docstrings, a few minutes on a laptop
    python train.py --data toy --method udlm            the toy language, whose entropy is known; any method of methods.py
    python train.py --data input.txt --tokenizer chars  your own text
    python train.py --init_from resume                  go on where a run stopped, exactly
    torchrun --nproc_per_node 2 train.py --gradient_accumulation_steps 2      the same run, shared by two processes

A step draws text, asks the method for its loss, and follows the gradient; all theory is in the method files. Every draw of step n
comes from the seed (seed, n, micro-batch), so a run is the same whole, resumed, or shared by several processes.
"""
from dataclasses import asdict, dataclass, fields

from flags import flag, one_line_errors, parse


@dataclass
class Config:
    data: str = flag("python", "toy, names, python, or the path of a text file or folder")
    tokenizer: str = flag("auto", "auto, chars, bytes, bpe, or a tiktoken name such as gpt2")
    vocab_size: int = flag(1024, "symbols of a bpe that is trained on the data")
    method: str = flag("mdlm", "what to train", choices=["ar", "mdlm", "udlm", "gidd"])
    weighting: str = flag("simple", "train on the method's bounded weights or on its bound", choices=["simple", "bound"])
    p_uniform: float = flag(0.1, "gidd: share of random text at half time")
    out_dir: str = flag("", "where the checkpoint goes; empty means out/DATA-METHOD")
    init_from: str = flag("scratch", "start", choices=["scratch", "resume"])
    max_iters: int = flag(2000, "training steps", toy=600)
    batch_size: int = flag(32, "texts per micro-batch")
    gradient_accumulation_steps: int = flag(1, "micro-batches per step, over all processes")
    block_size: int = flag(128, "tokens per text", toy=32)
    n_layer: int = flag(4, "blocks")
    n_head: int = flag(4, "attention heads")
    n_embd: int = flag(128, "width")
    cond_dim: int = flag(128, "width of the noise condition, for methods that need the time")
    dropout: float = flag(0.0, "dropout")
    optimizer: str = flag("muon", "for the matrices inside blocks; adamw does the rest", choices=["muon", "adamw"])
    learning_rate: float = flag(3e-3, "of adamw")
    muon_lr: float = flag(0.01, "of muon")
    min_lr: float = flag(0.0, "last learning rate, as a share of the first")
    lr_schedule: str = flag("cosine", "after warm-up", choices=["cosine", "linear", "constant"])
    warmup_iters: int = flag(100, "steps of linear warm-up")
    weight_decay: float = flag(0.1, "of matrices")
    beta1: float = flag(0.9, "of adamw")
    beta2: float = flag(0.99, "of adamw")
    grad_clip: float = flag(1.0, "largest gradient norm; 0 for none")
    ema: float = flag(0.999, "decay of the averaged weights that evaluation, samples and sample.py use")
    eval_interval: int = flag(500, "steps between evaluations, samples and checkpoints")
    eval_iters: int = flag(20, "batches per evaluation")
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: str = flag("auto", "auto is bfloat16 on a GPU that has it", choices=["auto", "float32", "bfloat16"])
    compile: bool = flag(False, "torch.compile the network")
    log_interval: int = flag(10, "steps between looks at the loss")
    seed: int = flag(1337, "of all draws")


CONFIG, GIVEN = parse(Config) if __name__ == "__main__" else (None, ())     # before torch, which takes seconds to load
if CONFIG:
    print(f"palimpsest: {CONFIG.method} on {CONFIG.data}", flush=True)

import math  # noqa: E402
import os
import signal
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import checkpoint
from data import BadInput, text, tokenizer
from evaluate import estimate, league, spread, unit
from sample import generate

SHAPE = ["data", "tokenizer", "vocab_size", "method", "p_uniform", "block_size", "n_layer", "n_head", "n_embd", "cond_dim",
         "optimizer", "batch_size", "gradient_accumulation_steps", "seed"]       # a resumed run must not change these


def learning_rate(step, config):
    """The share of the full learning rate at this step: linear warm-up, then the schedule down to min_lr."""
    if step < config.warmup_iters:
        return (step + 1) / config.warmup_iters
    done = (step - config.warmup_iters) / max(1, config.max_iters - config.warmup_iters)
    fall = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[config.lr_schedule]
    return config.min_lr + (1 - config.min_lr) * fall


def make_optimizers(model, config):
    """Muon (arXiv:2502.16982) turns the update of a matrix into the nearest orthogonal one; embeddings, head, norms and the
    condition stay with AdamW, as Muon's authors advise. Each group remembers its full rate as "full_lr"."""
    inside = [p for name, p in model.named_parameters() if p.ndim == 2 and name.startswith("blocks") and "adaln" not in name]
    muon = inside if config.optimizer == "muon" else []
    others = [p for p in model.parameters() if not any(p is q for q in muon)]
    groups = [{"params": [p for p in others if p.ndim >= 2], "weight_decay": config.weight_decay},
              {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0}]
    made = [torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)]
    if muon:
        made.append(torch.optim.Muon(muon, lr=config.muon_lr, weight_decay=config.weight_decay))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return made


def resumed(config, given):
    """The flags of the run to resume, but for those given now; and its state."""
    state = checkpoint.load(config.out_dir)
    old = state["config"]
    for name in given:
        if name in SHAPE and getattr(config, name) != old[name]:
            raise BadInput(f"--{name} {getattr(config, name)} does not fit the run in {config.out_dir}, which has {old[name]}: "
                           f"leave the flag out, or start anew with another --out_dir")
    merged = {f.name: getattr(config, f.name) if f.name in given else old[f.name] for f in fields(Config)}
    return Config(**merged), state


def check(config, world):
    """What can be told wrong before any work is done."""
    for name in ("max_iters", "batch_size", "gradient_accumulation_steps", "block_size", "n_layer", "n_head", "n_embd",
                 "eval_interval", "eval_iters", "log_interval", "vocab_size"):
        if getattr(config, name) < 1:
            raise BadInput(f"--{name} {getattr(config, name)} must be at least 1")
    if not 0 < config.p_uniform < 1:
        raise BadInput(f"--p_uniform {config.p_uniform} must lie between 0 and 1; mdlm is its limit at 0, udlm at 1")
    if config.n_embd % config.n_head or config.n_embd // config.n_head % 2:
        raise BadInput(f"--n_embd {config.n_embd} must be --n_head {config.n_head} times an even number")
    if config.gradient_accumulation_steps % world:
        raise BadInput(f"--gradient_accumulation_steps {config.gradient_accumulation_steps} cannot be shared by {world} "
                       f"processes: give a multiple of {world}")


def report(step, config, method, model, corpus, device):
    """One evaluation, printed: the bound on train and held-out text, and a sample. -> held-out nats/token"""
    rows = config.eval_iters * config.batch_size
    error = {}
    for split in ("train", "val"):
        x = spread(corpus.windows(split), rows).to(device)                                              # (n, L)
        error[split] = estimate(method, model, x, batch_size=config.batch_size)
    name = "exact" if config.method == "ar" else "bound"
    tqdm.write(f"step {step:>5}  {name}  train {unit(*error['train'], corpus.bytes_per_token)}   "
               f"held-out {unit(*error['val'], corpus.bytes_per_token)}")
    torch.manual_seed(config.seed)
    z = generate(method, model, 1, corpus.block_size, corpus.block_size, device=device)[0]              # (L,)
    tqdm.write("    | " + corpus.text(z.tolist()).replace("\n", "\n    | "))
    return error["val"][0]


def look(losses, step, last_saved, config, world):
    """The mean of the losses since the last look; a loss that is no number ends the run. -> float"""
    losses = torch.stack(losses)                                                                        # (k,)
    if world > 1:
        dist.all_reduce(losses)
    losses = losses / world                                                                             # (k,)
    if not losses.isfinite().all():
        bad = step - len(losses) + 2 + int((~losses.isfinite()).nonzero()[0])
        saved = f"the checkpoint of step {last_saved} is whole" if last_saved else "nothing was saved yet"
        raise BadInput(f"the loss is not finite at step {bad} (seed {config.seed}): {saved}; try a lower --learning_rate and "
                       f"--muon_lr, a longer --warmup_iters, or --dtype float32")
    return losses.mean().item()


def everywhere(stop, device):
    """One process that was asked to stop stops them all, after the same step."""
    asked = torch.tensor(len(stop), device=device)
    dist.all_reduce(asked)
    return stop or [None] * min(1, int(asked))


def final(config, method, model, corpus, device):
    """The whole held-out text, beside what counting alone reaches on it: how much was learnt?"""
    x = spread(corpus.windows("val"), 1000).to(device)                                                  # (n, L)
    nats, error = estimate(method, model, x, draws=4, batch_size=config.batch_size)
    name = "exact" if config.method == "ar" else "bound"
    rows = [(f"{config.method}, {name}", nats, nats / math.log(2) / corpus.bytes_per_token), *league(corpus)]
    if corpus.name == "toy":
        entropy, _ = corpus.language.entropy(config.block_size)
        rows.append(("exact entropy", entropy, entropy / math.log(2) / corpus.bytes_per_token))
    print(f"\nheld-out text, {len(x):,} x {config.block_size} tokens, 4 noise draws: {unit(nats, error, corpus.bytes_per_token)}")
    print(f"{'':<24}{'nats/token':>12}{'bits/byte':>12}")
    for what, per_token, per_byte in sorted(rows, key=lambda row: -row[2]):
        print(f"{what:<24}{'' if per_token is None else f'{per_token:.3f}':>12}{per_byte:>12.3f}")
    print(f"\npython sample.py --out_dir {config.out_dir}    python evaluate.py --out_dir {config.out_dir}", flush=True)


def main(config, given):
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    config.out_dir = config.out_dir or f"out/{Path(config.data).stem}-{config.method}"
    state = None
    if config.init_from == "resume":
        config, state = resumed(config, given)
    check(config, world)
    device = checkpoint.device_of(config.device if world == 1 or config.device != "auto" or not torch.cuda.is_available()
                                  else f"cuda:{os.environ['LOCAL_RANK']}")
    lock = checkpoint.claim(config.out_dir) if rank == 0 else None                       # held until the process ends

    # the text, and what learns it
    corpus = text.load(config.data, config.block_size, config.tokenizer, config.vocab_size)
    if state and state["encoding"] != tokenizer.to_json(corpus.encoding):
        raise BadInput(f"{config.data} gives other tokens now than when {config.out_dir} was trained: restore the text (or the "
                       f"Python) of then, or start anew with another --out_dir")
    torch.manual_seed(config.seed)
    method = checkpoint.method_of(config, corpus.encoding.n_vocab)
    model = checkpoint.network(config, method).to(device)
    average = AveragedModel(model)                       # the same weights, averaged over the last steps
    optimizers, first = make_optimizers(model, config), 0
    if state:
        first = state["step"]
        model.load_state_dict(state["model"])
        average.module.load_state_dict(state["ema"])
        average.n_averaged.fill_(first)
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
    denoiser = torch.compile(model) if config.compile else model
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        denoiser = torch.nn.parallel.DistributedDataParallel(denoiser)
    half = config.dtype == "bfloat16" or config.dtype == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    autocast = torch.autocast(device.type, torch.bfloat16) if half else nullcontext()

    def save(step):
        if rank == 0:
            checkpoint.save(config.out_dir, {
                "model": model.state_dict(), "ema": average.module.state_dict(), "step": step, "config": asdict(config),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "encoding": tokenizer.to_json(corpus.encoding)})

    stop = []                                            # Ctrl-C or SIGTERM: finish the step, save, leave; twice: leave
    def ask_to_stop(number, frame):
        if stop:
            raise KeyboardInterrupt
        stop.append(number)
    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)

    if rank == 0:
        print(f"{corpus.about}\n{sum(p.numel() for p in model.parameters()):,} parameters, {device}, "
              f"{'bfloat16' if half else 'float32'}, {world} process{'es' * (world > 1)}, to {config.out_dir}", flush=True)
    losses, last_saved = [], first
    bar = tqdm(range(first, config.max_iters), initial=first, total=config.max_iters, disable=None if rank == 0 else True)
    for step in bar:
        if rank == 0 and step % config.eval_interval == 0:
            report(step, config, method, average.module.eval(), corpus, device)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * learning_rate(step, config)
        total = 0.0
        for micro in range(rank, config.gradient_accumulation_steps, world):
            index = step * config.gradient_accumulation_steps + micro
            torch.manual_seed(config.seed * 1_000_003 + index)       # all chance in this micro-batch: text, noise, dropout
            x = corpus.batch("train", config.batch_size).to(device)                                     # (B, L)
            last = micro + world >= config.gradient_accumulation_steps
            with autocast, nullcontext() if last or world == 1 else denoiser.no_sync():
                loss = method.loss(denoiser, x).mean() * world / config.gradient_accumulation_steps     # () mean over all
                loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.multi_avg_fn = get_ema_multi_avg_fn(min(config.ema, (1 + step) / (10 + step)))     # short memory at first
        average.update_parameters(model)

        losses.append(total)
        due = (step + 1) % config.eval_interval == 0 or step + 1 == config.max_iters
        if world > 1:
            stop = everywhere(stop, device)
        if due or stop or (step + 1) % config.log_interval == 0:
            mean = look(losses, step, last_saved, config, world)
            losses = []
            bar.set_postfix_str(f"loss {mean:.3f}")
        if due or stop:
            save(step + 1)
            last_saved = step + 1
        if stop:
            break
    bar.close()
    if rank == 0 and stop:
        print(f"stopped after step {last_saved} and saved to {config.out_dir}: go on with --init_from resume", flush=True)
    elif rank == 0:
        report(config.max_iters, config, method, average.module.eval(), corpus, device)
        final(config, method, average.module, corpus, device)
    if world > 1:
        dist.destroy_process_group()
    if lock:
        lock.release()


if __name__ == "__main__":
    with one_line_errors():
        main(CONFIG, GIVEN)
