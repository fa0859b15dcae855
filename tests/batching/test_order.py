"""The order of pairs: a reproducible permutation that differs between epochs."""

import pytest

from raydpo.batching.order import EpochOrder, global_batch_bounds, group_equal_keys, steps_per_epoch

SIZES = [5, 3, 7, 1, 4]


def epoch(sizes: list[int], **changes: object) -> list[tuple[int, int]]:
    options = {"seed": 1, "epoch": 0, "window": 2, "shuffle": True, **changes}
    order = EpochOrder(sizes, **options)  # type: ignore[arg-type]
    return [tuple(row) for index in range(len(order.windows)) for row in order.window_rows(index).tolist()]


def test_an_epoch_has_every_pair_once() -> None:
    all_pairs = [(block, row) for block, size in enumerate(SIZES) for row in range(size)]
    assert sorted(epoch(SIZES)) == all_pairs
    assert epoch(SIZES) != all_pairs
    assert epoch(SIZES, shuffle=False) == all_pairs


def test_order_depends_only_on_seed_and_epoch() -> None:
    assert epoch(SIZES) == epoch(SIZES)
    assert epoch(SIZES) != epoch(SIZES, seed=2)
    assert epoch(SIZES) != epoch(SIZES, epoch=1)


def test_a_window_holds_whole_blocks_only() -> None:
    order = EpochOrder(SIZES, seed=3, epoch=0, window=2, shuffle=True)
    assert [len(window.blocks) for window in order.windows] == [2, 2, 1]
    for index, window in enumerate(order.windows):
        blocks = {block for block, _ in order.window_rows(index).tolist()}
        assert blocks == set(window.blocks)
        assert order.window_of(window.start) == index
        assert order.window_of(window.start + window.pairs - 1) == index


@pytest.mark.parametrize(("pairs", "batch"), [(20, 6), (6, 6), (5, 6), (7, 1)])
def test_batches_split_an_epoch_without_gap_or_overlap(pairs: int, batch: int) -> None:
    position, steps = 0, 0
    while position < 3 * pairs:
        start, stop = global_batch_bounds(position, pairs, batch)
        assert start == position
        assert 0 < stop - start <= batch
        assert start // pairs == (stop - 1) // pairs, "a batch crosses the end of an epoch"
        position, steps = stop, steps + 1
    assert steps == 3 * steps_per_epoch(pairs, batch)


def test_equal_keys_are_grouped_at_the_position_of_the_first() -> None:
    keys = [b"b", b"a", b"c", b"a", b"b", b"a"]
    assert [keys[index] for index in group_equal_keys(keys)] == [b"b", b"b", b"a", b"a", b"a", b"c"]
    assert group_equal_keys(keys).tolist() == [0, 4, 1, 3, 5, 2], "equal keys keep their order"
    assert group_equal_keys([]).tolist() == []
