import numpy as np
import paddle
import pytest
from paddle import nn

from engine import training
from engine.checkpoint import load_latest
from engine.errors import EngineError
from engine.training import Stage, Trainer
from engine.weights import load_weights
from quant import QAT
from quant.pact import SMALLEST_ALPHA


class Killed(Exception):
    pass


def stage_of(cfg, freeze=None, teacher=None):
    return Stage("qat", cfg.num_epochs, cfg.lr, cfg.lr_strategy, cfg.freeze_epoch, freeze, teacher)


def train(session, net, latest=None, quanter=None, teacher=None):
    session.progress.stage = "qat"
    freeze = None if quanter is None else quanter.freeze
    Trainer(session, stage_of(session.cfg, freeze, teacher)).run(net, latest)


def losses(rows, split="train"):
    return [row["loss"] for row in rows if row["split"] == split]


class ConvNet(nn.Layer):
    """Without BatchNorm or dropout, so that a large batch is the sum of its parts."""

    def __init__(self) -> None:
        super().__init__()
        paddle.seed(5)
        self.body = nn.Sequential(
            nn.Conv2D(1, 4, 5, stride=4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10)
        )

    def forward(self, x):
        return self.body(x)


def assert_same_network(a, b):
    for key, value in a.state_dict().items():
        np.testing.assert_array_equal(b.state_dict()[key].numpy(), value.numpy(), err_msg=key)


def killed_after(monkeypatch, steps):
    """Let training die before the step that follows so many."""
    seed = training.seed_everything
    count = 0

    def counting(*parts):
        nonlocal count
        count += 1
        if count > steps:
            raise Killed
        seed(*parts)

    monkeypatch.setattr(training, "seed_everything", counting)


@pytest.mark.parametrize("killed_at", [2, 3, 4, 7])  # an epoch has three steps
def test_a_killed_run_goes_on_to_the_very_same_weights(
    killed_at, tmp_path, monkeypatch, small_config, small_session, dropout_net, read_rows
):
    flags = {"num_epochs": 3, "lr_strategy": "cosine_decay", "freeze_epoch": 2, "save_steps": 2}
    quanter = QAT({"activation_preprocess_type": "PACT"})

    def quantized():
        return quanter.quantize(dropout_net())

    whole = quantized()
    cfg = small_config(model_save_dir=str(tmp_path / "whole"), **flags)
    train(small_session(cfg), whole, quanter=quanter)

    cfg = small_config(model_save_dir=str(tmp_path / "cut"), **flags)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, killed_at)
        train(small_session(cfg), quantized(), quanter=quanter)
    latest = load_latest(tmp_path / "cut" / "latest.pdparams")
    assert latest.progress.steps in (killed_at, killed_at - 1)
    resumed = quantized()
    train(small_session(cfg, latest.progress), resumed, latest, quanter)

    assert_same_network(whole, resumed)
    measured = ("epoch", "step", "split", "loss", "top1", "top5", "lr")
    logs = [
        [[row[key] for key in measured] for row in read_rows(tmp_path / run)]
        for run in ("whole", "cut")
    ]
    assert logs[0] == logs[1]


def test_max_steps_stops_within_an_epoch_and_still_evaluates_and_saves(
    tmp_path, small_config, small_session, dropout_net, read_rows
):
    session = small_session(small_config(max_steps=2))
    train(session, dropout_net())
    assert session.progress.steps == 2
    assert [row["split"] for row in read_rows(tmp_path)] == ["train", "val"]
    assert (tmp_path / "best_model.pdparams").exists()


def test_more_max_steps_go_on_within_the_epoch(tmp_path, small_config, small_session, dropout_net):
    whole = dropout_net()
    train(small_session(small_config(max_steps=5, num_epochs=2)), whole)
    cut = tmp_path / "cut"
    train(
        small_session(small_config(max_steps=2, num_epochs=2, model_save_dir=str(cut))),
        dropout_net(),
    )
    latest = load_latest(cut / "latest.pdparams")
    resumed = dropout_net(seed=11)
    cfg = small_config(max_steps=5, num_epochs=2, model_save_dir=str(cut))
    train(small_session(cfg, latest.progress), resumed, latest)
    assert_same_network(whole, resumed)


def test_every_log_line_has_what_the_readers_of_metrics_expect(
    tmp_path, small_config, small_session, dropout_net, read_rows
):
    train(small_session(small_config()), dropout_net())
    rows = read_rows(tmp_path)
    assert [(row["split"], row["step"]) for row in rows] == [
        ("train", 2),
        ("train", 3),
        ("val", 3),
    ]
    for row in rows:
        assert {"epoch", "loss", "top1", "top5", "lr", "images_per_second"} <= set(row)
        assert 0 <= row["top1"] <= row["top5"] <= 1
    assert rows[0]["lr"] == 0.05


def test_frozen_statistics_stand_still_while_weights_learn(
    tmp_path, small_config, small_session, dropout_net
):
    quanter = QAT()
    net = quanter.quantize(dropout_net())
    train(small_session(small_config(num_epochs=1)), net, quanter=quanter)
    before = {key: value.numpy() for key, value in net.state_dict().items()}
    cfg = small_config(num_epochs=1, freeze_epoch=0, model_save_dir=str(tmp_path / "b"))
    train(small_session(cfg), net, quanter=quanter)
    moved = [
        key
        for key, value in net.state_dict().items()
        if not np.array_equal(value.numpy(), before[key])
    ]
    assert {"body.0.weight", "body.1.weight", "body.5.weight"} <= set(moved)
    assert not [key for key in moved if "_mean" in key or "_variance" in key or "_quant" in key]


def test_the_best_epoch_is_the_one_with_the_highest_top1(
    tmp_path, monkeypatch, small_config, small_session, dropout_net
):
    top1 = iter([0.2, 0.6, 0.6, 0.4])
    evaluate = training.evaluate_network

    def scripted(net, batches):
        found = evaluate(net, batches)
        found.metrics.top1 = next(top1)
        return found

    monkeypatch.setattr(training, "evaluate_network", scripted)
    session = small_session(small_config(num_epochs=4))
    train(session, dropout_net())
    assert session.progress.best_epoch == 1
    best = (tmp_path / "best_model.pdparams").read_bytes()
    assert best == (tmp_path / "epoch_1.pdparams").read_bytes()


def test_a_loss_that_is_no_number_ends_the_run_in_one_line(
    small_config, small_session, dropout_net
):
    with pytest.raises(EngineError, match=r"the loss is (nan|inf) at step \d+ .*--lr"):
        train(small_session(small_config(lr=1e30)), dropout_net())


@pytest.mark.parametrize("killed_at", [4, 7, 8, 11])  # an epoch has twelve steps
def test_a_killed_run_logs_the_same_losses_though_a_save_came_between_two_lines(
    killed_at, tmp_path, monkeypatch, small_config, small_session, dropout_net, read_rows
):
    flags = {"batch_size": 8, "log_period": 5, "save_steps": 3}
    train(
        small_session(small_config(model_save_dir=str(tmp_path / "whole"), **flags)), dropout_net()
    )
    cfg = small_config(model_save_dir=str(tmp_path / "cut"), **flags)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, killed_at)
        train(small_session(cfg), dropout_net())
    latest = load_latest(tmp_path / "cut" / "latest.pdparams")
    assert latest.progress.steps == killed_at // 3 * 3
    train(small_session(cfg, latest.progress), dropout_net(seed=11), latest)
    rows = [
        [
            [row[key] for key in ("step", "split", "loss", "top1", "top5")]
            for row in read_rows(tmp_path / run)
        ]
        for run in ("whole", "cut")
    ]
    assert [row[0] for row in rows[0]] == [5, 10, 12, 12]
    assert rows[0] == rows[1]


def test_latest_never_holds_weights_that_are_no_numbers(
    tmp_path, small_config, small_session, dropout_net
):
    """The loss of the first step is finite, the weights after it are not."""
    cfg = small_config(save_steps=1, log_period=100)
    net = dropout_net()
    session = small_session(cfg)
    step = training.TrainStep.finish

    def spoiling(self, steps):
        lr = step(self, steps)
        if steps == 1:
            net.body[5].bias.set_value(np.full(10, np.nan, np.float32))
        return lr

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.TrainStep, "finish", spoiling)
        with pytest.raises(EngineError, match=r"body\.5\.bias is not finite after step 2 .*--lr"):
            train(session, net)
    latest = load_latest(tmp_path / "latest.pdparams")
    assert latest.progress.steps == 1
    assert all(np.isfinite(value).all() for value in latest.weights.values())
    assert not (tmp_path / "epoch_0.pdparams").exists()


def test_an_alpha_past_zero_is_floored_in_checkpoints_and_averages(
    tmp_path, small_config, small_session, dropout_net
):
    quanter = QAT({"activation_preprocess_type": "PACT"})
    net = quanter.quantize(dropout_net())
    pact = net.body[0]._act_quant.preprocess
    step = training.TrainStep.add

    def pushing(self, images, labels, part):
        found = step(self, images, labels, part)
        pact.alpha.grad.set_value(np.array([1e6], np.float32))  # far below zero in one step
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.TrainStep, "add", pushing)
        train(small_session(small_config(ema_decay=0.5)), net, quanter=quanter)
    latest = load_latest(tmp_path / "latest.pdparams")
    name = next(key for key, value in net.state_dict().items() if value is pact.alpha)
    assert latest.weights[name].item() == np.float32(SMALLEST_ALPHA)
    assert latest.average[name].item() >= np.float32(SMALLEST_ALPHA)


EVERYTHING = {
    "num_epochs": 3,
    "lr_strategy": "cosine_decay",
    "warmup_epochs": 1.5,
    "accumulate_steps": 4,
    "ema_decay": 0.8,
    "freeze_epoch": 2,
    "ls_epsilon": 0.1,
    "batch_size": 16,  # six batches and two steps an epoch
    "save_steps": 1,
    "log_period": 1,
}


@pytest.mark.parametrize(
    "killed_at", [5, 9, 10, 12, 15]
)  # batches; the third and last within a step
def test_with_everything_on_a_killed_run_goes_on_to_the_very_same_weights(
    killed_at, tmp_path, monkeypatch, small_config, small_session, dropout_net, read_rows
):
    quanter = QAT({"activation_preprocess_type": "PACT", "pact_init": "calibrated"})
    images = np.random.default_rng(0).normal(size=(2, 8, 1, 28, 28)).astype(np.float32)

    def quantized():
        net = quanter.quantize(dropout_net())
        quanter.calibrate(net, list(images))
        return net

    flags = {**EVERYTHING, "distill": True, "fp32_epochs": 2}
    whole = quantized()
    cfg = small_config(model_save_dir=str(tmp_path / "whole"), **flags)
    train(small_session(cfg), whole, None, quanter, dropout_net(seed=8))

    cfg = small_config(model_save_dir=str(tmp_path / "cut"), **flags)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(patch, killed_at)
        train(small_session(cfg), quantized(), None, quanter, dropout_net(seed=8))
    latest = load_latest(tmp_path / "cut" / "latest.pdparams")
    assert 1 <= latest.progress.steps <= 5 and latest.progress.batch in (0, 4)
    resumed = quanter.quantize(dropout_net(seed=77))
    session = small_session(cfg, latest.progress)
    train(session, resumed, latest, quanter, dropout_net(seed=8))

    assert_same_network(whole, resumed)
    for file in ("best_model.pdparams", "epoch_2.pdparams", "latest.pdparams"):
        a, b = (load_weights(tmp_path / run / file) for run in ("whole", "cut"))
        assert set(a) == set(b)
        for key in set(a) - {"train_state/progress"}:  # which holds the length of a log with times
            np.testing.assert_array_equal(a[key], b[key], err_msg=f"{file} {key}")
    measured = ("epoch", "step", "split", "loss", "top1", "top5", "lr")
    logs = [
        [[row[key] for key in measured] for row in read_rows(tmp_path / run)]
        for run in ("whole", "cut")
    ]
    assert logs[0] == logs[1]


def test_accumulated_batches_train_like_one_large_batch(
    tmp_path, small_config, small_session, read_rows
):
    """With 96 images in 3 or 5 batches; the last step has fewer, and its last batch is short."""
    nets = {}
    for name, size, parts in (("large", 64, 1), ("small", 32, 2), ("odd", 20, 3), ("whole", 60, 1)):
        folder = str(tmp_path / name)
        cfg = small_config(
            model_save_dir=folder,
            batch_size=size,
            accumulate_steps=parts,
            num_epochs=3,
            log_period=1,
            lr_strategy="cosine_decay",
            warmup_epochs=0.5,
        )
        nets[name] = ConvNet()
        train(small_session(cfg), nets[name])
    for small, large in (("small", "large"), ("odd", "whole")):
        rows = [read_rows(tmp_path / name) for name in (small, large)]
        assert [row["step"] for row in rows[0]] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
        assert [row["lr"] for row in rows[0]] == [row["lr"] for row in rows[1]]
        np.testing.assert_allclose(losses(rows[0]), losses(rows[1]), rtol=1e-5)
        np.testing.assert_allclose(losses(rows[0], "val"), losses(rows[1], "val"), rtol=1e-5)
        for key, value in nets[large].state_dict().items():
            found = nets[small].state_dict()[key].numpy()
            np.testing.assert_allclose(found, value.numpy(), rtol=1e-4, atol=1e-6, err_msg=key)


def test_max_steps_and_the_saves_count_steps_of_the_optimizer(
    tmp_path, small_config, small_session, dropout_net, read_rows
):
    cfg = small_config(batch_size=16, accumulate_steps=2, max_steps=2, save_steps=1, log_period=1)
    session = small_session(cfg)
    train(session, dropout_net())
    assert (session.progress.steps, session.progress.batch) == (2, 4)
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2, 2]


def test_the_average_is_evaluated_and_saved_and_latest_has_both(
    tmp_path, monkeypatch, small_config, small_session, dropout_net
):
    evaluated = []
    evaluate = training.evaluate_network

    def recording(net, batches):
        evaluated.append({key: value.numpy() for key, value in net.state_dict().items()})
        return evaluate(net, batches)

    monkeypatch.setattr(training, "evaluate_network", recording)
    net = dropout_net()
    train(small_session(small_config(ema_decay=0.9, num_epochs=2)), net)
    epoch = load_weights(tmp_path / "epoch_1.pdparams")
    latest = load_latest(tmp_path / "latest.pdparams")
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(epoch[key], evaluated[1][key], err_msg=key)
        np.testing.assert_array_equal(latest.average[key], evaluated[1][key], err_msg=key)
        np.testing.assert_array_equal(latest.weights[key], value.numpy(), err_msg=key)
        assert not np.array_equal(latest.weights[key], latest.average[key]), key


def test_a_teacher_pulls_the_outputs_towards_its_own(
    small_config, small_session, tmp_path, read_rows
):
    """With all the weight on it, the student comes to agree with it, whatever the labels are."""
    paddle.seed(1)
    teacher = ConvNet()
    for parameter in teacher.parameters():
        parameter.set_value(paddle.randn(parameter.shape) * 0.3)
    cfg = small_config(
        distill=True, distill_weight=1.0, fp32_epochs=1, num_epochs=9, batch_size=16, lr=0.05
    )
    session = small_session(cfg)
    student = ConvNet()
    images = paddle.to_tensor(np.stack([session.val_data[i][0] for i in range(40)]))

    def agreement():
        return (student(images).argmax(1) == teacher(images).argmax(1)).numpy().mean()

    before = agreement()
    train(session, student, teacher=teacher)
    found = losses(read_rows(tmp_path))
    assert found[-1] < 0.25 * found[0]
    assert before < 0.3 and agreement() > 0.5
