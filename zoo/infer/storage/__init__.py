"""How is a fitted run written to disk and read back?"""
