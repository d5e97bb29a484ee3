"""
Runs of several processes without the seconds that each needs to load torch: they are forks of one
that has it.

    python tests/processes.py GROUPS

GROUPS is JSON, a list of [number of processes, [[flags, given], ...]]. The runs of a group come one
after the other, in the same processes.
"""

import json
import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch._dynamo  # these three are not used here, but by each of the forks
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp

import train
from flags import configure
from runtime import distributed, progress


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def work(rank, world, runs, ports):
    distributed.RANK, distributed.WORLD = rank, world
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1")
    for (flags, given), port in zip(runs, ports):
        os.environ["MASTER_PORT"] = str(port)
        try:
            train.main(configure(train.Config, **flags), given)
        except BaseException as error:  # also what would end a script with a sentence
            print(
                f"{flags['out_dir']}, process {rank}: {type(error).__name__}: {error}",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    progress.print_evaluation = progress.print_summary = lambda *args: None
    for world, runs in json.loads(sys.argv[1]):
        ports, children = [free_port() for _ in runs], []
        for rank in range(world):
            children.append(os.fork())
            if children[-1] == 0:
                work(rank, world, runs, ports)
        for child in children:
            os.waitpid(child, 0)
