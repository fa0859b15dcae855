"""Fixtures: a tokenizer with a chat template, one without, and one with a BOS token."""

import pytest
from transformers import PreTrainedTokenizerFast

from tests.data.tokenizers import TEMPLATE, build_tokenizer


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(TEMPLATE)


@pytest.fixture(scope="session")
def text_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(None)


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(None, bos=True)
