import numpy as np
import pytest

from engine import training
from engine.checkpoint import load_latest
from engine.errors import EngineError
from engine.training import Stage, Trainer
from quant import QAT


class Killed(Exception):
    pass


def stage_of(cfg, freeze=None):
    return Stage("qat", cfg.num_epochs, cfg.lr, cfg.lr_strategy, cfg.freeze_epoch, freeze)


def train(session, net, latest=None, quanter=None):
    session.progress.stage = "qat"
    freeze = None if quanter is None else quanter.freeze
    Trainer(session, stage_of(session.cfg, freeze)).run(net, latest)


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
    flags = {"num_epochs": 3, "lr_strategy": "cosine_decay", "freeze_epoch": 2}
    quanter = QAT({"activation_preprocess_type": "PACT"})

    def quantized():
        return quanter.quantize(dropout_net())

    whole = quantized()
    cfg = small_config(model_save_dir=str(tmp_path / "whole"), **flags)
    train(small_session(cfg), whole, quanter=quanter)

    monkeypatch.setattr(training, "STEPS_BETWEEN_SAVES", 2)
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
