"""Charts: round ticks that enclose the values, gaps, single points, and nothing to draw."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from eval.report.charts import Line, Spot, line_chart, scatter_chart, ticks
from eval.report.templates import palette


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.2, 3.3), (-5, 612), (7, 7), (0, 0), (1e-5, 3e-5)])
def test_ticks_enclose_the_values(low: float, high: float):
    values = ticks(low, high)
    assert values[0] <= low and values[-1] >= high
    assert 2 <= len(values) <= 9


def test_a_line_leaves_out_missing_points_and_marks_the_best():
    chart = line_chart([Line("a & b", "red", [1, 2, 3], [5.0, None, 7.0], mark=3)], label='R@sum "per" epoch')
    svg = ElementTree.fromstring(chart)
    line = next(path for path in svg.iter("path") if path.get("class") == "line")
    assert line.get("d").count("L") == 1
    assert sum(1 for _ in svg.iter("circle")) == 1


def test_a_chart_needs_two_points():
    for line in (Line("a", "red", [1], [5.0]), Line("a", "red", [1], [None]), Line("a", "red", [1, 2], [None, 5.0])):
        assert line_chart([line, line], label="x") == ""
    assert scatter_chart([Spot("a", "red", 0.5, 300.0)], label="x", x_name="ms") == ""


def test_names_stand_at_the_ends_of_lines_and_do_not_meet():
    lines = [Line(f"a <{n}>", "red", [1, 2], [5.0, 6 + n / 100]) for n in range(6)]
    svg = ElementTree.fromstring(line_chart(lines, label="x", named=True))
    names = {text.text: float(text.get("y")) for text in svg.iter("text") if text.get("class") == "name"}
    assert list(names) == [line.name for line in lines]
    heights = list(names.values())  # the higher the value the further up
    assert all(above - below >= 11.9 for above, below in zip(heights, heights[1:], strict=False))
    assert min(heights) > 0 and max(heights) < 220
    assert "name" not in line_chart(lines, label="x")


def test_colours_are_distinct_with_colour_blindness_too():
    """Colours as people with full red or green deficiency see them, in linear RGB (Machado, Oliveira and Fernandes
    2009)."""
    red = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    green = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    for name, least, count in (("run", 8, 10), ("k", 13, 8)):
        colours = palette(name)
        assert len(set(colours)) == count
        for seen in (np.eye(3), np.array(red), np.array(green)):
            points = [oklab(seen @ linear(colour)) for colour in colours]
            distances = [100 * np.linalg.norm(a - b) for place, a in enumerate(points) for b in points[:place]]
            assert min(distances) >= least


def linear(colour: str) -> np.ndarray:
    """A colour's linear red, green and blue."""
    parts = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """Colours in coordinates whose distance is the perceived difference, 1 from black to white (Ottosson 2020)."""
    cones = [
        [0.41222147, 0.53633254, 0.05144599],
        [0.2119035, 0.68069955, 0.10739696],
        [0.08830246, 0.28171884, 0.62997870],
    ]
    lab = [
        [0.21045426, 0.79361779, -0.00407205],
        [1.9779985, -2.42859221, 0.45059371],
        [0.02590404, 0.78277177, -0.80867577],
    ]
    return np.array(lab) @ np.cbrt(np.array(cones) @ np.clip(rgb, 0, 1))


def test_factors_are_evenly_apart_with_a_dot_and_a_range_each():
    chart = line_chart([Line("a", "red", [1, 10, 100], [5.0, 6, 7], ranges=[(4, 6)] * 3)], label="x", log=True)
    dots = [float(spot.get("cx")) for spot in ElementTree.fromstring(chart).iter("circle")]
    assert len(dots) == 3 and dots[1] - dots[0] == pytest.approx(dots[2] - dots[1], abs=0.2)
    assert chart.count("whisker") == 3


def test_names_beside_spots_do_not_meet():
    spots = [Spot(f"run <{n}>", "red", 0.01 * 10**n, 300.0) for n in range(4)]
    svg = ElementTree.fromstring(scatter_chart(spots, label="x", x_name="ms"))
    names = [float(text.get("y")) for text in svg.iter("text") if text.get("class") == "name"]
    assert len(names) == 4 and all(abs(a - b) >= 11.8 for a in names for b in names if a is not b)
