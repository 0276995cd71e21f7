"""Charts: round ticks that enclose the values, gaps, single points, and nothing to draw."""

import xml.etree.ElementTree as ElementTree

import pytest

from eval.charts import Line, line_chart, ticks


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.2, 3.3), (-5, 612), (7, 7), (0, 0), (1e-5, 3e-5)])
def test_ticks_enclose_the_values(low: float, high: float):
    marks = ticks(low, high)
    assert marks[0] <= low and marks[-1] >= high
    assert 2 <= len(marks) <= 9


def test_a_line_leaves_out_missing_points_and_marks_the_best():
    chart = line_chart([Line("a & b", "red", [1, 2, 3], [5.0, None, 7.0], mark=3)], label='R@sum "per" epoch')
    svg = ElementTree.fromstring(chart)
    line = next(path for path in svg.iter("path") if path.get("class") == "line")
    assert line.get("d").count("L") == 1
    assert sum(1 for _ in svg.iter("circle")) == 1


def test_one_epoch_is_a_dot():
    assert "<circle" in line_chart([Line("a", "red", [1], [5.0])], label="x")


def test_no_values_no_chart():
    assert line_chart([Line("a", "red", [1], [None])], label="x") == ""
