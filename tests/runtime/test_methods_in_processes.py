"""Every method has the losses of one process on two, with copies (DDP) and with shards (FSDP2) of
its network; one of them on four."""

import json
import os
import subprocess

import pytest

from flags import load_row
from forks import forked
from methods import METHODS
from runs import ROOT, cache, python  # noqa: F401

SHARDED = [name for name in METHODS if load_row(METHODS, name).shardable]
GROUPS = [["one", 1, False, [*METHODS], 2], ["copies", 2, False, [*METHODS], 2],
          ["shards", 2, True, SHARDED, 2], ["one of four", 1, False, ["tess"], 4],
          ["four copies", 4, False, ["tess"], 4], ["four shards", 4, True, ["tess"], 4]]


@pytest.fixture(scope="module")
def found(tmp_path_factory, cache):
    """{group: {method: [loss, norm of the gradient]}} of a step."""
    path, env = tmp_path_factory.mktemp("methods"), {**os.environ, "PALIMPSEST_CACHE": str(cache)}
    command = python(ROOT / "tests" / "method_processes.py", json.dumps(GROUPS), **env)
    done = subprocess.run(**forked(command), cwd=path, capture_output=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return {name: json.loads((path / f"{name}.json").read_text()) for name, *_ in GROUPS}


@pytest.mark.parametrize("way", ["copies", "shards"])
def test_two_processes_have_the_losses_and_gradients_of_one(way, found):
    assert list(found["copies"]) == [*METHODS] and list(found["shards"]) == SHARDED
    for method, ours in found[way].items():
        assert ours == pytest.approx(found["one"][method], rel=1e-4, abs=1e-5), method
        assert ours[1] > 0


@pytest.mark.parametrize("way", ["four copies", "four shards"])
def test_four_processes_have_the_losses_of_one(way, found):
    """Of a method that calls its network once or twice, as its noise decides."""
    ours, theirs = found[way]["tess"], found["one of four"]["tess"]
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
