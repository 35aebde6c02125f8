"""The client: rows from several servers as one row source."""
