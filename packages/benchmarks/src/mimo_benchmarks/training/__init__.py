"""Training one network: the loop and what it is made of."""
