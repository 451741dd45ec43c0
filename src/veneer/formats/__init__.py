"""Adapter files: other libraries' formats to and from `AdapterState`, and nothing else."""
