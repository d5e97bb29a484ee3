"""The table of experiments/d3pm.py."""
from experiments import d3pm
from flags import configure


def test_the_table_of_steps_is_made_without_training(capsys):
    d3pm.main(configure(d3pm.Config, texts=40, most=8, length=6))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[:5].strip().isdigit()] == ["4", "8"]
