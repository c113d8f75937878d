"""What Flower runs: the apps, the strategy and the records between them."""
