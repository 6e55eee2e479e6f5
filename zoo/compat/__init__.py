"""Compatibility with the supported versions of ArviZ; no other package imports it."""
