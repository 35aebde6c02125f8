"""Files that survive a crash and detect damage: atomic writes, checksums, JSON lines, locks, tensors."""
