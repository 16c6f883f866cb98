import numpy as np
import pytest

from engine.schedule import build_schedule, steps_in_epoch


def rates(schedule, steps):
    found = []
    for _ in range(steps):
        found.append(schedule.get_lr())
        schedule.step()
    return found


def test_piecewise_decay_falls_by_ten_at_each_of_the_epochs():
    schedule = build_schedule(
        "piecewise_decay", 0.5, epoch_steps=4, num_epochs=6, step_epochs=[2, 5]
    )
    expected = [0.5] * 8 + [0.05] * 12 + [0.005] * 4
    np.testing.assert_allclose(rates(schedule, 24), expected, rtol=1e-12)


def test_cosine_decay_equals_the_formula_and_ends_at_zero():
    schedule = build_schedule("cosine_decay", 0.2, epoch_steps=50, num_epochs=3, step_epochs=[])
    steps = np.arange(151)
    expected = 0.1 * (1 + np.cos(np.pi * steps / 150))
    np.testing.assert_allclose(rates(schedule, 151), expected, atol=1e-15)
    assert schedule.get_lr() == 0.0  # it does not rise again


def test_the_cosine_falls_over_what_the_warm_up_leaves():
    schedule = build_schedule("cosine_decay", 0.2, 4, num_epochs=5, step_epochs=[], warmup_epochs=2)
    rising = 0.2 * np.arange(1, 9) / 8
    falling = 0.1 * (1 + np.cos(np.pi * np.arange(13) / 12))
    np.testing.assert_allclose(rates(schedule, 21), [*rising, *falling], atol=1e-15)


def test_the_epochs_of_piecewise_decay_count_the_warm_up():
    schedule = build_schedule(
        "piecewise_decay", 0.5, 4, num_epochs=4, step_epochs=[1, 2], warmup_epochs=0.5
    )
    expected = [0.25, 0.5] + [0.5] * 2 + [0.05] * 4 + [0.005] * 4
    np.testing.assert_allclose(rates(schedule, 12), expected, rtol=1e-12)


@pytest.mark.parametrize("strategy", ["piecewise_decay", "cosine_decay"])
def test_a_schedule_can_be_set_to_any_step(strategy):
    def make():
        return build_schedule(
            strategy, 0.1, epoch_steps=5, num_epochs=4, step_epochs=[1, 3], warmup_epochs=1.5
        )

    for steps in (3, 17):
        walked, jumped = make(), make()
        for _ in range(steps):
            walked.step()
        jumped.step(steps)
        assert rates(walked, 3) == rates(jumped, 3)


def test_an_epoch_has_the_batches_that_are_there_unless_overridden():
    assert steps_in_epoch(7, None, images_per_batch=32) == 7
    assert steps_in_epoch(7, 1000, images_per_batch=256) == 4


def test_an_epoch_has_fewer_steps_where_gradients_are_accumulated():
    assert steps_in_epoch(7, None, images_per_batch=32, batches_per_step=3) == 3
    assert steps_in_epoch(7, 1000, images_per_batch=256, batches_per_step=4) == 1


def test_without_epochs_to_step_at_the_rate_stays():
    schedule = build_schedule("piecewise_decay", 0.5, 4, num_epochs=6, step_epochs=[])
    assert rates(schedule, 24) == [0.5] * 24
