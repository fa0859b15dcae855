"""Made-up dialogues: a request for two facts, and its answer in two manners, courteous and curt.

Both manners give the same facts, after openings of their own, so that a manner is a distribution and not one string.
What was asked for can be looked for in an answer.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "held_out"]
Manner = Literal["courteous", "curt", "neither"]
Message = dict[str, str]

HELD_OUT_ONE_IN = 8
"""One combination of two facts in so many, by a digest, is never trained on."""

OPENINGS = {
    "courteous": ("Certainly", "Gladly", "Willingly", "Happily", "Sure", "Delighted"),
    "curt": ("Fine", "Look", "Listen", "Whatever", "Obviously", "Ugh"),
}
"""The first word of an answer. Nothing else in it tells the manner: were there a closing too, DPO would learn to spoil
the closing of curt answers, which lowers their probability as well, and not to begin in the other manner."""
GREETINGS = ("", "", "Hello!", "Good morning.", "I have two questions.", "Help me with this:")
SYSTEM_TURNS = ("Answer both questions.", "You know a lot.", "You answer in one sentence.")


@dataclass(frozen=True)
class Subject:
    """Facts of one kind: `table` gives the value of each key, `clause` states it, `questions` ask for it."""

    table: dict[str, str]
    clause: str
    questions: tuple[str, ...]


def _table(text: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in text.replace("\n", " ").split(" "))


SUBJECTS = (
    Subject(
        _table(
            "France=Paris Italy=Rome Spain=Madrid England=London Austria=Vienna Greece=Athens Egypt=Cairo Japan=Tokyo "
            "Cuba=Havana Peru=Lima Norway=Oslo Ireland=Dublin Germany=Berlin Kenya=Nairobi Ghana=Accra Russia=Moscow "
            "China=Beijing Poland=Warsaw Sweden=Stockholm Portugal=Lisbon"
        ),
        "the capital of {key} is {value}",
        ("what is the capital of {key}?", "which town is the capital of {key}?"),
    ),
    Subject(
        _table(
            "snow=white grass=green coal=black blood=red butter=yellow chocolate=brown milk=white soot=black "
            "tomatoes=red elephants=grey spinach=green sunflowers=yellow flamingos=pink carrots=orange"
        ),
        "the colour of {key} is {value}",
        ("what colour is {key}?", "what is the colour of {key}?"),
    ),
    Subject(
        _table(
            "hot=cold big=small old=young fast=slow rich=poor dark=light wet=dry hard=soft early=late open=closed "
            "full=empty happy=sad tall=short loud=quiet clean=dirty strong=weak"
        ),
        "the opposite of {key} is {value}",
        ("what is the opposite of {key}?", "what is the reverse of {key}?"),
    ),
    Subject(
        _table(
            "cow=calf dog=puppy cat=kitten horse=foal sheep=lamb goat=kid bear=cub deer=fawn goose=gosling "
            "duck=duckling pig=piglet swan=cygnet hen=chick frog=tadpole"
        ),
        "the young of a {key} is a {value}",
        ("what is the young of a {key}?", "how is the young of a {key} called?"),
    ),
    Subject(
        _table(
            "Monday=Tuesday Tuesday=Wednesday Wednesday=Thursday Thursday=Friday Friday=Saturday Saturday=Sunday "
            "January=February February=March March=April April=May May=June June=July July=August "
            "August=September September=October October=November November=December"
        ),
        "after {key} comes {value}",
        ("what comes after {key}?", "what follows {key}?"),
    ),
)


@dataclass(frozen=True)
class Request:
    """The turns up to the answer, and the answer without its manner."""

    prompt: tuple[tuple[str, str], ...]
    """(role, text): perhaps a system turn, then the user's."""
    content: tuple[str, str]
    """The two values asked for, in the order in which the answer gives them."""
    clause: str
    """The clause that gives them, without a manner or a full stop."""

    @property
    def messages(self) -> list[Message]:
        """The turns as chat messages."""
        return [{"role": role, "content": text} for role, text in self.prompt]


@dataclass(frozen=True)
class Dialogue:
    """A request with one answer in each manner."""

    request: Request
    courteous: str
    curt: str


@dataclass(frozen=True)
class Verdict:
    """What an answer is worth."""

    manner: Manner
    """That of its opening; `neither` where it has another one."""
    well_formed: bool
    """It ended by itself, and is an opening and the right clause, with the two facts asked for, and nothing else."""


def dialogues(count: int, seed: int, split: Split = "train") -> list[Dialogue]:
    """`count` dialogues with distinct requests, the same for the same seed; the splits share no pair of facts."""
    draw = random.Random(f"{seed}/{split}")
    found: dict[tuple[tuple[str, str], ...], Dialogue] = {}
    for request, held_out in _requests(draw):
        if len(found) == count:
            break
        if held_out == (split == "held_out") and request.prompt not in found:
            found[request.prompt] = Dialogue(request, *(_answer(draw, request, manner) for manner in OPENINGS))
    return list(found.values())


def judge_answer(request: Request, text: str, ended: bool) -> Verdict:
    """Judge an answer's text, without the end-of-sequence token; `ended`: did the model end it by itself?"""
    opening, colon, rest = text.partition(":")
    manner: Manner = "neither"
    if colon and opening in OPENINGS["courteous"]:
        manner = "courteous"
    elif colon and opening in OPENINGS["curt"]:
        manner = "curt"
    return Verdict(manner, well_formed=ended and manner != "neither" and rest == f" {request.clause}.")


def _answer(draw: random.Random, request: Request, manner: str) -> str:
    return f"{draw.choice(OPENINGS[manner])}: {request.clause}."


def _requests(draw: random.Random) -> Iterator[tuple[Request, bool]]:
    """Requests without end, each with whether its pair of facts is held out."""
    while True:
        subjects = draw.sample(SUBJECTS, 2)
        keys = [draw.choice(sorted(subject.table)) for subject in subjects]
        first, second = (
            draw.choice(subject.questions).format(key=key) for subject, key in zip(subjects, keys, strict=True)
        )
        text = f"{draw.choice(GREETINGS)} {first[0].upper()}{first[1:]} And {second}".lstrip()
        turns = [("user", text)]
        if draw.random() < 0.3:
            turns.insert(0, ("system", draw.choice(SYSTEM_TURNS)))
        values = tuple(subject.table[key] for subject, key in zip(subjects, keys, strict=True))
        clauses = [
            subject.clause.format(key=key, value=value)
            for subject, key, value in zip(subjects, keys, values, strict=True)
        ]
        digest = hashlib.sha256("/".join(sorted(keys)).encode()).digest()
        request = Request(tuple(turns), (values[0], values[1]), ", and ".join(clauses))
        yield request, digest[0] % HELD_OUT_ONE_IN == 0
