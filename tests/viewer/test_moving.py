"""--html where words are put in between others: each token keeps its identity and its place."""
from pathlib import Path

import pytest
import torch
from any_length import any_length
from test_html_player import record, states
from test_player import PLAIN, SHOWN, TOKENS, browser  # noqa: F401

from browser import needed
from oracle import exact
from runs import cache, elsewhere  # noqa: F401
from samplers.insertion import Draft

PROMPT = "the ... dog ... ."


@pytest.fixture(params=["flexmdm", "ilm"])
def played(request, monkeypatch, elsewhere):  # noqa: F811
    data, _, (run,) = record(monkeypatch, oracle=request.param, prompt=PROMPT)
    return data["recordings"][0], run, exact(request.param)


def test_the_tokens_that_are_there_are_the_text_at_every_step(played):
    recording, run, model = played
    spelled = lambda id: (None if id >= model.encoding.n_vocab else
                          model.encoding.decode_single_token_bytes(id).decode("latin-1"))
    for i in range(2):
        for seen, z in zip(states(recording, i), run, strict=True):
            text = [id for id in z[i].tolist() if id != model.method.end_id]
            assert [token for token in seen if token != 0] == list(map(spelled, text))


def test_a_token_comes_once_is_opened_once_and_stays(played):
    """Absent, then perhaps a mask, then its word. Given ones are there from the first step on, and
    the words have the probability that the network gave them."""
    recording, run, model = played
    words = 0
    for i, text in enumerate(recording["texts"]):
        by_step = list(zip(*states(recording, i)))
        for place, history in enumerate(by_step):
            kinds = [a for a, b in zip(history, (*history[1:], object())) if a != b]
            if place in text["given"]:
                assert len(kinds) == 1 and isinstance(kinds[0], str)
            else:
                assert kinds[0] == 0 and isinstance(kinds[-1], str) and len(kinds) <= 3
                assert kinds[1:-1] in ([], [None])
        given = [by_step[place][0] for place in text["given"]]
        assert given == [" the", " dog", " ."] and text["given"][0] == 0
        for _, token, *p in (entry for step in text["steps"] for entry in step):
            if recording["tokens"][token] is not None:
                assert len(p) == 11 and p[0] > 0 and sum(p[2::2]) <= 1005
                words += 1
    assert words >= 2


def test_tokens_keep_their_numbers_when_masks_come_in_between():
    """Two into the first gap, one behind: the old ones move by two, and new numbers are new."""
    method = any_length("flexmdm", 5, end=4)
    z = torch.tensor([[0, 1, 4, 4, 4, 4]])
    draft = Draft.begin(method.process, z, torch.tensor([[True, True, False, False, False, False]]))
    assert draft.number[0, :2].tolist() == [0, 1]
    draft.closed[:] = False
    more = draft.insert(method.process, torch.tensor([[2, 0, 1, 0, 0, 0, 0]]))
    assert more.z[0, :5].tolist() == [5, 5, 0, 1, 5]
    numbers = more.number[0].tolist()
    assert numbers[2:4] == [0, 1] and len(set(numbers[:5])) == 5
    assert min(numbers[0], numbers[1], numbers[4]) > 6
    assert method.process.drafts is None and more.text(method.process).shape == (1, 6)


@needed
def test_the_page_shows_what_is_there_and_pushes_the_rest(browser, played):  # noqa: F811
    recording, run, _ = played
    browser.open(Path("out.html").resolve())
    for step, seen in enumerate(states(recording, 0)):
        browser.run(f"go({step})")
        there = [" _" if token is None else token for token in seen if token != 0]
        assert browser.run(PLAIN) == ["".join(there).strip()]
        assert browser.run(SHOWN) == ["".join(there).strip()]
        hidden = browser.run(f"return {TOKENS}.map(t => t.hidden)")
        assert hidden == [token == 0 for token in seen]
        assert browser.run("return document.querySelectorAll('.t[tabindex=\"0\"]').length") == 1
    browser.run("go(0)")
    browser.run("document.querySelector('.t[tabindex=\"0\"]').focus()")
    browser.press("right")
    assert browser.run("return document.activeElement.ariaLabel").startswith("2: “ dog”")
    assert browser.complaints() == []
