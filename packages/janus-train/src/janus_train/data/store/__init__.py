"""Sets larger than memory: frames in LMDB files, and what is known of them in mapped columns."""

from janus_train.data.store.convert import Conversion, convert
from janus_train.data.store.sizes import StoredSizes, measure_sizes, stored_sizes
from janus_train.data.store.store import Store

__all__ = ["Conversion", "Store", "StoredSizes", "convert", "measure_sizes", "stored_sizes"]
