"""Laws for whoever brings a part of their own. A broken law raises `AssertionError` and says where."""

from janus_train.testing.sinks import check_metrics_sink

__all__ = ["check_metrics_sink"]
