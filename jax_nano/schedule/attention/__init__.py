"""Plans of attention and of its gradients."""
