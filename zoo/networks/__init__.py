"""Which networks do encoders and decoders share?"""
