import numpy as np
import paddle
import pytest

from engine.checkpoint import (
    CheckpointFolder,
    Progress,
    load_latest,
    load_network_state,
    restore,
    save_weights,
)
from engine.errors import EngineError
from engine.optimizer import build_optimizer
from engine.schedule import build_schedule


def make_optimizer(net):
    schedule = build_schedule("cosine_decay", 0.1, epoch_steps=10, num_epochs=2, step_epochs=[])
    return build_optimizer(net, schedule, 0.9, 1e-4), schedule


def train_step(net, optimizer, schedule):
    paddle.seed(7)
    net(paddle.ones([2, 1, 28, 28])).sum().backward()
    optimizer.step()
    optimizer.clear_grad()
    schedule.step()


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_checkpoints_are_files_that_paddle_load_reads(tmp_path, dropout_net):
    net = dropout_net()
    optimizer, schedule = make_optimizer(net)
    train_step(net, optimizer, schedule)
    folder = CheckpointFolder(tmp_path)
    folder.save_epoch(0, net, optimizer)
    folder.mark_best(0)
    for name in ("epoch_0", "best_model"):
        weights = paddle.load(str(tmp_path / f"{name}.pdparams"))
        for key, value in net.state_dict().items():
            np.testing.assert_array_equal(weights[key].numpy(), value.numpy())
        state = paddle.load(str(tmp_path / f"{name}.pdopt"))
        assert "LR_Scheduler" in state
        trained = [p for p in net.parameters() if not p.stop_gradient]
        assert sum("velocity" in key for key in state) == len(trained)


def test_only_the_newest_epochs_are_kept_and_the_best_stays(tmp_path, dropout_net):
    net = dropout_net()
    optimizer, _ = make_optimizer(net)
    folder = CheckpointFolder(tmp_path, keep=2)
    for epoch in range(11):
        folder.save_epoch(epoch, net, optimizer)
        if epoch == 1:
            folder.mark_best(epoch)
    kept = {"epoch_9", "epoch_10", "best_model"}
    assert names(tmp_path) == {f"{n}{end}" for n in kept for end in (".pdparams", ".pdopt")}


def test_latest_brings_back_weights_momentum_rate_and_progress(tmp_path, dropout_net):
    net = dropout_net()
    optimizer, schedule = make_optimizer(net)
    for _ in range(3):
        train_step(net, optimizer, schedule)
    progress = Progress("qat", 1, 2, 3, 0.5, 0, {"fp32": {"top1": 0.25}}, 17, {"seed": 4})
    folder = CheckpointFolder(tmp_path)
    with paddle.utils.unique_name.guard():
        folder.save_latest(net, optimizer, progress)
    for _ in range(2):
        train_step(net, optimizer, schedule)

    again = dropout_net(seed=99)  # other weights, and other names within Paddle
    with paddle.utils.unique_name.guard():
        new_optimizer, new_schedule = make_optimizer(again)
        latest = load_latest(folder.latest_path)
        restore(latest, again, new_optimizer, new_schedule, latest.progress.steps)
        for _ in range(2):
            train_step(again, new_optimizer, new_schedule)
    assert latest.progress == progress
    assert new_schedule.get_lr() == schedule.get_lr()
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[key].numpy(), value.numpy())


def test_latest_is_also_a_checkpoint_of_the_network(tmp_path, dropout_net):
    net = dropout_net()
    optimizer, schedule = make_optimizer(net)
    train_step(net, optimizer, schedule)
    folder = CheckpointFolder(tmp_path)
    folder.save_latest(net, optimizer, Progress())
    assert set(load_network_state(folder.latest_path)) == set(net.state_dict())


def test_weights_alone_are_nothing_to_resume_from(tmp_path, dropout_net):
    save_weights(dropout_net(), tmp_path / "epoch_3.pdparams")
    with pytest.raises(EngineError, match=r"--resume: .*epoch_3\.pdparams holds weights only"):
        load_latest(tmp_path / "epoch_3.pdparams")


def test_a_cut_latest_is_refused_by_name(tmp_path, dropout_net):
    net = dropout_net()
    folder = CheckpointFolder(tmp_path)
    folder.save_latest(net, make_optimizer(net)[0], Progress())
    content = folder.latest_path.read_bytes()
    folder.latest_path.write_bytes(content[: len(content) // 2])
    with pytest.raises(EngineError, match=r"latest\.pdparams: cut"):
        load_latest(folder.latest_path)


@pytest.mark.parametrize(
    "name,value,allowed",
    [
        ("stage", "qta", "fp32 or qat"),
        ("epoch", "1", "a whole number from 0"),
        ("steps", -1, "a whole number from 0"),
        ("batch", True, "a whole number from 0"),
        ("best_top1", [0.5], "null or a number"),
        ("best_epoch", 0.5, "null or a whole number from 0"),
        ("fixed", [], "a table"),
        ("precision", {"loss_scale": "1"}, "a table of numbers"),
        ("window", [1.0], "no or four numbers"),
    ],
)
def test_a_record_of_progress_that_no_run_wrote_is_one_line(
    tmp_path, dropout_net, name, value, allowed
):
    net = dropout_net()
    folder = CheckpointFolder(tmp_path)
    progress = Progress()
    setattr(progress, name, value)
    folder.save_latest(net, make_optimizer(net)[0], progress)
    with pytest.raises(EngineError) as caught:
        load_latest(folder.latest_path)
    told = str(caught.value)
    assert f"{name} in its record of progress is {value!r}; allowed is {allowed}" in told
    assert "\n" not in told


def test_a_bit_that_a_disk_lost_does_not_go_unnoticed(tmp_path, dropout_net):
    net = dropout_net()
    folder = CheckpointFolder(tmp_path)
    folder.save_latest(net, make_optimizer(net)[0], Progress())
    load_latest(folder.latest_path)
    content = bytearray(folder.latest_path.read_bytes())
    at = content.index(net.body[5].weight.numpy().tobytes())
    content[at + 100] ^= 1
    folder.latest_path.write_bytes(content)
    with pytest.raises(EngineError, match=r"latest\.pdparams is damaged: its tensors"):
        load_latest(folder.latest_path)


def test_other_checkpoints_may_not(tmp_path, dropout_net, monkeypatch):
    save_weights(dropout_net(), tmp_path / "fp32_model.pdparams")
    monkeypatch.setattr("engine.checkpoint.MAX_BYTES", 100)
    with pytest.raises(EngineError, match=r"fp32_model\.pdparams: of \d+ bytes; allowed are 100"):
        load_network_state(tmp_path / "fp32_model.pdparams")


def test_latest_may_be_as_large_as_all_that_it_holds(tmp_path, dropout_net, monkeypatch):
    net = dropout_net()
    folder = CheckpointFolder(tmp_path)
    save_weights(net, folder.fp32_path)
    limit = int(1.2 * folder.fp32_path.stat().st_size)
    monkeypatch.setattr("engine.checkpoint.MAX_LATEST_BYTES", 3 * limit)
    monkeypatch.setattr("engine.weights.MAX_BYTES", limit)
    optimizer, schedule = make_optimizer(net)
    train_step(net, optimizer, schedule)
    folder.save_latest(net, optimizer, Progress(), average=net.state_dict())
    assert folder.latest_path.stat().st_size > 2 * limit
    assert load_latest(folder.latest_path).momentum


def test_what_was_restored_is_saved_though_no_step_was_made(tmp_path, dropout_net):
    """A run that was stopped before an evaluation saves again after it."""
    net = dropout_net()
    optimizer, schedule = make_optimizer(net)
    train_step(net, optimizer, schedule)
    folder = CheckpointFolder(tmp_path)
    folder.save_latest(net, optimizer, Progress(steps=1))
    before = load_latest(folder.latest_path)
    assert before.momentum
    again = dropout_net(seed=11)
    optimizer, schedule = make_optimizer(again)
    restore(before, again, optimizer, schedule, 1)
    folder.save_latest(again, optimizer, Progress(steps=1))
    after = load_latest(folder.latest_path)
    assert set(after.momentum) == set(before.momentum)
    for name, value in before.momentum.items():
        np.testing.assert_array_equal(after.momentum[name], value, err_msg=name)
    folder.save_epoch(0, again, optimizer)
    state = paddle.load(str(tmp_path / "epoch_0.pdopt"))
    assert sum("velocity" in key for key in state) == len(before.momentum)
