"""How are the versions of ArviZ called: the only package that imports it."""
