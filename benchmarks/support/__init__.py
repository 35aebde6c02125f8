"""What several benchmarks share: the description of the machine, the load of other processes, tables, subprocesses."""
