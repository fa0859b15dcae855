"""The option chat_template: Jinja text or a file of it, checked when the run is planned."""

from pathlib import Path

import pytest

from raydpo.errors import ConfigError
from raydpo.models.template_option import read_chat_template
from raydpo.stages.plan import plan_run
from tests.stages.plan_helpers import CPU_NODE, job_of

TEMPLATE = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"


def test_text_and_a_file_with_it_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text(TEMPLATE)
    assert read_chat_template(TEMPLATE) == read_chat_template(str(path)) == TEMPLATE
    generation = "{% generation %}{{ messages }}{% endgeneration %}"  # a tag of transformers
    assert read_chat_template(generation) == generation


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("none.jinja", ["none.jinja", "a file that exists"]),
        ("{% for x in y %}", ["not a Jinja template", "correct it"]),
    ],
)
def test_a_wrong_template_is_refused(option: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_chat_template(option)
    for word in words:
        assert word in str(caught.value)


def test_the_template_decides_the_text_of_a_run(tiny_model: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hello"}]
    own = plan_run(job_of(tiny_model, tmp_path), [CPU_NODE]).tokenizer
    replaced = plan_run(job_of(tiny_model, tmp_path, chat_template=TEMPLATE), [CPU_NODE]).tokenizer
    assert replaced.apply_chat_template(messages, tokenize=False) == "[user]hello"
    assert own.apply_chat_template(messages, tokenize=False) != "[user]hello"
