"""Latents beside masks for the same CPU time, on tiny runs."""
import pytest

from experiments import latents
from flags import configure

TINY = dict(data="sentences", block_size=20, batch_size=4, n_layer=1, n_head=2, n_embd=16,
            cond_dim=8)


def test_every_method_has_its_figures(tmp_path, monkeypatch, capsys):
    """The steps fit the time, and what each method measures of itself stands below."""
    monkeypatch.setattr(latents, "SIZE", TINY)
    monkeypatch.setattr("runtime.progress.print_summary", lambda trainer: None)
    monkeypatch.setattr("runtime.progress.sample_text", lambda trainer, steps: "")
    latents.main(configure(latents.Config, methods="ld4lg,mdlm", minutes=0.002, steps=2,
                           num_samples=4, max_texts=4, out_dir=str(tmp_path / "runs")))
    shown = capsys.readouterr().out.split("exact entropy ")[-1]
    assert shown.startswith("17.8")  # nats per text
    first, second = shown.split("\nmdlm\n")
    for part in (first, second):
        assert float(part.split("bound above -log p")[1].split()[0]) > 5
    assert "reconstruction: words" in first and "reconstruction" not in second


@pytest.mark.parametrize("method", ["ld4lg", "mdlm"])
def test_twice_the_time_is_twice_the_steps(method, monkeypatch):
    """The cost of a step is a mean over the run: both stages count."""
    times = iter(range(1000))
    monkeypatch.setattr("experiments.latents.time.process_time", lambda: next(times))
    steps = [latents.steps_in(seconds, method=method, **TINY) for seconds in (10, 20)]
    assert steps == [10, 20]
