import pytest

from engine.accumulation import parts_of_epoch


def plan(*args):
    return [(part.share, part.ends_step) for part in parts_of_epoch(*args)]


def test_one_batch_per_step_is_the_whole_step_even_if_it_is_short():
    assert plan(70, 32, 1) == [(1.0, True)] * 3


def test_a_batch_counts_by_its_images():
    assert plan(64, 16, 2) == [(0.5, False), (0.5, True)] * 2
    # the last step has two batches of three, and the last of them four images of sixteen
    assert plan(68, 16, 3) == [
        *[(1 / 3, False), (1 / 3, False), (1 / 3, True)],
        *[(16 / 20, False), (4 / 20, True)],
    ]


def test_the_last_step_may_have_a_single_batch():
    assert plan(80, 16, 4)[4:] == [(1.0, True)]


@pytest.mark.parametrize("images", [1, 15, 16, 17, 63, 64, 65])
@pytest.mark.parametrize("per_step", [1, 2, 5])
def test_the_shares_of_a_step_sum_to_one_and_every_batch_has_its_part(images, per_step):
    total, steps = 0.0, 0
    parts = plan(images, 8, per_step)
    assert len(parts) == -(-images // 8)
    for share, ends in parts:
        total += share
        if ends:
            steps += 1
            assert total == pytest.approx(1.0, abs=1e-12)
            total = 0.0
    assert total == 0.0 and steps == -(-images // (8 * per_step))


def test_a_resumed_epoch_has_the_rest_of_the_same_plan():
    assert plan(100, 8, 3, 6) == plan(100, 8, 3)[6:]
    assert plan(100, 8, 3, 13) == []
