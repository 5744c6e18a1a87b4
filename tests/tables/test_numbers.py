"""Numbers of a table are read as they are printed, in ranges that they can have; files that are none are named."""

import os

import pytest

from convrepro.cli.main import main
from convrepro.errors import ConvReproError
from convrepro.tables import load_table
from support.small_table import SMALL, write

pytestmark = pytest.mark.unit

VALUE = "value: 94.00"


@pytest.mark.parametrize(
    "printed", ["1:30", "0x10", "010", "2_9", "0o7", "1.5.2", ".inf", ".nan", "true", "'94'", "[94]"]
)
def test_what_is_not_a_decimal_number_is_no_number(tmp_path, printed):
    with pytest.raises(ConvReproError, match=r"published 'top1': `value` must be a number"):
        load_table("paper/small", write(tmp_path, SMALL.replace(VALUE, f"value: {printed}")))


@pytest.mark.parametrize("printed", ["94", "94.00", "0.94e2", "9.4E+1", "+94.0", "94."])
def test_a_decimal_number_is_itself(tmp_path, printed):
    table = load_table("paper/small", write(tmp_path, SMALL.replace(VALUE, f"value: {printed}")))
    assert table.row("plain").published["top1"].value == 94


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        (VALUE, "value: 250", "an accuracy is from 0 to 100 %"),
        (VALUE, "value: -1", "an accuracy is from 0 to 100 %"),
        (VALUE, f"value: {'9' * 5000}", "has 5000 digits, but a number has at most 30"),
        (VALUE, "value: 1e400", "but a number has at most 30"),
        ("tol: 0.3", "tol: 1e9", "must be above 0 and at most 10"),
        ("tol: 0.3", "tol: 0.3, run_metric: top3", "`run_metric` is 'top3'; valid: top1, top5, loss"),
        ("count: conv_fc", "count: conv_fx", "`count` is 'conv_fx'; valid: macs, conv_fc"),
    ],
)
def test_a_value_that_nothing_can_have_is_rejected(tmp_path, old, new, rule):
    assert old in SMALL
    with pytest.raises(ConvReproError, match=rule) as error:
        load_table("paper/small", write(tmp_path, SMALL.replace(old, new)))
    assert len(str(error.value)) < 500


def test_a_claim_that_nothing_fulfils_is_rejected(tmp_path):
    claim = "claims:\n  - {text: no way, left: thin, right: plain, metric: top1, min_delta: 1, max_delta: 0}\n"
    with pytest.raises(ConvReproError, match="`min_delta` 1 is above `max_delta` 0"):
        load_table("paper/small", write(tmp_path, SMALL[: SMALL.index("claims:")] + claim))


def test_what_is_no_file_of_a_table_is_named_at_once(tmp_path):
    folder = write(tmp_path, SMALL) / "paper"
    os.mkfifo(folder / "pipe.yaml")
    (folder / "large.yaml").write_text(SMALL + f"notes: {'long ' * 600_000}\n")
    (folder / "deep.yaml").write_text("[" * 100_000)
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    for name, rule in (("pipe", "is not a file"), ("large", "at most 1,000,000"), ("deep", ""), ("binary", "YAML")):
        with pytest.raises(ConvReproError, match=rf"paper/{name}\.yaml: .*{rule}"):
            load_table(f"paper/{name}", tmp_path)


def test_one_broken_table_among_good_ones_does_not_hide_them(tmp_path, monkeypatch, capsys):
    (write(tmp_path, SMALL) / "paper" / "broken.yaml").write_text("title: [")
    monkeypatch.setattr("convrepro.tables.list_tables.__defaults__", (tmp_path,))
    monkeypatch.setattr("convrepro.tables.load_table.__defaults__", (tmp_path,))
    with pytest.raises(SystemExit) as stop:
        main(["list"])
    told = capsys.readouterr()
    assert stop.value.code == 2
    assert "paper/small" in told.out
    assert "broken.yaml: cannot be read as YAML" in told.err
    assert told.err.count("\n") == 1


def test_the_counting_rules_of_tables_are_those_that_count():
    from convrepro.complexity.rules import RULES
    from convrepro.tables.schema import COUNTING_RULES

    assert set(COUNTING_RULES) == set(RULES)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@host.org/a-01234567.pth",
        "https://host.org/a-01234567.pth?sig=hunter2",
        "s3://k:hunter2@b/x",
    ],
)
@pytest.mark.parametrize("key", ["weights", "data_root", "data.root"])
def test_a_secret_in_a_row_goes_no_farther_than_its_file(tmp_path, key, url):
    text = SMALL.replace("overrides: [conv=standard]", f"overrides: [conv=standard, \"{key}='{url}'\"]")
    with pytest.raises(
        ConvReproError, match=r"small\.yaml: row 'plain': a URL on .* carries a password or key"
    ) as error:
        load_table("paper/small", write(tmp_path, text))
    assert "hunter2" not in str(error.value)
