"""The folder of a run is locked, saved whole or not at all, and read without running its code."""
import io
import json
import os
from pathlib import Path

import pytest
import torch

from checkpoints import file as module
from checkpoints.file import Folder, as_json, read_checkpoint
from flags import UserError

STATE = {"model": {"a": torch.arange(3.0)}, "ema": {"a": torch.ones(3)}, "optimizers": [{"lr": 1}],
         "step": 4, "config": {"method": "mdlm"}, "encoding": "{}"}


class Bomb:
    """What a malicious checkpoint holds: unpickling it would make a folder."""
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def steps(path):
    return [json.loads(line)["step"] for line in Path(path).read_text().splitlines()]


def test_what_is_saved_is_read_back():
    Folder("out").save(STATE)
    read = read_checkpoint("out/ckpt.pt")
    for part in ("model", "ema"):
        assert torch.equal(read[part]["a"], STATE[part]["a"])
    assert all(read[part] == STATE[part] for part in ("optimizers", "step", "encoding"))
    assert read["config"].items() >= STATE["config"].items()
    assert not list(Path("out").glob("*.tmp"))


@pytest.mark.parametrize("changes, says", [
    ({"step": Bomb()}, "could run code"), ({"format": "palimpsest 0"}, "not a checkpoint"),
    ({"config": ["mdlm"]}, "not a checkpoint"), ({"config": None}, "not a checkpoint")])
def test_another_state_is_refused_in_one_line(changes, says):
    torch.save({"format": module.FORMAT, **STATE, **changes}, "bad.pt")
    with pytest.raises(UserError, match=says) as refused:
        read_checkpoint("bad.pt")
    assert "\n" not in str(refused.value) and not Path("exploded").exists()


@pytest.mark.parametrize("raw", [b"", b"no checkpoint at all\n", b"PK\x05\x06" + bytes(18)])
def test_another_file_is_refused_in_one_line(raw):
    Path("bad.pt").write_bytes(raw)
    with pytest.raises(UserError, match="bad.pt cannot be read: cut short, or not written by"):
        read_checkpoint("bad.pt")


def test_a_second_run_cannot_write_to_the_folder_until_the_first_one_leaves():
    first = Folder("runs/out")
    with pytest.raises(UserError, match="another run is writing to runs/out: wait for it"):
        Folder("runs/out")
    first.leave()
    assert not Path("runs").exists()  # the first run created it
    Path("runs").mkdir()
    Path("runs/notes.txt").touch()
    Folder("runs/out").leave()
    assert os.listdir("runs") == ["notes.txt"]


def test_a_new_run_changes_nothing_before_it_saves_and_then_keeps_the_earlier_result(capsys):
    first = Folder("out")
    first.save(STATE)
    first.log(step=4, loss=1.0)
    first.lock.release()
    second = Folder("out")
    second.print_earlier()
    says = "out holds an earlier run: ckpt.pt will be kept as ckpt.previous.pt, and likewise"
    assert says in capsys.readouterr().out
    second.log(step=1, loss=2.0)
    assert steps("out/metrics.jsonl") == [4] and not list(Path("out").glob("*previous*"))
    second.save({**STATE, "step": 1})
    assert read_checkpoint("out/ckpt.previous.pt")["step"] == 4
    assert read_checkpoint("out/ckpt.pt")["step"] == 1
    assert (steps("out/metrics.previous.jsonl"), steps("out/metrics.jsonl")) == ([4], [1])
    second.print_earlier()  # it is its own now
    assert capsys.readouterr().out == ""


def test_every_earlier_run_in_a_folder_is_kept_with_all_that_belongs_to_it(capsys):
    """A number is that of a whole run, also where a file of it is missing."""
    for seed in range(1, 5):
        folder = Folder("out")
        folder.print_earlier()
        folder.save({**STATE, "step": seed})
        folder.log(step=seed, loss=1.0)
        folder.lock.release()
        if seed != 2:  # the second one was not evaluated
            Path("out/evaluation.json").write_text(str(seed))
            Path("out/tensorboard").mkdir()
            Path("out/tensorboard/events").write_text(str(seed))
    marks = {1: ".previous", 2: ".previous-2", 3: ".previous-3", 4: ""}
    for seed, mark in marks.items():
        assert read_checkpoint(f"out/ckpt{mark}.pt")["step"] == seed
        assert steps(f"out/metrics{mark}.jsonl") == [seed]
        for name in (f"out/evaluation{mark}.json", f"out/tensorboard{mark}/events"):
            assert Path(name).exists() == (seed != 2)
            assert seed == 2 or Path(name).read_text() == str(seed)
    said = capsys.readouterr().out
    assert "kept as ckpt.previous-3.pt, and likewise metrics.jsonl, evaluation.json, tens" in said


def test_an_earlier_checkpoint_that_is_a_link_keeps_its_file():
    Path("disk").mkdir()
    Path("out").mkdir()
    os.symlink("../disk/big.pt", "out/ckpt.pt")
    Folder("out").save(STATE)
    assert os.path.lexists("out/ckpt.previous.pt") and not os.path.islink("out/ckpt.pt")
    Path("disk/big.pt").write_bytes(Path("out/ckpt.pt").read_bytes())
    Folder("out").save({**STATE, "step": 5})
    assert read_checkpoint("out/ckpt.previous-2.pt")["step"] == 4


@pytest.mark.parametrize("name", ["ckpt.pt", "metrics.jsonl"])
@pytest.mark.parametrize("kind, says", [
    ("folder", "which is a folder"), ("pipe", "no ordinary file"), ("read-only", "is read-only")])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(name, kind, says):
    Path("out").mkdir()
    path = Path("out", name)
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "read-only": path.touch}[kind]()
    os.chmod(path, 0o555) if kind == "read-only" else None
    with pytest.raises(UserError, match=f"out/{name}.*{says}"):
        Folder("out")
    assert path.exists()
    path.rmdir() if kind == "folder" else path.unlink()
    Folder("out").save(STATE)  # it was not left locked


def test_what_a_killed_run_has_left_of_a_checkpoint_goes_when_the_next_one_starts():
    Folder("out").save(STATE)
    Path("out/.ckpt.pt.0123456789abcdef.part").write_bytes(b"half")
    Folder("out", ours=True)
    assert sorted(os.listdir("out")) == [".lock", "ckpt.pt"]


def test_rewinding_removes_what_the_resumed_run_writes_again():
    folder = Folder("out", ours=True)
    lines = [dict(step=1, loss=1.0), dict(step=2, loss=1.0), dict(step=2, val_bound=1.0),
             dict(step=3, loss=1.0)]
    for line in lines:
        folder.log(**line)
    with open("out/metrics.jsonl", "a") as file:
        file.write('{"step": 1, "lo')  # the run was killed while it wrote
    folder.rewind(2)
    assert list(map(json.loads, Path("out/metrics.jsonl").read_text().splitlines())) == lines[:2]


@pytest.mark.parametrize("line", [
    '{"step": "six", "loss": 1}', '{"step": null}', "[" * 50_000, "mine", "[1]", '{"loss": 3}',
    '{"step": ' + "9" * 5000 + "}"], ids=range(7))
def test_lines_of_somebody_else_stay_where_they_are_when_a_run_is_rewound(line):
    folder = Folder("out", ours=True)
    good = '\ufeff{"step": 1, "loss": 1.0}'  # an editor's mark
    Path("out/metrics.jsonl").write_text(f'{good}\n{line}\n{{"step": 3, "loss": 1}}', "utf-8")
    folder.rewind(2)
    assert Path("out/metrics.jsonl").read_text("utf-8") == f"{good}\n{line}\n"
    Path("out/metrics.jsonl").write_bytes(b'\xff\xfe"\n{"step": 1}')  # no UTF-8; no last line end
    folder.rewind(2)
    assert Path("out/metrics.jsonl").read_bytes() == b'\xff\xfe"\n{"step": 1}\n'


def test_a_full_disk_leaves_the_checkpoint_before(monkeypatch):
    folder = Folder("out")
    folder.save(STATE)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    says = "cannot save to out/ckpt.pt .No space left on device.: free some space; .*--out_dir out"
    with pytest.raises(UserError, match=says):
        folder.save({**STATE, "step": 5})
    assert read_checkpoint("out/ckpt.pt")["step"] == 4 and not list(Path("out").glob("*.tmp"))


def test_metrics_are_strict_json():
    assert as_json({"error": float("nan"), "bound": 1.5}) == '{"error": null, "bound": 1.5}'


@pytest.mark.parametrize("encoding, shows", [("utf-8", "é"), ("ascii", "\\u00e9")])
def test_json_holds_no_control_characters_and_the_letters_that_the_stream_can_show(encoding, shows):
    text = "é\x07\x7f\x9b31m\u202e"
    said = as_json({"text": text}, io.TextIOWrapper(io.BytesIO(), encoding))
    assert shows in said and said.isprintable() and json.loads(said)["text"] == text
    assert as_json([text]).isascii() and as_json([text]).isprintable()
