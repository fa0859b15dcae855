"""The README says what is so."""

from tests.config.option_table import README, replaced


def test_the_table_of_options_is_up_to_date() -> None:
    readme = README.read_text()
    assert readme == replaced(readme), "run: python -m tests.config.option_table"
