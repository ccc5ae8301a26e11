"""CUDA C++ programs that measure a GPU; compiled on the target, each prints one JSON line per point."""
