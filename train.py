"""
Train any method on any text.

    python train.py                                    masked diffusion on your Python's docstrings
    python train.py --data toy --method udlm           another data set, another method
    python train.py --method bd3lm --help              the flags of one method
    python train.py --data input.txt --tokenizer chars your own text
    python train.py --data chat --sft --init_from out/chat-mdlm    learn to answer (LLaDA)
    python train.py --init_from resume                 continue a run, bit for bit
    python train.py --method bd3lm --init_from out/python-mdlm     from the weights of another run
    python train.py --init_from kuleshov-group/mdlm-owt --data input.txt    fine-tune a model
    torchrun --nproc_per_node 2 train.py --gradient_accumulation_steps 2    in two processes

A step draws a batch, computes the loss of the method and follows its gradient. The losses are in
methods/, the network is in model.py; what makes a run safe (checkpoints, exact resume, signals,
several processes) is in runtime/. Every draw of step n comes from the seed (seed, n, micro-batch).
"""
from script import run_script  # isort: skip  (first: Ctrl-C while torch loads leaves quietly)

from dataclasses import dataclass

import torch

from data import DATASETS
from flags import flag
from methods import EVERY_METHOD
from model import NetworkFlags
from runtime.optim import OptimFlags
from runtime.run import Run
from runtime.start import plan_steps, rows_implied

MODES = ["", "default", "reduce-overhead", "max-autotune"]  # of torch.compile


@dataclass
class Config(NetworkFlags, OptimFlags):
    data: str = flag("python", "a name, the path of a text file or folder, or chats.jsonl",
                     table=DATASETS, fixed=True,
                     once="a folder of text files is read as one text")
    tokenizer: str = flag("auto", "auto, chars, bytes, bpe, a tiktoken name such as gpt2; model: "
                          "that of --init_from", fixed=True)
    vocab_size: int = flag(8192, "symbols of a bpe trained on the data", least=1, fixed=True)
    sft: bool = flag(False, "fine-tune on the answers of chats: questions are given", fixed=True)
    labels: bool = flag(False, "condition on the class of each text (toy, digits)", fixed=True)
    label_dropout: float = flag(0.1, "share of texts without their class", least=0, most=1)
    method: str = flag("mdlm", "what to train", table=EVERY_METHOD, fixed=True)
    out_dir: str = flag("", "where the checkpoint goes; empty means out/DATA-METHOD, "
                         "behind which -labels and -sft say so")
    init_from: str = flag("scratch", "scratch, resume, or whose weights to start from: a "
                          "checkpoint's folder, or a published model, by its name")
    minutes: float = flag(5.0, "time of the whole run without --max_iters; 0: no limit", least=0,
                          idle=["max_iters"])
    recipe_iters: int = flag(6000, "steps of the full recipe", least=1, sft=1000)
    max_iters: int = flag(0, "training steps; 0: as many as fit in --minutes, at most the full "
                          "recipe", least=0)
    batch_size: int = flag(16, "texts per micro-batch", least=1, fixed=True)
    gradient_accumulation_steps: int = flag(1, "micro-batches per step, over all processes",
                                            least=1, fixed=True)
    block_size: int = flag(64, "tokens per text", least=1, fixed=True)
    eval_interval: int = flag(500, "steps between evaluations, samples and checkpoints", least=1)
    eval_iters: int = flag(8, "batches per evaluation", least=1)
    log_interval: int = flag(10, "steps between lines of metrics.jsonl", least=1)
    device: str = flag("auto", "auto, cpu, cuda, cuda:1")
    dtype: str = flag("auto", "of products; auto: the faster", ["auto", "float32", "bfloat16"])
    matmul_precision: str = flag("highest", "of float32 products; high, medium: TF32 on GPUs, "
                                 "TF32, bfloat16 on CPUs", ["highest", "high", "medium"])
    compile: str = flag("", "torch.compile the network; reduce-overhead: CUDA graphs, for small "
                        "batches", MODES, alone="default")
    attention: str = flag("auto", "who computes it: PyTorch, FlexAttention (GPUs), our Triton "
                          "kernel (GPUs), or the best one", ["auto", "sdpa", "flex", "triton"])
    recompute: bool = flag(False, "recompute activations in the backward pass: saves memory")
    shard: bool = flag(False, "torchrun: spread weights and optimizers (FSDP2), no copies (DDP)")
    tensorboard: bool = flag(False, "metrics for TensorBoard as well, in out_dir/tensorboard")
    seed: int = flag(1337, "of all random draws", least=0, most=10**9, fixed=True)

    @staticmethod
    def implied(given):
        """A run that is resumed brings its own method and data, one to start from its method."""
        return rows_implied(given)


def loss_per_token(nats, frozen=None, padding=None):
    """The mean over texts of nats per free token; over all tokens where texts are filled up.

    nats (B, L) -> ()
    """
    if padding is not None:
        return nats.masked_fill(padding, 0).sum() / (~padding).sum()  # ()
    if frozen is None:
        return nats.mean()  # ()
    return (nats.sum(-1) / (~frozen).sum(-1).clamp(min=1)).mean()  # ()


def train_step(trainer, step):
    """One optimizer step. -> (2,) loss and norm of the gradient, still on the device"""
    total, micros, data = 0.0, trainer.micro_batches(step), trainer.data  # those of this process
    trainer.objective.on_step(step, trainer)  # curricula, schedules, searches
    for micro in micros:
        x, frozen, label = trainer.batch(micro)  # (B, L), (B, L) or None, (B,) or None
        torch.manual_seed(trainer.seed(micro))  # every draw below depends on the micro-batch alone
        with trainer.sync_on(last=micro == micros[-1]):
            with trainer.autocast():
                nats = trainer.objective.loss(trainer.denoiser_for(label), x, frozen)  # (B, L)
                loss = loss_per_token(nats, frozen, data.padding(x)) / len(micros)  # ()
            loss.backward()  # averages over processes
        if micro != micros[-1]:
            trainer.own_gradients()
        total += loss.detach()
    norm = trainer.clip_gradients()  # ()
    trainer.step_optimizers(step)
    trainer.ema.update(trainer.model, step)
    return torch.stack([total, norm])  # (2,)


def train(run, step_of=train_step):
    """From the last saved step to --max_iters, or until Ctrl-C."""
    plan_steps(run, step_of)
    for step in run.steps():
        if run.due(step):
            run.evaluate(step)  # held-out bound and a sample, printed and logged
        run.log(step, step_of(run.trainer, step))
        if run.due(step + 1):
            run.save(step + 1)
    run.summarize()  # beside n-grams, and the exact entropy where it is known


def main(config, given=()):
    with Run(config, given) as run:
        train(run)
    return run.exit_code


if __name__ == "__main__":
    run_script(Config, main)
