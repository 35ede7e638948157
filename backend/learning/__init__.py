"""The learning loop: training runs turn reviews into an adapter, which is promoted if it is better than the one that serves."""
