"""Synthetic: the in-context regression experiment, from drawn tasks to errors by arm (Choi et al., ICLR 2025, 2503.09032)."""
