import math

from asr_lightning.report.tables import as_csv, as_markdown, as_text, number, summarize


def test_summaries_of_seeds() -> None:
    assert summarize([]) == "–"
    assert summarize([0.12345]) == "12.35"
    assert summarize([0.1, 0.2]) == "15.00 ± 7.07"
    assert summarize([0.1, math.inf]) == "inf"


def test_tables() -> None:
    table = [["run", "a|b"], ["wide", "1"]]
    assert as_text(table) == "run   a|b\nwide    1"
    assert as_markdown(table) == "| run | a\\|b |\n| --- | ---: |\n| wide | 1 |"
    rates = [
        ["subset", "WER", "interval", "p"],
        ["clean", "7.23 ± 0.10", "−5.1 … −3.0", "< 0.001"],
        ["other", "–", "–", "–"],
    ]
    assert as_markdown(rates).splitlines()[1] == "| --- | ---: | ---: | ---: |"
    assert as_text([["run", "rate"]]) == "run  rate"
    assert as_csv([["id", "rate"], ["a,b", 1 / 3], ["c", None]]) == 'id,rate\n"a,b",0.333333\nc,\n'
    assert [number(None, ".1f"), number(0.25, ".1f"), number(1234, ",")] == ["–", "0.2", "1,234"]
