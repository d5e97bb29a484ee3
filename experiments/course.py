"""
A course in a quarter of an hour: train, distil, talk and evaluate, on one page.

    python -m experiments.course                  15 minutes; writes out/course/course.html
    python -m experiments.course --quick          the same commands in seconds: nothing is learned
    python -m experiments.course --minutes 30     the same, longer

Three methods learn the toy language for the same time: ar writes from left to right, mdlm opens
masks, udlm corrects wrong words. mdlm is distilled into fewer steps, and another mdlm reads chats
and learns to answer. The page has the learning curves, samples, a table beside the exact entropy,
what few steps cost, and answers; each with the command that you can give yourself. Runs that are in
--out_dir already are not repeated.
"""
import contextlib
import io
import json
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path

import chat
import distill
import evaluate
import sample
import train
from data.files import write_file
from experiments.command import run_experiment
from experiments.svg import chart
from experiments.timing import hardware
from flags import configure, flag
from script import spell
from viewer.curves import read_metrics

METHODS = "ar", "mdlm", "udlm"
SHARES = {"ar": 0.1, "mdlm": 0.15, "udlm": 0.15, "distil": 0.13, "chat": 0.2, "sft": 0.13}
TINY = dict(max_iters=2, eval_iters=1, n_layer=1, n_embd=16, n_head=2, batch_size=2, warmup_iters=0)
QUESTIONS = "Hello!", "What is 10 minus 5?", "Who has a goat?", "Say red goat again."
STEPS = 2, 4, 8, 16, 32


@dataclass
class Config:
    minutes: float = flag(15.0, "of everything, about", least=0.1, idle=["quick"])
    out_dir: str = flag("out/course", "where runs and the page go")
    quick: bool = flag(False, "two steps of tiny networks: to see that all commands work")
    seed: int = flag(1, "of all runs", least=0, most=10**9)


def heading(script, flags):
    """The command, which is also printed as it begins."""
    command = f"python {script.__name__}.py {spell(flags)}"
    print(f"\n$ {command}", flush=True)
    return command


def call(script, **flags):
    """Run a script as its command line would. -> the command, what it printed"""
    config, said = configure(script.Config, **flags), io.StringIO()
    command = heading(script, flags)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        script.main(config, list(flags))
    return command, said.getvalue()


def learn(config, script, name, done="ckpt.pt", **flags):
    """A run in out_dir/NAME, unless it is there. -> its folder, the command"""
    folder = f"{config.out_dir}/{name}"
    flags = {**flags, "out_dir": folder, "device": "cpu"}
    command = heading(script, flags)
    if not Path(folder, done).exists() and script.main(configure(script.Config, **flags),
                                                       list(flags)):
        raise KeyboardInterrupt(name)
    return folder, command


def length_of(config, name):
    """The flags that say how long a run takes, and in a hurry how small it is."""
    return {**TINY} if config.quick else {"minutes": round(config.minutes * SHARES[name], 2)}


def train_all(config):
    """The runs. -> {name: folder}, the commands"""
    folders, commands = {}, []

    def add(name, script, **flags):
        folders[name], command = learn(config, script, name, **flags)
        commands.append(command)
    for name in METHODS:
        add(name, train, data="toy", method=name, seed=config.seed, eval_interval=100,
            **length_of(config, name))
    short = dict(iters_per_round=1, num_samples=2, warmup_iters=0, batch_size=2)
    add("student", distill, teacher=folders["mdlm"], rounds=2, first_steps=16,
        **(short if config.quick else length_of(config, "distil")))
    add("chat", train, data="chat", seed=config.seed,  # of the default's 4 layers too few steps fit
        **{"n_layer": 2, **length_of(config, "chat")})
    more = {**TINY, "max_iters": 2} if config.quick else length_of(config, "sft")
    add("answers", train, data="chat", sft=True, init_from=folders["chat"], seed=config.seed,
        **more)
    return folders, commands


# ---- the page

def table(head, rows):
    cells = lambda row, tag: "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in row)
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{cells(head, 'th')}</tr>{body}</table>"


def curves(folders, entropy):
    """Held-out bounds along the runs, against the share of the run, as a picture."""
    found = {}
    for name in METHODS:
        rows = [row for row in read_metrics(folders[name]) if row.get("val_bound") is not None]
        found[name] = [(row["step"] / max(1, rows[-1]["step"]), row["val_bound"]) for row in rows]
    if max(map(len, found.values())) < 2:
        return "<p>One evaluation: no curve.</p>"
    return chart({**found, "entropy": [(0, entropy), (1, entropy)]},
                 "held-out bound (ar: exact), nats per word", "share of the run")


def figures(folders, quick):
    """evaluate.py of each run on the toy language. -> {name: its figures}"""
    few = dict(max_texts=20, num_samples=4, draws=1) if quick else dict(max_texts=1000, draws=4)
    return {name: json.loads(call(evaluate, out_dir=folders[name], json=True, device="cpu",
                                  **few)[1]) for name in (*METHODS, "student")}


def cost_of_steps(folders, quick):
    """-log p of samples in few steps: teacher and student, ancestral. -> rows"""
    rows = []
    for steps in STEPS[:1] if quick else STEPS:
        row = [steps]
        for name in ("mdlm", "student"):
            said = call(evaluate, out_dir=folders[name], json=True, device="cpu", steps=steps,
                        sampler="ancestral", max_texts=4 if quick else 50, draws=1,
                        num_samples=4 if quick else 200)[1]
            row.append(shown(figure_of(json.loads(said), "exact -log p, nats/token")))
        rows.append(row)
    return rows


def figure_of(found, what):
    return next((value, error) for name, value, error in found["samples"] if name == what)


def shown(pair):
    return "{:.3f} +- {:.3f}".format(*(float(a or 0) for a in pair))


STYLE = """<style>:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 50rem; margin: 0 auto; padding: 1rem }
td, th { text-align: left; padding: .1rem 1rem .1rem 0; font-variant-numeric: tabular-nums }
pre { white-space: pre-wrap; overflow-wrap: anywhere } svg { max-width: 100%; height: auto }
</style>"""


def page(sections):
    """{title: HTML} as one page."""
    body = "".join(f"<h2>{escape(title)}</h2>\n{part}\n" for title, part in sections.items())
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width"><title>palimpsest: a course</title>{STYLE}'
            f"<h1>A course in diffusion language models</h1>\n{body}</html>\n")


def code(text):
    return f"<pre>{escape(text.strip())}</pre>"


def report(config, folders, commands, began):
    """Evaluate, sample, talk. -> {title: HTML}"""
    found = figures(folders, config.quick)
    entropy = found["mdlm"]["entropy"]
    rows = [(name, shown((a["nats_per_token"], a["standard_error"])),
             shown((a["gap"], a["gap_error"])), shown(figure_of(a, "exact -log p, nats/token")),
             f"{a['calls_per_text']:.0f}") for name, a in found.items()]
    n = 1 if config.quick else 3
    samples = [code(f"$ {command}\n{said}") for command, said in
               (call(sample, out_dir=folders[name], num_samples=n, device="cpu")
                for name in (*METHODS, "student"))]
    answers = [(question, call(chat, out_dir=folders["answers"], prompt=question, device="cpu",
                               **({"steps": 2} if config.quick else {}))[1].strip())
               for question in (QUESTIONS[-2:] if config.quick else QUESTIONS)]
    sections = {
        "What was run": code("\n".join(f"$ {command}" for command in commands)),
        "Curves": curves(folders, entropy),
        f"Beside the exact entropy, {entropy:.4f} nats per word": table(
            ["", "bound", "above the entropy", "-log p of samples", "network calls"], rows),
        "Samples": "".join(samples),
        "What few steps cost: -log p of samples, nats per word": table(
            ["steps", "mdlm", "its student"], cost_of_steps(folders, config.quick)),
        "Answers": table(["question", "answer"], answers),
        "Questions": "<p>Why is the student's bound worse, and are its samples better? Which "
                     "method is nearest to the entropy, and which needs the fewest network calls? "
                     "What would --sampler spread change in the last table but one? The chapters "
                     "1, 3, 4, 10 and 24 in docs/ answer.</p>"}
    seconds = time.time() - began
    sections["Where"] = f"<p>{escape(hardware())}, {seconds / 60:.1f} minutes, one seed.</p>"
    return sections


def main(config, given=()):
    began = time.time()
    folders, commands = train_all(config)
    path = Path(config.out_dir, "course.html")
    write_file(path, page(report(config, folders, commands, began)))
    print(f"\n{path}: open it in a browser; {(time.time() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    run_experiment(Config, main)
