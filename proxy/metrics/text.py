"""A state as text: Prometheus' format, or OpenMetrics for who asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from .families import FAMILIES, Family, Kind
from .state import Sample, State, empty


def rendered(state: State, accept: str = "") -> tuple[bytes, str]:
    """The text and its content type. `accept` is that header of who asks."""
    encode, content_type = choose_encoder(accept)
    return encode(_Families(state)), content_type


class _Families(Collector):
    def __init__(self, state: State) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Every family, those without a number yet too: a dashboard may ask for them."""
        for family in FAMILIES:
            samples = self._state.get(family.name, [])
            if not samples and not family.labels and family.name.startswith("slurmgate_"):
                samples = [([], empty(family.name))]
            yield _metric(family, samples)


def _metric(family: Family, samples: list[Sample]) -> Metric:
    if family.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, number in samples:
            assert isinstance(number, list)  # noqa: S101  # told to the type checker: states are made beside families
            bounds = [*(str(float(bound)) for bound in family.bounds), "+Inf"]
            histogram.add_metric(labels, list(zip(bounds, accumulate(number[:-1]), strict=True)), number[-1])
        return histogram
    kind = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=family.labels)
    for labels, number in samples:
        assert not isinstance(number, list)  # noqa: S101
        metric.add_metric(labels, number)
    return metric
