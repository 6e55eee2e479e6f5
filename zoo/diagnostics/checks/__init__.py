"""The checks of a trained pair, one file each: a class that measures, judges, explains and draws itself.

A new check is a file here with a class that follows :class:`zoo.diagnostics.checks.check.Check`, and a line in
:data:`zoo.diagnostics.checks.every.CHECKS`. :func:`zoo.diagnose`, ``zoo diagnose`` and the report iterate over it.
"""
