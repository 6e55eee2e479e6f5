"""The suites of this package: one module each, whose function ``suite(budget)`` returns it."""
