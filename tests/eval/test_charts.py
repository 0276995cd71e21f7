"""Charts: round ticks that enclose the values, gaps, single points, and nothing to draw."""

import xml.etree.ElementTree as ElementTree

import pytest

from eval.report.charts import Line, Spot, line_chart, scatter_chart, ticks


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


def test_factors_are_evenly_apart_with_a_dot_and_a_range_each():
    chart = line_chart([Line("a", "red", [1, 10, 100], [5.0, 6, 7], ranges=[(4, 6)] * 3)], label="x", log=True)
    dots = [float(spot.get("cx")) for spot in ElementTree.fromstring(chart).iter("circle")]
    assert len(dots) == 3 and dots[1] - dots[0] == pytest.approx(dots[2] - dots[1], abs=0.2)
    assert chart.count("whisker") == 3


def test_names_beside_spots_do_not_meet():
    spots = [Spot(f"run <{n}>", "red", 0.01 * 10**n, 300.0) for n in range(4)]
    svg = ElementTree.fromstring(scatter_chart(spots, label="x", x_name="ms"))
    names = [float(text.get("y")) for text in svg.iter("text") if text.get("class") == "name"]
    assert len(names) == 4 and all(abs(a - b) >= 12 for a in names for b in names if a is not b)


def test_a_single_spot_is_drawn():
    svg = ElementTree.fromstring(scatter_chart([Spot("a", "red", 0.5, 300.0)], label="x", x_name="ms"))
    assert sum(1 for _ in svg.iter("circle")) == 1
