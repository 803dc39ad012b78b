"""From a program of JAX to the products in it and the work around them."""
