"""How well does p describe the data, and which size of model does so best?"""
