"""Other libraries that compute gradients of single examples, each run in an environment of its own."""
