"""The report: every figure of a run's results as one page that opens without network, each also as SVG and CSV."""
