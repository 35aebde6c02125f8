"""Stored activations over the network: a server of one slice of a store, and the source of rows that reads several."""
