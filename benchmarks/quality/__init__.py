"""How good trained coders are: Panscope against other libraries, and the findings of papers."""
