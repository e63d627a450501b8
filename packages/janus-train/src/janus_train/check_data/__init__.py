"""What a data set holds, and what looks wrong in it, before any training."""

from janus_train.check_data.check import DataReport, check

__all__ = ["DataReport", "check"]
