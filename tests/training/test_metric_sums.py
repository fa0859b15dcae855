"""Means weigh each sample alike, in whatever batches the samples come."""

import math

import pytest
import torch

from raydpo.training.metric_sums import MetricSums

CPU = torch.device("cpu")


def test_batches_of_unequal_size() -> None:
    sums = MetricSums()
    sums.add("margin", torch.tensor([1.0, 2.0, 3.0, 4.0]).sum(), 4)
    sums.add("margin", torch.tensor([10.0]).sum(), 1)
    assert sums.means(CPU)["margin"] == pytest.approx(4.0)  # the mean of batch means would be 6.25


def test_a_resumed_run_goes_on_with_what_was_summed() -> None:
    before = MetricSums()
    before.add("loss", 3.0, 4)
    after = MetricSums(before.totals(CPU))
    after.add("loss", 5.0, 4)
    assert after.means(CPU)["loss"] == pytest.approx(1.0)


def test_nothing_summed_is_not_a_number() -> None:
    sums = MetricSums()
    sums.add("entropy", 0.0, 0)  # a rank's dummy batch
    assert math.isnan(sums.means(CPU)["entropy"])
