"""Converting text from flags and YAML to values, and the errors for text that cannot be converted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.fields import (
    Section,
    above,
    at_least,
    convert,
    hints_of,
    one_of,
    option,
    within,
)
from raydpo.config.help import help_section
from raydpo.config.reading import read_flags
from raydpo.config.reading import read_yaml as read
from raydpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Oven(Section):
    """A section of options for these tests."""

    heat: float = option(180.0, "How hot.", above(0), "degrees")
    trays: int = option(1, "How many trays.", at_least(1), "trays")
    fan: bool = option(False, "Move the air.")
    mode: str = option("bake", "What it does.", one_of("bake", "grill", "no"))
    door: float = option(0.0, "How far it stands open.", within(0, 1))
    timer: int | None = option(None, "Minutes to run. Unset: until stopped.", at_least(1), "minutes")
    dishes: tuple[str, ...] = option((), "What is in it.")
    spices: dict[str, float] = option({}, "Grams of each.")
    settings: dict[str, Any] = option({}, "Other settings.")


HINTS = hints_of(Oven)


def bake(command: str) -> Oven:
    """Return the section that a command line gives."""
    return Oven(**read_flags(command.split(), HINTS))


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("--heat 200", "heat", 200.0),
        ("--heat=2e2", "heat", 200.0),
        ("--trays 1 --trays 3", "trays", 3),
        ("--fan", "fan", True),
        ("--fan true", "fan", True),
        ("--fan False", "fan", False),
        ("--no_fan", "fan", False),
        ("--no-fan", "fan", False),
        ("--fan --no_fan", "fan", False),
        ("--mode no", "mode", "no"),
        ("--timer 5", "timer", 5),
        ("--timer none", "timer", None),
        ("--dishes pie", "dishes", ("pie",)),
        ("--dishes pie tart", "dishes", ("pie", "tart")),
        ("--dishes pie,tart cake", "dishes", ("pie", "tart", "cake")),
        ("--dishes part-{a,b}.jsonl,c.jsonl", "dishes", ("part-{a,b}.jsonl", "c.jsonl")),
        ("--dishes none", "dishes", ()),
        ("--spices salt=2,pepper=0.5", "spices", {"salt": 2.0, "pepper": 0.5}),
        ("--spices salt=2 pepper=0.5", "spices", {"salt": 2.0, "pepper": 0.5}),
        ('--spices {"salt":2}', "spices", {"salt": 2.0}),
        ("--settings n=2,x=0.5,on=true,what=1-sqrt", "settings", {"n": 2, "x": 0.5, "on": True, "what": "1-sqrt"}),
        ('--settings {"n":2,"what":null}', "settings", {"n": 2, "what": None}),
    ],
)
def test_flags_become_values(command: str, name: str, value: object) -> None:
    assert getattr(bake(command), name) == value


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("--heat 0", ["heat=0", "above 0", "180"]),
        ("--heat nan", ["heat=nan", "finite"]),
        ("--heat inf", ["heat=inf", "finite"]),
        ("--heat -1e-6", ["heat=-1e-6", "above 0"]),
        ("--trays two", ["trays=two", "whole number"]),
        ("--trays 1.5", ["trays=1.5", "whole number"]),
        ("--fan maybe", ["fan=maybe", "true or false"]),
        ("--mode fry", ["mode=fry", "bake, grill, no", "default (bake)"]),
        ("--door 1", ["door=1", "at least 0 and below 1"]),
        ("--timer 0", ["timer=0", "at least 1", "unset"]),
        ("--spices salt", ["spices=salt", "name=value"]),
        ("--spices salt=some", ["spices=salt=some", "a number"]),
        ('--spices {"salt":', ["spices=", "JSON"]),
        ("--heat", ["--heat takes one value"]),
        ("--heat 1 2", ["--heat takes one value", "1 2"]),
        ("--haet 1", ["haet", "nearest is heat"]),
        ("--no_heat", ["no_heat"]),
        ("pie --fan", ["unexpected argument pie"]),
        ("-f", ["unexpected argument -f"]),
    ],
)
def test_errors_name_value_rule_and_remedy(command: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        bake(command)
    for word in words:
        assert word in str(caught.value)


def test_python_values_are_converted_and_wrong_types_are_refused() -> None:
    oven = Oven(heat=200, dishes=["pie"], spices={"salt": 1})
    assert (oven.heat, oven.dishes, oven.spices) == (200.0, ("pie",), {"salt": 1.0})
    assert isinstance(oven.heat, float)
    wrong: dict[str, Any]
    for wrong in ({"trays": True}, {"trays": 1.5}, {"heat": None}, {"mode": 1.5}, {"dishes": 3}, {"spices": [1]}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Oven(**wrong)


def test_mutable_defaults_are_not_shared() -> None:
    Oven().spices["salt"] = 1.0
    assert Oven().spices == {}


def test_a_list_of_one_stands_for_its_element() -> None:
    assert convert(["bake"], str) == "bake"
    assert convert(("3",), int | None) == 3


def write(folder: Path, text: str) -> str:
    """Write the text to a YAML file and return its path."""
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_yaml_scalars_are_converted_by_the_type_of_the_option(tmp_path: Path) -> None:
    text = "mode: no\nheat: 1e2\nfan: yes\ntimer: null\ndishes: [pie, 'a,b']\nspices: {salt: 2}\n"
    oven = Oven(**read(write(tmp_path, text)))
    assert oven == Oven(mode="no", heat=100.0, fan=True, timer=None, dishes=("pie", "a,b"), spices={"salt": 2.0})


def test_an_empty_yaml_sets_nothing(tmp_path: Path) -> None:
    assert read(write(tmp_path, "# nothing yet\n")) == {}


def test_yaml_can_be_nested(tmp_path: Path) -> None:
    text = "settings:\n  n: 2\n  deep:\n    - x: no\n"
    assert read(write(tmp_path, text)) == {"settings": {"n": "2", "deep": [{"x": "no"}]}}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("- heat\n", "name: value"),
        ("heat: [1\n", "cannot read"),
        ("\x00", "cannot read"),
    ],
)
def test_invalid_yaml_is_refused(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        read(write(tmp_path, text))


def test_a_repeated_yaml_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="heat twice"):
        read(write(tmp_path, "heat: 1\ntrays: 2\nheat: 3\n"))


def test_a_missing_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no-such\.yaml"):
        read(str(tmp_path / "no-such.yaml"))


def test_help_shows_default_unit_and_rule() -> None:
    text = " ".join(help_section("oven", Oven, {"trays": 3}).split())
    assert "--heat NUMBER How hot. [default: 180.0; in degrees; above 0]" in text
    assert "--timer INTEGER Minutes to run. Unset: until stopped. [default: unset; in minutes; at least 1]" in text
    assert "--dishes TEXT ..." in text
    assert "--trays INTEGER How many trays. [default: 3; in trays; at least 1]" in text


def test_a_flag_of_unknown_type_takes_any_words() -> None:
    hints = {"anything": object, "fan": bool}
    found = read_flags(["--anything", "a", "b", "--fan"], hints)
    assert found == {"anything": "a b", "fan": "true"}
    assert read_flags(["--anything", "--no_fan"], hints) == {"anything": "true", "fan": "false"}
    assert read_flags(["--anything", '{"use_reentrant": false}'], hints) == {"anything": '{"use_reentrant": false}'}
