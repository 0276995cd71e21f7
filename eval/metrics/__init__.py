"""Metrics beside the recalls: one interface (`metric.Metric`), one file a metric, by name in `METRICS`."""

from typing import Any

from manifests.registry import Registry

METRICS: Registry[Any] = Registry("metric", "eval.metrics")
