"""Means of metrics weigh each sample equally, independently of how samples are divided into batches."""

import math

import pytest
import torch

from raydpo.training.metric_sums import MetricSums

CPU = torch.device("cpu")


def test_means_weigh_each_sample_equally() -> None:
    sums = MetricSums()
    sums.add("margin", torch.tensor([1.0, 2.0, 3.0, 4.0]).sum(), 4)
    sums.add("margin", torch.tensor([10.0]).sum(), 1)
    assert sums.means(CPU)["margin"] == pytest.approx(4.0)  # the mean of batch means would be 6.25


def test_a_resumed_run_continues_its_sums() -> None:
    before = MetricSums()
    before.add("loss", 3.0, 4)
    after = MetricSums(before.totals(CPU))
    after.add("loss", 5.0, 4)
    assert after.means(CPU)["loss"] == pytest.approx(1.0)


def test_the_mean_of_no_samples_is_nan() -> None:
    sums = MetricSums()
    sums.add("entropy", 0.0, 0)  # as for a rank's dummy batch
    assert math.isnan(sums.means(CPU)["entropy"])
