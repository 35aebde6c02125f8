"""A suite is the unit of work: many coders, one language model, one run folder."""
