"""Inspect, calibrate and convert the rotary embedding (RoPE) of a checkpoint."""

__version__ = "0.1.0"
