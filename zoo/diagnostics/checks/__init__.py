"""The checks of a trained pair, one file each: a class that measures, grades, explains and plots.

To add a check, add a file with a subclass of :class:`zoo.diagnostics.checks.check.Check` and a line in
:data:`zoo.diagnostics.checks.every.CHECKS`; :func:`zoo.diagnose`, ``zoo diagnose`` and the report iterate over them.
"""
