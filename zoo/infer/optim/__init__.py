"""With which optimizers are models fitted?"""
