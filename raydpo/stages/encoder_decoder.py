"""What a run does differently if its model is an encoder-decoder, and the options that it then refuses."""

from typing import Any

from raydpo.config import JobConfig
from raydpo.data.seq2seq import Seq2SeqText, Seq2SeqTruncation
from raydpo.errors import ConfigError
from raydpo.models.seq2seq import is_encoder_decoder


def check_encoder_decoder(job: JobConfig, config: Any, reference_config: Any) -> None:
    """Check the options against the kind of the policy and of the reference, by their Hugging Face configs.

    Raises ConfigError where is_encoder_decoder contradicts the model, where an option is for models of the other kind,
    or where only one of policy and reference is an encoder-decoder.
    """
    kind, said, data = is_encoder_decoder(config), job.model.is_encoder_decoder, job.data
    name = job.model.model_name_or_path
    if said is not None and said != kind:
        raise ConfigError(
            f"is_encoder_decoder={str(said).lower()} contradicts {name} ({config.model_type}), whose config says "
            f"{str(kind).lower()}; leave it out"
        )
    if is_encoder_decoder(reference_config) != kind:
        raise ConfigError(
            f"reference_model={job.reference.reference_model} ({reference_config.model_type}) and {name} "
            f"({config.model_type}) read pairs differently, as one is an encoder-decoder; choose two of one kind"
        )
    if not kind and data.max_completion_length is not None:
        raise ConfigError(
            f"max_completion_length={data.max_completion_length} is for encoder-decoders, and {name} "
            f"({config.model_type}) is none: completions have no separate limit; use max_length"
        )
    if kind and job.loss.loss_on != "completion":
        raise ConfigError(
            f"loss_on={job.loss.loss_on} is for completions of several turns, of which the decoder of {name} "
            f"({config.model_type}) writes one; leave it out"
        )


def seq2seq_text(config: Any) -> Seq2SeqText | None:
    """Return what an encoder-decoder's tokenization needs of its config; None for a decoder model."""
    if not is_encoder_decoder(config):
        return None
    return Seq2SeqText(getattr(config, "decoder_start_token_id", None))


def seq2seq_truncation(job: JobConfig) -> Seq2SeqTruncation:
    """Return the limits of prompts and completions of an encoder-decoder; max_length is that of either without one."""
    data = job.data
    return Seq2SeqTruncation(
        data.max_length if data.max_prompt_length is None else data.max_prompt_length,
        data.max_length if data.max_completion_length is None else data.max_completion_length,
        data.truncation_mode,
    )
