"""Several models and settings tried on a few labelled pictures of one's own, to choose among them."""
