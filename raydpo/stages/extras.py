"""Weights and margins of rows: which columns a run reads for its objective, and what it says about them."""

from raydpo.config import LossConfig, fields
from raydpo.config.loss_types import LOSS_TYPES
from raydpo.data.extras import ExtrasCounts, ExtrasOptions


def extras_options(loss: LossConfig) -> ExtrasOptions:
    """Return the columns of weights and margins that the objective reads."""
    return ExtrasOptions(
        weight=loss.sample_weights != "ignore",
        margin=loss.use_margins and loss.takes_margin,
        margin_from_scores=loss.margin_from_scores,
        margin_required=loss.needs_margin,
    )


def describe_extras(counts: ExtrasCounts) -> str:
    """Return how many rows have a weight or a margin, for the line of the stage; empty if none has one."""
    rows = {"a weight": counts.weights, "a margin": counts.margins}
    return "".join(f", {count:,} with {name}" for name, count in rows.items() if count)


def unused_margins(loss: LossConfig, counts: ExtrasCounts) -> str:
    """Return a warning where rows have margins, and the objective has none; else "", as with use_margins=false."""
    if not counts.unread_margins or loss.takes_margin or not loss.use_margins:
        return ""
    formed = ", ".join(name for name, kind in LOSS_TYPES.items() if kind.supports_margin)
    return (
        f"The column `margin` of {counts.unread_margins:,} rows has no effect, as loss_type "
        f"{fields.show(loss.loss_type)} has no margin. Choose a loss_type of {formed}, or set use_margins=false."
    )
