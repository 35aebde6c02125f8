"""Feature geometry: decoder vectors of trained coders compared with each other, with random vectors and with tokens.

Follows Llama Scope, section 4.6 (Figs 7 and 8), and the Multi-Layer SAE's MMCS. `kernels/cosines.py` finds nearest
neighbours; `baselines` computes the results for random vectors; `mmcs`, `matching`, `splitting`, `neighbours` and
`tokens` are one analysis each; `pairs` selects the coders to compare; and `record` writes the results.
"""
