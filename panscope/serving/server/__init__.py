"""The server: which rows are sent to which trainer."""
