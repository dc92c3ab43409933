"""Triton kernels, each beside its reference.

A folder is a kernel: `reference.py` and `triton_kernels.py` hold functions of the same name and
signature. Nothing is imported here, because only `triton_kernels` needs Triton.
"""
