"""Mutants of the front door: the chapters' curves and the notebook's first cell."""

FRONT2 = [
    ("experiments/curves.py", '(seconds, nats - (row["entropy"] if above else 0.0))',
     "(seconds, nats)", "test_curves_experiments",
     "curves: the bound, called what is above the entropy"),
    ("experiments/curves.py", 'json.loads(path.read_text("utf-8")) if path.exists() else',
     'json.loads(path.read_text("utf-8")) if not config.measure else', "test_curves_experiments",
     "curves: a run that is measured again deletes the others"),
    ("experiments/curves.py", "spent += time.process_time() - began",
     "spent = time.process_time() - began", "test_curves_experiments",
     "curves: seconds of one step"),
    ("experiments/svg.py", "math.log(max(v, FLOOR))", "math.log(abs(v))", "test_curves_experiments",
     "pictures: what is below the entropy is drawn as if it were above"),
    ("experiments/tour.py", "if not there:", "if there:", "test_tour",
     "tour: the code is fetched where it is, and missing elsewhere"),
]
