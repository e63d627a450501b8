"""Kernels for GPUs, and what strings them together. Importing a module of them imports Triton."""
