"""What a plan costs: FLOPs, memory, step time, storage and GPU hours."""
