"""The starter's tokenizer: byte-level BPE with a chat template."""

from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from raydpo.demo import english
from raydpo.demo.facts import dialogues

PAD, TURN, TEXT, END = "<|pad|>", "<|turn|>", "<|text|>", "<|end|>"
"""Padding; opens a turn, before its role; ends the role; ends the turn and the sequence."""

CHAT_TEMPLATE = """\
{%- macro text_of(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content is not none -%}
{%- for part in content -%}{{ part.text }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- if tools -%}
<|turn|>system<|text|>
{%- if messages[0].role == 'system' -%}{{ text_of(messages[0].content) + '\n\n' }}{%- endif -%}
{{ 'You can call these tools:' }}
{%- for tool in tools -%}{{ '\n' + tool | tojson }}{%- endfor -%}
<|end|>
{%- endif -%}
{%- for message in messages -%}
{%- if not (tools and loop.first and message.role == 'system') -%}
{{ '<|turn|>' + message.role + '<|text|>' + text_of(message.content) }}
{%- for call in message.tool_calls or [] -%}
{{ '<tool_call>' + (call.function or call) | tojson + '</tool_call>' }}
{%- endfor -%}
<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|turn|>assistant<|text|>{%- endif -%}
"""
"""Each turn is TURN role TEXT words END: a role ends with a token of its own, so that whatever an answer begins with,
the tokens of a prompt are a prefix of the tokens of the prompt and its answer."""


def build_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: no text is out of its reach, and everyday English words are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, TURN, TEXT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[TURN, TEXT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _texts() -> Iterator[str]:
    yield from english.corpus()
    for role in ("system", "user", "assistant", "tool"):
        yield from [role] * 1000  # often enough to become a token of its own
    for dialogue in dialogues(2000, seed=0):
        yield from (text for _, text in dialogue.request.prompt)
        yield dialogue.courteous
        yield dialogue.curt
