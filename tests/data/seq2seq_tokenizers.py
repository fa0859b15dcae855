"""Small byte-level tokenizers in the manner of encoder-decoders: special tokens at the ends of every text."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "</s>", "<s>", "<unk>")
T5, BART, BOS_ONLY, NOTHING = "$A </s>", "<s> $A </s>", "<s> $A", "$A"
"""What a tokenizer puts around text: that of T5, of BART, of T5Gemma, and one that puts nothing there."""


def build_seq2seq_tokenizer(form: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose texts have the given form, with `<pad>` as 0, `</s>` as 1 and `<s>` as 2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=form, special_tokens=[(token, vocabulary[token]) for token in SPECIAL]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )
    fast.chat_template = template
    return fast
