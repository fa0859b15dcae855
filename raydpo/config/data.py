"""The options of the preference data."""

from dataclasses import dataclass

from raydpo.config.column_mapping import check_column_mapping
from raydpo.config.fields import Rule, Section, at_least, date, one_of, option
from raydpo.config.mixture import DatasetEntry
from raydpo.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """The preference pairs: where they are stored, and how they are read, truncated and ordered."""

    dataset_name: tuple[str, ...] = option(
        (),
        "Preference data: any mix of paths, globs, folders, URLs and hub ids of JSONL, JSON, Parquet and Arrow files, "
        ".gz and .zst included. Requires model_name_or_path. Unset: the demonstration's built-in pairs.",
    )
    datasets: tuple[DatasetEntry, ...] = option(
        (),
        "Preference data as a mixture, in place of dataset_name: a list of entries in YAML (or JSON), each with path "
        "(or id) and optionally name (or config), split, columns (those to read), weight (or fraction: the share of "
        "its rows that is used, at most 1), data_dir and data_files.",
    )
    dataset_seed: int = option(
        0,
        "Seed of the choice of rows, by the weight of datasets and by test_split_size. It does not follow seed, so "
        "that runs with other seeds train and evaluate on the same rows.",
        at_least(0),
    )
    test_split_size: float | None = option(
        None,
        "Rows of the training data to hold out for evaluation instead: a share below 1, or a number of rows. They are "
        "held out whether the run evaluates or not. Unset: none.",
        Rule("a share below 1, or a whole number", lambda value: value > 0 and (value < 1 or value % 1 == 0)),
    )
    eval_dataset_name: tuple[str, ...] = option(
        (),
        "Held-out pairs, if they are in files of their own; NAME=... makes them a set with metrics eval_NAME_... of "
        "its own. Unset: test_split_size, else dataset_test_split of the training data, if it has that split.",
    )
    dataset_config: str | None = option(
        None, "Configuration (subset) of a dataset on the hub. Unset: its default configuration."
    )
    dataset_train_split: str = option("train", "Split to train on, of hub ids and of folders that `datasets` saved.")
    dataset_test_split: str = option("test", "Split to evaluate on, of hub ids and of folders that `datasets` saved.")
    dataset_format: str = option(
        "auto",
        "Dialect of the rows. auto: detected from the rows and reported in the log.",
        one_of("auto", "preference", "hh", "sharegpt", "openai"),
    )
    column_mapping: dict[str, str] = option(
        {},
        "Columns of the rows by the names that are read, such as prompt=question chosen=answers.0.text; the better of "
        "several by completions=response_0+response_1 with best=better_response_id, strength=..., scores=... or "
        "ranks=.... Unset: the columns of the dialects, and question, query, instruction with input.",
    )
    on_template_loss: str = option(
        "quarantine",
        "What to do with a row some of whose words the model's chat template drops: tool calls, reasoning of an "
        "answer, a system message. quarantine: the row goes to quarantine; keep: it is trained on without the words, "
        "and counted. TRL: keep, uncounted.",
        one_of("quarantine", "keep"),
    )
    add_special_tokens: str = option(
        "auto",
        "BOS and EOS of prompts and completions that are text. auto: text that begins with BOS, or ends with EOS or "
        "the chat template's end of turn, gets no second one; always: as in TRL.",
        one_of("auto", "always"),
    )
    chat_template_date: str | None = option(
        None,
        "Date that a chat template which writes today's date is given, as YYYY-MM-DD. Unset: the day on which "
        "output_dir was first used, so that tokens stay the same; config.yaml records it.",
        date(),
    )
    max_length: int | None = option(
        1024, "Maximum length of prompt + completion; longer ones are truncated. none: no limit.", at_least(2), "tokens"
    )
    max_prompt_length: int | None = option(
        None,
        "Maximum length of a prompt; longer ones lose their beginning. Unset: no separate limit.",
        at_least(1),
        "tokens",
    )
    max_completion_length: int | None = option(
        None,
        "Maximum length of a completion of an encoder-decoder, whose prompt and completion are sequences of their own; "
        "longer ones lose their end. Unset: max_length, which is also the default of max_prompt_length there. For "
        "other models it is an error: max_length includes the completion.",
        at_least(2),
        "tokens",
    )
    truncation_mode: str = option(
        "keep_start",
        "Which end to keep of a prompt + completion longer than max_length; for an encoder-decoder, of a prompt longer "
        "than max_prompt_length, and completions keep their start.",
        one_of("keep_start", "keep_end"),
    )
    train_sampling_strategy: str = option(
        "random",
        "Order of the pairs. random: shuffled anew each epoch, from the seed; group_by_prompt: random too, but pairs "
        "of one prompt stay together, and their prompt is computed once; sequential: the order of the files.",
        one_of("random", "group_by_prompt", "sequential"),
    )
    block_pairs: int = option(
        4096, "Maximum number of pairs per block, the unit of tokenization, scoring and retries.", at_least(1), "pairs"
    )
    shuffle_window: int = option(
        16,
        "Number of blocks per shuffle window: the blocks are shuffled first, then the pairs within each window.",
        at_least(1),
        "blocks",
    )
    max_bad_rows: int | None = option(
        None,
        "Number of bad rows to tolerate; with more, the run stops before training. 0 tolerates none. Unset: no limit.",
        at_least(0),
        "rows",
    )
    cache_dir: str = option(
        "~/.cache/raydpo",
        "Folder or URL where tokenized and scored blocks are kept across runs; every node must have access to it.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_column_mapping(self.column_mapping)
        if self.datasets and self.dataset_name:
            raise ConfigError(
                f"dataset_name={','.join(self.dataset_name)} and datasets both name the training data; leave one of "
                "them out, or make dataset_name an entry of datasets"
            )
        if self.datasets and self.dataset_config and not self.eval_dataset_name:
            raise ConfigError(f"dataset_config={self.dataset_config} is for dataset_name; set name in datasets instead")
        if self.test_split_size and self.eval_dataset_name:
            raise ConfigError(
                f"test_split_size={self.test_split_size:g} holds out training rows, and eval_dataset_name names other "
                "held-out pairs; leave one of them out"
            )

    @property
    def entries(self) -> tuple[DatasetEntry, ...]:
        """The data sets to train on, from `datasets` or `dataset_name`; none for the demonstration's pairs."""
        return self.datasets or tuple(DatasetEntry(name, self.dataset_config) for name in self.dataset_name)
