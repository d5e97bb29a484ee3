"""The table of experiments/gradients.py: every setting, with the classifiers that fit it."""
import json
from pathlib import Path
from types import SimpleNamespace

from data.toy import toy_language
from experiments import gradients
from flags import configure
from oracle import exact_classifier
from runs import cache, elsewhere  # noqa: F401
from runtime import progress


def test_the_table_has_a_row_for_each_setting_and_more_strength_gives_more(monkeypatch, capsys):
    judge = SimpleNamespace(denoiser=exact_classifier(toy_language(), None))
    monkeypatch.setattr(gradients, "train_or_load", lambda config, name, **flags: judge)
    monkeypatch.setattr(gradients, "SETTINGS", [("plaid", "noisy", 1, (0, 4)),
                                                ("plaid", "clean", 1, (20,)),
                                                ("diffusion_lm", "noisy", 1, (1,))])
    gradients.main(configure(gradients.Config, num_samples=10, steps=2, seeds=2, out_dir="out"))
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if "strength" in line]
    assert sum("exact" in row for row in rows) == 4 and sum("trained" in row for row in rows) == 2
    assert sum("udlm, labels" in row for row in rows) == 2
    share = {row.split("  ")[0]: float(row.split(" +- ")[0].split()[-1]) for row in rows}
    name = "plaid, noisy, 1 step, exact classifier, strength"
    assert share[f"{name} 4"] > share[f"{name} 0"] + 0.3
    saved, = Path("out").glob("gradients*.json")
    assert "udlm, labels, strength 1" in json.dumps(json.loads(saved.read_text()))


def test_networks_are_guided_by_gradients_or_labels(monkeypatch, capsys):
    tiny = dict(n_layer=1, n_embd=16, n_head=1, batch_size=4, eval_iters=1)
    monkeypatch.setattr(gradients, "SMALL", {**gradients.SMALL, **tiny})
    monkeypatch.setattr(gradients, "GENERATORS", {"bfn": {}, "mdlm": dict(labels=True)})
    monkeypatch.setattr(gradients, "steps_in", lambda seconds, **flags: 2)
    monkeypatch.setattr(progress, "print_evaluation", lambda *args: None)
    monkeypatch.setattr(progress, "print_summary", lambda *args: None)
    gradients.main(configure(gradients.Config, num_samples=10, steps=4, seconds=1, out_dir="out"))
    rows = [line for line in capsys.readouterr().out.splitlines() if ", strength" in line]
    assert [row[:25].strip() for row in rows] == [
        f"{name}, 2 steps, strength {n}" for name in ("bfn", "mdlm") for n in range(3)]
    share = [float(row.split(" +- ")[0].split()[-1]) for row in rows]
    assert share[2] > share[0] + 0.1  # networks without labels know the topic by the classifier
