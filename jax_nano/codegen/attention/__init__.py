"""Attention and its gradients: loop nests of their own around the microkernels of products."""
