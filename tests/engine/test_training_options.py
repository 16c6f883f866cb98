"""The options of training as train.py's job uses them, with a small network that has BatchNorm."""

from __future__ import annotations

import json

import numpy as np
import paddle
import pytest

from engine import resume, trainer
from engine.config import TrainConfig
from engine.errors import EngineError
from engine.loading import load_network
from engine.task import Task
from engine.trainer import Job
from engine.weights import load_weights


@pytest.fixture
def job(tmp_path, monkeypatch, dropout_net):
    """Makes a short job; each network that it builds starts from other weights."""

    def make(folder="out", **flags):
        seeds = iter(range(3, 100))
        monkeypatch.setattr(Task, "build_network", lambda task: dropout_net(next(seeds)))
        values = {
            "model": "lenet",
            "data": "fashion_mnist",
            "fp32_epochs": 1,
            "use_gpu": False,
            "num_workers": 0,
            "batch_size": 32,
            "eval_batch_size": 500,
            "lr": 0.01,
            "max_steps": 4,
            "verify_images": 32,
            "model_save_dir": str(tmp_path / folder),
        }
        found = Job(TrainConfig(**{**values, **flags}))
        val_data = found.session.val_data
        val_data.images, val_data.labels = val_data.images[:64], val_data.labels[:64]
        return found

    return make


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_statistics_measured_anew_are_in_the_checkpoint_and_in_the_summary(
    job, tmp_path, monkeypatch, capsys
):
    top1 = iter([0.25, 0.25])  # of the best network before and after
    evaluate = Job._evaluate

    def scripted(self, net):
        found = evaluate(self, net)
        if self.progress.stage == "qat":
            found.metrics.top1 = next(top1)
        return found

    monkeypatch.setattr(Job, "_evaluate", scripted)
    assert job(reestimate_bn_batches=5).run() == 0
    folder = tmp_path / "out"
    assert summary_of(folder)["reestimated_bn"] == {
        "batches": 5,
        "top1_before": 0.25,
        "top1_after": 0.25,
        "kept": True,
    }
    assert "BatchNorm statistics of 5 batches: top1 0.2500, before 0.2500; kept" in (
        capsys.readouterr().out
    )
    best, epoch = (load_weights(folder / f"{n}.pdparams") for n in ("best_model", "epoch_0"))
    changed = {name for name in best if not np.array_equal(best[name], epoch[name])}
    assert changed == {"body.1._mean", "body.1._variance"}


def test_statistics_that_lower_top1_are_not_kept(job, tmp_path, monkeypatch):
    def spoil(net, batches):
        net.body[1]._mean.set_value(np.full(4, 1e3, np.float32))
        net.body[1]._variance.set_value(np.full(4, 1e-3, np.float32))
        return len(list(batches))

    monkeypatch.setattr(trainer, "reestimate", spoil)
    assert job(reestimate_bn_batches=3, max_steps=30).run() == 0
    folder = tmp_path / "out"
    summary = summary_of(folder)
    found = summary["reestimated_bn"]
    assert found["kept"] is False and found["top1_after"] < found["top1_before"]
    assert summary["qat"]["top1"] == found["top1_before"]
    assert abs(summary["int8"]["top1"] - found["top1_before"]) < 0.05
    best, epoch = (load_weights(folder / f"{n}.pdparams") for n in ("best_model", "epoch_0"))
    for name in best:
        np.testing.assert_array_equal(best[name], epoch[name])


def test_going_on_from_a_finished_run_measures_the_same_network_anew(job, tmp_path):
    assert job(reestimate_bn_batches=3).run() == 0
    before = summary_of(tmp_path / "out")["reestimated_bn"]
    weights = load_weights(tmp_path / "out" / "best_model.pdparams")
    assert job(reestimate_bn_batches=3, resume="auto").run() == 0
    assert summary_of(tmp_path / "out")["reestimated_bn"] == before
    again = load_weights(tmp_path / "out" / "best_model.pdparams")
    assert all(np.array_equal(again[name], value) for name, value in weights.items())


@pytest.mark.parametrize(
    "flags,told", [({}, "4 of --max_steps 4"), ({"num_epochs": 1, "max_steps": 500}, "1 of --num")]
)
def test_flags_that_train_nothing_any_more_are_not_recorded(flags, told, job, tmp_path, capsys):
    assert job(**flags).run() == 0
    run = (tmp_path / "out" / "run.json").read_text()
    capsys.readouterr()
    assert job(resume="auto", lr=0.5, **flags).run() == 0
    assert (tmp_path / "out" / "run.json").read_text() == run
    out = capsys.readouterr().out
    assert f"{told}" in out and "nothing is left to train" in out
    assert job(resume="auto", lr=0.25, **flags).progress.flags["lr"] == 0.01


def test_going_on_with_more_steps_records_the_new_flags(job, tmp_path):
    assert job().run() == 0
    assert job(resume="auto", lr=0.005, max_steps=6).run() == 0
    recipe = json.loads((tmp_path / "out" / "run.json").read_text())["recipe"]
    assert (recipe["lr"], recipe["max_steps"]) == (0.005, 6)


def test_another_quantization_is_refused_by_the_key_that_differs(job):
    assert job().run() == 0
    with pytest.raises(EngineError) as caught:
        job(resume="auto", weight_bits=4)
    assert "quantization.weight_bits is 4, but the run began with 8" in str(caught.value)
    assert "activation_bits" not in str(caught.value)


def test_another_arithmetic_on_another_device_cannot_go_on(job, monkeypatch, tmp_path):
    assert job(amp=True).run() == 0
    log = (tmp_path / "out" / "metrics.jsonl").read_text()
    monkeypatch.setattr(resume, "usable_dtype", lambda *_: ("float16", None))
    with pytest.raises(
        EngineError, match="arithmetic of the forward pass is float16, .* began with float32"
    ):
        job(amp=True, resume="auto")
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == log


def test_a_flag_that_is_newer_than_the_run_had_its_default(job, monkeypatch):
    old = [name for name in resume.FIXED_FLAGS if name not in ("warmup_epochs", "ema_decay")]
    with monkeypatch.context() as patch:
        patch.setattr(resume, "FIXED_FLAGS", tuple(old))
        assert job().run() == 0
    job(resume="auto")
    with pytest.raises(EngineError, match=r"ema_decay is 0\.5, but the run began with 0\.0"):
        job(resume="auto", ema_decay=0.5)


def test_a_run_from_before_antialias_resized_without(job, monkeypatch):
    settings_now = resume._fixed_settings

    def settings_then(*arguments):
        found = settings_now(*arguments)
        del found["input"]["antialias"]
        return found

    with monkeypatch.context() as patch:
        patch.setattr(resume, "_fixed_settings", settings_then)
        assert job().run() == 0
    job(resume="auto")
    with pytest.raises(
        EngineError, match=r"input\.antialias is True, but the run began with False"
    ):
        job(resume="auto", antialias=True)


def test_the_log_names_the_flags_that_changed(job, capsys):
    assert job().run() == 0
    capsys.readouterr()
    job(resume="auto", lr=0.002)
    assert "other flags than before: --lr 0.01 -> 0.002\n" in capsys.readouterr().out
    job(resume="auto")
    assert "other flags" not in capsys.readouterr().out


def test_without_the_flag_nothing_is_measured_anew(job, tmp_path):
    assert job().run() == 0
    assert summary_of(tmp_path / "out")["reestimated_bn"] is None


def test_the_teacher_is_the_float_network_and_teaches_the_quantized_stage_alone(
    job, tmp_path, monkeypatch
):
    seen = []
    train = trainer.Trainer.run

    def recording(self, net, latest):
        seen.append((self.stage.name, self.stage.teacher))
        train(self, net, latest)

    monkeypatch.setattr(trainer.Trainer, "run", recording)
    assert job(distill=True, distill_weight=1.0).run() == 0
    assert [name for name, _ in seen] == ["fp32", "qat"]
    assert seen[0][1] is None
    teacher = seen[1][1]
    assert not teacher.training and all(p.stop_gradient for p in teacher.parameters())
    float_weights = load_weights(tmp_path / "out" / "fp32_model.pdparams")
    for name, value in teacher.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), float_weights[name], err_msg=name)


def test_distillation_needs_a_float_network_that_knows_something():
    with pytest.raises(EngineError, match="--distill learns from the float network"):
        TrainConfig(model="lenet", distill=True, pretrained_model="none")
    TrainConfig(model="lenet", distill=True, pretrained_model="none", fp32_epochs=1)
    TrainConfig(model="lenet", distill=True, pretrained_model="some.pdparams")


@pytest.mark.parametrize(
    "flags,told",
    [
        ({"num_epochs": 2, "warmup_epochs": 2}, "less than --num_epochs, which is 2"),
        (
            {"num_epochs": 9, "fp32_epochs": 1, "warmup_epochs": 1.5},
            "less than --fp32_epochs, which is 1",
        ),
    ],
)
def test_a_warm_up_ends_within_its_stage(flags, told):
    with pytest.raises(EngineError, match=rf"--warmup_epochs is .* {told}"):
        TrainConfig(model="lenet", **flags)


def test_averaged_weights_are_what_is_exported(job, tmp_path):
    made = job(ema_decay=0.99, max_steps=20)
    assert made.run() == 0
    folder = tmp_path / "out"
    net, _ = load_network(made.session.task, folder / "best_model.pdparams")
    latest = load_weights(folder / "latest.pdparams")
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), latest[f"train_state/average/{name}"])
        copied = "_act_quant" in name  # the scales of activations
        assert np.array_equal(value.numpy(), latest[name]) == copied
    data = made.session.val_data
    images, labels = (np.stack(x) for x in zip(*[data[i] for i in range(len(data))]))
    net.eval()
    chosen = net(paddle.to_tensor(images)).argmax(1).numpy()
    summary = summary_of(folder)
    assert summary["qat"]["top1"] == pytest.approx((chosen == labels.ravel()).mean())
    assert summary["verified"] is True


def test_mixed_precision_without_a_gpu_is_one_warning_and_the_same_run(job, tmp_path, capsys):
    assert job("plain").run() == 0
    capsys.readouterr()
    assert job("amp", amp=True).run() == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "--amp" in line]
    assert len(warnings) == 1 and warnings[0].startswith("warning: ")
    a, b = (load_weights(tmp_path / run / "best_model.pdparams") for run in ("plain", "amp"))
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_nothing_but_training_runs_in_mixed_precision(job, monkeypatch):
    """The context is entered once a batch of training, also for the teacher, and never else."""
    from engine import precision, step

    entered, added = [], []

    class Recording(precision.Precision):
        def autocast(self):
            entered.append(1)
            return super().autocast()

    add = step.TrainStep.add

    def recording_add(self, *words):
        before = len(entered)
        result = add(self, *words)
        added.append(len(entered) - before)
        return result

    monkeypatch.setattr(step.TrainStep, "add", recording_add)
    monkeypatch.setattr("engine.training.build_precision", lambda dtype: Recording())
    assert job(distill=True, reestimate_bn_batches=2).run() == 0
    assert added == [1] * 4 + [2] * 4  # float steps, then quantized ones with the teacher
    assert len(entered) == sum(added)
