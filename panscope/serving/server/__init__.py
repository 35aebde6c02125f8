"""The server: reads windows of rows into memory and sends them to trainers."""
