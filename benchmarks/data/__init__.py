"""Reading and writing of text and of stored activations, against plain reads, writes and copies."""
