from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paddle.utils import download

from engine.errors import EngineError
from scripts import update_readme_table
from scripts.imagenet_table import END, READMES, START, collect, fill, table
from scripts.reproduce_check import missing as what_is_missing
from scripts.reproduce_rows import RESULTS, ROOT, ROWS, config_of, recipe_of

NAMES = [row.name for row in ROWS]
README = f"# Project\n\n{START}\nold\n{END}\n\nThe end.\n"
TRIAL = [
    "--", "--use_gpu=False", "--pretrained_model=none", "--image_size=32", "--batch_size=4",
    "--max_steps=2", "--num_workers=0", "--verify_images=8", "--calibration_batches=1",
]  # fmt: skip


def reproduce(*words: str, timeout: int = 120, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / "scripts/reproduce.sh"), *map(str, words)],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def missing(done: subprocess.CompletedProcess) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("missing: ")]


@pytest.fixture
def places(tmp_path) -> list[str]:
    """Options that keep everything in a folder of the test, with two READMEs in it."""
    for name in ("README.md", "README.zh-CN.md"):
        (tmp_path / name).write_text(README)
    return [
        f"--output_dir={tmp_path}/out",
        f"--results={tmp_path}/results/imagenet.json",
        f"--readme={tmp_path}/README.md",
        f"--readme={tmp_path}/README.zh-CN.md",
    ]


def finished(folder: Path, name: str, *flags: str, verified: bool = True) -> None:
    """What a finished run leaves, with figures of our own."""
    row = next(row for row in ROWS if row.name == name)
    folder.mkdir(parents=True)
    recipe = recipe_of(config_of(row, flags))
    run = {"recipe": recipe, "versions": {"paddle": "9.9"}, "git_commit": "c0ffee"}
    summary = {
        "fp32": {"top1": 0.7, "top5": 0.9},
        "qat": None,
        "int8": {"top1": 0.69125, "top5": 0.89},
        "num_images": 50000,
        "verified": verified,
        "verification": {"figures": 1},
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "launch.txt").write_text("4\n")


def test_without_gpu_images_and_weights_it_names_all_of_them_and_ends_with_2(tmp_path):
    done = reproduce(
        f"--data_dir={tmp_path}/nothing", f"--output_dir={tmp_path}/out", NAMES[1],
        CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert done.returncode == 2
    lines = missing(done)
    assert len(lines) == 3
    assert "GPU" in lines[0]
    assert f"{tmp_path}/nothing/train_list.txt" in lines[1] and "--data_dir" in lines[1]
    assert "MobileNetV3_large_x1_0_ssld_pretrained" in lines[2]
    assert done.stderr.splitlines()[-1].startswith("error: nothing was run")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_python_without_paddle_is_named_and_the_rest_too(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    done = reproduce(f"--data_dir={tmp_path}", PYTHON=str(python))
    assert done.returncode == 2
    assert any("has no Paddle" in line and str(python) in line for line in missing(done))
    assert any("train_list.txt" in line for line in missing(done))
    done = reproduce(PYTHON=str(tmp_path / "none"))
    assert done.returncode == 2 and "there is no" in done.stderr


def test_dry_run_prints_the_commands_and_runs_nothing(tmp_path):
    done = reproduce("--dry_run", "--output_dir", f"{tmp_path}/my out", "--", "--num_workers=8",
                     "--pretrained_model=none")  # fmt: skip
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == NAMES
    for name, line in zip(NAMES, lines):
        assert f"train.py --config configs/{name}.yaml --num_workers=8" in line
        assert rf"my\ out/{name}" in line and "--resume=auto" in line
    assert missing(done)
    assert not (tmp_path / "my out").exists()


@pytest.mark.parametrize(
    "gpus, visible, launcher",
    [
        (1, "3", ""),
        (2, "", " -m paddle.distributed.launch --gpus=0\\,1 --log_dir={out}/log"),
        (2, "5,7", " -m paddle.distributed.launch --gpus=5\\,7 --log_dir={out}/log"),
    ],
)
def test_several_gpus_are_used_by_the_launcher(gpus, visible, launcher, tmp_path):
    python = tmp_path / "python"  # says what a machine with that many GPUs would
    python.write_text(f'#!/bin/sh\n[ "$3" = -c ] || echo {gpus}\n')
    python.chmod(0o755)
    done = reproduce("--dry_run", f"--output_dir={tmp_path}/out", NAMES[0], PYTHON=str(python),
                     CUDA_VISIBLE_DEVICES=visible)  # fmt: skip
    out = f"{tmp_path}/out/{NAMES[0]}"
    assert done.returncode == 0
    assert done.stdout.startswith(f"{NAMES[0]}: {python}{launcher.format(out=out)} train.py")


@pytest.mark.parametrize(
    "words, parts",
    [
        (["mobilenet_v4"], ["mobilenet_v4", "did you mean mobilenet_v1"]),
        (["--max_steps=2"], ["--max_steps=2", "come after --"]),
        (["--data_dir"], ["--data_dir needs a value"]),
        (["--", "--max_stepz=2"], ["--max_stepz", "did you mean --max_steps"]),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(words, parts):
    done = reproduce(*words)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1
    assert all(part in errors[0] for part in parts)


def test_help_is_the_head_of_the_script():
    done = reproduce("--help")
    assert done.returncode == 0
    assert "--dry_run" in done.stdout and "set -euo" not in done.stdout


def test_flags_that_change_the_recipe_do_not_reach_the_published_table(tmp_path):
    done = reproduce(f"--output_dir={tmp_path}", *TRIAL)
    assert done.returncode == 2
    assert any("makes another recipe" in line and "--results" in line for line in missing(done))


def test_finished_rows_are_not_run_again_and_fill_both_tables(tmp_path, places):
    for name in NAMES:
        finished(tmp_path / "out" / name, name, "--seed=7")
    done = reproduce(*places, f"--data_dir={tmp_path}/nothing", "--", "--seed=7")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished already") == 2
    results = json.loads((tmp_path / "results" / "imagenet.json").read_text())
    assert list(results) == NAMES
    found = results["mobilenet_v1"]
    assert found["seed"] == 7 and found["processes"] == 4
    assert found["versions"] == {"paddle": "9.9"} and found["git_commit"] == "c0ffee"
    assert found["command"] == (
        "python -m paddle.distributed.launch --gpus=0,1,2,3 train.py "
        "--config configs/mobilenet_v1.yaml --seed=7"
    )
    assert "data_dir" not in found["recipe"] and found["recipe"]["lr"] == 1e-4
    assert str(tmp_path) not in json.dumps(results)
    english = (tmp_path / "README.md").read_text()
    chinese = (tmp_path / "README.zh-CN.md").read_text()
    for text in (english, chinese):
        assert text.startswith("# Project\n\n" + START) and text.endswith(END + "\n\nThe end.\n")
        assert text.count("| 70.00/90.00 | 69.12/89.00 |") == 2
        assert "old" not in text
    assert "50,000 images" in english and "50,000 张图" in chinese


def test_one_row_leaves_the_other_as_it_was(tmp_path, places):
    finished(tmp_path / "out" / NAMES[0], NAMES[0])
    done = reproduce(*places, NAMES[0])
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "README.md").read_text()
    assert text.count("not run") == 2 and text.count("70.00/90.00") == 1


def test_a_run_whose_file_is_not_the_network_gives_no_figures(tmp_path):
    finished(tmp_path / NAMES[0], NAMES[0], verified=False)
    (line,) = collect(tmp_path, tmp_path / "results.json", [NAMES[0]])
    assert line.startswith(f"{NAMES[0]} failed: the int8 file is not the network")
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("bad", [0, 1])
def test_a_row_that_failed_is_said_so_and_the_other_is_written(bad, tmp_path, places):
    for number, name in enumerate(NAMES):
        finished(tmp_path / "out" / name, name, verified=number != bad)
    done = reproduce(*places)
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: {NAMES[bad]} failed: the int8 file is not the network")
    results = json.loads((tmp_path / "results" / "imagenet.json").read_text())
    assert list(results) == [NAMES[1 - bad]]
    text = (tmp_path / "README.md").read_text()
    assert text.count("70.00/90.00") == 1 and text.count("not run") == 2


def trained_by(tmp_path: Path, code: int, summary: str | None) -> str:
    """A Python that is the real one, but in place of train.py leaves what a run would."""
    finished(tmp_path / "model", NAMES[0])
    lines = [
        "#!/bin/sh",
        f'case " $* " in *" train.py "*) ;; *) exec {sys.executable} "$@" ;; esac',
        "for word; do case $word in --model_save_dir=*) to=${word#*=} ;; esac; done",
        f'cp {tmp_path}/model/run.json "$to"',
    ]
    if summary is not None:
        lines.append(f"echo '{summary}' >\"$to/summary.json\"")
    python = tmp_path / "python"
    python.write_text("\n".join([*lines, f"exit {code}"]) + "\n")
    python.chmod(0o755)
    return str(python)


NEEDS_NOTHING = ["--", "--use_gpu=False", "--pretrained_model=none", "--lr=0.0001"]


def test_the_next_row_is_trained_after_one_that_failed_its_check(tmp_path, places, imagenet_folder):
    python = trained_by(tmp_path, 1, '{"verified": false}')
    words = [*places, f"--data_dir={imagenet_folder}", *NEEDS_NOTHING]
    done = reproduce(*words, PYTHON=python)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and all("not the network" in line for line in errors)
    assert [name for name in NAMES if f"{name}: " in done.stdout] == NAMES


@pytest.mark.parametrize("code,summary", [(1, None), (130, '{"verified": true}')])
def test_any_other_failure_ends_the_script(code, summary, tmp_path, places, imagenet_folder):
    python = trained_by(tmp_path, code, summary)
    done = reproduce(*places, f"--data_dir={imagenet_folder}", *NEEDS_NOTHING, PYTHON=python)
    assert done.returncode == 1
    assert f"{NAMES[0]} ended with code {code}" in done.stderr
    assert f"{NAMES[1]}: " not in done.stdout


@pytest.mark.parametrize("text", [None, "# nothing\n"])
def test_a_readme_without_the_marks_is_told_before_training(
    text, tmp_path, places, imagenet_folder
):
    readme = tmp_path / "README.md"
    readme.unlink() if text is None else readme.write_text(text)
    python = trained_by(tmp_path, 0, '{"verified": true}')
    done = reproduce(*places, f"--data_dir={imagenet_folder}", *NEEDS_NOTHING, PYTHON=python)
    assert done.returncode == 2
    (line,) = missing(done)
    assert line.startswith(f"missing: marks of the table: {readme}: ")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_only_looks_whether_the_weights_are_there(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("downloads")

    monkeypatch.setattr(download, "get_weights_path_from_url", refuse)
    monkeypatch.setattr(download, "WEIGHTS_HOME", str(tmp_path))
    rows, flags = [ROWS[0]], ["--use_gpu=False", "--data=fashion_mnist"]
    problems, _ = what_is_missing(rows, flags, tmp_path, tmp_path / "x.json", dry_run=True)
    (line,) = problems
    assert line.startswith(f"weights of mobilenet_v1: {tmp_path}/") and "downloads them" in line
    (tmp_path / line.split("; ")[0].rpartition("/")[2]).write_text("")
    assert what_is_missing(rows, flags, tmp_path, tmp_path / "x.json", dry_run=True) == ([], 0)
    with pytest.raises(AssertionError, match="downloads"):
        what_is_missing(rows, flags, tmp_path, tmp_path / "x.json")


def test_no_path_of_the_machine_reaches_the_results(tmp_path):
    secret = tmp_path / "secret"
    flags = [
        f"--data_dir={secret}/data", f"--pretrained_model={secret}/w.pdparams",
        f"--resume={secret}/latest", f"--model_save_dir={secret}/out", "--step_epochs=1,2",
        "--num_workers=3",
    ]  # fmt: skip
    finished(tmp_path / NAMES[0], NAMES[0], *flags)
    assert collect(tmp_path, tmp_path / "results.json", [NAMES[0]]) == []
    text = (tmp_path / "results.json").read_text()
    assert "secret" not in text and str(tmp_path) not in text
    found = json.loads(text)[NAMES[0]]
    assert found["recipe"]["pretrained_model"] == "w.pdparams"
    assert found["command"].endswith(
        "train.py --config configs/mobilenet_v1.yaml --num_workers=3 "
        "--pretrained_model=w.pdparams --step_epochs=1,2"
    )
    # The command has the recipe of the run, but for where things lie.
    words = found["command"].split("train.py --config configs/mobilenet_v1.yaml ")[1].split()
    again, once = (recipe_of(config_of(ROWS[0], given)) for given in (words, flags))
    assert {**again, "pretrained_model": 0} == {**once, "pretrained_model": 0} | {
        name: again[name] for name in ("data_dir", "resume", "model_save_dir")
    }


def test_both_tables_are_written_by_the_same_function(tmp_path, monkeypatch):
    for name in update_readme_table.TEXTS:
        (tmp_path / name).write_text("a\n<!-- demo -->\nold\n<!-- /demo -->\nb\n")
    monkeypatch.setattr(update_readme_table, "ROOT", tmp_path)
    assert update_readme_table.main() == 0
    for name in update_readme_table.TEXTS:
        text = (tmp_path / name).read_text()
        assert text.startswith("a\n<!-- demo -->\n|") and text.endswith("<!-- /demo -->\nb\n")
        # What a table says here is what the README of the project says.
        assert text.split("<!-- demo -->")[1].split("<!-- /demo -->")[0] in (ROOT / name).read_text(
            encoding="utf-8"
        )
    (tmp_path / "README.md").write_text("no marks")
    assert update_readme_table.main() == 2
    assert (tmp_path / "README.md").read_text() == "no marks"


def test_a_run_that_is_not_finished_gives_no_figures(tmp_path):
    with pytest.raises(EngineError, match="no finished run"):
        collect(tmp_path, tmp_path / "results.json", [NAMES[0]])


def test_a_folder_of_another_recipe_is_not_taken_for_this_one(tmp_path):
    finished(tmp_path / NAMES[0], NAMES[0], "--lr=0.5")
    problems, _ = what_is_missing([ROWS[0]], [], tmp_path, RESULTS)
    assert len(problems) == 1 and "another lr (0.5, wanted is 0.0001)" in problems[0]
    assert what_is_missing([ROWS[0]], ["--lr=0.5"], tmp_path, tmp_path / "x.json") == ([], 0)


@pytest.mark.parametrize("text", ["# nothing\n", END + START, README + README])
def test_a_readme_without_the_marks_is_refused_and_stays(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(EngineError, match="README.md: wanted are the marks"):
        fill(path, "en", {})
    assert path.read_text() == text


def test_the_readmes_show_what_the_results_hold():
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for language, readme in READMES.items():
        text = readme.read_text(encoding="utf-8")
        assert text.split(START)[1].split(END)[0] == f"\n{table(rows, language)}\n"


def test_filling_twice_changes_nothing(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(README)
    fill(path, "en", {})
    once = path.read_text()
    fill(path, "en", {})
    assert path.read_text() == once and "not run" in once


@pytest.mark.slow
def test_the_whole_path_on_a_small_folder_and_a_second_run_that_skips_it(
    imagenet_folder, tmp_path, places
):
    words = [*places, f"--data_dir={imagenet_folder}", NAMES[0], *TRIAL]
    done = reproduce(*words, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "results" / "imagenet.json").read_text())
    summary = json.loads((tmp_path / "out" / NAMES[0] / "summary.json").read_text())
    assert results[NAMES[0]]["summary"]["int8"] == summary["int8"]
    command = results[NAMES[0]]["command"]
    assert command.startswith("python train.py --config configs/mobilenet_v1.yaml --")
    flags = command.split()[4:]
    assert set(flags) == set(TRIAL[1:])
    assert str(tmp_path) not in json.dumps(results)
    percent = "{:.2f}/{:.2f}".format(*(100 * summary["int8"][k] for k in ("top1", "top5")))
    text = (tmp_path / "README.md").read_text()
    assert f"| {percent} |" in text and "12 images" in text
    written = (tmp_path / "out" / NAMES[0] / "summary.json").stat().st_mtime_ns
    again = reproduce(*words)
    assert again.returncode == 0 and "finished already" in again.stdout
    assert (tmp_path / "out" / NAMES[0] / "summary.json").stat().st_mtime_ns == written
    assert (tmp_path / "README.md").read_text() == text


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on(imagenet_folder, tmp_path, places):
    words = [*places, f"--data_dir={imagenet_folder}", NAMES[0], *TRIAL]
    assert reproduce(*words, timeout=500).returncode == 0
    # As if it had been stopped after its last checkpoint and before the int8 file.
    (tmp_path / "out" / NAMES[0] / "summary.json").unlink()
    done = reproduce(*words, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on from" in done.stdout
