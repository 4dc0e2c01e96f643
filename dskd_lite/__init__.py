"""Dual-student knowledge distillation (DSKD) for visual anomaly detection."""

__version__ = "0.1.0"
