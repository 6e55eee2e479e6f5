"""How are the supported versions of ArviZ called? No other package imports it."""
