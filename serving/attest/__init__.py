"""`fruitstand attest`: does a running server do what the model repository promises?"""
