"""Shard set -> encoder. `load_encoder` opens what `clsp train` exported."""

from .encoder import load_encoder

__all__ = ["load_encoder"]
