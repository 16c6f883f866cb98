import json

import pytest

from engine.errors import EngineError
from engine.logging import RunLog, read_metrics


def test_records_are_lines_of_json(tmp_path):
    log = RunLog(tmp_path)
    log.record({"step": 1})
    log.record({"step": 2})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


def test_a_new_run_starts_an_empty_log(tmp_path):
    RunLog(tmp_path).record({"step": 1})
    assert RunLog(tmp_path).bytes_written() == 0


def test_what_came_after_the_checkpoint_is_cut_off(tmp_path):
    log = RunLog(tmp_path)
    log.record({"step": 1})
    kept = log.bytes_written()
    log.record({"step": 2})
    again = RunLog(tmp_path, keep_bytes=kept)
    again.record({"step": 3})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 3]


def test_piped_output_has_lines_and_no_bar(tmp_path, capsys):
    log = RunLog(tmp_path)
    assert list(log.progress([1, 2, 3], 3, "epoch")) == [1, 2, 3]
    log.line("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("hello\n", "")


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(EngineError, match=r"metrics\.jsonl: cannot be written"):
        RunLog(tmp_path)
