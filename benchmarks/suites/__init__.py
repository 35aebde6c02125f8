"""Suite files of the numbers in docs/, and `data.py`, which fetches the model and the text that they need."""
