"""Any trainer's log is read as the numbers that it holds, or refused in one line; nothing between."""

from __future__ import annotations

import csv
import io
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkcast.training.errors import TrainingError
from chunkcast.training.health.judge import judge
from chunkcast.training.health.loss_curve import (
    MAX_BYTES,
    MAX_EPOCHS,
    EpochLosses,
    curve_of_records,
    read_curve,
)
from chunkcast.training.health.whole_run import read_run
from chunkcast.training.history import read_history

NAN = float("nan")


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def numbers(curve: Sequence[EpochLosses]) -> list[tuple[int, float, float | None]]:
    return [(epoch.epoch, epoch.train_loss, epoch.validation_loss) for epoch in curve]


def losses(file: Path) -> list[tuple[int, float, float | None]]:
    return numbers(read_curve(file))


def refusal(file: Path) -> str:
    """The message with which ``file`` is refused: one line that names it and says what was expected."""
    message = refusal_line(file)
    assert "expected" in message
    return message


def refusal_line(file: Path) -> str:
    """The message with which ``file`` is refused: one line that names it."""
    with pytest.raises(TrainingError) as refused:
        judge(read_curve(file))
    message = str(refused.value)
    assert str(file) in message
    assert message.isprintable()  # a line end is not
    assert len(message) < 1000
    return message


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# What is read.


@pytest.mark.parametrize("train", ["train_loss", "training_loss", "loss", "train/loss"])
@pytest.mark.parametrize("validation", ["val_loss", "validation_loss", "valid_loss", "eval_loss", "val/loss"])
def test_columns_by_other_names(tmp_path: Path, train: str, validation: str) -> None:
    expected = [(1, 0.5, 0.6), (2, 0.4, 0.5)]
    table = f"epoch,{train},{validation}\n1,0.5,0.6\n2,0.4,0.5\n"
    assert losses(written(tmp_path, "log.csv", table)) == expected
    rows = [{"epoch": epoch, train: loss, validation: held_out} for epoch, loss, held_out in expected]
    assert losses(written(tmp_path, "log.jsonl", lines(*rows))) == expected
    assert losses(written(tmp_path, "log.json", lines(*rows))) == expected


def test_what_a_bare_loss_is_decides_what_is_read_off_it(tmp_path: Path) -> None:
    file = written(tmp_path, "log.csv", "epoch,loss,val_loss\n0,0.5,0.6\n")
    assert read_curve(file) == [EpochLosses(0, 0.5, 0.6, train_noise_mse=0.5, validation_noise_mse=0.6)]
    assert read_curve(file, "other") == [EpochLosses(0, 0.5, 0.6)]


def test_other_columns_and_their_order_do_not_matter(tmp_path: Path) -> None:
    table = "step,val_loss,note,epoch,lr,train_loss\n10,0.6,good,1,1e-4,0.5\n"
    assert losses(written(tmp_path, "log.csv", table)) == [(1, 0.5, 0.6)]


def test_the_training_loss_is_preferred_to_a_total(tmp_path: Path) -> None:
    assert losses(written(tmp_path, "log.csv", "epoch,loss,train_loss\n1,9.0,0.5\n")) == [(1, 0.5, None)]


@pytest.mark.parametrize("name", ["log.CSV", "log.Csv"])
def test_a_suffix_in_capitals(tmp_path: Path, name: str) -> None:
    assert losses(written(tmp_path, name, "epoch,loss\n1,0.5\n")) == [(1, 0.5, None)]


def test_rows_of_one_epoch_are_merged(tmp_path: Path) -> None:
    """As Lightning's CSVLogger writes: held-out and training losses in rows of their own."""
    table = "epoch,step,train_loss,val_loss\n0,9,,0.6\n0,9,0.5,\n1,19,,0.55\n1,19,0.4,\n"
    assert losses(written(tmp_path, "metrics.csv", table)) == [(0, 0.5, 0.6), (1, 0.4, 0.55)]


def test_a_validation_row_of_an_epoch_that_is_not_done_is_left_out(tmp_path: Path) -> None:
    table = "epoch,train_loss,val_loss\n0,,0.6\n0,0.5,\n1,,0.55\n"
    assert losses(written(tmp_path, "metrics.csv", table)) == [(0, 0.5, 0.6)]


def test_the_later_row_of_an_epoch_counts(tmp_path: Path) -> None:
    """A run that was resumed appends the epochs that it does again."""
    table = "epoch,loss\n1,0.5\n2,0.4\n3,0.3\n2,0.41\n3,0.31\n4,0.2\n"
    assert losses(written(tmp_path, "log.csv", table)) == [
        (1, 0.5, None),
        (2, 0.41, None),
        (3, 0.31, None),
        (4, 0.2, None),
    ]


def test_epochs_are_sorted(tmp_path: Path) -> None:
    file = written(tmp_path, "log.csv", "epoch,loss\n3,0.3\n1,0.5\n2,0.4\n")
    assert losses(file) == [(1, 0.5, None), (2, 0.4, None), (3, 0.3, None)]


def test_epochs_with_gaps_between(tmp_path: Path) -> None:
    file = written(tmp_path, "log.csv", "epoch,loss\n10,0.5\n20,0.4\n")
    assert losses(file) == [(10, 0.5, None), (20, 0.4, None)]


def test_validation_in_some_epochs(tmp_path: Path) -> None:
    file = written(tmp_path, "log.csv", "epoch,loss,val_loss\n1,0.5,\n2,0.4,0.6\n3,0.3\n")
    assert losses(file) == [(1, 0.5, None), (2, 0.4, 0.6), (3, 0.3, None)]


def test_numbers_in_quotes_and_epochs_with_a_point(tmp_path: Path) -> None:
    """pandas writes whole numbers as 1.0 where a column has gaps."""
    assert losses(written(tmp_path, "a.csv", 'epoch,loss\n"1.0","0.5"\n')) == [(1, 0.5, None)]
    assert losses(written(tmp_path, "a.jsonl", '{"epoch": "1", "loss": "0.5"}\n')) == [(1, 0.5, None)]
    assert losses(written(tmp_path, "b.jsonl", '{"epoch": 1.0, "loss": 5e-1}\n')) == [(1, 0.5, None)]


def test_spaces_and_empty_lines(tmp_path: Path) -> None:
    assert losses(written(tmp_path, "a.csv", " epoch , loss\n\n1 , 0.5\n\n")) == [(1, 0.5, None)]
    assert losses(written(tmp_path, "a.jsonl", '\n {"epoch": 1, "loss": 0.5} \n\n')) == [(1, 0.5, None)]


def test_a_cell_of_spaces_is_empty(tmp_path: Path) -> None:
    assert losses(written(tmp_path, "a.csv", "epoch, loss, val_loss\n1, 0.5, \n")) == [(1, 0.5, None)]


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_line_ends_of_other_systems(tmp_path: Path, end: str) -> None:
    assert losses(written(tmp_path, "a.csv", end.join(["epoch,loss", "1,0.5", "2,0.4", ""]))) == [
        (1, 0.5, None),
        (2, 0.4, None),
    ]
    rows = [json.dumps({"epoch": epoch, "loss": 0.5}) for epoch in (1, 2)]
    assert len(losses(written(tmp_path, "a.jsonl", end.join([*rows, ""])))) == 2


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_byte_order_mark(tmp_path: Path, name: str) -> None:
    """Spreadsheets write one."""
    content = "epoch,loss\n1,0.5\n" if name == "a.csv" else lines({"epoch": 1, "loss": 0.5})
    assert losses(written(tmp_path, name, b"\xef\xbb\xbf" + content.encode())) == [(1, 0.5, None)]


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x1c", "\x0b"])
def test_what_some_call_a_line_end_is_none_within_a_row(tmp_path: Path, separator: str) -> None:
    row = json.dumps({"epoch": 1, "loss": 0.5, "note": f"a{separator}b"}, ensure_ascii=separator < " ")
    assert losses(written(tmp_path, "a.jsonl", row + "\n")) == [(1, 0.5, None)]
    assert losses(written(tmp_path, "a.csv", f"epoch,note,loss\n1,a{separator}b,0.5\n")) == [(1, 0.5, None)]


def test_a_quoted_cell_of_two_lines(tmp_path: Path) -> None:
    assert losses(written(tmp_path, "a.csv", 'epoch,note,loss\n1,"a\nb",0.5\n2,"c",0.4\n')) == [
        (1, 0.5, None),
        (2, 0.4, None),
    ]


# NaN: never lost, for it is what a check is for.


@pytest.mark.parametrize("text", ["NaN", "nan", "NAN", "-nan"])
def test_nan_in_a_table(tmp_path: Path, text: str) -> None:
    (_, last) = losses(written(tmp_path, "a.csv", f"epoch,loss,val_loss\n1,0.5,0.6\n2,{text},{text}\n"))
    assert math.isnan(last[1])
    assert last[2] is not None
    assert math.isnan(last[2])


@pytest.mark.parametrize(("text", "value"), [("Infinity", math.inf), ("-Infinity", -math.inf), ("1e999", math.inf)])
def test_infinity(tmp_path: Path, text: str, value: float) -> None:
    assert losses(written(tmp_path, "a.csv", f"epoch,loss\n1,{text}\n")) == [(1, value, None)]
    assert losses(written(tmp_path, "a.jsonl", f'{{"epoch": 1, "loss": {text}}}\n')) == [(1, value, None)]


def test_nan_in_json(tmp_path: Path) -> None:
    (first,) = losses(written(tmp_path, "a.jsonl", '{"epoch": 1, "loss": NaN, "val_loss": NaN}\n'))
    assert math.isnan(first[1])
    assert first[2] is not None
    assert math.isnan(first[2])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines({"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": None}, {"epoch": 3, "loss": None})),
        ("a.jsonl", lines({"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": None, "val_loss": None})),
        ("a.csv", "epoch,loss\n1,0.5\n2,\n3,\n"),
        ("a.csv", "epoch,loss,val_loss\n1,0.5,0.6\n2,,\n"),
        ("a.csv", "epoch,loss\n1,0.5\n2,null\n"),
        ("a.csv", "epoch,loss\n1,0.5\n2,None\n"),
        ("a.csv", "epoch,loss\n1,0.5\n2,N/A\n"),
    ],
    ids=["JSON null", "JSON two nulls", "empty cell", "two empty cells", "null", "None", "N/A"],
)
def test_a_run_that_ends_in_nan_is_not_healthy_for_its_log_wrote_it_otherwise(
    tmp_path: Path, name: str, content: str
) -> None:
    """Strict JSON writes NaN as null, pandas as an empty cell: read as NaN, or refused; never as a shorter run."""
    file = written(tmp_path, name, content)
    try:
        findings = judge(read_curve(file))
    except TrainingError:
        refusal(file)
    else:
        assert "non_finite" in {finding.code for finding in findings}


# What is refused.


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize("content", ["", "\n\n", " "])
def test_an_empty_file(tmp_path: Path, name: str, content: str) -> None:
    refusal(written(tmp_path, name, content))


def test_a_table_of_a_header(tmp_path: Path) -> None:
    refusal(written(tmp_path, "a.csv", "epoch,loss\n"))


def test_a_missing_file(tmp_path: Path) -> None:
    assert "is missing" in refusal(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(bytes(range(256)) * 8, id="bytes"),
        pytest.param(b"\x00" * 4096, id="zeros"),
        pytest.param("epoch,loss\n1,0.5\n".encode("utf-16"), id="utf-16"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + b"\x00" * 64, id="picture"),
    ],
)
def test_a_binary_file(tmp_path: Path, name: str, content: bytes) -> None:
    refusal(written(tmp_path, name, content))


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    with file.open("wb") as opened:
        opened.truncate(MAX_BYTES + 1)
    assert str(MAX_BYTES + 1) in refusal(file)


def test_a_row_a_step_is_no_row_an_epoch(tmp_path: Path) -> None:
    table = "epoch,loss\n" + "".join(f"{step},0.5\n" for step in range(MAX_EPOCHS + 1))
    assert str(MAX_EPOCHS) in refusal(written(tmp_path, "a.csv", table))


def test_semicolons_between_columns(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, "a.csv", "epoch;train_loss;val_loss\n1;0,5;0,6\n"))
    assert "epoch;train_loss;val_loss" in message


def test_a_comma_in_a_number_is_not_read_as_two_columns(tmp_path: Path) -> None:
    """0,52 in a table with commas between columns would be a loss of 0."""
    refusal(written(tmp_path, "a.csv", "epoch,train_loss\n1,0,52\n2,0,41\n"))


@pytest.mark.parametrize(
    ("epoch", "received"),
    [
        ("1.5", "1.5"),
        ("-1", "-1"),
        ("NaN", "nan"),
        ("Infinity", "inf"),
        ("true", "True"),
        ("1e300", "1e+300"),
        ('"one"', "one"),
        ("[1]", "[1]"),
        ("{}", "{}"),
        ('""', ""),
        pytest.param("1" + "0" * 400, "1000", id="beyond floats"),
    ],
)
def test_an_epoch_that_is_no_whole_number(tmp_path: Path, epoch: str, received: str) -> None:
    file = written(tmp_path, "a.jsonl", f'{{"epoch": 0, "loss": 1.0}}\n{{"epoch": {epoch}, "loss": 0.5}}\n')
    message = refusal(file)
    assert f"{file}, line 2" in message
    assert received in message


@pytest.mark.parametrize(
    "row",
    ['{"loss": 0.5}', '{"epoch": null, "loss": 0.5}', "{}", '{"a\\nb": 1, "\\u001b[31m": 2}'],
    ids=["none", "null", "nothing", "names that are not printable"],
)
def test_a_row_without_an_epoch(tmp_path: Path, row: str) -> None:
    assert "line 1" in refusal(written(tmp_path, "a.jsonl", row + "\n"))


def test_a_table_without_an_epoch(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, "a.csv", "step,loss\n1,0.5\n"))
    assert "step, loss" in message


def test_thousands_of_columns_are_not_all_named(tmp_path: Path) -> None:
    refusal(written(tmp_path, "a.jsonl", json.dumps({f"column {n}": n for n in range(5000)}) + "\n"))


@pytest.mark.parametrize(
    "loss",
    [
        "true",
        "false",
        '"low"',
        '""',
        "[0.5]",
        '{"mean": 0.5}',
        pytest.param("1" + "0" * 400, id="an integer beyond floats"),
        pytest.param("1" * 5000, id="an integer of 5000 digits"),
    ],
)
@pytest.mark.parametrize("column", ["loss", "val_loss"])
def test_a_loss_that_is_no_number(tmp_path: Path, column: str, loss: str) -> None:
    file = written(tmp_path, "a.jsonl", f'{{"epoch": 1, "loss": 0.5, "{column}": {loss}}}\n')
    assert "line 1" in refusal(file)


def test_a_cell_that_is_no_number(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", "epoch,loss\n1,0.5\n2,low\n")
    message = refusal(file)
    assert f"{file}, line 3" in message
    assert "'low'" in message


def test_the_line_that_is_named_is_the_files(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", 'epoch,note,loss\n1,"a\nb",0.5\n\n2,c,low\n')
    assert f"{file}, line 5" in refusal(file)


def test_a_cell_longer_than_csv_takes(tmp_path: Path) -> None:
    refusal(written(tmp_path, "a.csv", "epoch,note,loss\n1," + "x" * (csv.field_size_limit() + 1) + ",0.5\n"))


def test_a_quote_that_does_not_close(tmp_path: Path) -> None:
    """It swallows the rest of the table."""
    refusal(written(tmp_path, "a.csv", 'epoch,note,loss\n1,a,0.5\n2,"b,0.4\n3,c,NaN\n'))


def test_no_training_loss(tmp_path: Path) -> None:
    refusal(written(tmp_path, "a.csv", "epoch,val_loss\n1,0.5\n"))
    refusal(written(tmp_path, "a.jsonl", lines({"epoch": 1, "accuracy": 0.5})))


def test_a_training_loss_that_is_missing_between(tmp_path: Path) -> None:
    assert "epoch 2" in refusal(written(tmp_path, "a.csv", "epoch,loss,val_loss\n1,0.5,0.6\n2,,0.5\n3,0.3,0.4\n"))


@pytest.mark.parametrize("row", ["[1, 0.5]", "12", '"epoch"', "null", "not json", "{'epoch': 1}", "[{}]"])
def test_a_line_that_is_no_object(tmp_path: Path, row: str) -> None:
    content = lines({"epoch": 1, "loss": 0.5}) + row + "\n"
    assert "line 2" in refusal(written(tmp_path, "a.jsonl", content))


def test_one_json_document_over_several_lines(tmp_path: Path) -> None:
    refusal(written(tmp_path, "a.json", json.dumps([{"epoch": 1, "loss": 0.5}], indent=2) + "\n"))
    refusal(written(tmp_path, "b.json", json.dumps({"loss": [0.5], "val_loss": [0.6]}) + "\n"))


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
@pytest.mark.parametrize("end", ["\n", ""], ids=["whole", "torn"])
def test_deeply_nested_json(tmp_path: Path, opening: str, closing: str, end: str) -> None:
    """Also at depths that are read, and then cannot be shown."""
    for depth in (100, *range(300, 1000, 20), 1000, 100_000):
        nested = opening * depth + "1" + closing * depth
        refusal_line(written(tmp_path, "a.jsonl", nested + end))
        refusal_line(written(tmp_path, "b.jsonl", f'{{"epoch": 1, "loss": {nested}}}\n'))


# Lines that were being written when the machine stopped.


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    whole = lines({"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.4}, {"epoch": 3, "loss": 0.3})
    third = len(lines({"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.4}))
    for cut in range(third, len(whole) - 1):
        assert losses(written(tmp_path, "a.jsonl", whole[:cut])) == [(1, 0.5, None), (2, 0.4, None)]


def test_a_last_line_that_lacks_nothing_but_its_end_counts(tmp_path: Path) -> None:
    """Editors strip it."""
    assert losses(written(tmp_path, "a.jsonl", '{"epoch": 1, "loss": 0.5}')) == [(1, 0.5, None)]
    assert losses(written(tmp_path, "a.csv", "epoch,loss\n1,0.5")) == [(1, 0.5, None)]


def test_a_line_torn_within_a_character(tmp_path: Path) -> None:
    row = '{"epoch": 1, "loss": 0.5}\n{"epoch": 2, "note": "gelöst'.encode()
    assert losses(written(tmp_path, "a.jsonl", row[:-3])) == [(1, 0.5, None)]


def test_a_torn_line_between_is_refused(tmp_path: Path) -> None:
    assert "line 1" in refusal(written(tmp_path, "a.jsonl", '{"epoch": 1, "lo\n{"epoch": 2, "loss": 0.5}\n'))


# Histories of chunkcast-train.


def test_a_history_of_chunkcast_train(small_run: Path) -> None:
    curve, records = read_curve(small_run / "history.jsonl"), read_history(small_run)
    assert curve == curve_of_records(records)
    assert [epoch.epoch for epoch in curve] == [1, 2, 3, 4]
    last, record = curve[-1], records[-1]
    assert last == EpochLosses(
        epoch=4,
        train_loss=record.train_loss,
        validation_loss=record.validation_loss,
        train_noise_mse=record.train_noise_mse,
        validation_noise_mse=record.validation_noise_mse,
        action_mse=record.validation_action_mse,
        action_variance=record.validation_action_variance,
        gradient_norm=record.gradient_norm,
    )
    assert (last.noise_mse, last.judged_loss) == (record.validation_noise_mse, record.validation_loss)


def test_what_a_bare_loss_is_does_not_matter_for_a_history_of_chunkcast_train(small_run: Path) -> None:
    assert read_curve(small_run / "history.jsonl", "other") == read_curve(small_run / "history.jsonl")


def test_a_torn_history_of_chunkcast_train(small_run: Path, tmp_path: Path) -> None:
    text = (small_run / "history.jsonl").read_text()
    assert read_curve(written(tmp_path, "history.jsonl", text[:-10])) == read_curve(small_run / "history.jsonl")[:3]


def test_both_ways_to_read_a_run_see_the_same_epochs(small_run: Path, tmp_path: Path) -> None:
    """The whole records and the losses stand side by side in a report."""
    written(tmp_path, "history.jsonl", (small_run / "history.jsonl").read_text().rstrip("\n"))
    curve, records, _, _ = read_run(tmp_path, "noise-mse", None, None)
    assert records is not None
    assert [epoch.epoch for epoch in curve] == [record.epoch for record in records]


def own_rows(small_run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (small_run / "history.jsonl").read_text().splitlines()]


def test_nan_in_a_history_of_chunkcast_train(small_run: Path, tmp_path: Path) -> None:
    rows = own_rows(small_run)
    rows[-1]["train_loss"] = NAN
    assert math.isnan(read_curve(written(tmp_path, "history.jsonl", lines(*rows)))[-1].train_loss)


@pytest.mark.parametrize("field", ["validation_action_mse", "train_noise_mse", "gradient_norm", "validation_loss"])
def test_a_history_of_an_older_release(small_run: Path, tmp_path: Path, field: str) -> None:
    rows = [{name: value for name, value in row.items() if name != field} for row in own_rows(small_run)]
    file = written(tmp_path, "history.jsonl", lines(*rows))
    if field == "train_noise_mse":  # then it is any trainer's
        assert len(read_curve(file)) == 4
    else:
        assert field in refusal_line(file)


def test_a_history_of_a_younger_release(small_run: Path, tmp_path: Path) -> None:
    rows = [{**row, "entropy": 1.0} for row in own_rows(small_run)]
    assert "entropy" in refusal_line(written(tmp_path, "history.jsonl", lines(*rows)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train_loss", "low"),
        ("train_loss", [0.5]),
        ("train_loss", True),
        ("validation_loss", {}),
        ("gradient_norm", "high"),
        ("validation_action_mse", "0.1"),
        ("epoch", "two"),
        ("epoch", 1.5),
        ("epoch", True),
        ("epoch", [2]),
        pytest.param("train_loss", 10**400, id="train_loss-beyond floats"),
    ],
)
def test_a_history_of_chunkcast_train_that_someone_edited(
    small_run: Path, tmp_path: Path, field: str, value: Any
) -> None:
    rows = own_rows(small_run)
    rows[1][field] = value
    refusal(written(tmp_path, "history.jsonl", lines(*rows)))


def test_the_epochs_of_chunkcast_train_ascend_or_are_refused(small_run: Path, tmp_path: Path) -> None:
    rows = own_rows(small_run)
    file = written(tmp_path, "history.jsonl", lines(*rows[::-1], rows[0]))
    try:
        epochs = [epoch.epoch for epoch in read_curve(file)]
    except TrainingError:
        refusal(file)
    else:
        assert epochs == [1, 2, 3, 4]


# For any numbers.

LOSS = st.floats(allow_nan=False)
CURVES = st.dictionaries(st.integers(0, 10**6), st.tuples(LOSS, st.none() | LOSS), min_size=1, max_size=12)


@given(CURVES)
def test_numbers_survive_the_way_through_a_file(curve: dict[int, tuple[float, float | None]]) -> None:
    expected = [(epoch, *curve[epoch]) for epoch in sorted(curve)]
    table = io.StringIO()
    csv.writer(table).writerows([["epoch", "loss", "val_loss"], *[(epoch, *curve[epoch]) for epoch in curve]])
    rows = [{"epoch": epoch, "loss": loss, "val_loss": held_out} for epoch, (loss, held_out) in curve.items()]
    with tempfile.TemporaryDirectory() as folder:
        assert losses(written(Path(folder), "a.csv", table.getvalue())) == expected
        assert losses(written(Path(folder), "a.jsonl", lines(*rows))) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["epoch", "loss", "val_loss", "train_loss", "train_noise_mse", "note"])


def outcome(name: str, content: bytes) -> list[EpochLosses] | str:
    """The curve that is read, which can be judged, or the message with which the file is refused."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            curve = read_curve(written(Path(folder), name, content))
        except TrainingError as error:
            return str(error)
        judge(curve)
        return curve


def assert_read_or_refused(result: list[EpochLosses] | str) -> None:
    if isinstance(result, str):
        assert len(result.splitlines()) == 1
    else:
        epochs = [epoch.epoch for epoch in result]
        assert epochs == sorted(set(epochs)) != []


@given(st.lists(st.dictionaries(NAMES, JSON, max_size=6) | JSON, max_size=5))
def test_any_json_is_read_or_refused_in_one_line(rows: list[Any]) -> None:
    assert_read_or_refused(outcome("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()))


@given(st.sampled_from(["a.csv", "a.jsonl"]), st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_read_or_refused_in_one_line(name: str, content: bytes) -> None:
    assert_read_or_refused(outcome(name, content))
    assert_read_or_refused(outcome(name, b"epoch,loss\n1,0.5\n" + content))
