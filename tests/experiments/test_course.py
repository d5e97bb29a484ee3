"""The course: all its commands in seconds, and a page with a part for each."""
import re


from experiments import course
from flags import configure
from runs import cache, elsewhere  # noqa: F401


def test_the_quick_course_runs_every_command_and_writes_one_page(tmp_path, capsys,
                                                                        monkeypatch):
    course.main(configure(course.Config, quick=True, out_dir="here"))
    html = (tmp_path / "here" / "course.html").read_text("utf-8")
    said = capsys.readouterr().out
    assert "here/course.html: open it in a browser" in said
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles[:2] == ["What was run", "Curves"] and "2.12" in titles[2]
    commands = re.findall(r"^\$ python (\w+)\.py", said, re.M)
    assert {"train", "distill", "evaluate", "sample", "chat"} == set(commands)
    rows = re.findall(r"<tr><td>(\w+)</td><td>([\d.]+) \+- [\d.]+</td>", html)
    assert [name for name, _ in rows[:4]] == ["ar", "mdlm", "udlm", "student"]
    assert all(4 < float(bound) < 6 for _, bound in rows[:4])  # about log 113: nothing is learned
    assert [name for name, _ in rows[4:]] == ["2"]
    assert html.count("text 1") == 4 and "Who has a goat?" in html
    monkeypatch.setattr(course.train, "main", None)  # what is there is not trained again
    config = configure(course.Config, quick=True, out_dir="here")
    folder, command = course.learn(config, course.train, "ar", data="toy", method="ar")
    assert folder == "here/ar" and command.startswith("python train.py --data toy --method ar ")


def test_shares_of_the_time_leave_room_for_the_evaluation():
    assert 0.8 < sum(course.SHARES.values()) < 0.9
    config = configure(course.Config, minutes=10.0)
    assert course.length_of(config, "mdlm") == {"minutes": 1.5}


def test_curves_reach_from_the_first_evaluation_to_the_last(tmp_path):
    for name in course.METHODS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(
            '{"step": 5, "val_bound": 4.0}\n{"step": 9, "val_bound": 2.5}\n')
    folders = {name: str(tmp_path / name) for name in course.METHODS}
    drawn = course.curves(folders, 2.12)
    assert all(f">{name}<" in drawn for name in (*course.METHODS, "entropy", "4.00"))
