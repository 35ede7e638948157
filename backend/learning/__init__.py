"""From reviews to a promoted version."""
