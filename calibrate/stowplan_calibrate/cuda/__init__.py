"""CUDA C++ programs that measure a GPU; compiled on the target, each prints one JSON line per point.

What is tested without a GPU: that the sources compile, that the programs say so where no device is, and that lines as
they print them become samples, fits and profiles. Their figures have not been checked against hardware yet.
"""
