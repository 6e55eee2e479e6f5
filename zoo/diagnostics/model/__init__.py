"""How well does the model describe the data, and which size of model fits best?"""
