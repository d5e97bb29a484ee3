"""
The curve of each chapter's method: what a small network has learned after some CPU seconds.

    python -m experiments.curves                        draw docs/figures/NN-NAME.svg again
    python -m experiments.curves --measure              train all first, 4 CPU seconds each, or 60
    python -m experiments.curves --measure --runs ar,mdlm       these only; the others stay

A run is one of train.py with the flags in RUNS; a value such as @mdlm is the folder of another run,
which comes before it. Of the averaged network docs/figures/curves.json keeps

    CPU seconds of the training steps so far, held-out nats per token (the bound; the loss of
    what has none), its standard error

and a picture shows them above the exact entropy, where that is known. One seed and 256 texts, so
curves that differ by less than two errors do not differ.
"""
import datetime
import json
import time
from dataclasses import dataclass
from pathlib import Path

import train
from data.files import write_file
from evaluation.held_out import entropy_of
from experiments.command import chosen_names, run_experiment
from experiments.svg import chart
from experiments.timing import hardware
from flags import configure, flag
from runtime.run import Run
from script import spell
from train import train_step

POINTS, PILOT = 8, 12  # evaluations of a run; steps that are timed before it
SMALL = dict(n_layer=2, n_head=2, n_embd=64, learned_places=True, batch_size=32, learning_rate=0.01,
             muon_lr=0.02, warmup_iters=20)
TOY = dict(data="toy", block_size=16)
WIDE = dict(data="toy", n_head=4, n_embd=128, learning_rate=0.02, muon_lr=0.03, warmup_iters=50,
            lr_schedule="linear")
LONG = {"mdlm, attention": 15, "mdlm, recurrent": 15}  # so many times --seconds
SENTENCES, GRID = dict(data="sentences"), dict(data="sudoku4-in-place")
THOUGHTS = dict(data="boolean-thoughts")
LEARNERS = ("ar mdlm md4 genmd4 radd rdm diffusionbert d3pm sedd ggm udlm audm gidd duo dfm pgm "
            "bd3lm blockgen diffusion_forcing sigma_gpt eso_lm plaid cdcd diffusion_lm sed "
            "difformer bfn tess ssd_lm rdlm").split()
FROM = {"maria": dict(ar="@ar-rotary", masked="@mdlm-rotary", n_layer=None, n_head=None,
                      n_embd=None, learned_places=None),
        "energy": dict(init_from="@mdlm"), "planner": dict(init_from="@mdlm"),
        "diffugpt": dict(init_from="@ar"), "ar2diff": dict(init_from="@ar"),
        "diffusion_llm": dict(init_from="@mdlm")}
RUNS = {  # {name of the curve: flags of train.py}
    **{name: dict(TOY, method=name) for name in LEARNERS},
    **{f"{name}, rotary": dict(TOY, method=name, learned_places=None) for name in ("ar", "mdlm")},
    **{name: dict(TOY, method=name, **flags) for name, flags in FROM.items()},
    "pgm": dict(TOY, method="pgm", learned_places=None),
    "udlm, known in part": dict(TOY, method="udlm", known=0.5),
    "classifier": dict(TOY, method="classifier", labels=True),
    "mdlm, attention": dict(WIDE, method="mdlm"),
    "mdlm, recurrent": dict(WIDE, method="mdlm", recurrent=1, learned_places=None),
    "mdlm, width 32": dict(TOY, method="mdlm", n_embd=32),
    "mdlm, width 128": dict(TOY, method="mdlm", n_embd=128),
    **{name: dict(SENTENCES, method=name) for name in ("flexmdm", "ilm")},
    **{name: dict(SENTENCES, method=name, learned_places=None)
       for name in ("ld4lg", "latent_planner", "lcm", "dglm")},
    "mdlm on sentences": dict(SENTENCES, method="mdlm"),
    "mgdm": dict(GRID, method="mgdm"), "mdlm on puzzles": dict(GRID, method="mdlm"),
    "dot": dict(THOUGHTS, method="dot"), "mdlm on thoughts": dict(THOUGHTS, method="mdlm"),
    "ar on thoughts": dict(THOUGHTS, method="ar"),
    "mdlm, reverse": dict(data="reverse", method="mdlm"),
    "ar, reverse": dict(data="reverse", method="ar"),
    "tree_diffusion": dict(data="arithmetic", method="tree_diffusion", learned_places=None),
    "diffuser": dict(data="repair", method="diffuser", learned_places=None),
}
CHAPTERS = {  # {page: its curves}
    "01-autoregression": "ar mdlm", "02-d3pm": "d3pm mdlm", "03-masked": "mdlm md4 genmd4 radd",
    "03-recurrence": ["mdlm, recurrent", "mdlm, attention"], "03-routing": "rdm mdlm",
    "04-uniform": "udlm audm mdlm", "05-hybrid": "gidd mdlm udlm",
    "06-score": "sedd mdlm", "07-duo": "duo udlm", "08-block": "bd3lm mdlm ar",
    "08-mixed-blocks": "blockgen bd3lm", "09-partition": "pgm mdlm", "11-guidance": "classifier",
    "13-embeddings": "plaid cdcd diffusion_lm sed difformer", "14-evidence": "bfn tess ssd_lm",
    "14-flows": "dfm udlm", "14-sphere": "rdlm mdlm", "15-latents": "ld4lg",
    "15-plans-and-sentences": "latent_planner lcm dglm",
    "16-per-token-time": "diffusion_forcing mdlm ar", "16-schedules-by-token": "diffusionbert mdlm",
    "17-edits": "diffuser", "17-sites": "ggm mdlm", "17-trees": "tree_diffusion",
    "18-any-order": "sigma_gpt eso_lm mdlm", "18-energy": "energy",
    "18-from-ar-to-diffusion": "diffugpt ar2diff diffusion_llm mdlm",
    "18-infilling": ["maria", "ar, rotary", "mdlm, rotary"],
    "18-with-an-ar-model": "ar mdlm", "19-recipes": "difformer mdlm",
    "19-sequence-to-sequence": ["mdlm, reverse", "ar, reverse"],
    "20-puzzles": ["mgdm", "mdlm on puzzles"],
    "20-thoughts": ["dot", "mdlm on thoughts", "ar on thoughts"],
    "21-any-length": ["flexmdm", "mdlm on sentences"], "21-insertions": ["ilm", "flexmdm"],
    "24-orders": "planner mdlm", "24-turns": ["udlm", "udlm, known in part"],
    "25-scaling": ["mdlm, width 32", "mdlm", "mdlm, width 128"],
}
CHAPTERS = {page: names.split() if isinstance(names, str) else names
            for page, names in CHAPTERS.items()}
NO_METHOD = ("10-distillation", "11-gradients", "12-collapse", "12-evaluation", "22-rewards",
             "22-search")  # what is done with trained networks: their figures are tables


@dataclass
class Config:
    measure: bool = flag(False, "train again what is drawn")
    runs: str = flag("", "rows of RUNS, with ; between; empty means all", needs=["measure"])
    seconds: float = flag(4.0, "CPU seconds of training of most", least=0.05, needs=["measure"])
    folder: str = flag("docs/figures", "where the pictures go, and curves.json")
    out_dir: str = flag("out/curves", "where the runs go")
    hardware: str = flag("", "the name of the machine, if it cannot be detected", text=True)


def flags_of(name, out_dir):
    """The flags of a run: @NAME is the folder of another, None the script's own default."""
    flags = {**SMALL, **RUNS[name], "device": "cpu", "dtype": "float32", "seed": 1}
    return {key: f"{out_dir}/{value[1:]}" if str(value).startswith("@") else value
            for key, value in flags.items() if value is not None}


def train_timed(run, points):
    """Train, and score the averaged network `points` times. -> [[CPU seconds, nats, error]]"""
    found, spent, last = [], 0.0, run.config.max_iters
    due = {round(last * i / points) for i in range(1, points + 1)}
    for step in run.steps():
        began = time.process_time()
        values = train_step(run.trainer, step)
        run.log(step, values)
        spent += time.process_time() - began
        if step + 1 in due:
            run.trainer.gather_average()
            texts = run.config.eval_iters * run.config.batch_size
            found.append([spent, *run.trainer.bound("val", texts)])
    run.save(last)
    return [[float(f"{a:.4g}") for a in row] for row in found]


def seconds_of(name, config):
    """CPU seconds of training that a run is planned for."""
    return config.seconds * LONG.get(name, 1)


def measure(name, config):
    """One run of about `seconds_of`. -> its command, entropy and points"""
    flags = {**flags_of(name, config.out_dir), "eval_interval": 10**6}
    pilot = dict(flags, max_iters=PILOT, out_dir=f"{config.out_dir}/pilot")
    with Run(configure(train.Config, **pilot), [*pilot]) as run:
        *_, (before, *_), (after, *_) = train_timed(run, 3)  # seconds at 2/3 and at the end
    steps = max(POINTS, round(seconds_of(name, config) / (after - before) * PILOT / 3))
    flags.update(max_iters=steps, out_dir=f"{config.out_dir}/{name.replace(', ', '-')}")
    with Run(configure(train.Config, **flags), [*flags]) as run:
        points, data = train_timed(run, POINTS), run.trainer.data
    known = data.language and not run.trainer.method.classifies and run.trainer.method.bounded
    entropy = round(entropy_of(data)[0], 4) if known else None
    del flags["eval_interval"]
    return {"command": f"python train.py {spell(flags)}", "entropy": entropy, "points": points}


def as_text(found):
    """JSON with a line for each run."""
    runs = ",\n".join(f"{json.dumps(name)}: {json.dumps(run)}"
                      for name, run in found["runs"].items())
    about = json.dumps({key: value for key, value in found.items() if key != "runs"})
    return f'{about[:-1]}, "runs": {{\n{runs}\n}}}}\n'


def draw(page, found):
    """The picture of a chapter, with the commands behind it."""
    names = CHAPTERS[page]
    rows = {name: found["runs"][name] for name in names}
    above = all(row["entropy"] is not None for row in rows.values())
    curves = {name: [(seconds, nats - (row["entropy"] if above else 0.0))
                     for seconds, nats, _ in row["points"]] for name, row in rows.items()}
    what = "nats per token above the exact entropy" if above else "held-out nats per token"
    return chart(curves, what, "CPU seconds of training (python -m experiments.curves --measure)",
                 log=True)


def main(config, given=()):
    folder = Path(config.folder)
    path = folder / "curves.json"
    found = json.loads(path.read_text("utf-8")) if path.exists() else {"runs": {}}
    names = chosen_names(config, "runs", RUNS, between=";")
    for name in names if config.measure else ():
        found["runs"][name] = measure(name, config)
        found.update(hardware=hardware(name=config.hardware), seconds=config.seconds,
                     date=datetime.date.today().isoformat())
        write_file(path, as_text(found))
        print(f"{name}: {found['runs'][name]['points'][-1]}", flush=True)
    for page in CHAPTERS:
        if missing := [name for name in CHAPTERS[page] if name not in found["runs"]]:
            print(f"{page}: not drawn, {missing[0]} is not measured")
        else:
            write_file(folder / f"{page}.svg", draw(page, found) + "\n")


if __name__ == "__main__":
    run_experiment(Config, main)
