"""What a run prints at its end: errors where there are any, and figures that mean something."""
import json
from pathlib import Path

import pytest

from runs import cache, elsewhere, fit, metrics  # noqa: F401


@pytest.fixture(autouse=True)
def summary(elsewhere, cache, tmp_path, monkeypatch):  # noqa: F811
    """Runs print their summaries here."""
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALIMPSEST_CACHE", str(cache))


def test_a_held_out_part_of_one_window_has_no_error_and_no_nan_is_printed_or_logged(capsys):
    Path("one.txt").write_text("a rose is " * 10)
    fit("out", data="one.txt", tokenizer="chars")
    printed = capsys.readouterr().out
    assert "nan" not in printed.lower().replace("nanogpt", "")
    assert "nats/token = " in printed and printed.count("(no error: one text)") > 4
    assert metrics("out", "val_se") == {2: None} and metrics("out", "train_se")[2] > 0


def test_answers_have_nats_and_no_bits_per_byte(capsys):
    roles = "user", "assistant"
    chats = [[f"What is {i}?", f"It is {i}."] for i in range(30)]
    Path("mine.jsonl").write_text("\n".join(json.dumps({"messages": [
        {"role": role, "content": text} for role, text in zip(roles, chat)]}) for chat in chats))
    fit("out", data="mine.jsonl", tokenizer="bytes", sft=True, block_size=28)
    printed = capsys.readouterr().out
    assert "bits/byte" not in printed and "uniform over tokens" in printed
    assert metrics("out", "bytes_per_token") == {0: None}  # so no such curve is drawn


def test_each_ngram_of_the_summary_is_compared_with_the_model_text_by_text(capsys):
    Path("a.txt").write_text("a rose is a rose is a rose\n" * 60)
    fit("out", data="a.txt", tokenizer="chars")
    printed = capsys.readouterr().out
    head = printed[printed.index("held-out text, 4 noise draws"):]
    assert "the model less it" in head
    row, = [line.split() for line in head.splitlines() if line.startswith("3-gram of tokens")]
    difference, error = float(row[-3]), float(row[-1])
    assert row[-2] == "+-" and difference > 10 * error > 0  # after two steps it knows nothing
