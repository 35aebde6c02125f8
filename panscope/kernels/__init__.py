"""How the mathematics is computed: the plain reference, and later its fast twins."""
