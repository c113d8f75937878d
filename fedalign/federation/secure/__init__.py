"""Secure sums after Bonawitz et al. (2017) and Bell et al. (2020): state machines of a party and of a coordinator."""
