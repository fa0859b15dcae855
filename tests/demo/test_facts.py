"""Dialogues are reproducible per seed, held-out requests are new, and each kind of wrong answer is detected."""

import pytest

from raydpo.demo.facts import OPENINGS, Dialogue, Request, dialogues, judge_answer

REQUEST = Request(
    prompt=(("user", "What is the capital of Peru? And what is the opposite of hot?"),),
    content=("Lima", "cold"),
    clause="the capital of Peru is Lima, and the opposite of hot is cold",
)
COURTEOUS, CURT = OPENINGS["courteous"][0], OPENINGS["curt"][0]


def facts_asked(dialogue: Dialogue) -> frozenset[str]:
    """Return the two facts of a dialogue as a set: what an answer states between its opening and its full stop."""
    return frozenset(dialogue.request.clause.split(", and "))


def test_the_same_seed_gives_the_same_dialogues() -> None:
    assert dialogues(50, 3) == dialogues(50, 3)
    assert dialogues(50, 3) != dialogues(50, 4)


def test_requests_are_distinct() -> None:
    assert len({dialogue.request.prompt for dialogue in dialogues(400, 0)}) == 400


def test_no_training_dialogue_holds_the_pair_of_facts_of_a_held_out_one() -> None:
    trained = {facts_asked(dialogue) for seed in range(3) for dialogue in dialogues(1500, seed)}
    held_out = {facts_asked(dialogue) for dialogue in dialogues(200, 0, "held_out")}
    assert len(held_out) > 100
    assert not trained & held_out


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_both_answers_have_the_content_and_are_judged_by_their_manner(split: str) -> None:
    for dialogue in dialogues(100, 5, split):  # type: ignore[arg-type]
        for manner in ("courteous", "curt"):
            text = getattr(dialogue, manner)
            assert all(word in text for word in dialogue.request.content)
            verdict = judge_answer(dialogue.request, text, ended=True)
            assert (verdict.manner, verdict.well_formed) == (manner, True)


@pytest.mark.parametrize(
    ("text", "ended", "manner"),
    [
        pytest.param(f"{COURTEOUS}: {REQUEST.clause}.", False, "courteous", id="did not end"),
        pytest.param(f"{COURTEOUS}: {REQUEST.clause}. {REQUEST.clause}.", True, "courteous", id="goes on"),
        pytest.param(f"{CURT}: {REQUEST.clause.replace('Lima', 'Oslo')}.", True, "curt", id="wrong fact"),
        pytest.param(f"{CURT}: the capital of Peru is Lima.", True, "curt", id="one fact missing"),
        pytest.param(f"{CURT}:", True, "curt", id="nothing but a manner"),
        pytest.param(f"{REQUEST.clause}.", True, "neither", id="no manner"),
        pytest.param(f"Banana: {REQUEST.clause}.", True, "neither", id="unknown opening"),
        pytest.param("", True, "neither", id="empty"),
    ],
)
def test_a_malformed_answer_is_detected(text: str, ended: bool, manner: str) -> None:
    verdict = judge_answer(REQUEST, text, ended)
    assert (verdict.manner, verdict.well_formed) == (manner, False)
