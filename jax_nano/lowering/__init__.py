"""The rules of the primitives: how a product becomes a custom call, under every transformation of JAX."""
