"""Feature geometry: how the decoder vectors of finished coders lie to each other, to chance and to tokens.

Llama Scope, section 4.6 (Figs 7 and 8), and the Multi-Layer SAE's MMCS. `kernels/cosines.py` finds who is nearest; here
`baselines` says what chance gives, `mmcs`, `matching`, `splitting`, `neighbours` and `tokens` are one analysis each,
`pairs` says which coders are worth comparing and `record` writes what came out.
"""
