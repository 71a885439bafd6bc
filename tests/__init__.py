"""A package, because benchmarks import from it, and torch-fidelity installs another `tests`."""
