"""The terminal's door: one short file a verb."""
