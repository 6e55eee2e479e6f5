"""Which class does a name mean: a built-in one, one that an installed package announces, or one in a file?"""
